"""NIfTI headers, verified: voxels that fit into the file, and a place in space that is not in doubt."""
import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import OrientationError, io_orientation
from nibabel.spatialimages import HeaderDataError

from runtime.files import brief, file_status
from utils import InputError

FARTHEST_MM = 1e6            # from the origin; a number of this size in an affine is damage
MAX_VOXELS = 2 ** 29         # 2 GiB as float32, 32 times 256x256x256; a header that claims more is damaged
DEFLATE_RATIO = 1032         # most bytes that deflate packs into one, so the most that a .nii.gz can hold

# Raised by nibabel, gzip and numpy on damaged files. MemoryError is not among them, because the size that a
# header claims is compared with the file before any memory is taken.
UNREADABLE = (HeaderDataError, OrientationError, OSError, EOFError, ValueError, TypeError, ArithmeticError,
              LookupError, zlib.error)


def read_header(path: Path) -> nib.Nifti1Header:
    """Read and verify the header of a NIfTI file.

    Its volume can be placed in space and is not larger than what fits into the file.
    Raises InputError with the reason.
    """
    size = file_status(path).st_size
    try:
        with open_unpacked(path) as file:
            start = file.read(nib.Nifti2Header.sizeof_hdr)
        header = _parse_header(start)
        problem = _header_problem(header, size, packed=path.suffix == ".gz")
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as NIfTI: {damage(error)}") from error
    if problem:
        raise InputError(f"{path}: {problem}")
    return header


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends with .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def damage(error: Exception) -> str:
    """Describe why a file could not be read: the system's reason if it has one, else the file is damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged ({brief(error)}); copy it again"


def _parse_header(start: bytes) -> nib.Nifti1Header:
    """Parse the first bytes of a file as NIfTI-1 or NIfTI-2. Raises ValueError if they are neither."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start):
            return kind(start[:kind.sizeof_hdr])
    raise ValueError("it does not start with a NIfTI header")


def _header_problem(header: nib.Nifti1Header, size: int, packed: bool) -> str:
    """Describe the first problem in the header of a file of `size` bytes; empty if there is none."""
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) < 3 or min(shape) < 1:
        return f"has {len(shape)} dimensions {shape}; expected 3 or more, of one voxel or more"
    if dtype.kind not in "iuf":
        return f"holds {dtype} voxels; expected one number a voxel"
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, inter]).all():
        return f"its scale factors scl_slope {slope} and scl_inter {inter} are no numbers"
    return _affine_problem(header) or _size_problem(header, size, packed)


def _affine_problem(header: nib.Nifti1Header) -> str:
    """Describe the first affine that cannot place a volume, among those whose code says that they count."""
    affines = {"affine": header.get_best_affine()}
    if header["sform_code"]:
        affines["sform"] = header.get_sform()
    if header["qform_code"]:
        affines["qform"] = header.get_qform()
    for name, affine in affines.items():
        if not (np.abs(affine) < FARTHEST_MM).all():       # NaN is not less either
            return f"its {name} holds {np.abs(affine).max():g}; expected less than {FARTHEST_MM:g} mm"
        if abs(np.linalg.det(affine[:3, :3])) < 1e-6 or np.isnan(io_orientation(affine)).any():
            return f"its {name} cannot be inverted"
    return ""


def _size_problem(header: nib.Nifti1Header, size: int, packed: bool) -> str:
    """Describe why a file of `size` bytes cannot hold the voxels that its header claims; empty if it can."""
    shape, offset = header.get_data_shape(), header.get_data_offset()
    voxels = math.prod(shape)
    end = offset + voxels * header.get_data_dtype().itemsize
    available, bound = (size * DEFLATE_RATIO, "at most ") if packed else (size, "")
    if voxels > MAX_VOXELS:
        claim = f"{'x'.join(map(str, shape))} voxels, more than {MAX_VOXELS}"
    elif end > available or offset < header.sizeof_hdr:
        claim = f"voxels in the bytes {offset} to {end}, {bound}{available} found"
    else:
        return ""
    return f"truncated or damaged (its header claims {claim}); copy it again"


def orientation_problem(header: nib.Nifti1Header) -> str:
    """Describe why a file does not say which side is left; empty if it does."""
    if not (header["sform_code"] or header["qform_code"]):
        return "has neither sform nor qform, so left and right are unknown; write the affine into its header"
    if header["sform_code"] and header["qform_code"]:
        handedness = np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(header.get_qform()[:3, :3])
        if handedness < 0:
            return "its sform and its qform disagree about left and right; correct the wrong one"
    return ""
