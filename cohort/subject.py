"""One subject of preprocess: its frames are chosen, its volumes made and written once, with page and
record."""
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cohort import preprocessed, registration
from cohort.frames import Chosen, choose_frames
from cohort.onto_grid import Frames, as_it_lies, by_registration, measure_mri, scale_mri, to_suvr
from cohort.places import Places, both, recorded_places, remove_old
from cohort.quality import compare_with_mri, draw_page, remarks
from cohort.raw_scans import RawScan
from imaging.headers import read_header
from imaging.nifti_files import digest_of
from imaging.remarks import Remarks
from imaging.volumes import read_volume, save_nifti
from phantom.anatomy import grid_affine
from runtime.files import brief, write_text
from utils import InputError

VERSION = 1                                                # raise it with every change that alters a voxel
MOST_CUT_OFF = 0.001                                       # share of the brain above pet_max_suvr: only noise
SMALLEST_MM = 100.0                                        # a side of what is still a head
COVERED = 0.5                                              # of the reference region, in brain and PET
OUTPUTS = {"mri": "whole_MRI", "pet": "whole_Abeta"}
NOTE = "preprocessed for IL-CLDM; not for clinical use"


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
    window: tuple[float, float] | None = None              # minutes, that the user asked for
    frames: tuple[int, int] = (0, 0)                       # first and last, that the user asked for

    def key(self, raw: RawScan) -> str:
        """16 hexadecimal digits that identify the files of a subject and the settings for them."""
        by = [raw.space] if raw.space else [version("antspyx")]
        settings = [VERSION, *by, self.voxel_mm, self.registration]
        digest = hashlib.blake2b(digest_size=8)
        if raw.pet:
            settings += [self.fwhm, self.max_suvr]
            chosen = chosen_frames(raw, self)
            if chosen.durations or any(self.frames):       # else all frames count alike, as they always did
                settings += [chosen.places, chosen.durations]
            digest.update(np.packbits(self.reference))
        digest.update(repr(settings).encode())
        for path in filter(None, (raw.mri, raw.pet, raw.mri_mask)):
            digest.update(file_digest(path).encode())
        return digest.hexdigest()

    def window_of(self, raw: RawScan) -> tuple[float, float] | None:
        """Minutes after injection whose frames are averaged: those asked for, else those of the tracer."""
        return self.window or (raw.tracer.window if raw.tracer else None)

    def output(self, kind: str, name: str) -> Path:
        """Path of a volume ('mri' or 'pet') of a subject, as training reads it."""
        return self.data_dir / OUTPUTS[kind] / f"{name}.nii.gz"

    def places(self, kind: str, raw: RawScan) -> tuple[Path, Path]:
        """Both paths of a volume of a subject: as training reads it, and in the BIDS dataset."""
        tracer = raw.tracer.label if raw.tracer else ""
        return self.output(kind, raw.id), preprocessed.dataset_file(self.data_dir, kind, raw.id, tracer,
                                                                    raw.space, self.voxel_mm)

    def places_in_dataset(self, kinds: Iterable[str], raw: RawScan) -> Places:
        """Where volumes of a subject lie in the BIDS dataset, as its record keeps it."""
        return {kind: [self.places(kind, raw)[1].relative_to(self.data_dir).as_posix()] for kind in kinds}

    @property
    def folder(self) -> Path:
        """Folder of pages, records and measures."""
        return self.data_dir / "preprocess"


def file_digest(path: Path) -> str:
    """32 hexadecimal digits that identify the bytes of a volume's file, or of both of a pair.

    Raises InputError if it cannot be read.
    """
    try:
        return digest_of(path, "blake2b")[:32]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------- done before, or to be done

def preprocess_subject(raw: RawScan, recipe: Recipe) -> dict:
    """One subject's row: ID, problem (empty if there is none), remark, reading (Remarks), measures.

    A subject that was done before, from the same files with the same settings, is not done again.
    """
    reading = Remarks()
    try:
        key = recipe.key(raw)
        measures = saved_measures(raw, recipe, key)
        if measures is None:
            measures = make_volumes(raw, recipe, key, reading)
        row = {"ID": raw.id, "problem": "", "remark": "; ".join(remarks(measures)), "reading": reading}
        return row | describe(raw, recipe) | measures
    except InputError as error:
        problem = str(error)
    except RuntimeError as error:                          # ITK's own, for what it cannot use
        problem = f"{raw.mri}: ANTs failed: {brief(str(error).strip().splitlines()[-1])}"
    return {"ID": raw.id, "problem": problem, "remark": "", "reading": reading}


