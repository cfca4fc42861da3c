"""Raw scans, brought into the space and the range of the cohort by ANTs.

    <raw>/T1/<ID>.nii[.gz]   -> <data_dir>/whole_MRI/<ID>.nii.gz      and, where there is one,
    <raw>/PET/<ID>.nii[.gz]  -> <data_dir>/whole_Abeta/<ID>.nii.gz

on the cohort's grid (registration.py), in [0, 1], 0 outside the brain. <data_dir>/preprocess gets <ID>.png, a page to look at, <ID>.json,
the record of what the volumes were made from, and measures.csv.
"""
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator
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
from imaging.regions import read_mask
from imaging.volumes import Crop, orientation_problem, read_header, read_volume, save_nifti
from runtime.commandline import parse
from runtime.files import FolderLock, brief, check_place, make_folder, remove_leftovers, write_csv, write_text
from runtime.logs import progress_bar, say
from runtime.program import exit_code
from runtime.settings import refuse, same, setting, value_problems
from runtime.signals import abandoned_on_error, serve_parent
from utils import InputError

RECIPE = 1                                                 # raise it with every change that alters a voxel
FIELD_OF_VIEW = (181, 217, 181)                            # mm
MRI_TOP = 99.5                                             # percentile of the brain's intensities that becomes 1
MOST_CUT_OFF = 0.001                                       # share of the brain above pet_max_suvr that is still noise
SMALLEST_MM = 100.0                                        # a side of what is still a head
SMALLEST_ML = 300.0                                        # a brain, of children too
COVERED = 0.5                                              # of the reference region that must lie inside the brain and the PET
OUTPUTS = {"mri": "whole_MRI", "pet": "whole_Abeta"}
NOTE = "preprocessed for IL-CLDM; not for clinical use"
FWHM = 2 * np.sqrt(2 * np.log(2))                          # of a Gaussian in standard deviations


@dataclass(frozen=True)
class Settings:
    """The settings of `python main.py preprocess`. Raises ValueError that lists all values which are out of range."""

    raw: str = setting("raw", "folder with T1/<ID>.nii[.gz] and, if there are any, PET/<ID>.nii[.gz] of whole heads; or one T1 MRI, or a "
                              "folder of such files", section="files")
    data_dir: str = setting("data", "folder of the cohort: its whole_MRI and whole_Abeta are written")
    reference_mask: str = setting("", "NIfTI mask in MNI space, usually the whole cerebellum, whose uptake PETs are divided by")
    overwrite: bool = setting(False, "replace volumes that are there already")
    num_workers: int = setting(2, "subjects at a time, which share the cores; 0: one, in the main process", low=0)
    image_size: tuple[int, int, int] = same(Config, "image_size")
    registration: str = setting("affine", "how a brain is brought to the template; syn: nonlinearly too, which gives it that shape",
                                section="method", choices=("affine", "syn"))
    pet_fwhm: float = setting(0.0, "mm, FWHM of a Gaussian that PETs are smoothed with, for cohorts of several scanners", low=0.0, high=30.0)
    pet_max_suvr: float = setting(4.0, "SUVR that is stored as 1, the same for all PETs of a cohort; more is cut off and reported", low=1.0,
                                  high=100.0)

    def __post_init__(self):
        refuse(value_problems(self))


def main(argv: list[str]) -> int:
    """Preprocess raw scans, with the settings of a command line. Returns the exit code."""
    settings = parse(Settings, argv, "main.py preprocess", "Bring raw scans into the space and the range of the cohort.")
    return exit_code(lambda: preprocess_scans(settings))


@dataclass(frozen=True)
class Raw:
    """The files of one subject's visit."""
    id: str
    mri: Path
    pet: Path | None


@dataclass(frozen=True)
class Recipe:
    """What the volumes depend on besides the files, and where they go."""
    data_dir: Path
    voxel_mm: int
    registration: str
    fwhm: float
    max_suvr: float
    reference: np.ndarray | None                           # mask [X, Y, Z] on the grid, for PETs
    overwrite: bool

    def key(self, raw: Raw) -> str:
        """16 hexadecimal digits that identify the files of a subject, and the settings that they are treated with."""
        settings = [RECIPE, version("antspyx"), self.voxel_mm, self.registration]
        digest = hashlib.blake2b(digest_size=8)
        if raw.pet:
            settings += [self.fwhm, self.max_suvr]
            digest.update(np.packbits(self.reference))
        digest.update(repr(settings).encode())
        for path in filter(None, (raw.mri, raw.pet)):
            digest.update(file_digest(path).encode())
        return digest.hexdigest()

    def output(self, kind: str, name: str) -> Path:
        """Where a volume ('mri' or 'pet') of a subject goes."""
        return self.data_dir / OUTPUTS[kind] / f"{name}.nii.gz"

    @property
    def folder(self) -> Path:
        """Where pages, records and measures go."""
        return self.data_dir / "preprocess"


