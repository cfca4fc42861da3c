"""Volumes: read and verified to their last byte, and written whole."""
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage

from imaging.content import PADDING
from imaging.grids import Crop, Grid, resample
from imaging.headers import UNREADABLE, damage, open_volume, read_header
from imaging.missing import nan_inside
from imaging.remarks import Remarks
from runtime.files import atomic
from utils import InputError

RAS = axcodes2ornt("RAS")
RANGE_TOLERANCE = 1e-5       # integers times a float32 scale factor may end at 1.0000001
RINGING = 0.01               # a hundredth of the range [0, 1]: splines leave less, a wrong scale more
NAN_OUTSIDE = "had NaN outside the brain, read as 0"
CLIPPED = f"had intensities up to {RINGING:g} outside [0, 1], as interpolation leaves; clipped to it"


# ---------------------------------------------------------------- reading

def read_voxels(path: Path, remarks: Remarks | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels [X, Y, Z] float32, NaN among them if there is any, and their affine [4, 4], axes in RAS
    order.

    The file's scale factors are applied. A gzipped file is read to its end, which verifies its checksum.
    Raises InputError for a file that is truncated or damaged, or holds infinite voxels.
    """
    voxels, affine, _ = _read_voxels(path, remarks)
    return voxels, affine


def _read_voxels(path: Path, remarks: Remarks | None) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """What read_voxels gives, and the smallest and largest voxel, NaN if there is any: on a large volume each
    pass over it counts."""
    with open_volume(path, remarks) as (header, opened):
        try:
            # not mapped into memory, because a process that rewrites the file would crash this one
            image = SpatialImage(ArrayProxy(opened.file, header, mmap=False), header.get_best_affine())
            image = nib.as_closest_canonical(image)
            voxels = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
            if opened.packed:
                _read_to_end(opened.file)
        except UNREADABLE as error:
            raise InputError(f"{path}: {damage(error)}") from error
    extremes = float(voxels.min()), float(voxels.max())
    if not np.isfinite(extremes).all() and np.isinf(voxels).any():
        raise InputError(f"{path}: holds infinite voxels, as a division by 0 leaves; make it again without")
    return voxels, image.affine, extremes


def read_volume(path: Path, remarks: Remarks | None = None,
                frames: list[int] | None = None, nan_checked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume as read_voxels does, with 0 for NaN outside the brain, which SPM and others write there.

    remarks: to which such a file is added. frames: places of those that are wanted of a volume with frames,
    all without it; the others may hold anything. nan_checked: where NaN lies was checked before, which takes
    long. Raises InputError for NaN inside the brain too, and for a frame without a value but NaN and 0.
    """
    voxels, affine, _ = _read_volume(path, remarks, frames, nan_checked)
    return voxels, affine


def _read_volume(path: Path, remarks: Remarks | None, frames: list[int] | None, nan_checked: bool
                 ) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """What read_volume gives, and the smallest and largest voxel."""
    voxels, affine, extremes = _read_voxels(path, remarks)
    if voxels.ndim == 4 and frames is not None and list(frames) != list(range(voxels.shape[3])):
        voxels = np.ascontiguousarray(voxels[..., frames])
        extremes = float(voxels.min()), float(voxels.max())
    if np.isnan(extremes).any():
        if not nan_checked:
            _refuse_nan(path, voxels, frames)
        voxels[np.isnan(voxels)] = 0
        extremes = float(voxels.min()), float(voxels.max())
        if remarks is not None:
            remarks.add(NAN_OUTSIDE, path)
    return voxels, affine, extremes


def _refuse_nan(path: Path, voxels: np.ndarray, places: list[int] | None) -> None:
    """Raise InputError for NaN inside the brain, and for frames of nothing but NaN and 0. places: of the
    frames in the file, from 0, if these are not all."""
    frames = np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), 3, 0)
    spoilt = [i for i, frame in enumerate(frames) if np.isnan(frame.min())]
    empty = [i for i in spoilt if not np.nanmax(np.abs(frames[i]), initial=0) > 0]
    if empty and len(frames) == 1:
        raise InputError(f"{path}: every voxel is NaN{'' if np.isnan(voxels).all() else ' or 0'}")
    if empty:
        numbers = ", ".join(str((places[i] if places else i) + 1) for i in empty)
        raise InputError(f"{path}: holds nothing but NaN in frame {numbers} of the file, counted from 1; "
                         "make it again, or leave such frames out")
    inside = sum(int(nan_inside(frames[i]).sum()) for i in spoilt)
    if inside:
        raise InputError(f"{path}: holds {inside} NaN voxels inside the brain, which have no value to be "
                         "read as; make it again without, or set them in the file")


def read_in_range(path: Path, remarks: Remarks | None = None,
                  nan_checked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume of a cohort as read_volume does, clipped to [0, 1] if it leaves that by a little, as
    interpolation by splines does: by more than RANGE_TOLERANCE and at most RINGING.

    remarks: to which such a file is added. nan_checked: as read_volume takes it. What leaves the range by
    more is not changed.
    """
    voxels, affine, (low, high) = _read_volume(path, remarks, None, nan_checked)
    beyond = max(-low, high - 1)
    if RANGE_TOLERANCE < beyond <= RINGING:
        voxels.clip(0, 1, out=voxels)
        if remarks is not None:
            remarks.add(CLIPPED, path)
    return voxels, affine


def _read_to_end(file: BinaryIO) -> None:
    """Read what follows the voxels of a packed file: gzip compares the checksum where its data end.

    Raises ValueError after more than PADDING bytes.
    """
    surplus = 0
    while chunk := file.read(2 ** 16):
        surplus += len(chunk)
        if surplus > PADDING:
            raise ValueError(f"it unpacks to more than {PADDING} bytes behind its voxels")


# ---------------------------------------------------------------- writing

def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, note: str = "",
               like: nib.Nifti1Header | None = None) -> None:
    """Write voxels as float32, units mm, with a note of at most 79 bytes.

    like: a header whose sform and qform, with their codes, are written instead of the affine.
    Raises WriteError.
    """
    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = note.encode()[:79]           # the field of 80 bytes ends with a NUL
    if like is not None:
        image.set_sform(*like.get_sform(coded=True))
        image.set_qform(*like.get_qform(coded=True))
    with atomic(path) as partial:
        nib.save(image, partial)


def save_synthesis(path: Path, x_hat: np.ndarray, mri: Path, crop: Crop, note: str,
                   grid: Grid | None = None) -> np.ndarray:
    """Write x_hat [D, H, W], padded with 0, on the MRI's own grid, with its orientation, affine and codes.

    The file overlays the MRI. grid: of the volume that the crop was cut from, if it is not the MRI's own.
    Returns the written volume, axes in RAS order.
    """
    header = read_header(mri)
    affine, own = header.get_best_affine(), Grid.of(header)
    source = own if grid is None else grid
    padded = np.zeros(source.shape, np.float32)
    padded[crop.slices()] = x_hat
    if not source.same(own):
        padded = resample(padded, source.affine, own)
    stored = apply_orientation(padded, ornt_transform(RAS, io_orientation(affine)))
    save_nifti(path, stored, affine, note, like=header)
    return padded
