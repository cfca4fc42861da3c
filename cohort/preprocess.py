"""Raw scans, brought into the space and the range of the cohort by ANTs: `python main.py preprocess`.

    <raw>/T1/<ID>.nii[.gz]   -> <data_dir>/whole_MRI/<ID>.nii.gz      and, where there is one,
    <raw>/PET/<ID>.nii[.gz]  -> <data_dir>/whole_Abeta/<ID>.nii.gz

on the cohort's grid (registration.py), in [0, 1], 0 outside the brain. <data_dir>/preprocess gets <ID>.png, a
page to look at, <ID>.json, the record of what the volumes were made from, and measures.csv.
"""
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from cohort import registration
from cohort.quality import compare_with_mri, compare_with_template, draw_page, remarks
from config import Config
from dataset import ID_PATTERN
from imaging.regions import ABOUT, AUTOMATIC, automatic_regions, read_mask
from imaging.volumes import Crop, orientation_problem, read_header, read_volume, save_nifti
from phantom.anatomy import FIELD_OF_VIEW, grid_affine
from runtime.commandline import parse
from runtime.files import FolderLock, brief, check_place, make_folder, remove_leftovers, write_csv, write_text
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, same, setting, value_problems
from runtime.signals import abandoned_on_error, serve_parent
from utils import InputError

