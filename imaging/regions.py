"""Masks and regions of the brain, brought onto the crop through their affines, and the uptake inside them."""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from imaging.centiloid_regions import centiloid_regions
from imaging.grids import Crop
from imaging.mni_regions import mni_regions
from imaging.volumes import read_voxels
from runtime.files import brief
from runtime.tables import read_table
from utils import InputError

COVERED = 0.95               # share of a region that must lie inside the crop to go without a remark
AUTOMATIC = ("centiloid", "mni")                           # regions that no file of the user's gives
ABOUT = {"centiloid": "the Centiloid project's masks (--regions centiloid)",
         "mni": "plain regions of the MNI152 template (--regions mni)"}
FREESURFER = (".mgz", ".mgh")
MaskSource = str | Path | nib.Nifti1Image | None           # as read_mask takes it


def automatic_regions(kind: str) -> dict[str, nib.Nifti1Image]:
    """cortex_mask and reference_mask of one of AUTOMATIC, as images. Raises InputError if they cannot be
    had."""
    return centiloid_regions() if kind == "centiloid" else mni_regions()


# ---------------------------------------------------------------- masks

def read_mask(source: MaskSource, affine: np.ndarray, crop: Crop, what: str = "brain_mask") -> np.ndarray:
    """Read a mask and resample it (nearest neighbour, through the affines) onto the crop: [D, H, W] bool.

    source: a file, of which voxels of half its maximum and more belong to the mask; a label image with
    numbers, such as aseg.nii.gz:7,8,46-47, of which those labels belong to it; an image; or None, the MNI152
    brain mask that nilearn carries. affine: of the cohort's RAS volumes. what: name of the setting, for
    messages; of an image also its origin.
    Raises InputError if the file cannot be read, is not a mask, or has nothing inside the crop.
    """
    if source is None:
        from nilearn import datasets  # here, because importing it takes seconds

        source, what = datasets.load_mni152_brain_mask(), f"{what} of nilearn"
    mask = _onto_crop(_mask_image(source, what), affine, crop) > 0
    if not mask.any():
        name = what if isinstance(source, nib.Nifti1Image) else f"{what} {source}"
        raise InputError(f"{name}: nothing of it lies inside the crop; is the cohort in MNI space?")
    return mask


def split_numbers(text: str) -> tuple[str, str]:
    """The file and the label numbers of "file:numbers"; without numbers these are empty.

    A colon belongs to the file's name if something else than digits, commas and hyphens follows, or if only
    the letter of a Windows drive stands before it.
    """
    found = re.fullmatch(r"(.{2,}):\s*(\d[\d,\s-]*)", text)
    return (found[1], found[2]) if found else (text, "")


def _mask_image(source: MaskSource, what: str) -> nib.Nifti1Image:
    """The mask as an image of 0 and 1 on its own grid."""
    if isinstance(source, nib.Nifti1Image):
        return source
    path, numbers = (str(source), "") if os.path.exists(source) else split_numbers(str(source))
    if Path(path).suffix.lower() in FREESURFER:
        raise InputError(f"{what} {path}: is a FreeSurfer volume; mri_convert {Path(path).name} "
                         f"{Path(path).stem}.nii.gz makes a NIfTI file of it")
    image = _read_image(Path(path), what)
    stored = np.asarray(image.dataobj)
    name = f"{what} {source}"
    mask = _with_numbers(stored, numbers, name) if numbers else _above_half(stored, name)
    return nib.Nifti1Image(mask.astype(np.uint8), image.affine)


def _above_half(stored: np.ndarray, what: str) -> np.ndarray:
    """Voxels of half the maximum and more. Raises InputError if the volume is no mask."""
    if not stored.max() > 0:
        raise InputError(f"{what}: no voxel is above 0")
    values = np.unique(stored)
    if len(values) > 2 and np.array_equal(values, values.round()):
        raise InputError(f"{what}: holds {len(values)} different integers; expected two, outside and inside. "
                         "Of a label image give the numbers of the region behind a colon, such as "
                         "aseg.nii.gz:7,8,46-47 (docs/status.md); further regions of one with a table are "
                         "given as --atlas IMAGE TABLE")
    return stored >= 0.5 * stored.max()


def _with_numbers(stored: np.ndarray, numbers: str, what: str) -> np.ndarray:
    """Voxels whose label is one of the numbers, "7,8,46-47". Raises InputError if a part of them is no number
    or range, or has no voxel."""
    present, wanted, problems = np.unique(stored), [], []
    for part in numbers.split(","):
        found = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        inside = present[(present >= max(low, 1)) & (present <= high)]
        if high < low or low < 1:
            problems.append(f"{brief(repr(part))} is neither a label from 1 to 9999999 nor a range such as "
                            "1006-1009")
        elif not len(inside):
            problems.append(f"no voxel has the label {part.strip()}")
        wanted += inside.tolist()
    if problems:
        labels = ", ".join(f"{value:g}" for value in present[present != 0][:12])
        raise InputError(f"{brief(what)}: {'; '.join(problems[:8])}. It holds {len(present)} different values"
                         f"{f', beside 0: {labels}' if labels else ''}{' ...' if len(present) > 13 else ''}")
    return np.isin(stored, wanted)


