"""New scans: the synthetic PET of MRIs that have neither PET nor label, with the networks of a trained experiment."""
import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from config import ALL, VERSION, Config
from dataset import Cohort
from diffusion import LatentSamples, Synthesizer, std_over_samples
from evaluation.figures import plot_overlay
from evaluation.scoring import CALIBRATION, STATUS_CLASSIFIERS, calibration_bound_to, classifiers_bound_to
from evaluation.status import NEEDS_PET, StatusClassifier, load_status_classifiers_file, mean_level
from evaluation.uncertainty import COVERAGE, Calibration, load_calibration
from experiment.experiment import RESEARCH_NOTICE, Experiment
from experiment.networks import CHECKPOINT, Networks
from imaging.loading import LATENTS
from imaging.volumes import Grid, save_synthesis
from labels.ridge import RidgeClassifier
from newscans.scans import (
    NewScan,
    describe_grid,
    find_scans,
    header_problem,
    onto_crop,
    place_problem,
    read_mri,
    refuse_place,
    relative,
    sha256,
)
from runtime.checkpoints import check_settings
from runtime.commandline import build, given, leave
from runtime.files import FolderLock, brief, check_place, make_folder, read_text, remove_leftovers, write_csv, write_text
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.ranks import local_rank
from runtime.settings import refuse, setting, value_problems
from runtime.signals import stop_if_requested
from utils import InputError, pick_device, weights_key

KIND = "IL-CLDM synthetic PET"                             # what our sidecars call themselves
TABLE = "synthesized.csv"


@dataclass(frozen=True)
class Settings:
    """The settings of `python main.py synthesize` beside those of the experiment. Raises ValueError that lists all wrong values."""

    exp: str = setting("", "name of the trained experiment; its settings are read from result/<exp>/config.json", section="new scans")
    mri: str = setting("", "T1 MRI, a NIfTI file in MNI space, or a folder of such files")
    out: str = setting("", "folder for their synthetic PETs, beside which nothing else of this project lies")
    mri_percentile: float = setting(0.0, "percentile of a new MRI's voxels above 0 that becomes intensity 1, if its intensities leave "
                                         "[0, 1]; right only if the cohort's MRIs were scaled so; 0: it is refused", low=0.0, high=100.0)
    overwrite: bool = setting(False, "replace synthetic PETs that are there, but were not made from the same MRI in the same way")

    def __post_init__(self):
        missing = [f"--{name}" for name in ("exp", "mri", "out") if not getattr(self, name)]
        refuse(value_problems(self) or ([f"synthesize needs {', '.join(missing)}"] if missing else []))


def changeable() -> list[dataclasses.Field]:
    """The settings of an experiment that may be others than in its training."""
    return [field for field in dataclasses.fields(Config)
            if not {*ALL, "comparison"} & {*field.metadata["affects"]} - {"comparison"}
            and field.name not in ("exp", "stages", "resume", "aae_from", "ldm_from", "gpus", "bootstrap_resamples", "shown_subjects")]


def main(argv: list[str]) -> int:
    """Synthesize new scans, with the settings of a command line. Returns the exit code."""
    names = {field.name for field in dataclasses.fields(Settings)}
    words = given([*dataclasses.fields(Settings), *changeable()], argv, "main.py synthesize",
                  "The synthetic PET of T1 MRIs that have neither PET nor label, with the networks of a trained experiment.")
    settings = build(Settings, {name: value for name, value in words.items() if name in names})
    cfg = build(Config, saved_settings(settings.exp) | {name: value for name, value in words.items() if name not in names})
    return exit_code(lambda: synthesize_scans(cfg, settings))


def saved_settings(exp: str) -> dict:
    """The settings that an experiment was run with. Ends the program with code 2 if there is none of that name."""
    path = Path("result") / exp / "config.json"
    try:
        saved = json.loads(path.read_text())["settings"]
        return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        trained = sorted({path.parent.name for path in Path("result").glob(f"*/{CHECKPOINT['ldm']}.pth.tar")})
        leave(f"{path} is not there or damaged: new scans need a trained experiment; trained here: {', '.join(trained) or 'none'}")


