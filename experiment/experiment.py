"""An experiment: settings, a checked cohort, the device, and what the stages share of them."""
import copy
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from config import DENOISER, LABELLED, SCHEDULED, Config
from dataset import (LATENTS, Cohort, EpochOrder, LatentCache, Scan, VolumeDataset, volume_loader)
from evaluation.measurement import MaskFiles, Measurement
from evaluation.results import load_run
from evaluation.scores import SHOWN_SUBJECTS
from experiment.networks import (CHECKPOINT, LatentSampler, Networks, build_aae, build_baseline,
                                 build_discriminator, build_unet, checkpoint_name)
from experiment.survey import Survey, load_survey, make_survey, save_survey, survey_key
from imaging.cache import VolumeCache
from imaging.grids import Crop
from imaging.regions import AUTOMATIC, automatic_regions
from labels.covariates import cells_key
from labels.people import read_covariates
from labels.ridge import LabelPredictor
from model import AAE, Synthesizer
from runtime.checkpoints import StageRun, check_settings, load_checkpoint, tensor_bytes
from runtime.files import can_write, make_folder
from runtime.logs import readable, say
from runtime.ranks import DistributedBatches, from_rank_0, world_size
from runtime.shared_memory import free_shared_memory, readers_that_fit
from utils import InputError, derived_seed, weights_key

PHANTOM_NOTICE = "digital phantom, not patient data"
RESEARCH_NOTICE = "research only, not for clinical use"


def region_kind(cfg: Config) -> str:
    """In which regions the SUVR is measured: own (masks of the user), phantom, centiloid, mni or none."""
    if cfg.cortex_mask:
        return "own"
    if cfg.regions != "auto":
        return cfg.regions
    if is_phantom(cfg.data_dir):
        return "phantom"
    return "none" if cfg.is_phantom else "mni"             # none: a phantom whose folder is gone


def mask_files(cfg: Config) -> MaskFiles:
    """The masks that the settings name; a phantom brings its regions along.

    Raises InputError if automatic regions cannot be had.
    """
    kind, truth = region_kind(cfg), Path(cfg.data_dir) / "truth"
    if kind == "own":
        regions = {"cortex_mask": cfg.cortex_mask, "reference_mask": cfg.reference_mask}
    elif kind == "phantom":
        regions = {"cortex_mask": truth / "cortex.nii.gz", "reference_mask": truth / "cerebellum.nii.gz"}
    else:
        regions = automatic_regions(kind) if kind in AUTOMATIC else {}
    centiloid = cfg.centiloid if any(cfg.centiloid) else None
    return MaskFiles(cfg.brain_mask, regions, cfg.atlas, centiloid, kind)


def is_phantom(data_dir: str) -> bool:
    """Whether the volumes there are a digital phantom's."""
    return (Path(data_dir) / "phantom.json").exists()


def latents_folder(cfg: Config) -> Path:
    """The folder of all latents of a cohort, and of the survey: that of the settings, else one inside
    data_dir, else, where that cannot be written to, one in result/ that belongs to that data_dir."""
    if cfg.latent_dir:
        return Path(cfg.latent_dir)
    beside = Path(cfg.data_dir) / LATENTS
    if can_write(beside):
        return beside
    key = f"{derived_seed(readable(str(Path(cfg.data_dir).resolve()))):016x}"
    return cfg.result_dir.parent / "latents" / key


def survey_path(folder: Path, cfg: Config, lists: str, measurement: Measurement) -> Path:
    """The file of a survey. folder: of the latents. lists: fingerprint of training and validation list."""
    crop = Crop(cfg.crop_start, cfg.volume_size)
    return folder / f"survey-{survey_key(lists, crop, cfg.aae_batch_size, measurement.key())}.npz"


def scores_note(cfg: Config, measurement: Measurement, notice: str, n: int) -> str:
    """What scores of n subjects have to be read with."""
    mask = cfg.brain_mask or "MNI152 mask of nilearn"
    regions = measurement.files.about_regions()
    suvr = f"SUVR: {regions}; " if regions else ""
    return (f"{n} subjects ({notice}); box of {'x'.join(map(str, cfg.volume_size))} voxels, brain: {mask}; "
            f"{suvr}data range 1, SSIM window 7, seed {cfg.seed}")