def saved_measures(raw: RawScan, recipe: Recipe, key: str) -> dict | None:
    """The measures of a subject that is done, None if it is to be done.

    Raises InputError if its place is taken by volumes that were not made from these files with these
    settings.
    """
    try:
        path = recipe.folder / f"{raw.id}.json"
        record = json.loads(path.read_text())
        made = {kind: str(digest) for kind, digest in record["volumes"].items()}
        if record["key"] == key and made and are_unchanged(made, raw, recipe):
            measures = record["measures"]
            keep_places(path, record, recipe.places_in_dataset(made, raw), recipe)
            return measures
        begun = not made                                   # and interrupted: what lies there is ours
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        begun = False
    places = [place for kind in OUTPUTS for place in recipe.places(kind, raw)]
    there = [path for place in places for path in (place, place.with_suffix("")) if os.path.lexists(path)]
    if there and not begun and not recipe.overwrite:
        raise InputError(f"{there[0]}: is there already, and was not made from these files with these "
                         "settings; --overwrite true replaces it, another --data_dir leaves it")
    return None


def are_unchanged(made: dict[str, str], raw: RawScan, recipe: Recipe) -> bool:
    """Whether the volumes of a subject have these digests; one that is missing in one of its two places is
    laid there again. Raises InputError if one cannot be read."""
    for kind, digest in made.items():
        there = [path for path in recipe.places(kind, raw) if path.exists()]
        if not there or any(file_digest(path) != digest for path in there):
            return False
    for kind in made:
        view, in_dataset = recipe.places(kind, raw)
        write_sidecar(kind, raw, recipe)
        preprocessed.link_file(*((view, in_dataset) if view.exists() else (in_dataset, view)))
    return True


def keep_places(path: Path, record: dict, places: Places, recipe: Recipe) -> None:
    """Note in the record of a subject that is done where its volumes lie now, and remove those of names that
    it no longer has."""
    old = recorded_places(path)
    now = old | places
    if old != now:
        remove_old(recipe.data_dir, old, places)
        write_text(path, json.dumps(record | {"places": now}, indent=2) + "\n")


def write_sidecar(kind: str, raw: RawScan, recipe: Recipe) -> None:
    """Write the sidecar that a volume has in the BIDS dataset."""
    registered = "none" if raw.space else recipe.registration
    content = preprocessed.describe(kind, registered, recipe.max_suvr, recipe.fwhm)
    sources = [raw.mri] if kind == "mri" else [raw.pet, raw.mri]
    preprocessed.write_sidecar(recipe.places(kind, raw)[1], content, recipe.voxel_mm, sources,
                               recipe.data_dir)


# ---------------------------------------------------------------- its volumes

def make_volumes(raw: RawScan, recipe: Recipe, key: str, reading: Remarks) -> dict[str, float]:
    """Register, scale and write the volumes of a subject, its page and its record. Returns the measures."""
    started = time.monotonic()
    mri = read_scan(raw.mri, reading)
    if len(mri.volumes) > 1:
        raise InputError(f"{raw.mri}: has {len(mri.volumes)} frames; expected one T1 volume")
    pet = read_pet(raw, recipe, reading) if raw.pet else None
    if raw.space:
        there = as_it_lies(mri, raw.mri_mask, pet, recipe.voxel_mm)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            there = by_registration(mri, pet, recipe.voxel_mm, recipe.registration == "syn", Path(scratch))
    volumes = {"mri": scale_mri(there.mri, there.brain)}
    measures = there.measures | measure_mri(volumes["mri"], there.mri, there.brain, recipe.voxel_mm)
    shown = {"T1": there.mri}
    if pet:
        suvr, found = to_suvr(there, recipe.reference, recipe.fwhm, recipe.max_suvr, recipe.voxel_mm)
        shown["PET"] = suvr
        volumes["pet"] = np.where(there.brain, suvr / recipe.max_suvr, 0).clip(0, 1)
        measures |= found | compare_with_mri(volumes["pet"], volumes["mri"], there.brain)
    measures["seconds"] = time.monotonic() - started
    refuse_unusable(raw, measures, recipe)
    write_all(raw, recipe, key, volumes, shown, there.brain, measures)
    return measures


