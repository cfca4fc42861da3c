"""New scans: the synthetic PET of MRIs that have neither PET nor label, with the networks of a trained
experiment.

    python main.py synthesize --exp NAME --mri FILE_OR_FOLDER --out FOLDER

From an MRI to its PET:

1. newscans/scans.py:find_scans finds the MRIs; newscans/trained.py:load_trained reads the networks of the
   experiment.
2. newscans/scans.py:read_mri reads an MRI as those of a cohort are read (scaled first where mri_percentile
   says so, within its brain mask where a BIDS dataset has one), and place_problem refuses what is not a brain
   in MNI space.
3. newscans/scans.py:onto_crop cuts the crop on the cohort's grid; an MRI on another grid is interpolated.
4. experiment/networks.py:LatentSampler predicts the label and samples latents by
   model.py:Synthesizer.sample: samples_per_scan (4) samples of sampling_steps (2) DDIM steps. With
   label_at_sampling matched (the default where the label of training is made from the SUVR) their mean is
   decoded, its SUVR corrects the label, and the same noise is sampled again: so 16 forward passes of the
   denoiser, else 8 (LatentSampler.evaluations). Extractor and decoder are not counted.
5. model.py:Synthesizer.decode decodes the mean of the samples, clamped to [0, 1].
6. newscans/outputs.py:write_scan writes the PET on the MRI's own grid, 0 outside the crop, and its sidecar:
   <out>/sub-<ID>/pet/sub-<ID>_..._desc-ilcldmSynthetic_pet.nii.gz (newscans/scans.py:NewScan.written).

With --samples, PETs that this person might have lie beside it (newscans/samples.py). The folder is a BIDS
derivative dataset.
"""
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cohort.bids_report import refuse_inside_source
from cohort.derivative import refuse_foreign, write_dataset
from cohort.raw_scans import Choices
from config import Config
from dataset import LATENTS
from experiment.saved import parse_for_experiment
from imaging.remarks import Remarks
from newscans.covariates import people_of, with_covariates
from newscans.outputs import README, TABLE, TITLE, differences_of, measure, write_scan, write_table
from newscans.samples import SAMPLE_TABLE, with_samples, write_sample_table, write_samples
from newscans.scans import (NewScan, complete_names, find_scans, header_problem, made_from, onto_crop,
                            place_problem,
                            read_mri, refuse_place, sha256)
from newscans.trained import Trained, load_trained
from runtime.files import FolderLock, brief, check_place, make_folder, remove_leftovers
from runtime.logs import progress_bar, readable, say
from runtime.program import exit_code
from runtime.settings import refuse, setting, value_problems
from runtime.signals import stop_if_requested
from utils import InputError


@dataclass(frozen=True)
class SynthesisSettings:
    """The settings of `python main.py synthesize` beside those of the experiment. Raises ValueError that
    lists all wrong values."""

    exp: str = setting("",
        "name of the trained experiment; its settings are read from result/<exp>/config.json",
        section="new scans")
    mri: str = setting("",
        "T1 MRI, a NIfTI file in MNI space, or a folder of such files, or a BIDS derivative such as "
        "fMRIPrep's")
    out: str = setting("",
        "folder for their synthetic PETs, beside which nothing else of this project lies; it becomes a BIDS "
        "derivative dataset")
    table: str = setting("",
        "CSV or TSV with the covariates that the experiment was trained with (--covariates), a row a scan "
        "or a subject, column ID or participant_id; values and whole columns may be missing")
    mri_percentile: float = setting(0.0,
        "percentile of a new MRI's voxels above 0 that becomes intensity 1, if its intensities leave "
        "[0, 1]; right only if the cohort's MRIs were scaled so; 0: it is refused", low=0.0, high=100.0)
    bids_run: int = setting(0,
        "of a BIDS dataset: number of the run to take where a visit has several T1 MRIs", low=0)
    bids_choose: tuple[str, ...] = setting((),
        "of a BIDS dataset: entities that decide where a visit has several T1 MRIs, such as acq-mprage",
        empty=True)
    samples: int = setting(0,
        "also write so many samples of each scan, PETs that this person might have (docs/samples.md), and "
        "samples.csv; the written PET stays the mean", low=0, high=1000)
    overwrite: bool = setting(False,
        "replace synthetic PETs that are there, but were not made from the same MRI in the same way")

    def __post_init__(self):
        missing = [f"--{name}" for name in ("exp", "mri", "out") if not getattr(self, name)]
        refuse(value_problems(self) or ([f"synthesize needs {', '.join(missing)}"] if missing else []))


