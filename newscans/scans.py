"""New MRIs: which there are, what stands against their use, and how they come onto the grid of the cohort."""
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from skimage.transform import downscale_local_mean

from dataset import RANGE_TOLERANCE
from imaging.volumes import Grid, orientation_problem, read_header, read_volume, resample
from runtime.files import brief, file_status
from utils import InputError

PREPARES = "python main.py preprocess --raw RAW --data_dir NEW"                     # RAW: a whole head -> NEW/whole_MRI
OURS = "_desc-ilcldm"                                      # in the names of what is written, so that it is never taken for an MRI
BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*(_[A-Za-z0-9]+)?")

# Where a brain lies, seen at 4 mm in a box of MNI space that is larger than any head.
BOX = Grid((60, 70, 62), np.array([[4.0, 0, 0, -118], [0, 4, 0, -154], [0, 0, 4, -118], [0, 0, 0, 1]]))
BACKGROUND = 0.05                                          # of the 99th percentile of what is above 0: darker is no tissue
OVERLAP = 0.85                                             # least Dice of tissue and MNI brain; why so much: README, New scans
LIKENESS = 0.55                                            # least correlation with the MNI T1 inside that brain; likewise


@dataclass(frozen=True)
class NewScan:
    """An MRI that has neither PET nor label. id: its file's name without suffix; name: of what is written, without suffix."""
    id: str
    mri: Path
    name: str

    def written(self, out: Path) -> dict[str, Path]:
        """Where everything about it is written."""
        deviation = f"{self.name.removesuffix('_pet')}SD_pet.nii.gz"
        return {"sidecar": out / f"{self.name}.json", "pet": out / f"{self.name}.nii.gz", "deviation": out / deviation,
                "picture": out / f"{self.name}.png"}


# ---------------------------------------------------------------- files

def find_scans(mri: Path) -> list[NewScan]:
    """The MRI, or those of a folder in the order of their names, but not what is hidden, in folders below, or written by this stage.

    Raises InputError if there is none, or if two would be written under one name.
    """
    if mri.is_dir():
        paths = sorted(path for path in mri.iterdir()
                       if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".") and OURS not in path.name)
        if not paths:
            raise InputError(f"{mri}: holds no MRI; expected files *.nii or *.nii.gz in the folder itself")
    else:
        file_status(mri)
        if not mri.name.endswith((".nii", ".nii.gz")) or OURS in mri.name:
            raise InputError(f"{mri}: is no MRI; expected a file .nii or .nii.gz that this stage has not written")
        paths = [mri]
    scans = [NewScan(stem := re.sub(r"\.nii(\.gz)?$", "", path.name), path, output_name(stem)) for path in paths]
    named: dict[str, list[NewScan]] = {}
    for scan in scans:
        named.setdefault(scan.name.lower(), []).append(scan)                                 # some file systems do not tell case
    problems = [f"{', '.join(scan.mri.name for scan in alike)} would all be written as {alike[0].name}.nii.gz; rename all but one"
                for alike in named.values() if len(alike) > 1]
    problems += [f"{scan.mri.name} has no letter or digit to be named by; rename it" for scan in scans if scan.name.startswith("sub-_")]
    problems += [f"{brief(scan.mri.name)} has too long a name; rename it" for scan in scans if len(scan.name) > 200]
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) with the names in {mri}:", *problems]))
    return scans


def output_name(stem: str) -> str:
    """The name of a PET after BIDS: the MRI's entities if it has some, else its letters and digits as the subject."""
    entities = [part for part in stem.split("_") if "-" in part and not part.startswith("desc-")] if BIDS.fullmatch(stem) else \
        ["sub-" + re.sub(r"[^A-Za-z0-9]", "", stem.removeprefix("sub-"))]
    space = [] if any(part.startswith("space-") for part in entities) else ["space-MNI152"]
    return "_".join([*entities, *space]) + f"{OURS}_pet"


def refuse_place(out: Path, taken: Iterable[Path], taken_below: Iterable[Path]) -> None:
    """Raise InputError if the folder for the results is one of those, or lies in one of taken_below."""
    place, taken_below = out.resolve(), [folder.resolve() for folder in taken_below]
    if place in [folder.resolve() for folder in taken] or {place, *place.parents} & {*taken_below}:
        raise InputError(f"out {out}: MRIs, a cohort or experiments lie there; give a folder of its own")


