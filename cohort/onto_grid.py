"""MRI and PET of a subject on the cohort's grid: registered by ANTs, or as they lie in MNI space; and the PET
as SUVR."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from cohort import registration
from cohort.frames import mean_of_frames
from cohort.quality import compare_with_template
from imaging.grids import Crop, Grid, resample
from imaging.regions import read_mask
from phantom.anatomy import FIELD_OF_VIEW, grid_affine
from utils import InputError

MRI_TOP = 99.5                                             # percentile of the brain that becomes 1
SMALLEST_ML = 300.0                                        # a brain, of children too
FWHM = 2 * np.sqrt(2 * np.log(2))                          # of a Gaussian in standard deviations


@dataclass(frozen=True)
class Frames:
    """The frames of a scan, [X, Y, Z] each, one for a 3D volume, and their affine [4, 4].

    path: of the file, for messages. durations: of the frames of a PET in s, None for a plain mean.
    """
    path: Path
    volumes: list[np.ndarray]
    affine: np.ndarray
    durations: list[float] | None = None


@dataclass(frozen=True)
class OnGrid:
    """A subject on the cohort's grid, all [X, Y, Z]: the MRI and the mean PET as they were measured.

    brain: bool. seen: the part of the brain that lies in the PET. measures: of brain, frames and motion.
    """
    mri: np.ndarray
    brain: np.ndarray
    pet: np.ndarray | None
    seen: np.ndarray | None
    measures: dict[str, float]


def by_registration(mri: Frames, pet: Frames | None, voxel_mm: int, nonlinear: bool, scratch: Path) -> OnGrid:
    """Register a whole head to the template, and its PET to the head.

    scratch: folder for files in between. Raises InputError if no brain is found.
    """
    [image], frames = to_images(mri), to_images(pet) if pet else []
    head = registration.register_head(image, voxel_mm, nonlinear, scratch)
    refuse_small(mri.path, head.brain_ml)
    whole = registration.to_grid([head.image], [head.to_template], voxel_mm)
    brain = registration.to_grid([head.brain], [head.to_template], voxel_mm) >= 0.5
    if pet is None:
        return OnGrid(whole, brain, None, None, {"brain_ml": head.brain_ml})
    to_head, motion = registration.register_pet(frames, head, scratch)
    transforms = [head.to_template + files for files in to_head]
    mean = registration.to_grid(frames, transforms, voxel_mm, pet.durations)
    field = [registration.like(image, np.ones(image.shape)) for image in frames]
    seen = brain & (registration.to_grid(field, transforms, voxel_mm) > 0.99)
    found = {"brain_ml": head.brain_ml, "pet_frames": len(frames), "pet_motion_mm": motion}
    return OnGrid(whole, brain, mean, seen, found)


def to_images(scan: Frames) -> list:
    """The frames as ANTs images. Raises InputError for sheared voxels."""
    try:
        return [registration.to_ants(volume, scan.affine) for volume in scan.volumes]
    except InputError as error:
        raise InputError(f"{scan.path}: {error}") from error


def as_it_lies(mri: Frames, mask: Path | None, pet: Frames | None, voxel_mm: int) -> OnGrid:
    """Bring an MRI in MNI space, and its PET, onto the grid through their affines alone.

    mask: of the brain, in the same space; None: that of the template, where the MRI is above 0.
    Raises InputError if there is no brain.
    """
    grid = Grid(tuple(int(n) // voxel_mm for n in FIELD_OF_VIEW), grid_affine(voxel_mm))
    whole = resample(mri.volumes[0], mri.affine, grid)
    if mask:
        brain = read_mask(mask, grid.affine, Crop((0, 0, 0), grid.shape), "brain mask")
    else:
        brain = registration.template_voxels(voxel_mm, "brain_mask") & (whole > 0)
    brain_ml = float(brain.sum()) * voxel_mm ** 3 / 1000
    refuse_small(mri.path, brain_ml)
    if pet is None:
        return OnGrid(whole, brain, None, None, {"brain_ml": brain_ml})
    mean = resample(mean_of_frames(pet.volumes, pet.durations), pet.affine, grid)
    seen = brain & (resample(np.ones(pet.volumes[0].shape, np.float32), pet.affine, grid) > 0.99)
    return OnGrid(whole, brain, mean, seen, {"brain_ml": brain_ml, "pet_frames": len(pet.volumes)})


def refuse_small(path: Path, brain_ml: float) -> None:
    """Raise InputError for what is too small to be a brain. path: of the MRI."""
    if brain_ml < SMALLEST_ML:
        raise InputError(f"{path}: a brain of {brain_ml:.0f} ml was found; is it a T1 MRI of a whole head?")


def scale_mri(whole: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The MRI in [0, 1], 0 outside the brain; the brightest half percent of the brain is 1."""
    return np.where(brain, whole / np.percentile(whole[brain], MRI_TOP), 0).clip(0, 1).astype(np.float32)


def measure_mri(mri: np.ndarray, whole: np.ndarray, brain: np.ndarray, voxel_mm: int) -> dict[str, float]:
    """Comparison of the scaled MRI with the template, and the share of the unscaled brain below 0."""
    template = registration.template_voxels(voxel_mm)
    mask = registration.template_voxels(voxel_mm, "brain_mask")
    compared = compare_with_template(mri, brain, template, mask)
    return compared | {"mri_below_0": float((whole[brain] < 0).mean())}


def to_suvr(there: OnGrid, mask: np.ndarray, fwhm: float, max_suvr: float, voxel_mm: int
            ) -> tuple[np.ndarray, dict[str, float]]:
    """The PET as SUVR of its reference region, and its measures.

    mask: [X, Y, Z] bool, of the reference region. fwhm: mm, of a Gaussian that smooths the PET first.
    max_suvr: the SUVR that is stored as 1.
    """
    pet = gaussian_filter(there.pet, fwhm / FWHM / voxel_mm)
    reference = mask & there.seen
    level = float(pet[reference].mean()) if reference.any() else 0.0
    suvr = pet / level if level > 0 else np.zeros_like(pet)
    brain = there.brain
    return suvr, {
        "pet_covered": float(there.seen.sum() / brain.sum()),
        "reference_covered": float(reference.sum() / mask.sum()), "reference_uptake": level,
        "pet_maximum": float(suvr[brain].max()), "pet_above_maximum": float((suvr[brain] > max_suvr).mean()),
        "pet_below_0": float((suvr[brain] < 0).mean())}