@dataclass(frozen=True)
class Trained:
    """A trained experiment whose cohort is not at hand, ready to synthesize."""
    exp: Experiment
    settings: Settings
    grid: Grid                                             # of the cohort's volumes
    synthesizer: Synthesizer
    classifier: RidgeClassifier | None                     # of the label that sampling is conditioned with
    readers: dict[str, StatusClassifier]                             # read-outs of the test stage
    calibration: Calibration | None                        # of the SUVR, by the test stage
    no_interval: str                                       # why there is no calibrated interval, or nothing
    networks: dict[str, dict]                              # name -> file and key of the weights
    notice: str

    @property
    def made_with(self) -> dict:
        """What makes another PET, or other numbers, of the same MRI."""
        cfg = self.exp.cfg
        return {"version": VERSION, "networks": {name: facts["weights"] for name, facts in self.networks.items()},
                "precision": self.exp.precision, "masks": self.exp.identity()["masks"], "readouts": sorted(self.readers),
                "calibration": self.calibration and self.calibration.key,
                "settings": {"seed": cfg.seed, **cfg.settings_of("synthesis", "new_scans"), "mri_percentile": self.settings.mri_percentile}}


def load_trained(cfg: Config, settings: Settings) -> Trained:
    """The experiment of the settings from its checkpoints, and its read-outs if it has some. Raises InputError if they do not fit."""
    networks = Networks(cfg, pick_device(cfg.device, local_rank()))
    for stage in CHECKPOINT:
        if not networks.best_path(stage).exists():
            trained = sorted({path.parent.name for path in cfg.result_dir.parent.glob(f"*/{CHECKPOINT['ldm']}.pth.tar")})
            raise InputError(f"{networks.best_path(stage)} is not there: new scans need a trained experiment; trained here: "
                             f"{', '.join(trained) or 'none'}")
        saved = networks.best_checkpoint(stage)
        check_settings(networks.best_path(stage), saved, cfg.settings_of(stage))
    facts = saved["metadata"]
    if not {"affine", "phantom"} <= facts.keys():
        raise InputError(f"{networks.best_path('ldm')} was written by an earlier version of this project and does not say on which grid "
                         "its cohort lies; train stage 2 anew, under another --exp")
    grid = Grid(tuple(cfg.image_size), facts["affine"].numpy())
    exp = Experiment(cfg, Cohort([], [], [], grid.affine, {}, ""), networks.device)
    synthesizer, classifier, aae = exp.best_synthesizer()
    files = {"autoencoder": ("aae", weights_key(aae)), "denoiser": ("ldm", weights_key(synthesizer.unet))}
    return Trained(exp, settings, grid, synthesizer, classifier, load_status_classifiers(exp, synthesizer), *read_calibration(exp, synthesizer),
                   {name: {"file": exp.best_path(stage), "weights": key} for name, (stage, key) in files.items()},
                   f"{'trained on a digital phantom, ' if facts['phantom'] else ''}{RESEARCH_NOTICE}")


def load_status_classifiers(exp: Experiment, synthesizer: Synthesizer) -> dict[str, StatusClassifier]:
    """The read-outs that the test stage fitted, as far as they belong to these networks and masks; says which are missing."""
    path, bound_to = exp.cfg.result_dir / STATUS_CLASSIFIERS, classifiers_bound_to(exp, synthesizer)
    readers = load_status_classifiers_file(path, bound_to) if path.exists() else {}
    if missing := [name for name in bound_to if name not in readers]:
        why = "are of other networks or masks" if path.exists() else "are not there"
        say("synth", f"amyloid status is not read by {', '.join(missing)}: these read-outs {why}; --stages test fits them "
                     f"and writes {path}")
    return readers