def sha256(path: Path) -> str:
    """Checksum of a file, as sha256sum prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- headers and voxels

def header_problem(path: Path) -> str:
    """What in a file's header stands against its use, with the file's name; empty if nothing does."""
    try:
        header = read_header(path)
    except InputError as error:
        return str(error)
    shape = header.get_data_shape()
    if len(shape) != 3:
        return f"{path}: has {len(shape)} dimensions {shape}; expected one 3D volume"
    problem = orientation_problem(header)
    return f"{path}: {problem}" if problem else ""


def read_mri(path: Path, percentile: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Voxels [X, Y, Z] in [0, 1] and affine [4, 4], axes in RAS order, and the intensity that became 1.

    percentile: of the voxels above 0, at which that intensity lies if there are any outside [0, 1]; 0: such an MRI is refused.
    Raises InputError that says what stands against the use of the MRI.
    """
    voxels, affine = read_volume(path)
    if not np.isfinite(voxels).all():
        raise InputError(f"{path}: holds NaN or infinite voxels")
    low, high, ceiling = float(voxels.min()), float(voxels.max()), 1.0
    if low == high:
        raise InputError(f"{path}: every voxel is {low:g}")
    if low < -RANGE_TOLERANCE or not 0 < high <= 1 + RANGE_TOLERANCE:
        if not percentile or high <= 0:
            raise InputError(f"{path}: intensities from {low:g} to {high:g}; expected within [0, 1], background 0, scaled as the cohort's "
                             f"MRIs were. {PREPARES} does so; --mri_percentile 99.5 divides by that percentile of the brain instead")
        ceiling = float(np.percentile(voxels[voxels > 0], percentile))
        voxels = (voxels / np.float32(ceiling)).clip(0, 1)
    return voxels, affine, ceiling


# ---------------------------------------------------------------- MNI space

@cache
def mni_brain() -> tuple[np.ndarray, np.ndarray]:
    """Brain mask (bool) and T1 of the MNI152 template that nilearn carries, on BOX."""
    from nilearn import datasets  # here, because importing it takes seconds

    images = datasets.load_mni152_brain_mask(resolution=1), datasets.load_mni152_template(resolution=1)
    mask, t1 = (onto_box(image.get_fdata(dtype=np.float32), image.affine) for image in images)
    return mask >= 0.5, t1


def onto_box(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume on BOX; averaged over blocks that are no larger than its voxels first, which is fast and near enough."""
    widths = np.maximum(1, (voxel_sizes(BOX.affine) / voxel_sizes(affine) + 0.01).astype(int))
    affine = affine @ np.block([[np.diag(widths), (widths[:, None] - 1) / 2], [np.zeros(3), 1]])
    return resample(downscale_local_mean(voxels, tuple(widths)), affine, BOX)


def place_problem(voxels: np.ndarray, affine: np.ndarray) -> str:
    """Why a volume is no skull-stripped T1 of a brain in MNI space, with what prepares it; empty if it may be one.

    A mirrored brain looks like a brain, and a turn of 10 degrees or a shift of 5 mm is not always noticed.
    """
    mask, t1 = mni_brain()
    tissue = voxels > BACKGROUND * np.percentile(voxels[voxels > 0], 99)
    here = onto_box(tissue.astype(np.float32), affine) >= 0.5
    overlap = 2 * (here & mask).sum() / (here.sum() + mask.sum())
    outside = (here & ~mask).sum() / max(here.sum(), 1)
    seen = onto_box(voxels, affine)[mask]
    likeness = np.corrcoef(seen, t1[mask])[0, 1] if np.ptp(seen) > 0 else 0.0
    if overlap >= OVERLAP and likeness >= LIKENESS:
        return ""
    found = (f"Dice with the MNI brain {overlap:.2f}, expected {OVERLAP} or more; {outside:.0%} of its tissue lies outside that brain; "
             f"correlation with the MNI T1 {likeness:.2f}, expected {LIKENESS} or more")
    reach = (tissue.sum() * abs(np.linalg.det(affine[:3, :3]))) / (mask.sum() * abs(np.linalg.det(BOX.affine[:3, :3])))
    what = "seems to show a whole head, not a brain without its skull" if reach > 1.4 else "is not in MNI space, or no T1 of a brain"
    return f"{what} ({found}). From the scan as it was acquired, RAW, {PREPARES} makes NEW/whole_MRI/<ID>.nii.gz, which can be used"


def onto_crop(voxels: np.ndarray, affine: np.ndarray, grid: Grid, crop) -> np.ndarray:
    """The part of an MRI that the networks see, [D, H, W]; resampled only where it lies on another grid than the cohort's."""
    if Grid(voxels.shape, affine).same(grid):
        return voxels[crop.slices()]
    return resample(voxels, affine, Grid(crop.size, crop.affine(grid.affine)))


def describe_grid(path: Path) -> str:
    """Shape, orientation and voxel size of a file, in words."""
    header = read_header(path)
    zooms = " x ".join(f"{size:g}" for size in voxel_sizes(header.get_best_affine()))
    return f"{'x'.join(map(str, header.get_data_shape()))} {''.join(nib.aff2axcodes(header.get_best_affine()))}, voxels of {zooms} mm"


def relative(path: Path, folder: Path) -> str:
    """The path as it is seen from a folder."""
    return Path(os.path.relpath(path, folder)).as_posix()
