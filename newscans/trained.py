"""A trained experiment, ready for new scans: networks, masks, status classifiers and calibration, without its
cohort."""
from dataclasses import dataclass
from pathlib import Path

from cohort.tracers import tracer_label
from config import VERSION, Config
from evaluation.measurement import Measurement
from evaluation.status import StatusClassifier, load_status_classifiers
from evaluation.uncertainty import Calibration, load_calibration
from experiment.experiment import RESEARCH_NOTICE, mask_files
from experiment.networks import CHECKPOINT, LatentSampler, Networks
from experiment.saved import trained_experiments
from experiment.scoring import CALIBRATION, STATUS_CLASSIFIERS, calibration_bound_to, classifiers_bound_to
from imaging.grids import Grid
from model import Synthesizer
from runtime.checkpoints import check_settings
from runtime.logs import say
from utils import InputError, pick_device, weights_key


@dataclass(frozen=True)
class Trained:
    """A trained experiment whose cohort is not at hand.

    grid: of the cohort's volumes. calibration: of the SUVR, by the test stage, or None. no_interval: why
    there is no calibrated interval, else ''. networks_used: name -> file and key of the weights.
    trained_on: fingerprint of the training and validation list. mri_percentile: setting of the tool.
    tracer: BIDS label of that of all training PETs, '' if not known. extra_sampler: of the samples that are
    written beside the mean PET (--samples), or None.
    """
    cfg: Config
    networks: Networks
    measurement: Measurement
    grid: Grid
    sampler: LatentSampler
    classifiers: dict[str, StatusClassifier]
    calibration: Calibration | None
    no_interval: str
    networks_used: dict[str, dict]
    trained_on: str
    notice: str
    mri_percentile: float
    tracer: str
    extra_sampler: LatentSampler | None = None

    @property
    def synthesizer(self) -> Synthesizer:
        """The synthesis of a PET from latent samples."""
        return self.sampler.synthesizer

    @property
    def made_with(self) -> dict:
        """What makes another PET, or other numbers, of the same MRI."""
        cfg = self.cfg
        settings = {"seed": cfg.seed, **cfg.settings_of("synthesis", "new_scans"),
                    "mri_percentile": self.mri_percentile}
        return {"version": VERSION,
                "networks": {name: used["weights"] for name, used in self.networks_used.items()},
                "precision": self.networks.precision, "masks": self.measurement.mask_keys(),
                "classifiers": sorted(self.classifiers),
                "calibration": self.calibration and self.calibration.key, "settings": settings}


def load_trained(cfg: Config, mri_percentile: float) -> Trained:
    """The experiment of the settings from its checkpoints, each of which is read once, with the classifiers
    and the calibration of its test stage if there are any.

    Raises InputError if its parts do not fit together.
    """
    networks = Networks(cfg, pick_device(cfg.device))
    saved = _read_checkpoints(cfg, networks)
    metadata, trained_on = saved["ldm"]["metadata"], saved["ldm"]["settings"]["training and validation list"]
    networks.check_device()
    grid = Grid(tuple(cfg.image_size), metadata["affine"].numpy())
    measurement = Measurement.read(mask_files(cfg), grid.affine, networks.crop)
    if cfg.matches_suvr and not measurement.regions:
        raise InputError(f"label_at_sampling {cfg.label_at_sampling} needs the regions of the SUVR, and "
                         f"{cfg.data_dir}/truth is not there; give --cortex_mask and --reference_mask, or "
                         "--label_at_sampling mixed")
    synthesizer, predictor = networks.best_synthesizer(saved)
    sampler = LatentSampler(cfg, synthesizer, predictor, measurement, cfg.sampler, cfg.sampling_steps,
                            range(cfg.samples_per_scan), cfg.matches_suvr, drawn=cfg.draws_label)
    used = {"autoencoder": {"file": networks.best_path("aae"), "weights": weights_key(synthesizer.space.aae)},
            "denoiser": {"file": networks.best_path("ldm"), "weights": weights_key(synthesizer.unet)}}
    calibration, no_interval = _read_calibration(cfg, measurement, synthesizer)
    notice = f"{'trained on a digital phantom, ' if metadata['phantom'] else ''}{RESEARCH_NOTICE}"
    classifiers = _read_classifiers(cfg.result_dir, measurement, synthesizer, cfg.covariates)
    return Trained(cfg, networks, measurement, grid, sampler, classifiers, calibration, no_interval, used,
                   trained_on, notice, mri_percentile, tracer_label(metadata.get("tracer", "")))


def _read_checkpoints(cfg: Config, networks: Networks) -> dict[str, dict]:
    """Stage -> its best checkpoint. Raises InputError if one is missing or bound to other settings."""
    saved = {}
    for stage in CHECKPOINT:
        path = networks.best_path(stage)
        if not path.exists():
            trained = ", ".join(trained_experiments()) or "none"
            raise InputError(f"{path} is not there: new scans need a trained experiment; trained here: "
                             f"{trained}")
        saved[stage] = networks.best_checkpoint(stage)
        check_settings(path, saved[stage], cfg.settings_of(stage))
    if not {"affine", "phantom"} <= saved["ldm"]["metadata"].keys():
        raise InputError(f"{path} does not say on which grid it was trained; restore it, or train stage 2 "
                         "again")
    return saved


def _read_classifiers(folder: Path, measurement: Measurement, synthesizer: Synthesizer,
                      covariates: tuple[str, ...]) -> dict[str, StatusClassifier]:
    """The status classifiers that the test stage fitted, as far as they belong to these networks and masks;
    says which are missing."""
    path, bound_to = folder / STATUS_CLASSIFIERS, classifiers_bound_to(measurement.mask_keys(), synthesizer,
                                                                         covariates)
    classifiers = load_status_classifiers(path, bound_to) if path.exists() else {}
    missing = [name for name in bound_to if name not in classifiers]
    if missing:
        why = "are of other networks or masks" if path.exists() else "are not there"
        say("synth", f"amyloid status is not read by {', '.join(missing)}: these classifiers {why}; --stages "
                     f"test fits them and writes {path}")
    return classifiers


def _read_calibration(cfg: Config, measurement: Measurement,
                      synthesizer: Synthesizer) -> tuple[Calibration | None, str]:
    """The calibration of the SUVR, if the test stage made one for this sampling, and why it gives no
    interval, which is said."""
    if not measurement.regions:
        return None, ""
    bound_to = calibration_bound_to(cfg.sampling_settings(), measurement.mask_keys(), synthesizer)
    calibration, why_not = load_calibration(cfg.result_dir / CALIBRATION, bound_to)
    why_not = why_not or calibration.why_no_interval
    if why_not:
        say("synth", f"the SUVR has no calibrated interval: {why_not}")
    return calibration, why_not
