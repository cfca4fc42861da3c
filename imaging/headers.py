"""NIfTI headers, verified: voxels that fit into the file, and a place in space that is not in doubt."""
import math
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import OrientationError, io_orientation
from nibabel.spatialimages import HeaderDataError

from imaging.content import HEADER_BYTES, Unpacked, other_format, pointer, unpacked
from imaging.grids import Grid
from imaging.nifti_files import parts_of
from imaging.remarks import Remarks
from runtime.files import brief
from utils import InputError

FARTHEST_MM = 1e6            # from the origin; a number of this size in an affine is damage
MAX_VOXELS = 2 ** 29         # 2 GiB as float32, 32 times 256x256x256; a header that claims more is damaged
DEFLATE_RATIO = 1032         # most bytes that deflate packs into one, so the most that a .nii.gz can hold
MOST_TURNED = 45.0           # degrees; an axis that turns by less still points to the same side
ROUNDING = 1e-4              # of an entry of an affine; far below FORMS_APART_MM at any corner
FORMS_APART_MM = 1.0         # of the box's corners by sform and by qform, to go without a remark
KINDS = (nib.Nifti1Header, nib.Nifti2Header)
UNSCALED = "had scale factors scl_slope or scl_inter that are no numbers, read without scaling"
TWO_FORMS = ("had an sform and a qform more than 1 mm apart, though alike in their directions; the sform "
             "counts")

# Raised by nibabel, gzip and numpy on damaged files. MemoryError is not among them, because the size that a
# header claims is compared with the file before any memory is taken.
UNREADABLE = (HeaderDataError, OrientationError, OSError, EOFError, ValueError, TypeError, ArithmeticError,
              LookupError, zlib.error)


def read_header(path: Path, remarks: Remarks | None = None) -> nib.Nifti1Header:
    """Read and verify the header of a NIfTI file, or of a pair .hdr and .img, whatever packing its name says.

    Its volume has a place in space that is not in doubt, and is not larger than what fits into the file.
    Dimensions of one voxel after the third are dropped. remarks: to which harmless oddities are added.
    Raises InputError with the reason.
    """
    with open_volume(path, remarks) as (header, _):
        return header


@contextmanager
def open_volume(path: Path, remarks: Remarks | None = None) -> Iterator[tuple[nib.Nifti1Header, Unpacked]]:
    """A block with the header of a volume, as read_header gives it, and the open file of its voxels."""
    parts = parts_of(path)
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(unpacked(part)) for part in parts]
            start = files[0].file.read(HEADER_BYTES)
            problem = "" if _is_nifti(start) else other_format(start)
            if len(files) > 1:
                problem = problem or pointer(files[1].file.read(HEADER_BYTES))
            if problem:
                problem = f"cannot be read as NIfTI: it {problem}"
            else:
                header = _parse_header(start)
                problem = _header_problem(header, files[-1], is_pair=len(files) > 1)
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read as NIfTI: {damage(error)}") from error
        if problem:
            raise InputError(f"{path}: {problem}")
        oddities = _settle(header)
        for oddity in oddities if remarks is not None else []:
            remarks.add(oddity, path)
        yield header, files[-1]