VERSION = 1                                                # raise it with every change that alters a voxel
GRIDS = {tuple(int(n) // voxel_mm for n in FIELD_OF_VIEW): voxel_mm for voxel_mm in range(8, 0, -1)}   # -> mm
MRI_TOP = 99.5                                             # percentile of the brain that becomes 1
MOST_CUT_OFF = 0.001                                       # share of the brain above pet_max_suvr: only noise
SMALLEST_MM = 100.0                                        # a side of what is still a head
SMALLEST_ML = 300.0                                        # a brain, of children too
COVERED = 0.5                                              # of the reference region, in brain and PET
OUTPUTS = {"mri": "whole_MRI", "pet": "whole_Abeta"}
NOTE = "preprocessed for IL-CLDM; not for clinical use"
FWHM = 2 * np.sqrt(2 * np.log(2))                          # of a Gaussian in standard deviations


# ---------------------------------------------------------------- settings

@dataclass(frozen=True)
class PreprocessSettings:
    """Settings of `python main.py preprocess`. Raises ValueError that lists all values out of range."""

    raw: str = setting("raw", "folder with T1/<ID>.nii[.gz] and, if there are any, PET/<ID>.nii[.gz] of "
                              "whole heads; or one T1 MRI, or a folder of T1 MRIs", section="files")
    data_dir: str = setting("data", "folder of the cohort: its whole_MRI and whole_Abeta are written")
    reference_mask: str = setting("", "NIfTI mask in MNI space, usually the whole cerebellum, by whose "
                                      "uptake PETs are divided, or a label image with numbers, such as "
                                      "aseg.nii.gz:7,8,46,47; empty: as regions says")
    regions: str = setting("mni", "the whole cerebellum without a reference_mask; mni: a plain one made from "
                                  "the MNI152 template; centiloid: the Centiloid project's, of the package "
                                  "amypet (docs/status.md)", choices=AUTOMATIC)
    image_size: tuple[int, int, int] = same(Config, "image_size")
    num_workers: int = setting(2, "subjects at a time, which share the cores; 0: one, in this process", low=0)
    overwrite: bool = setting(False, "replace volumes that are there already")

    registration: str = setting("affine", "how a brain is brought to the template; syn: nonlinearly too, in "
                                "the template's shape", section="method", choices=("affine", "syn"))
    pet_fwhm: float = setting(0.0, "FWHM in mm of a Gaussian that smooths PETs; for several scanners",
                              low=0.0, high=30.0)
    pet_max_suvr: float = setting(4.0, "SUVR that is stored as 1, the same for all PETs of a cohort; what "
                                       "exceeds it is cut off and reported", low=1.0, high=100.0)

    def __post_init__(self):
        problems = value_problems(self)
        if self.image_size not in list(GRIDS):
            sizes = ", ".join("x".join(map(str, size)) for size in GRIDS)
            problems.append(f"image_size {self.image_size}: preprocess writes 181 x 217 x 181 voxels of 1 "
                            f"mm, or the same field of view at 2 to 8 mm ({sizes})")
        refuse(problems)

    @property
    def voxel_mm(self) -> int:
        """Voxel size of the cohort's grid in mm."""
        return GRIDS[self.image_size]


def main(argv: list[str]) -> int:
    """Preprocess raw scans, with the settings of a command line. Returns the exit code."""
    settings = parse(PreprocessSettings, argv, "main.py preprocess",
                     "Bring raw scans into the space and the range of the cohort.")
    return exit_code(lambda: preprocess_scans(settings))


@dataclass(frozen=True)
class RawScan:
    """The files of one subject's visit."""
    id: str
    mri: Path
    pet: Path | None


@dataclass(frozen=True)
class Recipe:
    """Everything besides the files that the volumes depend on, and where they go."""
    data_dir: Path
    voxel_mm: int
    registration: str
    fwhm: float                                            # mm
    max_suvr: float
    reference: np.ndarray | None                           # mask [X, Y, Z] on the grid, for PETs
    overwrite: bool

    def key(self, raw: RawScan) -> str:
        """16 hexadecimal digits that identify the files of a subject and the settings for them."""
        settings = [VERSION, version("antspyx"), self.voxel_mm, self.registration]
        digest = hashlib.blake2b(digest_size=8)
        if raw.pet:
            settings += [self.fwhm, self.max_suvr]
            digest.update(np.packbits(self.reference))
        digest.update(repr(settings).encode())
        for path in filter(None, (raw.mri, raw.pet)):
            digest.update(file_digest(path).encode())
        return digest.hexdigest()

    def output(self, kind: str, name: str) -> Path:
        """Path of a volume ('mri' or 'pet') of a subject."""
        return self.data_dir / OUTPUTS[kind] / f"{name}.nii.gz"

    @property
    def folder(self) -> Path:
        """Folder of pages, records and measures."""
        return self.data_dir / "preprocess"


def file_digest(path: Path) -> str:
    """32 hexadecimal digits that identify the bytes of a file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------- the whole

def preprocess_scans(cfg: PreprocessSettings) -> None:
    """Preprocess the scans of the raw folder.

    Goes on after one that fails, and raises InputError at the end that lists all of these.
    """
    if importlib.util.find_spec("ants") is None:
        raise InputError("preprocess needs ANTs, an extra of this project: "
                         "pip install -r requirements-preprocess.txt")
    scans = find_scans(Path(cfg.raw))
    pets = sum(raw.pet is not None for raw in scans)
    recipe = make_recipe(cfg, pets > 0)
    check_place(recipe.data_dir)
    folders = [recipe.folder, recipe.data_dir / OUTPUTS["mri"]]
    if pets:
        folders.append(recipe.data_dir / OUTPUTS["pet"])
    for folder in folders:
        make_folder(folder)
        remove_leftovers(folder)
    with FolderLock(recipe.folder):
        workers = min(cfg.num_workers, len(scans))
        say("preprocess", f"{len(scans)} MRIs and {pets} PETs of {cfg.raw}, {max(workers, 1)} at a time, to "
                          f"{recipe.data_dir}; pages to look at in {recipe.folder}")
        rows = preprocess_all(scans, recipe, workers)
        report(recipe, list(progress_bar(rows, total=len(scans), desc="preprocess", unit="subject")))


def find_scans(raw: Path) -> list[RawScan]:
    """The scans of a raw folder, or of a single T1 MRI. Raises InputError that lists all wrong names."""
    if not raw.exists():
        raise InputError(f"{raw}: not there. Place whole heads as {raw}/T1/<ID>.nii[.gz], their PETs as "
                         f"{raw}/PET/<ID>.nii[.gz], or give one T1 MRI, or a folder of such files, by --raw")
    home, problems = raw / "T1" if (raw / "T1").is_dir() else raw, []
    mris = scan_files([raw] if raw.is_file() else home.iterdir(), "_T1w", problems)
    pets = scan_files((raw / "PET").iterdir(), "_pet", problems) if (raw / "PET").is_dir() else {}
    if not mris:
        problems.append(f"{home}: holds no .nii or .nii.gz")
    for name, path in pets.items():
        if name not in mris:
            problems.append(f"{path}: has no T1 MRI {home / name}.nii[.gz]")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the raw scans:", *problems]))
    return [RawScan(name, path, pets.get(name)) for name, path in mris.items()]


def scan_files(paths: Iterable[Path], suffix: str, problems: list[str]) -> dict[str, Path]:
    """ID -> NIfTI file, in the order of the IDs.

    An ID is the file's name without suffix and without .nii or .nii.gz. problems: the list to which problems
    are added.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        if path.name.startswith(".") or not path.name.endswith((".nii", ".nii.gz")):
            continue
        name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(suffix)
        if not ID_PATTERN.fullmatch(name):
            problems.append(f"{path}: {brief(repr(name))} is not an ID; expected at most 200 letters, "
                            "digits, '.', '_' and '-'")
        elif name in found:
            problems.append(f"{found[name]} and {path.name}: both are {name}; keep one")
        else:
            found[name] = path
    return dict(sorted(found.items()))


def make_recipe(cfg: PreprocessSettings, has_pets: bool) -> Recipe:
    """The recipe of the settings, with the reference region on the grid if there are PETs or it is given.

    Raises InputError if that mask cannot be used.
    """
    reference, source = None, cfg.reference_mask
    if has_pets and not source:
        source = automatic_regions(cfg.regions)["reference_mask"]
        say("preprocess", "no --reference_mask is given: PETs are divided by the uptake in the whole "
                          f"cerebellum of {ABOUT[cfg.regions]}")
    if source:
        box = Crop((0, 0, 0), cfg.image_size)
        reference = read_mask(source, grid_affine(cfg.voxel_mm), box, "reference_mask")
    return Recipe(Path(cfg.data_dir), cfg.voxel_mm, cfg.registration, cfg.pet_fwhm, cfg.pet_max_suvr,
                  reference, cfg.overwrite)


def report(recipe: Recipe, rows: list[dict]) -> None:
    """Write measures.csv and name the pages to look at. Raises InputError that lists the failed subjects."""
    path = recipe.folder / "measures.csv"
    write_csv(path, pd.DataFrame(rows))
    for row in rows:
        if row["remark"]:
            say("preprocess", f"{row['ID']}: look at {recipe.folder / row['ID']}.png: {row['remark']}")
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


def preprocess_subject(raw: RawScan, recipe: Recipe) -> dict:
    """One subject's row: ID, problem (empty if there is none), remark, measures.

    A subject that was done before, from the same files with the same settings, is not done again.
    """
    try:
        key = recipe.key(raw)
        measures = saved_measures(raw, recipe, key)
        if measures is None:
            measures = make_volumes(raw, recipe, key)
        return {"ID": raw.id, "problem": "", "remark": "; ".join(remarks(measures))} | measures
    except InputError as error:
        problem = str(error)
    except RuntimeError as error:                          # ITK's own, for what it cannot use
        problem = f"{raw.mri}: ANTs failed: {brief(str(error).strip().splitlines()[-1])}"
    return {"ID": raw.id, "problem": problem, "remark": ""}


def saved_measures(raw: RawScan, recipe: Recipe, key: str) -> dict | None:
    """The measures of a subject that is done, None if it is to be done.

    Raises InputError if its place is taken by volumes that were not made from these files with these
    settings.
    """
    try:
        record = json.loads((recipe.folder / f"{raw.id}.json").read_text())
        made = {kind: str(digest) for kind, digest in record["volumes"].items()}
        if record["key"] == key and made and are_unchanged(made, raw, recipe):
            return record["measures"]
        begun = not made                                   # and interrupted: what lies there is ours
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        begun = False
    places = [recipe.output(kind, raw.id) for kind in OUTPUTS]
    there = [path for place in places for path in (place, place.with_suffix("")) if path.exists()]
    if there and not begun and not recipe.overwrite:
        raise InputError(f"{there[0]}: is there already, and was not made from these files with these "
                         "settings; --overwrite true replaces it, another --data_dir leaves it")
    return None


def are_unchanged(made: dict[str, str], raw: RawScan, recipe: Recipe) -> bool:
    """Whether the volumes of a subject have these digests. Raises InputError if one cannot be read."""
    return all(digest == file_digest(recipe.output(kind, raw.id)) for kind, digest in made.items())


# ---------------------------------------------------------------- one subject

def make_volumes(raw: RawScan, recipe: Recipe, key: str) -> dict[str, float]:
    """Register, scale and write the volumes of a subject, its page and its record. Returns the measures."""
    started = time.monotonic()
    mri = read_scan(raw.mri)
    if len(mri) > 1:
        raise InputError(f"{raw.mri}: has {len(mri)} frames; expected one T1 volume")
    frames = read_scan(raw.pet) if raw.pet else []
    with tempfile.TemporaryDirectory() as scratch:
        nonlinear = recipe.registration == "syn"
        head = registration.register_head(mri[0], recipe.voxel_mm, nonlinear, Path(scratch))
        if head.brain_ml < SMALLEST_ML:
            raise InputError(f"{raw.mri}: a brain of {head.brain_ml:.0f} ml was found; is it a T1 MRI of a "
                             "whole head?")
        whole = registration.to_grid([head.image], [head.to_template], recipe.voxel_mm)
        brain = registration.to_grid([head.brain], [head.to_template], recipe.voxel_mm) >= 0.5
        volumes = {"mri": scale_mri(whole, brain)}
        measures = {"brain_ml": head.brain_ml} | measure_mri(volumes["mri"], whole, brain, recipe.voxel_mm)
        shown = {"T1": whole}
        if frames:
            suvr, found = resample_pet(frames, head, brain, recipe, Path(scratch))
            shown["PET"] = suvr
            volumes["pet"] = np.where(brain, suvr / recipe.max_suvr, 0).clip(0, 1)
            measures |= found | compare_with_mri(volumes["pet"], volumes["mri"], brain)
    measures["seconds"] = time.monotonic() - started
    refuse_unusable(raw, measures, recipe)
    write_all(raw, recipe, key, volumes, shown, brain, measures)
    return measures


def read_scan(path: Path) -> list:
    """The frames of a scan as ANTs images, one for a 3D volume, without values that are not finite.

    Raises InputError for anything but a head.
    """
    header = read_header(path)
    shape = header.get_data_shape()
    extent = np.array(shape[:3]) * header.get_zooms()[:3]
    if problem := orientation_problem(header):
        raise InputError(f"{path}: {problem}")
    if min(extent) < SMALLEST_MM or len(shape) > 4:
        voxels, sides = "x".join(map(str, shape)), "x".join(f"{mm:.0f}" for mm in extent)
        raise InputError(f"{path}: has {voxels} voxels over {sides} mm; expected a whole head of at "
                         f"least {SMALLEST_MM:.0f} mm a side, 3D, or 4D for a PET with frames")
    voxels, affine = read_volume(path)
    voxels = np.nan_to_num(voxels, posinf=0, neginf=0)     # SPM writes NaN outside the field of view
    if not voxels.max() > max(voxels.min(), 0):
        raise InputError(f"{path}: all its voxels are {voxels.max():g}")
    frames = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else [voxels]
    try:
        return [registration.to_ants(frame, affine) for frame in frames]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def scale_mri(whole: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The MRI in [0, 1], 0 outside the brain; the brightest half percent of the brain is 1."""
    return np.where(brain, whole / np.percentile(whole[brain], MRI_TOP), 0).clip(0, 1).astype(np.float32)


def measure_mri(mri: np.ndarray, whole: np.ndarray, brain: np.ndarray, voxel_mm: int) -> dict[str, float]:
    """Comparison of the scaled MRI with the template, and the share of the unscaled brain below 0."""
    template = registration.load_template(voxel_mm).numpy()
    mask = registration.load_template(voxel_mm, "brain_mask").numpy() > 0
    compared = compare_with_template(mri, brain, template, mask)
    return compared | {"mri_below_0": float((whole[brain] < 0).mean())}


def resample_pet(frames: list, head: registration.Head, brain: np.ndarray, recipe: Recipe, scratch: Path
                 ) -> tuple[np.ndarray, dict[str, float]]:
    """The PET on the grid as SUVR of its reference region, the mean of its frames, and its measures.

    brain: mask [X, Y, Z] on the grid. scratch: folder for files in between.
    """
    to_head, motion = registration.register_pet(frames, head, scratch)
    transforms = [head.to_template + files for files in to_head]
    pet = registration.to_grid(frames, transforms, recipe.voxel_mm)
    field = [registration.like(frame, np.ones(frame.shape)) for frame in frames]
    seen = brain & (registration.to_grid(field, transforms, recipe.voxel_mm) > 0.99)
    pet = gaussian_filter(pet, recipe.fwhm / FWHM / recipe.voxel_mm)
    reference = recipe.reference & seen
    level = float(pet[reference].mean()) if reference.any() else 0.0
    suvr = pet / level if level > 0 else np.zeros_like(pet)
    return suvr, {
        "pet_frames": len(frames), "pet_motion_mm": motion, "pet_covered": float(seen.sum() / brain.sum()),
        "reference_covered": float(reference.sum() / recipe.reference.sum()), "reference_uptake": level,
        "pet_maximum": float(suvr[brain].max()),
        "pet_above_maximum": float((suvr[brain] > recipe.max_suvr).mean()),
        "pet_below_0": float((suvr[brain] < 0).mean())}


def refuse_unusable(raw: RawScan, measures: dict[str, float], recipe: Recipe) -> None:
    """Raise InputError for a PET whose ratios would not survive."""
    if raw.pet is None:
        return
    covered, uptake = measures["reference_covered"], measures["reference_uptake"]
    if covered < COVERED or uptake <= 0:
        raise InputError(f"{raw.pet}: {covered:.0%} of the reference region lie in brain and PET, with a "
                         f"mean uptake of {uptake:.4g}; expected {COVERED:.0%} and more, above 0. Is the PET "
                         "cut off, or the reference_mask in another space?")
    if measures["pet_above_maximum"] > MOST_CUT_OFF:
        raise InputError(f"{raw.pet}: {measures['pet_above_maximum']:.2%} of the brain exceed the SUVR "
                         f"{recipe.max_suvr:g} (largest: {measures['pet_maximum']:.3g}) and would be cut "
                         "off; preprocess all PETs with a larger --pet_max_suvr")


def write_all(raw: RawScan, recipe: Recipe, key: str, volumes: dict[str, np.ndarray],
              shown: dict[str, np.ndarray], brain: np.ndarray, measures: dict[str, float]) -> None:
    """Write a subject's volumes and page, after a record that it is begun, and before one of what was made.

    volumes: 'mri' and 'pet' -> voxels to be written. shown: name -> voxels for the page. All [X, Y, Z].
    """
    record, affine = recipe.folder / f"{raw.id}.json", grid_affine(recipe.voxel_mm)
    write_text(record, json.dumps({"key": key, "volumes": {}}))
    for kind, voxels in volumes.items():
        save_nifti(recipe.output(kind, raw.id), voxels, affine, NOTE)
    outlines = {"template": registration.load_template(recipe.voxel_mm, "brain_mask").numpy() > 0,
                "white": registration.load_template(recipe.voxel_mm, "wm_template").numpy() > 0,
                "brain": brain}
    draw_page(recipe.folder / f"{raw.id}.png", raw.id, shown, outlines, measures, recipe.voxel_mm)
    made = {kind: file_digest(recipe.output(kind, raw.id)) for kind in volumes}
    sources = {"mri": str(raw.mri), "pet": str(raw.pet or "")}
    saved = {"key": key, "volumes": made, "measures": measures, "raw": sources}
    write_text(record, json.dumps(saved, indent=2) + "\n")