def file_digest(path: Path) -> str:
    """Identifies the bytes of a file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------- what is asked for

def preprocess_scans(cfg: Settings) -> None:
    """Preprocess the scans of the raw folder. Goes on after one that fails; raises InputError with all of these at the end."""
    if importlib.util.find_spec("ants") is None:
        raise InputError("preprocess needs ANTs, an extra of this project: pip install -r requirements-preprocess.txt")
    raws, recipe = find_scans(Path(cfg.raw)), make_recipe(cfg)
    pets = sum(raw.pet is not None for raw in raws)
    if pets and recipe.reference is None:
        raise InputError(f"{cfg.raw}/PET: PETs are divided by the uptake of a reference region; give it as --reference_mask FILE, a NIfTI "
                         f"mask in MNI space, usually the whole cerebellum. For the MRIs alone: --raw {Path(cfg.raw) / 'T1'}")
    check_place(recipe.data_dir)
    for folder in (recipe.folder, *(recipe.data_dir / OUTPUTS[kind] for kind in (("mri", "pet") if pets else ("mri",)))):
        make_folder(folder)
        remove_leftovers(folder)
    with FolderLock(recipe.folder):
        workers = min(cfg.num_workers, len(raws))
        say("preprocess", f"{len(raws)} MRIs and {pets} PETs of {cfg.raw}, {max(workers, 1)} at a time, to {recipe.data_dir}; pages to "
                          f"look at in {recipe.folder}")
        rows = progress_bar(treat_all(raws, recipe, workers), total=len(raws), desc="preprocess", unit="subject")
        report(recipe, list(rows))


def find_scans(raw: Path) -> list[Raw]:
    """The scans of a raw folder, or of a single T1 MRI. Raises InputError with everything that is wrong with their names."""
    if not raw.exists():
        raise InputError(f"{raw}: not there. Place whole heads as {raw}/T1/<ID>.nii[.gz], their PETs as {raw}/PET/<ID>.nii[.gz], or give "
                         "one T1 MRI, or a folder of such files, with --raw")
    home, problems = raw / "T1" if (raw / "T1").is_dir() else raw, []
    mris = scan_files([raw] if raw.is_file() else home.iterdir(), "_T1w", problems)
    pets = scan_files((raw / "PET").iterdir(), "_pet", problems) if (raw / "PET").is_dir() else {}
    if not mris:
        problems.append(f"{home}: holds no .nii or .nii.gz")
    problems += [f"{path}: has no T1 MRI {home / name}.nii[.gz]" for name, path in pets.items() if name not in mris]
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the raw scans:", *problems]))
    return [Raw(name, path, pets.get(name)) for name, path in mris.items()]


def scan_files(paths, suffix: str, problems: list[str]) -> dict[str, Path]:
    """ID -> NIfTI file, in the order of the IDs. An ID is the file's name without suffix and without .nii or .nii.gz."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in paths if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")):
        name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(suffix)
        if not ID_PATTERN.fullmatch(name):
            problems.append(f"{path}: {brief(repr(name))} is not an ID; expected at most 200 letters, digits, '.', '_' and '-'")
        elif name in found:
            problems.append(f"{found[name]} and {path.name}: both are {name}; keep one")
        else:
            found[name] = path
    return dict(sorted(found.items()))


