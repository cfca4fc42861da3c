"""Volumes: read and verified to their last byte, and written whole. Crop, Grid and resample are those of
grids.py, read_header and orientation_problem those of headers.py."""
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage

from imaging.grids import Crop, Grid, resample
from imaging.headers import UNREADABLE, damage, open_unpacked, orientation_problem, read_header
from runtime.files import atomic
from utils import InputError

__all__ = ["Crop", "Grid", "orientation_problem", "read_header", "read_volume", "resample",
           "save_nifti", "save_synthesis"]

RAS = axcodes2ornt("RAS")
PADDING = 2 ** 20            # bytes after the voxels that some programs add; a file with more is not a volume


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels [X, Y, Z] float32 and their affine [4, 4], axes in RAS order.

    The file's scale factors are applied. A .nii.gz is read to its end, which verifies its checksum.
    Raises InputError for a truncated or damaged file.
    """
    header = read_header(path)
    try:
        with open_unpacked(path) as file:
            # not mapped into memory, because a process that rewrites the file would crash this one
            image = SpatialImage(ArrayProxy(file, header, mmap=False), header.get_best_affine())
            image = nib.as_closest_canonical(image)
            voxels = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
            if path.suffix == ".gz":
                _read_to_end(file)
        return voxels, image.affine
    except UNREADABLE as error:
        raise InputError(f"{path}: {damage(error)}") from error


def _read_to_end(file: BinaryIO) -> None:
    """Read what follows the voxels of a packed file: gzip compares the checksum where its data end.

    Raises ValueError after more than PADDING bytes.
    """
    surplus = 0
    while chunk := file.read(2 ** 16):
        surplus += len(chunk)
        if surplus > PADDING:
            raise ValueError(f"it unpacks to more than {PADDING} bytes behind its voxels")


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
