"""NIfTI volumes: files that are verified when read and whole when written, their grids, and the crop."""
import gzip
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import (OrientationError, apply_orientation, axcodes2ornt, inv_ornt_aff,
                                  io_orientation, ornt_transform)
from nibabel.spatialimages import HeaderDataError, SpatialImage
from scipy.ndimage import affine_transform

from runtime.files import atomic, brief, file_status
from utils import InputError

RAS = axcodes2ornt("RAS")
SAME_PLACE_MM = 0.1          # of the box's corners; registration tools write affines in float32
FARTHEST_MM = 1e6            # from the origin; a number of this size in an affine is damage
MAX_VOXELS = 2 ** 29         # 2 GiB as float32, 32 times 256x256x256; a header that claims more is damaged
DEFLATE_RATIO = 1032         # most bytes that deflate packs into one, so the most that a .nii.gz can hold
PADDING = 2 ** 20            # bytes after the voxels that some programs add; a file with more is not a volume

# Raised by nibabel, gzip and numpy on damaged files. MemoryError is not among them, because the size that a
# header claims is compared with the file before any memory is taken.
UNREADABLE = (HeaderDataError, OrientationError, OSError, EOFError, ValueError, TypeError, ArithmeticError,
              LookupError, zlib.error)


# ---------------------------------------------------------------- places: the crop and the grid

@dataclass(frozen=True)
class Crop:
    """The box of a volume that the networks see, in voxels of the RAS-oriented volume."""
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    def slices(self, shift: Iterable[int] = (0, 0, 0)) -> tuple[slice, ...]:
        """Index of the box, moved by `shift` voxels. Raises ValueError unless `shift` has three entries."""
        return tuple(slice(a + d, a + d + n) for a, n, d in zip(self.start, self.size, shift, strict=True))

    def affine(self, affine: np.ndarray, downscale: int = 1) -> np.ndarray:
        """Affine [4, 4] of the box, or of its latent, from the affine [4, 4] of the whole RAS volume.

        A latent voxel covers downscale^3 voxels and lies at their centre.
        """
        return affine @ block_affine(np.full(3, downscale), np.array(self.start))


@dataclass(frozen=True)
class Grid:
    """The places of a volume's voxels: its shape and its affine [4, 4], axes in RAS order."""
    shape: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def of(cls, header: nib.Nifti1Header) -> "Grid":
        """Grid of a file of three dimensions after its axes are brought to RAS."""
        shape, affine = header.get_data_shape(), header.get_best_affine()
        ornt = io_orientation(affine)
        ras_shape = np.array(shape)[np.argsort(ornt[:, 0])]
        return cls(tuple(ras_shape.tolist()), affine @ inv_ornt_aff(ornt, shape))

    def corners(self) -> np.ndarray:
        """Centres of the eight outermost voxels in mm, [8, 3], from voxel 0, 0, 0 to the one opposite."""
        first_and_last = [(0, n - 1) for n in self.shape]
        return apply_affine(self.affine, np.stack(np.meshgrid(*first_and_last), axis=-1).reshape(-1, 3))

    def same(self, other: "Grid") -> bool:
        """Whether two grids are one, apart from rounding in their affines."""
        if self.shape != other.shape:
            return False
        return np.allclose(self.corners(), other.corners(), rtol=0, atol=SAME_PLACE_MM)


def block_affine(block: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Affine [4, 4] from indices of blocks of voxels to indices of voxels, of centre to centre.

    block: [3], voxels of a block along each axis. first: [3], first voxel of the first block.
    """
    affine = np.diag(np.append(block, 1.0))
    affine[:3, 3] = first + (block - 1) / 2                # the centre of a block
    return affine


def resample(voxels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Bring a volume [X, Y, Z] with affine [4, 4] onto another grid, float32; 0 where it does not reach.

    Each new voxel is the mean of linear interpolations at points inside it, which stand as close as the old
    voxels. Between grids that share their voxel faces this is exactly the mean of the old voxels that lie in
    the new one, and no detail of a fine volume is skipped.
    """
    step = np.linalg.inv(affine) @ grid.affine             # index of a new voxel -> index in the old volume
    widths = np.linalg.norm(step[:3, :3], axis=0)          # of a new voxel along its own axes, in old voxels
    points = np.maximum(1, np.ceil(widths - 0.01)).astype(int)  # inside a new voxel along each axis
    fine = step @ np.linalg.inv(block_affine(points, np.zeros(3)))
    nx, ny, nz = grid.shape
    slab_shape = (points[0], ny * points[1], nz * points[2])
    resampled = np.empty(grid.shape, np.float32)
    for x in range(nx):                                    # all points at once may not fit into memory
        offset = fine[:3, 3] + x * points[0] * fine[:3, 0]
        slab = affine_transform(voxels, fine[:3, :3], offset, slab_shape, np.float32, order=1,
                                mode="grid-constant")
        resampled[x] = slab.reshape(points[0], ny, points[1], nz, points[2]).mean(axis=(0, 2, 4))
    return resampled


# ---------------------------------------------------------------- headers

def read_header(path: Path) -> nib.Nifti1Header:
    """Read and verify the header of a NIfTI file.

    Its volume can be placed in space and is not larger than what fits into the file.
    Raises InputError with the reason.
    """
    size = file_status(path).st_size
    try:
        with _open(path) as file:
            start = file.read(nib.Nifti2Header.sizeof_hdr)
        header = _parse_header(start)
        problem = _header_problem(header, size, packed=path.suffix == ".gz")
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as NIfTI: {_damage(error)}") from error
    if problem:
        raise InputError(f"{path}: {problem}")
    return header


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends with .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _damage(error: Exception) -> str:
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


# ---------------------------------------------------------------- voxels

def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels [X, Y, Z] float32 and their affine [4, 4], axes in RAS order.

    The file's scale factors are applied. A .nii.gz is read to its end, which verifies its checksum.
    Raises InputError for a truncated or damaged file.
    """
    header = read_header(path)
    try:
        with _open(path) as file:
            # not mapped into memory, because a process that rewrites the file would crash this one
            image = SpatialImage(ArrayProxy(file, header, mmap=False), header.get_best_affine())
            image = nib.as_closest_canonical(image)
            voxels = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
            if path.suffix == ".gz":
                _read_to_end(file)
        return voxels, image.affine
    except UNREADABLE as error:
        raise InputError(f"{path}: {_damage(error)}") from error


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