def make_recipe(cfg: Settings) -> Recipe:
    """The settings, with the reference region on the grid. Raises InputError if the grid is none of MNI152's, or the mask not usable."""
    sizes = {tuple(n // v for n in FIELD_OF_VIEW): v for v in range(8, 0, -1)}
    if (voxel_mm := sizes.get(cfg.image_size)) is None:
        raise InputError(f"image_size {cfg.image_size}: preprocess writes 181 x 217 x 181 voxels of 1 mm, or the same field of "
                         f"view at 2 to 8 mm ({', '.join('x'.join(map(str, size)) for size in sizes)})")
    reference = None
    if cfg.reference_mask:
        box = Crop((0, 0, 0), cfg.image_size)
        reference = read_mask(Path(cfg.reference_mask), registration.grid_affine(voxel_mm), box, "reference_mask")
    return Recipe(Path(cfg.data_dir), voxel_mm, cfg.registration, cfg.pet_fwhm, cfg.pet_max_suvr, reference, cfg.overwrite)


# ---------------------------------------------------------------- all subjects

def limit_threads(workers: int) -> None:
    """Share the cores among the processes; read when ANTs is imported."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(max(1, (os.cpu_count() or 1) // max(workers, 1)))


def start_worker(workers: int) -> None:
    """For a process that treats subjects."""
    serve_parent()
    limit_threads(workers)


def treat_all(raws: list[Raw], recipe: Recipe, workers: int) -> Iterator[dict]:
    """The row of every subject, as it is ready."""
    if workers < 1:
        limit_threads(1)
        yield from map(partial(treat, recipe=recipe), raws)
        return
    with abandoned_on_error(ProcessPoolExecutor(workers, initializer=start_worker, initargs=(workers,))) as pool:
        yield from pool.map(partial(treat, recipe=recipe), raws)


def treat(raw: Raw, recipe: Recipe) -> dict:
    """One subject's row: ID, problem (empty if there is none), remark, measures. Nothing is done again that was done like this before."""
    try:
        key = recipe.key(raw)
        if (measures := look_up(raw, recipe, key)) is None:
            measures = make_volumes(raw, recipe, key)
        return {"ID": raw.id, "problem": "", "remark": "; ".join(remarks(measures))} | measures
    except InputError as error:
        return {"ID": raw.id, "problem": str(error), "remark": ""}
    except RuntimeError as error:                          # how ITK complains of what it cannot use
        return {"ID": raw.id, "problem": f"{raw.mri}: ANTs failed: {brief(str(error).strip().splitlines()[-1])}", "remark": ""}


def look_up(raw: Raw, recipe: Recipe, key: str) -> dict | None:
    """The measures of a subject that is done, None if it is to be done. Raises InputError if something else lies in its place."""
    try:
        record = json.loads((recipe.folder / f"{raw.id}.json").read_text())
        made = {kind: str(digest) for kind, digest in record["volumes"].items()}
        if record["key"] == key and made and all(made[kind] == file_digest(recipe.output(kind, raw.id)) for kind in made):
            return record["measures"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        record, made = None, {}
    places = [recipe.output(kind, raw.id) for kind in OUTPUTS]
    there = [path for place in places for path in (place, place.with_suffix("")) if path.exists()]
    begun = record is not None and not made
    if there and not begun and not recipe.overwrite:
        raise InputError(f"{there[0]}: is there already, and was not made from these files with these settings; --overwrite true replaces "
                         "it, another --data_dir leaves it")
    return None


# ---------------------------------------------------------------- one subject

def make_volumes(raw: Raw, recipe: Recipe, key: str) -> dict[str, float]:
    """Register, scale and write the volumes of a subject, its page and, last, its record. Returns the measures."""
    started = time.monotonic()
    mri = read_scan(raw.mri)
    if len(mri) > 1:
        raise InputError(f"{raw.mri}: has {len(mri)} frames; expected one T1 volume")
    frames = read_scan(raw.pet) if raw.pet else []
    with tempfile.TemporaryDirectory() as scratch:
        head = registration.register_head(mri[0], recipe.voxel_mm, recipe.registration == "syn", Path(scratch))
        if head.brain_ml < SMALLEST_ML:
            raise InputError(f"{raw.mri}: a brain of {head.brain_ml:.0f} ml was found; is it a T1 MRI of a whole head?")
        whole = registration.to_grid([head.image], [head.to_template], recipe.voxel_mm)
        brain = registration.to_grid([head.brain], [head.to_template], recipe.voxel_mm) >= 0.5
        volumes = {"mri": scale_mri(whole, brain)}
        measures = measure_mri(head, volumes["mri"], brain, recipe) | {"mri_below_0": float((whole[brain] < 0).mean())}
        shown = {"T1": whole}
        if frames:
            shown["PET"], found = bring_pet(frames, head, brain, recipe, Path(scratch))
            volumes["pet"] = np.where(brain, shown["PET"] / recipe.max_suvr, 0).clip(0, 1)
            measures |= found | compare_with_mri(volumes["pet"], volumes["mri"], brain)
    measures["seconds"] = time.monotonic() - started
    refuse_unusable(raw, measures, recipe)
    write_all(raw, recipe, key, volumes, shown, brain, measures)
    return measures


def read_scan(path: Path) -> list:
    """The frames of a scan as ANTs images, one for a 3D volume, without values that are not finite. Raises InputError."""
    header = read_header(path)
    extent = np.array(header.get_data_shape()[:3]) * header.get_zooms()[:3]
    if problem := orientation_problem(header):
        raise InputError(f"{path}: {problem}")
    if min(extent) < SMALLEST_MM or len(header.get_data_shape()) > 4:
        raise InputError(f"{path}: has {'x'.join(map(str, header.get_data_shape()))} voxels over {'x'.join(f'{mm:.0f}' for mm in extent)} "
                         f"mm; expected a whole head of at least {SMALLEST_MM:.0f} mm a side, 3D, or 4D for a PET with frames")
    voxels, affine = read_volume(path)
    voxels = np.nan_to_num(voxels, posinf=0, neginf=0)                                       # SPM writes NaN outside the field of view
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


def measure_mri(head, mri: np.ndarray, brain: np.ndarray, recipe: Recipe) -> dict[str, float]:
    """Volume of the brain in ml in its own space, and how the registered MRI compares with the template."""
    template, mask = (registration.load_template(recipe.voxel_mm, what).numpy() for what in ("template", "brain_mask"))
    return {"brain_ml": head.brain_ml} | compare_with_template(mri, brain, template, mask > 0)


def bring_pet(frames: list, head, brain: np.ndarray, recipe: Recipe, scratch: Path) -> tuple[np.ndarray, dict[str, float]]:
    """The PET in units of its reference region on the grid, the mean of its frames, and its measures."""
    ways, motion = registration.register_pet(frames, head, scratch)
    ways = [head.to_template + way for way in ways]
    pet = registration.to_grid(frames, ways, recipe.voxel_mm)
    field = [registration.like(frame, np.ones(frame.shape)) for frame in frames]
    seen = brain & (registration.to_grid(field, ways, recipe.voxel_mm) > 0.99)
    pet = gaussian_filter(pet, recipe.fwhm / FWHM / recipe.voxel_mm)
    level = float(pet[recipe.reference & seen].mean()) if (recipe.reference & seen).any() else 0.0
    suvr = pet / level if level > 0 else np.zeros_like(pet)
    return suvr, {"pet_frames": len(frames), "pet_motion_mm": motion, "pet_covered": float(seen.sum() / brain.sum()),
                  "reference_covered": float((recipe.reference & seen).sum() / recipe.reference.sum()), "reference_uptake": level,
                  "pet_maximum": float(suvr[brain].max()), "pet_above_maximum": float((suvr[brain] > recipe.max_suvr).mean()),
                  "pet_below_0": float((suvr[brain] < 0).mean())}


def refuse_unusable(raw: Raw, measures: dict[str, float], recipe: Recipe) -> None:
    """Raise InputError for a PET whose ratios would not survive."""
    if raw.pet and (measures["reference_covered"] < COVERED or measures["reference_uptake"] <= 0):
        raise InputError(f"{raw.pet}: {measures['reference_covered']:.0%} of the reference region lie in brain and PET, with a mean uptake "
                         f"of {measures['reference_uptake']:.4g}; expected {COVERED:.0%} and more, above 0. Is the PET cut off, or the "
                         "reference_mask in another space?")
    if raw.pet and measures["pet_above_maximum"] > MOST_CUT_OFF:
        raise InputError(f"{raw.pet}: {measures['pet_above_maximum']:.2%} of the brain exceed the SUVR {recipe.max_suvr:g} (largest: "
                         f"{measures['pet_maximum']:.3g}) and would be cut off; preprocess all PETs with a larger --pet_max_suvr")


def write_all(raw: Raw, recipe: Recipe, key: str, volumes: dict[str, np.ndarray], shown: dict[str, np.ndarray], brain: np.ndarray,
              measures: dict[str, float]) -> None:
    """Write a subject's volumes and page between two versions of its record: one that says it is begun, one that says what was made."""
    record, affine = recipe.folder / f"{raw.id}.json", registration.grid_affine(recipe.voxel_mm)
    write_text(record, json.dumps({"key": key, "volumes": {}}))
    for kind, voxels in volumes.items():
        save_nifti(recipe.output(kind, raw.id), voxels, affine, NOTE)
    outlines = {"template": "brain_mask", "white": "wm_template"}
    outlines = {name: registration.load_template(recipe.voxel_mm, what).numpy() > 0 for name, what in outlines.items()} | {"brain": brain}
    draw_page(recipe.folder / f"{raw.id}.png", raw.id, shown, outlines, measures, recipe.voxel_mm)
    made = {kind: file_digest(recipe.output(kind, raw.id)) for kind in volumes}
    sources = {"mri": str(raw.mri), "pet": str(raw.pet or "")}
    write_text(record, json.dumps({"key": key, "volumes": made, "measures": measures, "raw": sources}, indent=2) + "\n")


# ---------------------------------------------------------------- the end

def report(recipe: Recipe, rows: list[dict]) -> None:
    """Write measures.csv and say what is to be looked at. Raises InputError that lists the subjects that failed."""
    table = pd.DataFrame(rows)
    write_csv(recipe.folder / "measures.csv", table)
    for row in rows:
        if row["remark"]:
            say("preprocess", f"{row['ID']}: look at {recipe.folder / row['ID']}.png: {row['remark']}")
    failed = [f"{row['ID']}: {row['problem']}" for row in rows if row["problem"]]
    say("preprocess", f"{len(rows) - len(failed)} of {len(rows)} subjects are done; {recipe.folder / 'measures.csv'}")
    if failed:
        raise InputError("\n  ".join([f"{len(failed)} of {len(rows)} subjects could not be preprocessed; the others are done:", *failed]))
