"""Volumes: NIfTI files, verified when they are read and whole when they are written, and the crop that the networks see."""
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
from nibabel.orientations import OrientationError, apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError, SpatialImage
from scipy.ndimage import affine_transform

from runtime.files import atomic, brief, file_status
from utils import InputError

RAS = axcodes2ornt("RAS")
SAME_PLACE_MM = 0.1                                        # of the box's corners; registration tools write affines in float32
FARTHEST_MM = 1e6                                          # from the origin; a number of this size in an affine is damage
MAX_VOXELS = 2 ** 29                                       # 2 GiB as float32, 32 times 256x256x256; a header that claims more is damaged
DEFLATE_RATIO = 1032                                       # most bytes that deflate packs into one, so the most that a .nii.gz can hold
PADDING = 2 ** 20                                          # bytes behind the voxels that some programs add; more is no volume
# what nibabel, gzip and numpy raise on damaged files; MemoryError is none of it, because what a header claims is compared with the file
UNREADABLE = (HeaderDataError, OrientationError, OSError, EOFError, ValueError, TypeError, ArithmeticError, LookupError, zlib.error)


@dataclass(frozen=True)
class Crop:
    """The box of a volume that the networks see, in voxels of the RAS-oriented volume."""
    start: tuple[int, int, int]
    size: tuple[int, int, int]

    def slices(self, shift: Iterable[int] = (0, 0, 0)) -> tuple[slice, ...]:
        """Index of the box, moved by `shift` voxels."""
        return tuple(slice(a + d, a + d + n) for a, n, d in zip(self.start, self.size, shift, strict=True))

    def affine(self, affine: np.ndarray, downscale: int = 1) -> np.ndarray:
        """Affine [4, 4] of the box, or of its latent, from the affine of the whole RAS volume.

        A latent voxel covers downscale^3 voxels and lies at their centre.
        """
        corner = np.array(self.start) + (downscale - 1) / 2
        return affine @ np.block([[np.eye(3) * downscale, corner[:, None]], [np.zeros(3), 1]])


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie: its shape and its affine [4, 4], axes in RAS order."""
    shape: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def of(cls, header: nib.Nifti1Header) -> "Grid":
        """The grid of a file of three dimensions after its axes are brought to RAS."""
        shape, affine = header.get_data_shape(), header.get_best_affine()
        ornt = io_orientation(affine)
        return cls(tuple(np.array(shape)[np.argsort(ornt[:, 0])].tolist()), affine @ inv_ornt_aff(ornt, shape))

    def corners(self) -> np.ndarray:
        """Centres of the eight outermost voxels in mm, [8, 3]."""
        return apply_affine(self.affine, np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape]), axis=-1).reshape(-1, 3))

    def same(self, other: "Grid") -> bool:
        """Whether two grids are one, but for rounding in their affines."""
        return self.shape == other.shape and np.allclose(self.corners(), other.corners(), rtol=0, atol=SAME_PLACE_MM)


def resample(voxels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """A volume [X, Y, Z] brought onto another grid through the affines, float32; 0 where it does not reach.

    Each new voxel is the mean of linear interpolations at points inside it, which stand as close as the old voxels: between grids that
    share their voxel faces, exactly the mean of the old voxels that lie in the new one, and nothing of a fine picture is skipped.
    """
    step = np.linalg.inv(affine) @ grid.affine
    parts = np.maximum(1, np.ceil(np.linalg.norm(step[:3, :3], axis=0) - 0.01)).astype(int)  # points of a new voxel along each axis
    fine = step @ np.block([[np.diag(1 / parts), (1 / parts[:, None] - 1) / 2], [np.zeros(3), 1]])
    slab = (parts[0], *(parts * grid.shape)[1:])
    slabs = []
    for first in range(0, parts[0] * grid.shape[0], parts[0]):                               # all points at once may not fit into memory
        points = affine_transform(voxels, fine[:3, :3], fine[:3, 3] + first * fine[:3, 0], slab, np.float32, order=1, mode="grid-constant")
        slabs.append(points.reshape(parts[0], grid.shape[1], parts[1], grid.shape[2], parts[2]).mean(axis=(0, 2, 4)))
    return np.stack(slabs)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _damage(error: Exception) -> str:
    """What became of a file that could not be read: the system says why it refused, all else is the file's fault."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged ({brief(error)}); copy it again"


