"""What disturbed MRIs do to the synthetic PET of a trained experiment (docs/robustness.md).

    python main.py study robustness --exp NAME

The MRIs of the test list are disturbed in stated ways and synthesized again. Networks, threshold of the
status and calibration of the SUVR are those of the experiment, frozen. Writes robustness.csv (a row a
disturbance), robustness_subjects.csv, robustness.md and a picture to result/<exp>/.
"""
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nibabel.affines import apply_affine, voxel_sizes
from torch import Tensor

from config import Config
from dataset import Scan
from evaluation import statistics
from evaluation.scores import Prediction, evaluate
from evaluation.status import load_status_classifiers
from evaluation.uncertainty import load_calibration
from experiment.experiment import Experiment
from experiment.networks import LatentSampler
from experiment.saved import parse_for_experiment
from experiment.scoring import CALIBRATION, STATUS_CLASSIFIERS, calibration_bound_to, classifiers_bound_to
from experiment.session import check
from imaging.volumes import read_in_range
from model import Synthesizer, std_over_samples
from runtime.files import brief, write_csv, write_text
from runtime.logs import say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from studies.disturbances import (Disturbance, block_of, dilated, eroded, rim_mm, shifted, turned, with_bias,
                                  with_gamma, with_noise, with_thick_slices)
from studies.robustness_table import Frozen, judge, make_table, to_markdown
from utils import InputError, derived_seed, pick_device, weights_key

TABLE, SUBJECTS = "robustness.csv", "robustness_subjects.csv"
TEXTS = {"ID": str, "measured_on": str}                    # columns that might be taken for numbers


@dataclass(frozen=True)
class RobustnessSettings:
    """The settings of `python main.py study robustness` beside those of the experiment."""

    exp: str = setting("",
        "name of the trained experiment; its settings are read from result/<exp>/config.json",
        section="robustness")
    bias: tuple[float, ...] = setting((20.0, 40.0),
        "per cent by which a smooth bias field varies over the brain", low=0.0, high=100.0, empty=True)
    noise: tuple[float, ...] = setting((3.0, 9.0),
        "standard deviation of Gaussian noise, in per cent of the bright tissue", low=0.0, high=100.0,
        empty=True)
    gamma: tuple[float, ...] = setting((0.7, 1.5),
        "power that each intensity is raised to", low=0.1, high=10.0, empty=True)
    turn: float = setting(10.0, "degrees about each axis", low=-180.0, high=180.0)
    shift: float = setting(5.0, "millimetres into a direction of the subject's own", low=0.0, high=100.0)
    slices: float = setting(2.0,
        "thickness of the slices in mm, brought to whole voxels, at least two of them", low=0.0, high=100.0)
    rim: float = setting(4.0,
        "millimetres, at least a voxel, that a tighter brain mask cuts off and a looser one adds",
        low=0.0, high=100.0)

    def __post_init__(self):
        refuse(value_problems(self) or ([] if self.exp else ["study robustness needs --exp"]))


def main(argv: list[str]) -> int:
    """Run the study on a trained experiment. Returns the exit code."""
    about = "Disturb the MRIs of the test list and see what becomes of their synthetic PETs."
    settings, cfg = parse_for_experiment(RobustnessSettings, argv, "main.py study robustness", about)
    return exit_code(partial(study, dataclasses.replace(cfg, stages=("check",)), settings))


def study(cfg: Config, settings: RobustnessSettings) -> None:
    """Write the results to result/<exp>/. Raises InputError if the experiment is not trained, or if its test
    stage has not been run with these settings."""
    exp = Experiment(cfg, check(cfg), pick_device(cfg.device))
    exp.refuse_conflicts(needs=("aae", "ldm"))
    synthesizer, predictor = exp.networks.best_synthesizer()
    sampler, frozen = exp.latent_sampler(synthesizer, predictor), read_frozen(exp, synthesizer)
    plan, folder = planned(settings, exp.cohort.affine), cfg.result_dir
    say("study", f"{len(exp.cohort.test)} subjects of the test list, {len(plan)} disturbances, "
                 f"{sampler.evaluations} network evaluations a scan and disturbance, writes "
                 f"{folder}/{TABLE}; disturbances that are measured already stay")
    measured = measure_all(exp, sampler, plan, folder / SUBJECTS)
    subjects = judge(measured, frozen)
    write_csv(folder / SUBJECTS, subjects)
    table = make_table(subjects, {one.name: one.text for one in plan}, statistics.RESAMPLES, cfg.seed)
    note = exp.scores_note(len(exp.cohort.test))
    write_csv(folder / TABLE, table)
    write_text(folder / "robustness.md", to_markdown(table, note))
    from evaluation.figures import plot_robustness         # here, because it needs matplotlib
    plot_robustness(table, folder / "robustness", f"{len(exp.cohort.test)} subjects ({exp.notice})")
    say("study", f"wrote {TABLE}, {SUBJECTS}, robustness.md, robustness.png and robustness.pdf")


