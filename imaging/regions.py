"""Masks and regions of the brain, brought onto the crop through their affines, and the uptake inside them."""
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from imaging.volumes import Crop, read_voxels
from runtime.files import brief
from runtime.tables import read_table
from utils import InputError

COVERED = 0.95               # share of a region that must lie inside the crop to go without a remark


def read_mask(path: Path | None, affine: np.ndarray, crop: Crop, what: str = "brain_mask") -> np.ndarray:
    """Read a mask and resample it (nearest neighbour, through the affines) onto the crop: [D, H, W] bool.

    Voxels of half its maximum and more belong to it. path: None is the MNI152 brain mask that nilearn
    carries. affine: of the cohort's RAS volumes. what: name of the setting, for messages.
    Raises InputError if the file cannot be read, is not a mask, or has nothing inside the crop.
    """
    if path is None:
        from nilearn import datasets  # here, because importing it takes seconds

        image = datasets.load_mni152_brain_mask()
    else:
        image = _read_image(path, what)
    stored = np.asarray(image.dataobj)
    if not stored.max() > 0:
        raise InputError(f"{what} {path}: no voxel is above 0")
    values = np.unique(stored)
    if len(values) > 2 and np.array_equal(values, values.round()):
        raise InputError(f"{what} {path}: holds {len(values)} different integers; expected two, outside and "
                         "inside. A label image with a table is given as --regions_image and --regions_table")
    mask = _onto_crop(image, affine, crop) >= 0.5 * stored.max()
    if not mask.any():
        raise InputError(f"{what} {path or 'of nilearn'}: nothing of it lies inside the crop; "
                         "is the cohort in MNI space?")
    return mask


def _read_image(path: Path, what: str) -> nib.Nifti1Image:
    """Read a volume as an image, NaN as 0.

    Raises InputError if it is not there, damaged or not of three dimensions.
    """
    if not os.path.lexists(path):                          # Path.exists raises for a name that is too long
        raise InputError(f"{what} {path}: not there")
    voxels, affine = read_voxels(path)
    if voxels.ndim != 3:
        raise InputError(f"{what} {path}: has {voxels.ndim} dimensions {voxels.shape}; expected 3")
    return nib.Nifti1Image(np.nan_to_num(voxels), affine)  # SPM writes NaN outside the brain


def _onto_crop(image: nib.Nifti1Image, affine: np.ndarray, crop: Crop) -> np.ndarray:
    """Values of an image of any grid at the centres of the crop's voxels, [D, H, W]; never taken by index."""
    from nilearn.image import resample_img

    resampled = resample_img(image, target_affine=crop.affine(affine), target_shape=crop.size,
                             interpolation="nearest", force_resample=True, copy_header=True)
    return np.asarray(resampled.dataobj)


def share_inside(path: Path, affine: np.ndarray, crop: Crop) -> float:
    """Share of a mask's voxels whose centres lie inside the crop, in [0, 1].

    affine: of the cohort's RAS volumes. Raises InputError if the file cannot be read.
    """
    voxels, mask_affine = read_voxels(path)
    voxels = np.nan_to_num(voxels)
    members = np.argwhere(voxels >= 0.5 * voxels.max())
    to_crop = np.linalg.inv(crop.affine(affine)) @ mask_affine
    centres = nib.affines.apply_affine(to_crop, members)   # in voxels of the crop
    inside = (centres >= -0.5) & (centres <= np.array(crop.size) - 0.5)
    return float(inside.all(axis=1).mean())


def read_labels(image_path: Path, table_path: Path, affine: np.ndarray, crop: Crop) -> dict[str, np.ndarray]:
    """Read the regions of a label image: name -> mask [D, H, W] bool, in the order of the table.

    table_path: CSV with the columns index (integer in the image, 1 to 9999999) and name (letters, digits
    and '_'). affine: of the cohort's RAS volumes.
    Raises InputError that lists all problems.
    """
    try:
        table = read_table(table_path, "index", "name")
    except InputError as error:
        raise InputError(f"regions_table {error}") from error
    image = _read_image(image_path, "regions_image")
    labels = _onto_crop(image, affine, crop)               # float32, exact up to 16777216
    present = set(np.unique(labels).tolist())
    problems, masks = [], {}
    for index, name in zip(table["index"].str.strip(), table["name"].str.strip(), strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_]{1,80}", name) or not re.fullmatch(r"[1-9][0-9]{0,6}", index):
            problems.append(f"regions_table {table_path}: row {brief(repr(index))}, {brief(repr(name))}; "
                            "expected an integer from 1 to 9999999 and a name of at most 80 letters, digits "
                            "and '_'")
        elif name in masks:
            problems.append(f"regions_table {table_path}: the name {name} stands twice")
        elif int(index) not in present:
            problems.append(f"regions_image {image_path}: no voxel of region {index} ({name}) "
                            "lies inside the crop")
        else:
            masks[name] = labels == int(index)
    if table.empty:
        problems.append(f"regions_table {table_path}: holds no region")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) in the regions:", *problems]))
    return masks


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