def read_calibration(exp: Experiment, synthesizer: Synthesizer) -> tuple[Calibration | None, str]:
    """The calibration of the SUVR, if the test stage made one for this sampling, and why it gives no interval, which is said."""
    if not exp.regions:
        return None, ""
    calibration, why_not = load_calibration(exp.cfg.result_dir / CALIBRATION, calibration_bound_to(exp, synthesizer))
    why_not = why_not or calibration.why_no_interval
    if why_not:
        say("synth", f"the SUVR has no calibrated interval: {why_not}")
    return calibration, why_not


# ---------------------------------------------------------------- the stage

def synthesize_scans(cfg: Config, settings: Settings) -> None:
    """Synthesize the PET of settings.mri into settings.out; what is there already, made from the same MRI in the same way, stays.

    Goes on after an MRI that cannot be used; raises InputError with all of these at the end.
    """
    mri, out = Path(settings.mri), Path(settings.out)
    cohort = [Path(cfg.data_dir) / folder for folder in ("whole_MRI", "whole_Abeta", LATENTS, "truth")]
    refuse_place(out, (mri if mri.is_dir() else mri.parent, Path(cfg.data_dir), cfg.info_folder), (*cohort, cfg.result_dir.parent))
    scans = find_scans(mri)
    problems = {scan.id: problem for scan in scans if (problem := header_problem(scan.mri))}
    refuse_if_none_is_left(scans, problems)
    trained = load_trained(cfg, settings)
    check_place(out)
    with FolderLock(out) as lock:
        sources = {scan.id: sha256(scan.mri) for scan in scans if scan.id not in problems}
        missing = wanted(scans, sources, trained, out)
        problems |= voxel_problems(missing, settings.mri_percentile)
        refuse_if_none_is_left(scans, problems)
        usable = [scan for scan in missing if scan.id not in problems]
        announce(trained, len(scans), len(usable), problems, out)
        make_folder(out)
        lock.acquire()
        remove_leftovers(out, everyones=True)
        try:
            synthesize_missing(trained, usable, sources, problems, out)
        finally:
            write_table(out)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} of {len(scans)} MRIs were not synthesized, the others are in {out}:",
                                      *problems.values()]))


def refuse_if_none_is_left(scans: list[NewScan], problems: dict[str, str]) -> None:
    """Raise InputError if every scan has its problem."""
    if len(problems) == len(scans):
        raise InputError("\n  ".join([f"{len(scans)} MRI(s) cannot be used:", *problems.values()] if len(scans) > 1 else problems.values()))


def announce(trained: Trained, found: int, usable: int, problems: dict[str, str], out: Path) -> None:
    """What is going to be done."""
    cfg = trained.exp.cfg
    for remark in trained.exp.region_remarks():
        say("synth", remark)
    say("synth", f"{usable} of {found} MRIs are to be synthesized ({found - usable - len(problems)} are there already), "
                 f"{cfg.samples_per_scan} draws by {cfg.sampler} on {trained.exp.device}, {trained.notice}; writes {out}")
    if problems:
        say("synth", "\n  ".join([f"{len(problems)} cannot be used and are left out:", *problems.values()]))


def wanted(scans: list[NewScan], sources: dict[str, str], trained: Trained, out: Path) -> list[NewScan]:
    """The scans whose PET is not there yet. Raises InputError if something else has its name, unless that may be replaced."""
    missing, problems = [], []
    for scan in (scan for scan in scans if scan.id in sources):
        files = scan.written(out)
        there = [path for path in files.values() if path.exists()]
        differences = [] if not there else differences_of(files["sidecar"], {"mri": sources[scan.id], **trained.made_with})
        if differences and not trained.settings.overwrite:
            problems.append(f"{there[0]}: {brief('; '.join(differences))}")
        elif differences or not all(path.exists() for name, path in files.items() if name != "deviation" or trained.exp.cfg.save_std):
            missing.append(scan)
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} file(s) are there already, but not made from the same MRI in the same way "
                                      "(there -> now); --overwrite replaces them, another --out keeps them:", *problems]))
    return missing