def planned(settings: RobustnessSettings, affine: np.ndarray) -> list[Disturbance]:
    """All disturbances of the settings for MRIs with this affine [4, 4], the undisturbed MRI first."""
    thickness = block_of(settings.slices, affine) * voxel_sizes(affine)[2]
    rim = f"{rim_mm(settings.rim, affine):.3g} mm"
    rows = [Disturbance("undisturbed", "as it is", "none")]
    for percent in dict.fromkeys(settings.bias):
        rows.append(Disturbance(f"bias_{percent:g}", f"bias field of {percent:g} %", "bias",
                                partial(with_bias, percent=percent)))
    for percent in dict.fromkeys(settings.noise):
        rows.append(Disturbance(f"noise_{percent:g}", f"noise of {percent:g} %", "noise",
                                partial(with_noise, percent=percent)))
    for gamma in dict.fromkeys(settings.gamma):
        rows.append(Disturbance(f"gamma_{gamma:g}", f"contrast, gamma {gamma:g}", "gamma",
                                partial(with_gamma, gamma=gamma)))
    rows += [Disturbance("slices", f"slices of {thickness:.3g} mm", "slices",
                         partial(with_thick_slices, thickness_mm=settings.slices)),
             Disturbance("mask_eroded", f"brain mask {rim} tighter", "mask",
                         partial(eroded, depth_mm=settings.rim)),
             Disturbance("mask_dilated", f"brain mask {rim} looser", "mask",
                         partial(dilated, depth_mm=settings.rim)),
             Disturbance("shifted", f"shifted by {settings.shift:g} mm", "shift",
                         motion=partial(shifted, millimetres=settings.shift))]
    for axis in "xyz":
        rows.append(Disturbance(f"turned_{axis}", f"turned by {settings.turn:g} degrees about {axis}", "turn",
                                motion=partial(turned, axis=axis, degrees=settings.turn)))
    there_and_back = partial(turned, axis="x", degrees=settings.turn)
    rows.append(Disturbance("pet_turned", "control: the PET alone turned and brought back", "turn",
                            motion=there_and_back, moves_mri=False))
    return rows


# ---------------------------------------------------------------- what stays frozen

def read_frozen(exp: Experiment, synthesizer: Synthesizer) -> Frozen:
    """Calibration of the SUVR and threshold of the status, as the test stage left them; none, and why, where
    the experiment has none.

    Raises InputError if its test stage has not been run with these networks and settings.
    """
    cfg, measurement = exp.cfg, exp.measurement
    if not measurement.regions:
        say("study", "no SUVR is measured (--regions none): image scores alone")
        return Frozen(None, float("nan"))
    masks = measurement.mask_keys()
    bound_to = calibration_bound_to(cfg.sampling_settings(), masks, synthesizer)
    calibration, why_not = load_calibration(cfg.result_dir / CALIBRATION, bound_to)
    if calibration is None:
        raise InputError(f"{cfg.result_dir / CALIBRATION}: {why_not}; run --exp {cfg.exp} --stages test "
                         "first")
    if calibration.why_no_interval:
        say("study", f"no coverage: {calibration.why_no_interval}")
    path, threshold = cfg.result_dir / STATUS_CLASSIFIERS, float("nan")
    if path.exists():
        keys = classifiers_bound_to(masks, synthesizer)
        classifiers = load_status_classifiers(path, {"suvr": keys["suvr"]})
        threshold = classifiers["suvr"].threshold if classifiers else threshold
    if np.isnan(threshold):
        say("study", "no decision on the status: the test stage fitted no threshold of the SUVR")
    return Frozen(calibration, threshold)


# ---------------------------------------------------------------- synthesis