def _read_image(path: Path, what: str) -> nib.Nifti1Image:
    """Read a volume as an image, NaN as 0.

    Raises InputError if it is not there, damaged or not of three dimensions.
    """
    if not os.path.lexists(path):                          # Path.exists raises for a name that is too long
        raise InputError(f"{what} {path}: not there")
    voxels, affine = read_voxels(path)
    if voxels.ndim != 3:
        raise InputError(f"{what} {path}: has {voxels.ndim} dimensions {voxels.shape}; expected 3")
    voxels[np.isnan(voxels)] = 0                           # SPM writes NaN outside the brain
    return nib.Nifti1Image(voxels, affine)


def _onto_crop(image: nib.Nifti1Image, affine: np.ndarray, crop: Crop) -> np.ndarray:
    """Values of an image of any grid at the centres of the crop's voxels, [D, H, W]; never taken by index.
    0 where it does not reach."""
    from nilearn.image import resample_img
    from nilearn.image.resampling import BoundingBoxError

    try:
        resampled = resample_img(image, target_affine=crop.affine(affine), target_shape=crop.size,
                                 interpolation="nearest", force_resample=True, copy_header=True)
    except BoundingBoxError:                               # all of it lies before the crop
        return np.zeros(crop.size, image.get_data_dtype())
    return np.asarray(resampled.dataobj)


def share_inside(source: MaskSource, affine: np.ndarray, crop: Crop) -> float:
    """Share of a mask's voxels whose centres lie inside the crop, in [0, 1].

    source: as read_mask takes it, but None. affine: of the cohort's RAS volumes. Raises InputError if the
    file cannot be read.
    """
    image = _mask_image(source, "mask")
    members = np.argwhere(np.asarray(image.dataobj))
    to_crop = np.linalg.inv(crop.affine(affine)) @ image.affine
    centres = nib.affines.apply_affine(to_crop, members)   # in voxels of the crop
    inside = (centres >= -0.5) & (centres <= np.array(crop.size) - 0.5)
    return float(inside.all(axis=1).mean())


# ---------------------------------------------------------------- label images with a table

def read_labels(image_path: Path, table_path: Path, affine: np.ndarray, crop: Crop) -> dict[str, np.ndarray]:
    """Read the regions of a label image: name -> mask [D, H, W] bool, in the order of the table.

    table_path: CSV or TSV with the columns index (integer in the image, 1 to 9999999) and name (letters,
    digits and '_'). affine: of the cohort's RAS volumes.
    Raises InputError that lists all problems.
    """
    try:
        table = read_table(table_path, "index", "name")
    except InputError as error:
        raise InputError(f"atlas table {error}") from error
    image = _read_image(image_path, "atlas image")
    labels = _onto_crop(image, affine, crop)               # float32, exact up to 16777216
    present = set(np.unique(labels).tolist())
    problems, masks = [], {}
    for index, name in zip(table["index"].str.strip(), table["name"].str.strip(), strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_]{1,80}", name) or not re.fullmatch(r"[1-9][0-9]{0,6}", index):
            problems.append(f"atlas table {table_path}: row {brief(repr(index))}, {brief(repr(name))}; "
                            "expected an integer from 1 to 9999999 and a name of at most 80 letters, digits "
                            "and '_'")
        elif name in masks:
            problems.append(f"atlas table {table_path}: the name {name} stands twice")
        elif int(index) not in present:
            problems.append(f"atlas image {image_path}: no voxel of region {index} ({name}) "
                            "lies inside the crop")
        else:
            masks[name] = labels == int(index)
    if table.empty:
        problems.append(f"atlas table {table_path}: holds no region")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the regions:", *problems]))
    return masks


# ---------------------------------------------------------------- uptake

@dataclass(frozen=True)
class Regions:
    """The masks [D, H, W] bool, on the crop, in which uptake is measured.

    cortex: the target composite. reference: the reference region, usually the whole cerebellum.
    named: further regions, by name.
    centiloid: (slope, intercept) of CL = slope * SUVR + intercept (Klunk et al. 2015), or None.
    """
    cortex: np.ndarray
    reference: np.ndarray
    named: dict[str, np.ndarray]
    centiloid: tuple[float, float] | None = None

    def measure(self, pet: np.ndarray) -> dict[str, float]:
        """SUVR of a PET [D, H, W], CL if it is defined, and SUVR_<name> of each further region.

        All are NaN if the reference region has no uptake above 0.
        """
        reference = _mean_uptake(pet, self.reference)
        if not reference > 0:
            reference = float("nan")
        uptake = {"SUVR": _mean_uptake(pet, self.cortex) / reference}
        if self.centiloid:
            slope, intercept = self.centiloid
            uptake["CL"] = slope * uptake["SUVR"] + intercept
        for name, mask in self.named.items():
            uptake[f"SUVR_{name}"] = _mean_uptake(pet, mask) / reference
        return uptake


def _mean_uptake(pet: np.ndarray, mask: np.ndarray) -> float:
    """Mean of a PET inside a mask, in float64."""
    return float(pet[mask].mean(dtype=np.float64))