def differences_of(sidecar: Path, made_from: dict) -> list[str]:
    """What a PET that is there was made from, where it is not this."""
    there = read_sidecar(sidecar)
    if there is None:
        return ["not written by this stage"]
    flat = [{f"{key} {name}".strip(): part for key, value in facts.items()
             for name, part in (value.items() if isinstance(value, dict) else [("", value)])} for facts in (there["MadeFrom"], made_from)]
    return [f"{name}: {json.dumps(flat[0].get(name))} -> {json.dumps(value)}" for name, value in flat[1].items()
            if flat[0].get(name) != value]


def voxel_problems(scans: list[NewScan], percentile: float) -> dict[str, str]:
    """ID -> what stands against the use of a scan, of those that cannot be used."""
    problems = {}
    for scan in progress_bar(scans, desc="check", unit="scan"):
        stop_if_requested()
        try:
            voxels, affine, _ = read_mri(scan.mri, percentile)
            if problem := place_problem(voxels, affine):
                problems[scan.id] = f"{scan.mri}: {problem}"
        except InputError as error:
            problems[scan.id] = str(error)
    return problems


def synthesize_missing(trained: Trained, scans: list[NewScan], sources: dict[str, str], problems: dict[str, str], out: Path) -> None:
    """Synthesize the scans, several at once as far as the settings allow; notes in problems which could not be read after all."""
    exp = trained.exp
    cfg = exp.cfg
    matched = cfg.label_at_sampling == "matched"
    sample = exp.sampler(trained.synthesizer, trained.classifier, cfg.sampler, cfg.sampling_steps, range(cfg.samples_per_scan), matched)
    with progress_bar(total=len(scans), desc="synthesize", unit="scan") as bar:
        for first in range(0, len(scans), exp.cfg.scans_at_once):
            stop_if_requested()
            batch = read_batch(trained, scans[first:first + exp.cfg.scans_at_once], sources, problems)
            if batch["id"]:
                synthesize_batch(trained, sample(batch), batch, sources, out)
            bar.update(exp.cfg.scans_at_once)


def read_batch(trained: Trained, scans: list[NewScan], sources: dict[str, str], problems: dict[str, str]) -> dict:
    """The batch of some scans: id, mri [B, 1, D, H, W], and the scans themselves with the voxels that their picture shows."""
    batch = {"id": [], "mri": [], "scans": [], "volumes": []}
    for scan in scans:
        try:
            voxels, affine, ceiling = read_mri(scan.mri, trained.settings.mri_percentile)
            if sha256(scan.mri) != sources[scan.id]:
                raise InputError(f"{scan.mri}: has changed since it was checked")
        except (InputError, OSError) as error:
            problems[scan.id] = str(error)
            continue
        batch["id"].append(scan.id)
        batch["mri"].append(torch.from_numpy(onto_crop(voxels, affine, trained.grid, trained.exp.crop).copy())[None])
        batch["scans"].append(scan)
        batch["volumes"].append((voxels, affine, ceiling))
    return batch | {"mri": torch.stack(batch["mri"]) if batch["mri"] else None}


def synthesize_batch(trained: Trained, samples: LatentSamples, batch: dict, sources: dict[str, str], out: Path) -> None:
    """Decode the draws of a batch, measure and write."""
    decode, z_0 = trained.synthesizer.decode, samples.z_0
    x_hats = decode(samples.mean())                                                            # [B, 1, D, H, W]
    label = samples.label if samples.label is not None else [None] * len(z_0)
    for i, scan in enumerate(batch["scans"]):
        stop_if_requested()
        decoded = decode(z_0[i])[:, 0] if z_0.shape[1] > 1 else x_hats[i]                    # [m, D, H, W]
        row = measure(trained, batch["mri"][i, 0], x_hats[i, 0], decoded, label[i])
        if row["remark"]:
            say("synth", f"{scan.id}: {row['remark']}")
        write_scan(trained, scan, batch["volumes"][i], x_hats[i, 0], std_over_samples(decoded[None])[0], {"ID": scan.id, **row},
                   sources[scan.id], out)