def main(argv: list[str]) -> int:
    """Synthesize new scans, with the settings of a command line. Returns the exit code."""
    about = ("The synthetic PET of T1 MRIs that have neither PET nor label, with the networks of a trained "
             "experiment.")
    settings, cfg = parse_for_experiment(SynthesisSettings, argv, "main.py synthesize", about)
    return exit_code(partial(synthesize_scans, cfg, settings))


def synthesize_scans(cfg: Config, settings: SynthesisSettings) -> None:
    """Synthesize the PET of settings.mri into settings.out; what is there already, made from the same MRI in
    the same way, stays.

    Goes on after an MRI that cannot be used; raises InputError with all of these at the end.
    """
    mri, out = Path(settings.mri), Path(settings.out)
    cohort = [Path(cfg.data_dir) / folder for folder in ("whole_MRI", "whole_Abeta", LATENTS, "truth")]
    if cfg.latent_dir:
        cohort.append(Path(cfg.latent_dir))
    refuse_place(out, (mri if mri.is_dir() else mri.parent, Path(cfg.data_dir), cfg.info_folder),
                 (*cohort, cfg.result_dir.parent))
    refuse_foreign(out)
    refuse_inside_source(out, mri, "out")
    check_place(out)
    scans = find_scans(mri, Choices(settings.bids_run, settings.bids_choose, mri_only=True))
    problems = _header_problems(scans)
    _refuse_if_none_is_left(scans, problems)
    trained = load_trained(cfg, settings.mri_percentile)
    named = complete_names([scan for scan in scans if scan.id not in problems], trained.tracer)
    predictor = trained.sampler.predictor
    named = with_covariates(named, settings.table, predictor, cfg.subject_pattern)
    trained.sampler.people = people_of(named, cfg.covariates)
    trained = with_samples(trained, settings.samples)
    with FolderLock(out) as lock:
        sources = {scan.id: sha256(scan.mri) for scan in named}
        missing = _wanted(named, sources, trained, out, settings.overwrite)
        remarks = Remarks()
        problems |= _voxel_problems(missing, settings.mri_percentile, remarks)
        _refuse_if_none_is_left(scans, problems)
        usable = [scan for scan in missing if scan.id not in problems]
        _announce(trained, len(scans), len(usable), problems, out)
        for remark in remarks.lines():
            say("synth", remark)
        make_folder(out)
        lock.acquire()
        remove_leftovers(out, everyones=True)
        ignored = (f"/{SAMPLE_TABLE}",) if trained.extra_sampler else ()
        write_dataset(out, TITLE, README, [scan.mri for scan in usable], ignored)
        try:
            _synthesize(trained, usable, sources, problems, out)
        finally:
            write_table(out)
            write_sample_table(out)
    if problems:
        head = f"{len(problems)} of {len(scans)} MRIs were not synthesized, the others are in {out}:"
        raise InputError("\n  ".join([head, *problems.values()]))


# ---------------------------------------------------------------- before the first network evaluation

def _header_problems(scans: list[NewScan]) -> dict[str, str]:
    """ID -> what in a file's header stands against its use, of those that cannot be used."""
    problems = {}
    for scan in scans:
        problem = header_problem(scan.mri)
        if readable(scan.mri.name) != scan.mri.name:
            problem = f"{readable(str(scan.mri))}: its name is not UTF-8; rename the file"
        if problem:
            problems[scan.id] = problem
    return problems


def _refuse_if_none_is_left(scans: list[NewScan], problems: dict[str, str]) -> None:
    """Raise InputError if every scan has its problem."""
    if len(problems) == len(scans):
        head = [f"{len(scans)} MRI(s) cannot be used:"] if len(scans) > 1 else []
        raise InputError("\n  ".join([*head, *problems.values()]))


def _wanted(scans: list[NewScan], sources: dict[str, str], trained: Trained, out: Path,
            overwrite: bool) -> list[NewScan]:
    """The scans whose PET is not there yet. Raises InputError if something else has its name, unless that may
    be replaced."""
    missing, problems = [], []
    for scan in scans:
        files = scan.written(out)
        for k in trained.extra_sampler.samples if trained.extra_sampler else ():
            files |= {f"{name} {k}": path for name, path in scan.sample(out, k + 1).items()}
        there = [path for path in scan.written(out).values() if path.exists()]
        made_now = {**made_from(scan, sources[scan.id]), **trained.made_with}
        differences = differences_of(files["sidecar"], made_now) if there else []
        if differences and not overwrite:
            problems.append(f"{there[0]}: {brief('; '.join(differences))}")
        elif differences or not all(path.exists() for path in files.values()):
            missing.append(scan)
    if problems:
        head = (f"{len(problems)} file(s) are there already, but not made from the same MRI in the same way "
                "(there -> now); --overwrite replaces them, another --out keeps them:")
        raise InputError("\n  ".join([head, *problems]))
    return missing