class Experiment:
    """Settings, a checked cohort, the networks and the measurement, with what every stage needs of them.

    command: the command line of the run, as it was given.
    """

    def __init__(self, cfg: Config, cohort: Cohort, device: torch.device, command: str = ""):
        self.cfg, self.cohort, self.device, self.command = cfg, cohort, device, command
        self.networks = Networks(cfg, device)
        self.crop, self.cast = self.networks.crop, self.networks.cast
        self.measurement = Measurement.read(mask_files(cfg), cohort.affine, self.crop)
        volumes = []
        for scan in cohort.scans:
            volumes += [scan.mri, scan.pet]
        self.cache = VolumeCache(volumes, self.crop, cfg.crop_jitter, cfg.cache, cohort.checksums)
        self.is_phantom = is_phantom(cfg.data_dir)
        self.notice = f"{PHANTOM_NOTICE}; {RESEARCH_NOTICE}" if self.is_phantom else RESEARCH_NOTICE
        self.latents_folder = from_rank_0(latents_folder, cfg)
        self.num_workers, remark = readers_that_fit(cfg.num_workers, self._batch_bytes(),
                                                    free_shared_memory())
        if remark:
            say("check", remark)
        self.people = read_covariates(cfg.info_folder, [scan.id for scan in cohort.scans], cfg.covariates)
        self._survey: Survey | None = None
        self.epochs_there: dict[str, int] = {}             # of the checkpoints that are there, by stage

    def with_settings(self, cfg: Config) -> "Experiment":
        """The same experiment with other regions or labels, and with the volumes that are cached already."""
        changed = copy.copy(self)
        changed.cfg, changed.networks = cfg, Networks(cfg, self.device)
        changed.measurement = Measurement.read(mask_files(cfg), self.cohort.affine, self.crop)
        return changed

    # ------------------------------------------------------------ volumes and latents

    def batches(self, scans: list[Scan], *modalities: str, batch: int = 0,
                divided: bool = False) -> DataLoader:
        """The scans in order, with their centre crop, `batch` of them at once: by default as many as in a
        step of stage 1.

        divided: shared out among the ranks, batch by batch, instead of all for each.
        """
        share = DistributedBatches(len(scans), batch or self.cfg.aae_batch_size, divided)
        return volume_loader(VolumeDataset(scans, self.cache, modalities), share, self.num_workers,
                             self.device.type == "cuda")

    def _batch_bytes(self) -> list[int]:
        """Bytes of the largest batch of MRIs and PETs in training, and in what is scored meanwhile."""
        cfg, lists = self.cfg, self.cohort
        longest = max(len(lists.train), len(lists.validation), len(lists.test))
        sizes = (max(cfg.aae_batch_size, cfg.ldm_batch_size), max(cfg.aae_batch_size, cfg.sampling_batch))
        return [2 * 4 * math.prod(cfg.volume_size) * min(size, longest) for size in sizes]

    def training_batches(self, batch_size: int, *modalities: str, jitter: bool = False) -> DataLoader:
        """The training list in the order that follows from .sampler.seed, a batch a step, the crops shifted
        if asked for."""
        order = EpochOrder(len(self.cohort.train), batch_size, jitter)
        dataset = VolumeDataset(self.cohort.train, self.cache, modalities)
        return volume_loader(dataset, order, self.num_workers, self.device.type == "cuda")

    def latent_cache(self, aae: AAE) -> LatentCache:
        """Where the latents of this autoencoder, precision and crop are kept."""
        cfg, precision = self.cfg, self.networks.precision
        key = weights_key(aae) + ("" if precision == "fp32" else f"-{precision}")
        return LatentCache(self.latents_folder, key, self.crop, (cfg.latent_channels, *cfg.latent_size),
                           self.cohort.affine, self.cohort.checksums)

    def load_latents(self, aae: AAE) -> dict[str, Tensor]:
        """ID -> E(x) [C, d, h, w] of training and validation list. Raises InputError if some are missing."""
        cache = self.latent_cache(aae)
        latents = {scan.id: cache.load(scan) for scan in self.cohort.train + self.cohort.validation}
        missing = [name for name, latent in latents.items() if latent is None]
        if missing:
            raise InputError(f"{cache.folder} lacks the latents of {len(missing)} subjects "
                             f"({', '.join(missing[:5])} ...) made from the present PET files; run --stages "
                             "encode")
        return latents

    def latents_to_make(self, aae: AAE) -> tuple[LatentCache, list[Scan], dict[str, Scan]]:
        """The latents of this autoencoder, the scans to encode, and those of them, by ID, that have no latent
        yet.

        A scan is encoded in one batch with the same others as ever, so that its latent is the same to the
        last bit.
        """
        cache, scans, size = (self.latent_cache(aae), self.cohort.train + self.cohort.validation,
                              self.cfg.aae_batch_size)
        missing, needed = from_rank_0(_missing_latents, cache, scans), []
        for first in range(0, len(scans), size):
            group = scans[first:first + size]
            if any(scan.id in missing for scan in group):
                needed += group
        return cache, needed, missing

    def survey(self) -> Survey:
        """What is known of the volumes of training and validation list; read from beside the latents, or made
        and written there."""
        if self._survey is None:
            self._survey = load_survey(from_rank_0(self._survey_file))
        return self._survey

    def _survey_file(self) -> Path:
        """The file of the survey, which is made if it is not there."""
        measurement, cohort = self.measurement, self.cohort
        lists = cohort.fingerprint("train", "validation")
        path = survey_path(self.latents_folder, self.cfg, lists, measurement)
        if load_survey(path) is None:
            make_folder(path.parent)
            training, validation = (
                self.batches(scans, "mri", "pet") for scans in (cohort.train, cohort.validation)
            )
            save_survey(path, make_survey(training, validation, measurement))
        return path

    # ------------------------------------------------------------ trainings

    def stage_run(self, stage: str, parts: dict, **bound_to) -> StageRun:
        """The training of a stage, or of a baseline, from its last checkpoint if there is one. parts,
        bound_to: as StageRun has them."""
        noted = self.cfg.noted_settings(stage) | {"device": self.device.type,
                                                  "precision": self.networks.precision,
                                                  "torch": str(torch.__version__), "processes": world_size()}
        return StageRun(self.cfg.result_dir, stage, checkpoint_name(stage), parts,
                        self.settings(stage) | bound_to, noted)

    def settings(self, stage: str) -> dict:
        """What a checkpoint of the stage is bound to: its settings, the lists and labels that training sees,
        and the number of epochs where the schedule follows from it."""
        settings = self.cfg.settings_of(stage)
        settings["training and validation list"] = self.cohort.fingerprint("train", "validation")
        if self.cfg.covariates and stage in ("ldm", *LABELLED):
            settings["covariates of the training list"] = self.covariates_key()
        if stage in SCHEDULED:
            settings["epochs"] = self.cfg.epochs_of(stage)
        return settings

    def covariates_key(self) -> str:
        """What a predictor of the label is bound to beside the volumes: the covariates of the training
        list."""
        return cells_key(self.people.loc[[scan.id for scan in self.cohort.train]])

    def trainings(self) -> list[str]:
        """What this run trains, in order."""
        own = [
            stage for stage in CHECKPOINT if stage in self.cfg.stages and not self.cfg.pretrained_from(stage)
        ]
        return own + list(self.cfg.trainable_baselines if "baselines" in self.cfg.stages else ())

    def checkpoint_room(self) -> int:
        """Bytes that the trainings of this run may take on the disk in addition to what is there."""
        cfg, meta, room = self.cfg, torch.device("meta"), 0
        for stage in self.trainings():
            if self.epochs_there.get(stage, 0) < cfg.epochs_of(stage):
                there = {
                    path.stat().st_ino for path in cfg.result_dir.glob(f"{checkpoint_name(stage)}*.pth.tar")
                }
                with meta:
                    weights = sum(map(tensor_bytes, self._checkpoint_tensors(stage, meta)))
                room += (3 - len(there)) * weights
        return room

    def _checkpoint_tensors(self, stage: str, device: torch.device) -> list:
        """Tensors of the size of those that a checkpoint of the stage holds: weights, what optimizers keep
        (two moments of Adam), and moving averages."""
        cfg = self.cfg
        if stage in CHECKPOINT:
            networks = [build_unet(cfg, device)]
            if stage == "aae":
                networks = [build_aae(cfg, device), build_discriminator(cfg, device)]
            return [network.state_dict() for network in networks] * (3 if stage == "aae" else 4)
        baseline = build_baseline(stage, cfg, device, build_aae(cfg, device))
        optimized = [group["params"] for part in baseline.parts.values() if isinstance(part, Optimizer)
                     for group in part.param_groups]
        return [network.state_dict() for network in baseline.networks.values()] + 2 * optimized

    # ------------------------------------------------------------ sampling and results

    def latent_sampler(self, synthesizer: Synthesizer, predictor: LabelPredictor | None) -> LatentSampler:
        """The latent sampler that the settings describe, for the test list and new scans."""
        cfg = self.cfg
        return LatentSampler(cfg, synthesizer, predictor, self.measurement, cfg.sampler, cfg.sampling_steps,
                             range(cfg.samples_per_scan), cfg.matches_suvr, self.people, cfg.draws_label)

    def scores_note(self, n: int) -> str:
        """What every score of this experiment has to be read with."""
        return scores_note(self.cfg, self.measurement, self.notice, n)

    def identity(self) -> dict[str, str | dict]:
        """What results must share to be compared: digests of the test list, of the lists of training, and of
        the masks on the crop."""
        return {"cohort": self.cohort.fingerprint("test"),
                "training": self.cohort.fingerprint("train", "validation"),
                "masks": self.measurement.mask_keys()}

    def synthesized(self, scan: Scan) -> Path:
        """Where the synthetic PET of a test scan lies."""
        return self.cfg.result_dir / "synthesized" / f"{scan.id}.nii.gz"

    @property
    def one_sample_folder(self) -> Path:
        """Folder of one sample of each of the shown scans (experiment/samples.py)."""
        return self.cfg.result_dir / "one_sample"

    def one_sample(self, scan: Scan) -> Path:
        """Where the one sample of a shown test scan lies."""
        return self.one_sample_folder / f"{scan.id}.nii.gz"

    def shown_scans(self) -> list[Scan]:
        """The test scans of the pictures: the first few of each label, positive ones first."""
        shown = []
        for label in range(self.cfg.num_classes - 1, -1, -1):
            alike = [scan for scan in self.cohort.test if scan.label == label]
            shown += alike[:SHOWN_SUBJECTS]
        return shown

    # ------------------------------------------------------------ what would stop a run later

    def refuse_conflicts(self, needs: tuple[str, ...] = ()) -> None:
        """Raise InputError, before anything is written, if the stages and the checkpoints in the result
        folder do not go together.

        needs: stages that must be trained, whatever the settings ask for. Notes in .epochs_there how many
        epochs the last checkpoints have.
        """
        cfg = self.cfg
        in_order = ("aae", "encode", "ldm", "baselines", "test", "report")
        first = next((stage for stage in in_order if stage in cfg.stages), None)
        aae, ldm = self.networks.best_path("aae"), self.networks.best_path("ldm")
        for stage, path in (("aae", aae), ("ldm", ldm)):
            if cfg.pretrained_from(stage) and not path.exists():
                raise InputError(f"{path} is not there; train --exp {cfg.pretrained_from(stage)} first")
        using_aae = {"encode", "ldm", "test"} | ({"baselines"} if cfg.baselines_need_stage_1 else set())
        if ("aae" in needs or ("aae" not in cfg.stages and using_aae & {*cfg.stages})) and not aae.exists():
            raise InputError(f"{aae} is not there; run --stages aae first")
        if ("ldm" in needs or ("ldm" not in cfg.stages and "test" in cfg.stages)) and not ldm.exists():
            raise InputError(f"{ldm} is not there; run --stages encode ldm first")
        if first == "report":
            scored = load_run(cfg.result_dir).metadata["cohort"]
            if scored != self.cohort.fingerprint("test"):
                raise InputError(f"{cfg.result_dir}: its scores are those of another test list; run --stages "
                                 "test report")
        baselines = cfg.trainable_baselines if "baselines" in cfg.stages else ()
        self._refuse_sizes(baselines)
        for stage in (*CHECKPOINT, *baselines):
            self._check_checkpoints(stage)
        self._refuse_resume()

    def _refuse_sizes(self, baselines: tuple[str, ...]) -> None:
        """Raise InputError with all baselines that the size of the volumes does not fit."""
        problems, meta = [], torch.device("meta")
        for name in baselines:
            try:
                with meta:
                    build_baseline(name, self.cfg, meta, build_aae(self.cfg, meta))
            except InputError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise InputError("\n  ".join(problems))

    def _check_checkpoints(self, stage: str) -> None:
        """Raise InputError if a checkpoint of the stage is bound to other settings than these."""
        settings = self.settings(stage)
        # its autoencoder must stay what it is
        if stage in DENOISER and "aae" in self.cfg.stages:
            settings["aae_epochs"] = self.cfg.aae_epochs
        # the best epoch must stay chosen in one way
        if stage == "ldm" and stage in self.trainings():
            settings |= self.cfg.settings_of("validation")
        best, last = self.networks.best_path(stage), self.networks.last_path(stage)
        if last.exists():
            saved = load_checkpoint(last)
            check_settings(last, saved, settings)
            self.epochs_there[stage] = saved["epoch"]
        if best.exists() and not (last.exists() and best.samefile(last)):
            saved = load_checkpoint(best)
            check_settings(best, saved, settings)
        if stage == "ldm" and best.exists():
            self.networks.refuse_other_covariates(saved["metadata"] or {})

    def _refuse_resume(self) -> None:
        """Raise InputError if the first training of this run is to continue and cannot, or is to begin and
        there is one already."""
        stage = next(iter(self.trainings()), None)
        if stage is None:
            return
        last = self.networks.last_path(stage)
        if self.cfg.resume == "yes" and stage not in self.epochs_there:
            raise InputError(f"{last} is not there, so nothing can be continued; check --exp, or begin with "
                             "--resume auto")
        if self.cfg.resume == "no" and stage in self.epochs_there:
            raise InputError(f"{last} is there, but --resume no begins anew; give another --exp, or move "
                             f"{self.cfg.result_dir} away")


def _missing_latents(cache: LatentCache, scans: list[Scan]) -> dict[str, Scan]:
    """The scans, by ID, that have no latent yet."""
    make_folder(cache.folder)
    return {scan.id: scan for scan in scans if cache.load(scan) is None}