# ---------------------------------------------------------------- numbers

def measure(trained: Trained, mri: Tensor, x_hat: Tensor, decoded: Tensor, label: Tensor | None) -> dict[str, float | str]:
    """Uptake and amyloid status of a synthetic PET x_hat [D, H, W], with their range over its decoded samples [m, D, H, W].

    label: the probabilities [K] with which sampling was conditioned, or None.
    """
    row = {f"p_label_{k}": float(p) for k, p in enumerate(label) if k} if label is not None else {}
    read = pd.DataFrame([trained.exp.readable(x, {"mri": mri}) for x in (x_hat, *decoded)])    # the first is what is written
    for name in (name for name in read if name == "CL" or name.startswith("SUVR")):
        row |= spread(name, read[name].to_numpy())
    if trained.exp.regions:
        row |= calibrated(trained, row)
    for name, reader in trained.readers.items():
        score = reader.score(read)
        if name != "suvr":
            row |= spread(f"p_{name}", score) if name in NEEDS_PET else {f"p_{name}": float(score[0])}
        row[f"positive_{name}"] = int(score[0] >= reader.threshold) if np.isfinite(score[0] + reader.threshold) else float("nan")
    return row | {"remark": level_remark(trained.readers.get("mri"), read["mri"][0])}


def level_remark(reader: StatusClassifier | None, mri: np.ndarray) -> str:
    """A warning if an MRI, pooled to [d, h, w], is a tenth brighter or darker than all of the training list: was it scaled as they were?"""
    if reader is None:
        return ""
    level, (low, high) = mean_level(mri[None], reader.classifier), reader.level
    return "" if 0.9 * low <= level <= 1.1 * high else \
        f"mean intensity of the MRI inside the brain {level:.3f}, in the training list {low:.3f} to {high:.3f}: is it scaled as they are?"


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """The value of what is written and those of its samples, [1 + m]: if there are several, their std, smallest and largest."""
    samples = values[1:]
    if len(samples) < 2:
        return {name: float(values[0])}
    return {name: float(values[0]), f"{name}_sd": float(samples.std(ddof=1)), f"{name}_draws_min": float(samples.min()),
            f"{name}_draws_max": float(samples.max())}


def calibrated(trained: Trained, row: dict) -> dict[str, float | str]:
    """From SUVR and SUVR_sd of a scan, the calibrated interval of the former and the probability of status, as far as they are known."""
    known, calibration = {"SUVR_interval": f"none: {trained.no_interval}"}, trained.calibration
    suvr, deviation = np.array([row["SUVR"]]), np.array([row.get("SUVR_sd", 0.0)])
    if not trained.no_interval:
        (low,), (high,) = calibration.interval(suvr, deviation)
        known = {"SUVR_low": float(low), "SUVR_high": float(high),
                 "SUVR_interval": f"{COVERAGE} %, calibrated on {len(calibration.error)} validation subjects"}
    if calibration and not np.isnan(calibration.slope):
        known["p_calibrated"] = float(calibration.probability(suvr)[0])
    return known


# ---------------------------------------------------------------- what is written