class DisturbedSynthesis:
    """Synthesis of the test list from disturbed MRIs for evaluate, in the place of the undisturbed ones, with
    SUVR_sd as a further column if there are regions."""

    def __init__(self, exp: Experiment, sampler: LatentSampler, disturbance: Disturbance):
        self.exp, self.sampler, self.disturbance = exp, sampler, disturbance
        self.scans: dict[str, Scan] = {scan.id: scan for scan in exp.cohort.test}
        self.affine = exp.crop.affine(exp.cohort.affine)
        self.centre = apply_affine(self.affine, (np.array(exp.crop.size) - 1) / 2)   # of the box, in mm

    def __call__(self, batch: dict) -> Prediction:
        """The PETs of a batch {id, ...}, [B, 1, D, H, W] on the CPU."""
        mri = torch.from_numpy(np.stack([self.mri(subject) for subject in batch["id"]]))[:, None]
        z_0 = self.sampler({"id": batch["id"], "mri": mri})                               # [B, m, C, d, h, w]
        decode, columns = self.sampler.synthesizer.decode, {}
        x_hat = self._in_place(decode(z_0.mean(dim=1)), batch["id"])                         # [B, 1, D, H, W]
        if self.exp.measurement.regions:
            suvr = [self._suvr_of_samples(decode(samples), subject)
                    for samples, subject in zip(z_0, batch["id"], strict=True)]              # B of [m]
            columns["SUVR_sd"] = std_over_samples(torch.stack(suvr)).tolist()
        return Prediction(x_hat, columns)

    def mri(self, subject: str) -> np.ndarray:
        """The disturbed MRI of a subject, cut to the crop: [D, H, W]. All of the volume is disturbed, not the
        crop alone, so that what was outside comes in."""
        voxels, affine = read_in_range(self.scans[subject].mri, nan_checked=True)
        disturbed = self.disturbance.disturb(voxels, affine, self.centre, self.exp.cfg.seed, subject)
        return np.ascontiguousarray(disturbed[self.exp.crop.slices()], dtype=np.float32)

    def _suvr_of_samples(self, pets: Tensor, subject: str) -> Tensor:
        """SUVR of each latent sample's PET [m, 1, D, H, W]: [m]."""
        return self.exp.measurement.suvr(self._in_place(pets, [subject] * len(pets)))

    def _in_place(self, pets: Tensor, subjects: list[str]) -> Tensor:
        """The PETs [n, 1, D, H, W] where those of undisturbed MRIs lie."""
        if self.disturbance.motion is None:
            return pets
        volumes = [self.disturbance.bring_back(pet, self.affine, self.centre, self.exp.cfg.seed, subject)
                   for pet, subject in zip(pets[:, 0].cpu().numpy(), subjects, strict=True)]
        return torch.from_numpy(np.stack(volumes))[:, None]


def measure(exp: Experiment, sampler: LatentSampler, disturbance: Disturbance) -> pd.DataFrame:
    """A row a test subject: ID, label, scores inside the brain, and SUVR, SUVR_sd and SUVR_real if there are
    regions."""
    measurement = exp.measurement

    def scores(x_hat: Tensor, volumes: dict[str, Tensor]) -> dict[str, float]:
        """The scores of one PET against the real one of the undisturbed subject."""
        found = measurement.image_scores(x_hat, volumes)
        row = {name: found[name] for name in ("PSNR_brain", "SSIM_brain", "MAE_brain")}
        if measurement.regions:
            pets = torch.stack([x_hat.cpu(), volumes["pet"].cpu()])[:, None]
            row["SUVR"], row["SUVR_real"] = measurement.suvr(pets).tolist()
        return row
    batches = exp.batches(exp.cohort.test, "pet", batch=exp.cfg.scans_at_once)
    return evaluate(DisturbedSynthesis(exp, sampler, disturbance), batches, scores,
                    f"study, {disturbance.name}")


def measure_all(exp: Experiment, sampler: LatentSampler, plan: list[Disturbance], path: Path) -> pd.DataFrame:
    """The rows of all disturbances, in their order. Those in the file that were measured on the same
    networks, settings and scans stay; each further one is written there at once, so that the same command
    goes on."""
    there, tables = _read(path), []
    for disturbance in plan:
        key = _measured_on(exp, sampler.synthesizer, disturbance)
        table = there[there["measured_on"] == key]
        if len(table) != len(exp.cohort.test):
            table = measure(exp, sampler, disturbance)
            table.insert(0, "disturbance", disturbance.name)
            table["measured_on"] = key
        tables.append(table)
        done = pd.concat(tables)
        later = there[~there["measured_on"].isin(done["measured_on"])]
        write_csv(path, pd.concat([done, later]) if len(later) else done)
    return done.reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    """What an earlier study of this experiment measured, in full precision. Raises InputError if the file is
    damaged."""
    if not path.is_file():
        return pd.DataFrame(columns=["disturbance", "ID", "measured_on"])
    try:
        table = pd.read_csv(path, dtype=TEXTS, keep_default_na=False, na_values=[""])
        return table[table["measured_on"].notna()]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); remove it, and python main.py study robustness "
                         "makes it again") from error


def _measured_on(exp: Experiment, synthesizer: Synthesizer, disturbance: Disturbance) -> str:
    """16 hexadecimal digits that identify what the rows of a disturbance depend on."""
    networks = weights_key(synthesizer.unet, synthesizer.space.decoder)
    parts = (networks, exp.cohort.fingerprint("test"), exp.measurement.mask_keys(), exp.cfg.seed,
             exp.cfg.settings_of("synthesis"), exp.networks.precision, disturbance.name, disturbance.text)
    return f"{derived_seed(*parts):016x}"