def damage(error: Exception) -> str:
    """Describe why a file could not be read: the system's reason if it has one, else the file is damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"truncated or damaged ({brief(error)}); copy it again"


def _is_nifti(start: bytes) -> bool:
    """Whether a file starts with a header of NIfTI-1 or NIfTI-2."""
    return any(kind.may_contain_header(start) for kind in KINDS)


def _parse_header(start: bytes) -> nib.Nifti1Header:
    """Parse the first bytes of a file as NIfTI-1 or NIfTI-2. Raises ValueError if they are neither."""
    for kind in KINDS:
        if kind.may_contain_header(start):
            header = kind(start[:kind.sizeof_hdr])
            shape = header.get_data_shape()
            used = max([3, *(axis + 1 for axis, n in enumerate(shape) if n != 1)])
            if used < len(shape):
                header.set_data_shape(shape[:used])
            return header
    raise ValueError("it does not start with a NIfTI header")


def _header_problem(header: nib.Nifti1Header, voxels: Unpacked, is_pair: bool) -> str:
    """Describe the first problem in the header of a volume; empty if there is none.

    voxels: the file that is to hold them; it holds the header too unless it is one of a pair.
    """
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) < 3 or min(shape) < 1:
        return f"has {len(shape)} dimensions {shape}; expected 3 or more, of one voxel or more"
    if dtype.kind not in "iuf":
        return f"holds {dtype} voxels; expected one number a voxel"
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope not in (0, 1) and not np.isfinite(inter):
        return (f"its scale factor scl_slope {slope:g} counts, but its scl_inter {inter} is no number; write "
                "the right ones")
    first = 0 if is_pair else header.sizeof_hdr
    return (_affine_problem(header) or _size_problem(header, voxels, first) or orientation_problem(header))


def _settle(header: nib.Nifti1Header) -> list[str]:
    """Kinds of what is odd in a header but harmless. Scale factors that are no numbers are taken out."""
    oddities = []
    if not np.isfinite([float(header["scl_slope"]), float(header["scl_inter"])]).all():
        header["scl_slope"], header["scl_inter"] = 1, 0
        oddities.append(UNSCALED)
    qform = _other_form(header)
    if qform is not None and _apart_mm(header, qform) > FORMS_APART_MM:
        oddities.append(TWO_FORMS)
    return oddities


def _affine_problem(header: nib.Nifti1Header) -> str:
    """Describe the first affine that cannot place a volume, among those whose code says that they count."""
    affines = {"affine": header.get_best_affine()}
    if (qform := _other_form(header)) is not None:
        affines["qform"] = qform
    for name, affine in affines.items():
        if not (np.abs(affine) < FARTHEST_MM).all():       # NaN is not less either
            return f"its {name} holds {np.abs(affine).max():g}; expected less than {FARTHEST_MM:g} mm"
        if abs(np.linalg.det(affine[:3, :3])) < 1e-6 or np.isnan(io_orientation(affine)).any():
            return f"its {name} cannot be inverted"
    return ""


def _size_problem(header: nib.Nifti1Header, file: Unpacked, first: int) -> str:
    """Describe why a file cannot hold the voxels that its header claims; empty if it can.

    first: byte at which they may begin.
    """
    shape, offset = header.get_data_shape(), header.get_data_offset()
    voxels = math.prod(shape)
    end = offset + voxels * header.get_data_dtype().itemsize
    available, bound = (file.size * DEFLATE_RATIO, "at most ") if file.packed else (file.size, "")
    if voxels > MAX_VOXELS:
        claim = f"{'x'.join(map(str, shape))} voxels, more than {MAX_VOXELS}"
    elif end > available or offset < first:
        claim = f"voxels in the bytes {offset} to {end}, {bound}{available} found"
    else:
        return ""
    return f"truncated or damaged (its header claims {claim}); copy it again"


# ---------------------------------------------------------------- which side is left

def orientation_problem(header: nib.Nifti1Header) -> str:
    """Describe why a file does not say which side is left; empty if it does.

    The sform counts if its code is not 0, as for nibabel and most programs, else the qform. Where both have
    codes, no axis of the voxels may point more than MOST_TURNED degrees apart by them: within that, no
    direction is exchanged, and one is often the scanner's and the other a template's.
    """
    if not (header["sform_code"] or header["qform_code"]):
        return "has neither sform nor qform, so left and right are unknown; write the affine into its header"
    qform = _other_form(header)
    if qform is not None and (angle := _turned(header, qform)) > MOST_TURNED:
        axes = ["".join(nib.aff2axcodes(affine)) for affine in (header.get_sform(), qform)]
        return (f"its sform (axes {axes[0]}) and its qform (axes {axes[1]}) disagree about directions, by "
                f"{angle:.0f} degrees; correct the wrong one: fslorient -copysform2qform FILE if the sform "
                "is right, -copyqform2sform if the qform is")
    return ""


def _other_form(header: nib.Nifti1Header) -> np.ndarray | None:
    """The qform [4, 4] beside an sform that counts; None where only one has a code, or both say the same."""
    if not (header["sform_code"] and header["qform_code"]):
        return None
    qform = header.get_qform()
    if (np.abs(qform - header.get_sform()) < ROUNDING).all():              # NaN is not less
        return None
    return qform


def _turned(header: nib.Nifti1Header, qform: np.ndarray) -> float:
    """The largest angle between an axis of the voxels by the sform and by the qform [4, 4], in degrees."""
    by_sform, by_qform = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0)
                          for form in (header.get_sform(), qform))
    cosines = (by_sform * by_qform).sum(axis=0).clip(-1, 1)
    return float(np.degrees(np.arccos(cosines.min())))


def _apart_mm(header: nib.Nifti1Header, qform: np.ndarray) -> float:
    """The largest distance between a corner of the volume by the sform and by the qform [4, 4], in mm."""
    shape = header.get_data_shape()[:3]
    moved = Grid(shape, header.get_sform()).corners() - Grid(shape, qform).corners()
    return float(np.linalg.norm(moved, axis=1).max())