def read_header(path: Path) -> nib.Nifti1Header:
    """The header of a NIfTI file, which then holds a volume that can be placed in space, and no larger one than fits into the file.

    Raises InputError that says what is wrong.
    """
    size = file_status(path).st_size
    try:
        with _open(path) as file:
            start = file.read(nib.Nifti2Header.sizeof_hdr)
        kinds = [kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(start)]
        if not kinds:
            raise ValueError("it does not start with a NIfTI header")
        header = kinds[0](start[:kinds[0].sizeof_hdr])
        problem = _header_problem(header, size, packed=path.suffix == ".gz")
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as NIfTI: {_damage(error)}") from error
    if problem:
        raise InputError(f"{path}: {problem}")
    return header


def _header_problem(header: nib.Nifti1Header, size: int, packed: bool) -> str:
    """What is wrong in the header of a file of that size, empty if nothing is."""
    shape, kind, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
    voxels, slope, inter = math.prod(shape), float(header["scl_slope"]), float(header["scl_inter"])
    claimed, most = offset + voxels * kind.itemsize, size * (DEFLATE_RATIO if packed else 1)
    if len(shape) < 3 or min(shape) < 1:
        return f"has {len(shape)} dimensions {shape}; expected 3 or more, of one voxel or more"
    if kind.kind not in "iuf":
        return f"holds {kind} voxels; expected one number a voxel"
    if not np.isfinite([slope, inter]).all():
        return f"its scale factors scl_slope {slope} and scl_inter {inter} are no numbers"
    for name, code, affine in (("affine", 1, header.get_best_affine()), ("sform", header["sform_code"], header.get_sform()),
                               ("qform", header["qform_code"], header.get_qform() if header["qform_code"] else None)):
        if code and not (np.abs(affine) < FARTHEST_MM).all():                                # NaN is not less either
            return f"its {name} holds {np.abs(affine).max():g}; expected less than {FARTHEST_MM:g} mm"
        if code and (abs(np.linalg.det(affine[:3, :3])) < 1e-6 or np.isnan(io_orientation(affine)).any()):
            return f"its {name} cannot be inverted"
    if voxels > MAX_VOXELS:
        return f"truncated or damaged (its header claims {'x'.join(map(str, shape))} voxels, more than {MAX_VOXELS}); copy it again"
    if claimed > most or offset < header.sizeof_hdr:
        return (f"truncated or damaged (its header claims voxels in the bytes {offset} to {claimed}, {'at most ' if packed else ''}{most} "
                "found); copy it again")
    return ""


def orientation_problem(header: nib.Nifti1Header) -> str:
    """Why a file does not say which side is left, empty if it does."""
    if not (header["sform_code"] or header["qform_code"]):
        return "has neither sform nor qform, so left and right are unknown; write the affine into its header"
    if header["sform_code"] and header["qform_code"] and \
            np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(header.get_qform()[:3, :3]) < 0:
        return "its sform and its qform disagree about left and right; correct the wrong one"
    return ""


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X, Y, Z] float32 with the file's scale factors, axes and affine [4, 4] brought to RAS.

    A .nii.gz is read to its end, which verifies its checksum. Raises InputError for a truncated or damaged file.
    """
    header = read_header(path)
    try:
        with _open(path) as file:                          # not mapped: another process that rewrites the file would crash us
            image = SpatialImage(ArrayProxy(file, header, mmap=False), header.get_best_affine())
            image = nib.as_closest_canonical(image)
            voxels = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
            behind = 0
            while path.suffix == ".gz" and (chunk := file.read(2 ** 16)):                    # a checksum is compared where its data end
                behind += len(chunk)
                if behind > PADDING:
                    raise ValueError(f"it unpacks to more than {PADDING} bytes behind its voxels")
        return voxels, image.affine
    except UNREADABLE as error:
        raise InputError(f"{path}: {_damage(error)}") from error


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, note: str = "", like: nib.Nifti1Header | None = None) -> None:
    """Write float32 voxels; with `like`, its sform and qform with their codes instead of the affine."""
    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = note.encode()[:79]
    if like is not None:
        image.set_sform(*like.get_sform(coded=True))
        image.set_qform(*like.get_qform(coded=True))
    with atomic(path) as partial:
        nib.save(image, partial)


def save_synthesis(path: Path, x_hat: np.ndarray, mri: Path, crop: Crop, note: str, grid: Grid | None = None) -> np.ndarray:
    """Write x_hat [D, H, W] padded with 0 to the MRI's own grid, orientation, affine and codes, so that it overlays it.

    grid: that of the volume which the crop was cut out of, where it is not the MRI's own. Returns what is written, axes in RAS order.
    """
    header = read_header(mri)
    affine, own = header.get_best_affine(), Grid.of(header)
    padded = np.zeros((grid or own).shape, np.float32)
    padded[crop.slices()] = x_hat
    if grid is not None and not grid.same(own):
        padded = resample(padded, grid.affine, own)
    save_nifti(path, apply_orientation(padded, ornt_transform(RAS, io_orientation(affine))), affine, note, like=header)
    return padded