def _voxel_problems(scans: list[NewScan], percentile: float, remarks: Remarks) -> dict[str, str]:
    """ID -> what in its voxels stands against the use of a scan, of those that cannot be used."""
    problems = {}
    for scan in progress_bar(scans, desc="check", unit="scan"):
        stop_if_requested()
        try:
            voxels, affine, _ = read_mri(scan.mri, percentile, scan.mask, remarks)
            problem = place_problem(voxels, affine)
            if problem:
                problems[scan.id] = f"{scan.mri}: {problem}"
        except InputError as error:
            problems[scan.id] = str(error)
    return problems


def _announce(trained: Trained, found: int, usable: int, problems: dict[str, str], out: Path) -> None:
    """Say what is going to be done."""
    cfg = trained.cfg
    for remark in trained.measurement.remarks(trained.grid.affine, trained.networks.crop):
        say("synth", remark)
    evaluations, further = trained.sampler.evaluations, ""
    if trained.extra_sampler:
        evaluations += trained.extra_sampler.evaluations
        further = f"{len(trained.extra_sampler.samples)} samples beside the mean, "
    say("synth", f"{usable} of {found} MRIs are to be synthesized ({found - usable - len(problems)} are "
                 f"there already), {cfg.samples_per_scan} latent samples by {cfg.sampler}, "
                 f"{further}{evaluations} network evaluations a scan, on {trained.networks.device}, "
                 f"{trained.notice}; writes {out}")
    if old := len(list(out.glob("sub-*_pet.json"))):
        say("synth", f"{out}: {old} PET(s) of an earlier version lie in the folder itself; they stay, but "
                     f"outside the dataset, and {TABLE} does not list them")
    if problems:
        say("synth", "\n  ".join([f"{len(problems)} cannot be used and are left out:", *problems.values()]))


# ---------------------------------------------------------------- synthesis

def _synthesize(trained: Trained, scans: list[NewScan], sources: dict[str, str], problems: dict[str, str],
                out: Path) -> None:
    """Synthesize the scans, several at once as far as the settings allow; notes in problems which could not
    be read after all."""
    at_once = trained.cfg.scans_at_once
    with progress_bar(total=len(scans), desc="synthesize", unit="scan") as bar:
        for first in range(0, len(scans), at_once):
            stop_if_requested()
            some = scans[first:first + at_once]
            batch = _read_batch(trained, some, sources, problems)
            if batch["id"]:
                _synthesize_batch(trained, batch, sources, out)
            bar.update(len(some))


def _read_batch(trained: Trained, scans: list[NewScan], sources: dict[str, str],
                problems: dict[str, str]) -> dict:
    """The batch of some scans: id, mri [B, 1, D, H, W], the scans themselves, and their MRIs as read_mri
    gives them."""
    batch = {"id": [], "mri": [], "scans": [], "volumes": []}
    for scan in scans:
        try:
            voxels, affine, upper_bound = read_mri(scan.mri, trained.mri_percentile, scan.mask)
            if sha256(scan.mri) != sources[scan.id]:
                raise InputError(f"{scan.mri}: has changed since it was checked")
        except (InputError, OSError) as error:
            problems[scan.id] = str(error)
            continue
        crop = onto_crop(voxels, affine, trained.grid, trained.networks.crop)
        batch["id"].append(scan.id)
        batch["mri"].append(torch.from_numpy(crop.copy())[None])
        batch["scans"].append(scan)
        batch["volumes"].append((voxels, affine, upper_bound))
    return batch | {"mri": torch.stack(batch["mri"]) if batch["mri"] else None}


def _synthesize_batch(trained: Trained, batch: dict, sources: dict[str, str], out: Path) -> None:
    """Sample and decode a batch, measure and write its PETs."""
    decode = trained.synthesizer.decode
    z_0 = trained.sampler(batch)                                                          # [B, m, C, d, h, w]
    x_hats = decode(z_0.mean(dim=1))                                                         # [B, 1, D, H, W]
    labels = trained.sampler.label_probabilities(batch)
    for i, scan in enumerate(batch["scans"]):
        stop_if_requested()
        decoded: Tensor = decode(z_0[i])[:, 0] if z_0.shape[1] > 1 else x_hats[i]  # [m, D, H, W]
        row = measure(trained, scan, batch["mri"][i, 0], x_hats[i, 0], decoded,
                      None if labels is None else labels[i])
        if row["remark"]:
            say("synth", f"{scan.id}: {row['remark']}")
        write_scan(trained, scan, batch["volumes"][i], x_hats[i, 0], {"ID": scan.id, **row},
                   sources[scan.id], out)
    if trained.extra_sampler:
        write_samples(trained, batch, out)