def read_scan(path: Path, remarks: Remarks, frames: list[int] | None = None) -> Frames:
    """The frames of a scan.

    remarks: to which it is added what was changed on reading. frames: places of those that are wanted, all
    without it. Raises InputError for anything but a head.
    """
    header = read_header(path)
    shape = header.get_data_shape()
    extent = np.array(shape[:3]) * header.get_zooms()[:3]
    if min(extent) < SMALLEST_MM or len(shape) > 4:
        voxels, sides = "x".join(map(str, shape)), "x".join(f"{mm:.0f}" for mm in extent)
        raise InputError(f"{path}: has {voxels} voxels over {sides} mm; expected a whole head of at "
                         f"least {SMALLEST_MM:.0f} mm a side, 3D, or 4D for a PET with frames")
    voxels, affine = read_volume(path, remarks, frames)
    if not voxels.max() > max(voxels.min(), 0):
        raise InputError(f"{path}: all its voxels are {voxels.max():g}")
    return Frames(path, list(np.moveaxis(voxels, 3, 0)) if voxels.ndim == 4 else [voxels], affine)


def chosen_frames(raw: RawScan, recipe: Recipe) -> Chosen:
    """The frames of a scan's PET that are averaged, by its header and sidecar. Raises InputError."""
    shape = read_header(raw.pet).get_data_shape()
    count = shape[3] if len(shape) > 3 else 1
    if raw.timing_fault and count > 1 and not any(recipe.frames):
        raise InputError(f"{raw.pet}: has {count} frames, and its sidecar cannot be used: "
                         f"{raw.timing_fault}; correct it, or give --pet_frames FIRST LAST")
    try:
        chosen = choose_frames(count, raw.timing, recipe.window_of(raw), recipe.frames)
    except ValueError as error:
        raise InputError(f"{raw.pet}: {error}") from error
    if raw.timing_fault:
        chosen = replace(chosen, remark=f"its sidecar is not used: {raw.timing_fault}")
    return chosen


def read_pet(raw: RawScan, recipe: Recipe, reading: Remarks) -> Frames:
    """The frames of a scan's PET that are averaged, with their durations."""
    chosen = chosen_frames(raw, recipe)
    return replace(read_scan(raw.pet, reading, chosen.places), durations=chosen.durations)


def describe(raw: RawScan, recipe: Recipe) -> dict:
    """What is known of a scan besides measures, as far as it is known: columns of measures.csv."""
    known = {"tracer": raw.tracer.label if raw.tracer and raw.pet else "", "rec": raw.rec, "space": raw.space,
             "t1_pet_days": "" if raw.days is None else raw.days}
    remark = chosen_frames(raw, recipe).remark if raw.pet else ""
    known["note"] = "; ".join(filter(None, (raw.note, remark)))
    return {name: value for name, value in known.items() if value != ""}


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
    old, places = recorded_places(record), recipe.places_in_dataset(volumes, raw)
    write_text(record, json.dumps({"key": key, "volumes": {}, "places": both(old, places)}))
    for kind, voxels in volumes.items():
        view, in_dataset = recipe.places(kind, raw)
        write_sidecar(kind, raw, recipe)
        save_nifti(view, voxels, affine, NOTE)
        preprocessed.link_file(view, in_dataset)
    outlines = {"template": registration.template_voxels(recipe.voxel_mm, "brain_mask"),
                "white": registration.template_voxels(recipe.voxel_mm, "wm_template"),
                "brain": brain}
    draw_page(recipe.folder / f"{raw.id}.png", raw.id, shown, outlines, measures, recipe.voxel_mm)
    made = {kind: file_digest(recipe.output(kind, raw.id)) for kind in volumes}
    sources = {"mri": str(raw.mri), "pet": str(raw.pet or "")}
    remove_old(recipe.data_dir, old, places)
    saved = {"key": key, "volumes": made, "places": old | places, "measures": measures, "raw": sources}
    saved |= describe(raw, recipe)
    write_text(record, json.dumps(saved, indent=2) + "\n")