def write_scan(trained: Trained, scan: NewScan, volume: tuple, x_hat: Tensor, deviation: Tensor, row: dict, source: str, out: Path) -> None:
    """Sidecar, PET, deviation and picture of a scan.

    The sidecar first: without it nobody knows what a file is; with it, and all files there, the scan is done.
    """
    files, note = scan.written(out), f"IL-CLDM, synthetic PET; {RESEARCH_NOTICE}"            # NIfTI holds 79 bytes
    for path in files.values():
        path.unlink(missing_ok=True)
    write_text(files["sidecar"], json.dumps(describe(trained, scan, volume, row, source, out), indent=2) + "\n")
    where = (scan.mri, trained.exp.crop, note, trained.grid)
    pet = save_synthesis(files["pet"], x_hat.cpu().numpy(), *where)
    if trained.exp.cfg.save_std:
        save_synthesis(files["deviation"], deviation.cpu().numpy(), *where)
    plot_overlay(files["picture"], volume[0], pet, volume[1], scan.id, f"synthetic PET, no measurement; {trained.notice}")


def describe(trained: Trained, scan: NewScan, volume: tuple, row: dict, source: str, out: Path) -> dict:
    """The content of a scan's sidecar."""
    cfg, (voxels, affine, ceiling) = trained.exp.cfg, volume
    same = Grid(voxels.shape, affine).same(trained.grid)
    return {
        "Kind": KIND,
        "Description": "Amyloid PET synthesized from a T1 MRI by a latent diffusion model (IL-CLDM). Not a measurement.",
        "Notice": trained.notice,
        "Units": "uptake as the training PETs were stored, in [0, 1]; ratios between regions (SUVR) carry the meaning",
        "SkullStripped": True,
        "Sources": [{"MRI": relative(scan.mri, out), "SHA256": source, "Grid": describe_grid(scan.mri),
                     "Intensity": "as stored" if ceiling == 1 else f"divided by {ceiling:g}, clipped to [0, 1]"}],
        "Resampling": "none: the MRI lies on the cohort's grid" if same else
                      "MRI to the cohort's grid and PET back through the affines: mean, over each new voxel, of linear interpolation",
        "Networks": {name: {"File": relative(facts["file"], out), "Weights": facts["weights"]} for name, facts in trained.networks.items()},
        "Sampling": {"Sampler": cfg.sampler, "NetworkEvaluations": evaluations_of(trained),
                     "LatentSamples": cfg.samples_per_scan, "Seed": cfg.seed, "Device": trained.exp.device.type},
        "Versions": {"il_cldm": VERSION, **{name: version(name) for name in ("torch", "numpy", "nibabel", "scipy")}},
        "MadeFrom": {"mri": source, **trained.made_with},
        "Results": {name: None if value != value else value for name, value in row.items()},
    }


def evaluations_of(trained: Trained) -> int:
    """Network evaluations of a scan: those of all its latent samples, twice if they are matched to the predicted SUVR."""
    cfg = trained.exp.cfg
    one = trained.synthesizer.diffusion.evaluations(cfg.sampler, cfg.sampling_steps)
    return one * cfg.samples_per_scan * (2 if cfg.label_at_sampling == "matched" else 1)


def read_sidecar(path: Path) -> dict | None:
    """A sidecar of ours, or None if there is none."""
    try:
        content = json.loads(read_text(path))
        return content if content["Kind"] == KIND and isinstance(content["MadeFrom"], dict) and content["Results"]["ID"] else None
    except (InputError, ValueError, KeyError, TypeError):
        return None


def write_table(out: Path) -> None:
    """synthesized.csv: a row a PET in the folder, from its sidecar, of earlier runs too."""
    rows = []
    for sidecar in sorted(out.glob("*_pet.json")):
        content, pet = read_sidecar(sidecar), sidecar.with_suffix(".nii.gz")
        if content and pet.exists():
            networks = content["MadeFrom"]["networks"]["denoiser"]
            rows.append(content["Results"] | {"pet": pet.name, "mri": content["Sources"][0]["MRI"], "draws": content["Sampling"]["LatentSamples"],
                                              "denoiser": networks, "notice": content["Notice"]})
    if rows:
        write_csv(out / TABLE, pd.DataFrame(rows))
