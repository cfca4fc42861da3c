"""Raw scans, brought into the space and the range of the cohort by ANTs: `python main.py preprocess`.

    <raw>/T1/<ID>.nii[.gz]   -> <data_dir>/whole_MRI/<ID>.nii.gz      and, where there is one,
    <raw>/PET/<ID>.nii[.gz]  -> <data_dir>/whole_Abeta/<ID>.nii.gz

on the cohort's grid (registration.py), in [0, 1], 0 outside the brain. <raw> may be a BIDS dataset instead
(bids.py), whose images in MNI space are not registered again. <data_dir>/preprocess gets <ID>.png, a page to
look at, <ID>.json, the record of what the volumes were made from, measures.csv, and of a BIDS dataset
scans.csv, which prepare reads, and left_out.csv. <data_dir> is also a BIDS derivative dataset, in which the
same volumes have BIDS names and sidecars (preprocessed.py).
"""
import importlib.util
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from cohort import preprocessed
from cohort.bids import read_dataset
from cohort.bids_files import is_dataset
from cohort.bids_report import refuse_inside_source, say_found, write_found
from cohort.derivative import refuse_foreign, write_dataset
from cohort.raw_scans import Choices, RawScan, find_plain, refuse_mixed_levels
from cohort.subject import OUTPUTS, Recipe, chosen_frames, preprocess_subject
from cohort.tracers import find_tracer
from config import Config
from imaging.grids import Crop
from imaging.regions import ABOUT, AUTOMATIC, automatic_regions, read_mask
from imaging.remarks import Remarks
from phantom.anatomy import FIELD_OF_VIEW, grid_affine
from runtime.commandline import parse
from runtime.files import FolderLock, check_place, make_folder, remove_leftovers, write_csv
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, same, setting, value_problems
from runtime.signals import abandoned_on_error, serve_parent
from utils import InputError

GRIDS = {tuple(int(n) // voxel_mm for n in FIELD_OF_VIEW): voxel_mm for voxel_mm in range(8, 0, -1)}   # -> mm


# ---------------------------------------------------------------- settings

@dataclass(frozen=True)
class PreprocessSettings:
    """Settings of `python main.py preprocess`. Raises ValueError that lists all values out of range."""

    raw: str = setting("raw",
        "folder with T1/<ID>.nii[.gz] and, if there are any, PET/<ID>.nii[.gz] of whole heads; or a BIDS "
        "dataset; or one T1 MRI, or a folder of T1 MRIs", section="files")
    data_dir: str = setting("data",
        "folder of the cohort: its whole_MRI and whole_Abeta are written; it becomes a BIDS derivative "
        "dataset")
    reference_mask: str = setting("",
        "NIfTI mask in MNI space, usually the whole cerebellum, by whose uptake PETs are divided, or a "
        "label image with numbers, such as aseg.nii.gz:7,8,46,47; empty: as regions says")
    regions: str = setting("mni",
        "the whole cerebellum without a reference_mask; mni: a plain one made from the MNI152 template; "
        "centiloid: the Centiloid project's, of the package amypet (docs/status.md)", choices=AUTOMATIC)
    image_size: tuple[int, int, int] = same(Config, "image_size")
    num_workers: int = setting(2, "subjects at a time, which share the cores; 0: one, in this process", low=0)
    overwrite: bool = setting(False, "replace volumes that are there already")

    registration: str = setting("affine",
        "how a brain is brought to the template; syn: nonlinearly too, in the template's shape",
        section="method", choices=("affine", "syn"))
    pet_fwhm: float = setting(0.0,
        "FWHM in mm of a Gaussian that smooths PETs; for several scanners", low=0.0, high=30.0)
    pet_max_suvr: float = setting(4.0,
        "SUVR that is stored as 1, the same for all PETs of a cohort; what exceeds it is cut off and "
        "reported", low=1.0, high=100.0)

    tracer: str = setting("",
        "tracer of the PETs whose names and sidecars do not say a known one, such as florbetapir",
        section="which scans")
    bids_run: int = setting(0,
        "number of the run to take where a visit has several; 0: such are refused", low=0)
    bids_choose: tuple[str, ...] = setting((),
        "entities that decide where a visit has several files, such as acq-mprage rec-acstat trc-18FAV45",
        empty=True)
    mri_only: bool = setting(False, "T1 MRIs alone, without PETs, as for synthesis")
    window_days: int = setting(180,
        "most days from a PET without T1 in its session to the nearest T1; amyloid and atrophy grow over "
        "years", low=0)
    pet_window: tuple[float, float] = setting((0.0, 0.0),
        "minutes after injection whose frames are averaged; equal: by tracer, florbetapir and PiB 50 to 70, "
        "florbetaben and flutemetamol 90 to 110", low=0.0, high=600.0)
    pet_frames: tuple[int, int] = setting((0, 0),
        "first and last frame that are averaged, counted from 1, whatever their times; 0 0: by pet_window",
        low=0)

    def __post_init__(self):
        problems = value_problems(self)
        problems = problems or self._misfits()
        if self.image_size not in list(GRIDS):
            sizes = ", ".join("x".join(map(str, size)) for size in GRIDS)
            problems.append(f"image_size {self.image_size}: preprocess writes 181 x 217 x 181 voxels of 1 "
                            f"mm, or the same field of view at 2 to 8 mm ({sizes})")
        refuse(problems)

    def _misfits(self) -> list[str]:
        """What does not fit together, as sentences."""
        problems = []
        known = find_tracer(self.tracer)
        if known and not known.is_amyloid:
            problems.append(f"tracer {self.tracer}: shows no amyloid; give that of the amyloid PETs")
        for words in self.bids_choose:
            if not re.fullmatch(r"[a-z]+-[A-Za-z0-9+]+", words):
                problems.append(f"bids_choose {words!r} must be an entity as in names, such as acq-mprage")
        if self.pet_window[0] > self.pet_window[1]:
            problems.append(f"pet_window {self.pet_window} must begin before its end")
        if self.pet_frames[0] > self.pet_frames[1] or (self.pet_frames[1] and not self.pet_frames[0]):
            problems.append(f"pet_frames {self.pet_frames}: the first and the last frame, counted from 1")
        if any(self.pet_frames) and self.has_window:
            problems.append("pet_frames and pet_window both choose frames; give one of them")
        return problems

    @property
    def has_window(self) -> bool:
        """Whether the user gave the minutes that are averaged."""
        return self.pet_window[0] != self.pet_window[1]

    @property
    def choices(self) -> Choices:
        """What is said of scans among which nothing else decides."""
        return Choices(self.bids_run, self.bids_choose, self.tracer, self.window_days, self.mri_only)

    @property
    def voxel_mm(self) -> int:
        """Voxel size of the cohort's grid in mm."""
        return GRIDS[self.image_size]


def main(argv: list[str]) -> int:
    """Preprocess raw scans, with the settings of a command line. Returns the exit code."""
    settings = parse(PreprocessSettings, argv, "main.py preprocess",
                     "Bring raw scans into the space and the range of the cohort.")
    return exit_code(lambda: preprocess_scans(settings))


# ---------------------------------------------------------------- the whole

def preprocess_scans(cfg: PreprocessSettings) -> None:
    """Preprocess the scans of the raw folder.

    Goes on after one that fails, and raises InputError at the end that lists all of these.
    """
    scans, left_out = find_scans(cfg)
    pets = sum(raw.pet is not None for raw in scans)
    recipe = make_recipe(cfg, pets > 0)
    if importlib.util.find_spec("ants") is None and not all(raw.space for raw in scans):
        raise InputError("preprocess needs ANTs, an extra of this project: "
                         "pip install -r requirements-preprocess.txt")
    preprocessed.refuse_names([raw.id for raw in scans])
    check_place(recipe.data_dir)
    refuse_foreign(recipe.data_dir)
    folders = [recipe.folder, recipe.data_dir / OUTPUTS["mri"]]
    if pets:
        folders.append(recipe.data_dir / OUTPUTS["pet"])
    for folder in folders:
        make_folder(folder)
        remove_leftovers(folder)
    with FolderLock(recipe.folder):
        sources = [path for raw in scans for path in (raw.mri, raw.pet) if path]
        write_dataset(recipe.data_dir, preprocessed.TITLE, preprocessed.README, sources)
        workers = min(cfg.num_workers, len(scans))
        say("preprocess", f"{len(scans)} MRIs and {pets} PETs of {cfg.raw}, {max(workers, 1)} at a time, to "
                          f"{recipe.data_dir}; pages to look at in {recipe.folder}")
        write_found(recipe.folder, scans, left_out)
        say_early_problems(scans, recipe)
        rows = preprocess_all(scans, recipe, workers)
        report(recipe, list(progress_bar(rows, total=len(scans), desc="preprocess", unit="subject")))


def find_scans(cfg: PreprocessSettings) -> tuple[list[RawScan], list[dict] | None]:
    """The scans of a BIDS dataset, a raw folder or a single T1 MRI, and the rows of left_out.csv, None unless
    it is a dataset. Raises InputError that lists all wrong names."""
    raw = Path(cfg.raw)
    if not raw.exists():
        raise InputError(f"{raw}: not there. Place whole heads as {raw}/T1/<ID>.nii[.gz], their PETs as "
                         f"{raw}/PET/<ID>.nii[.gz], or give one T1 MRI, a folder of such files, or a BIDS "
                         "dataset, by --raw")
    refuse_inside_source(Path(cfg.data_dir), raw, "data_dir")
    if is_dataset(raw):
        dataset = read_dataset(raw, cfg.choices)
        say_found(dataset)
        scans, remarks, left_out = dataset.scans, [], dataset.left_out
    else:
        scans, remarks = find_plain(raw, cfg.choices)
        left_out = None
    for remark in filter(None, [*remarks, refuse_mixed_levels(scans, cfg.pet_fwhm)]):
        say("preprocess", remark)
    return scans, left_out


def make_recipe(cfg: PreprocessSettings, has_pets: bool) -> Recipe:
    """The recipe of the settings, with the reference region on the grid if there are PETs or it is given.

    Raises InputError if that mask cannot be used.
    """
    reference, source, what = None, cfg.reference_mask, "reference_mask"
    if has_pets and not source:
        source = automatic_regions(cfg.regions)["reference_mask"]
        what += f" of {ABOUT[cfg.regions]}"
        say("preprocess", "no --reference_mask is given: PETs are divided by the uptake in the whole "
                          f"cerebellum of {ABOUT[cfg.regions]}")
    if source:
        box = Crop((0, 0, 0), cfg.image_size)
        reference = read_mask(source, grid_affine(cfg.voxel_mm), box, what)
    return Recipe(Path(cfg.data_dir), cfg.voxel_mm, cfg.registration, cfg.pet_fwhm, cfg.pet_max_suvr,
                  reference, cfg.overwrite, cfg.pet_window if cfg.has_window else None, cfg.pet_frames)


def say_early_problems(scans: list[RawScan], recipe: Recipe) -> None:
    """Name the PETs whose frames cannot be averaged, before the first scan is registered."""
    problems = []
    for raw in scans:
        try:
            if raw.pet:
                chosen_frames(raw, recipe)
        except InputError as error:
            problems.append(f"{raw.id}: {error}")
    if problems:
        say("preprocess", "\n  ".join([f"{len(problems)} PETs cannot be used, the others go on:", *problems]))


def report(recipe: Recipe, rows: list[dict]) -> None:
    """Write measures.csv and name the pages to look at. Raises InputError that lists the failed subjects."""
    path, reading = recipe.folder / "measures.csv", Remarks()
    for row in rows:
        reading.update(row.pop("reading"))
    write_csv(path, pd.DataFrame(rows))
    for line in reading.lines():
        say("preprocess", line)
    for row in rows:
        if row["remark"]:
            say("preprocess", f"{row['ID']}: look at {recipe.folder / row['ID']}.png: {row['remark']}")
    noted = [row for row in rows if row.get("note")]
    if noted:
        say("preprocess", f"{len(noted)} scans have a note on pairing or frames in the column note, such as "
                          f"{noted[0]['ID']}: {noted[0]['note']}")
    failed = [f"{row['ID']}: {row['problem']}" for row in rows if row["problem"]]
    say("preprocess", f"{len(rows) - len(failed)} of {len(rows)} subjects are done; {path}")
    if failed:
        raise InputError("\n  ".join([f"{len(failed)} of {len(rows)} subjects could not be preprocessed; the "
                                      "others are done:", *failed]))


# ---------------------------------------------------------------- all subjects

def limit_threads(workers: int) -> None:
    """Share the cores among the processes; read when ANTs is imported."""
    threads = max(1, (os.cpu_count() or 1) // max(workers, 1))
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


def start_worker(workers: int) -> None:
    """Set up a process that preprocesses subjects. workers: number of such processes."""
    serve_parent()
    limit_threads(workers)


def preprocess_all(scans: list[RawScan], recipe: Recipe, workers: int) -> Iterator[dict]:
    """The row of measures.csv of every subject, in order, as it is ready."""
    work = partial(preprocess_subject, recipe=recipe)
    if workers < 1:
        limit_threads(1)
        yield from map(work, scans)
        return
    processes = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(workers,))
    with abandoned_on_error(processes) as pool:
        yield from pool.map(work, scans)
