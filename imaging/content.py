"""What a file is by its first bytes, whatever its name: plain or gzipped, NIfTI or something else, and then
what to do with it."""
import gzip
import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.files import brief

GZIP = b"\x1f\x8b"
PADDING = 2 ** 20            # bytes after the voxels that some programs add; a file with more is not a volume
TWICE = 32                   # most bytes that gzip packs into one of a file that is gzipped already
HEADER_BYTES = 540           # of NIfTI-2, the longer header

LFS = "is a Git LFS pointer, its content is not here; run `git lfs pull`"
ANNEX = "is a pointer of git-annex, its content is not here; run `datalad get` on it"
WEB_PAGE = "is a web page, perhaps of a login; download the file again"
OTHER_FORMATS = (                                          # offset, bytes, what the file is and what to do
    (0, GZIP, "is gzipped more than twice, or far larger inside; unpack it once with gunzip"),
    (128, b"DICM", "is DICOM; convert its series with dcm2niix"),
    (0, b"BZh", "is packed by bzip2; unpack it with bunzip2"),
    (0, b"\x28\xb5\x2f\xfd", "is packed by zstd; unpack it with unzstd"),
    (0, b"\xfd7zXZ", "is packed by xz; unpack it with unxz"),
    (0, b"PK\x03\x04", "is a zip archive; unpack it with unzip"),
    (0, b"CDF", "is MINC 1 (netCDF); convert it with mri_convert or mnc2nii"),
    (0, b"\x89HDF\r\n\x1a\n", "is HDF5, as MINC 2 is; convert it with mri_convert or mnc2nii"),
    (0, b"MATRIX7", "is ECAT 7; convert it with dcm2niix"),
    (0, b"NRRD000", "is NRRD; convert it, in 3D Slicer for example"),
)
ANALYZE_SIZES = ((348).to_bytes(4, "little"), (348).to_bytes(4, "big"))
MGH_TYPES = (0, 1, 3, 4)                                   # of voxels, behind version 1 and five sizes


@dataclass(frozen=True)
class Unpacked:
    """A file that is open for reading, without its packing.

    size: bytes of the file on the disk, or of the inner one if it was gzipped twice. packed: it was gzipped.
    """
    file: BinaryIO
    size: int
    packed: bool


def is_gzipped(path: Path) -> bool:
    """Whether a file begins as gzip writes it, whatever its name; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) == GZIP
    except OSError:
        return False


@contextmanager
def unpacked(path: Path) -> Iterator[Unpacked]:
    """A block with the unpacked content of a regular file, which may be plain, gzipped, or gzipped twice."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        size, packed = os.fstat(file.fileno()).st_size, file.peek(2)[:2] == GZIP
        if packed:
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
            if file.peek(2)[:2] == GZIP:
                inner = file.read(TWICE * size + PADDING)  # to its end, which verifies its checksum
                if not file.read(1):
                    size, file = len(inner), stack.enter_context(gzip.GzipFile(fileobj=io.BytesIO(inner)))
                else:
                    file.seek(0)                           # refused by other_format, as what it still is
        yield Unpacked(file, size, packed)


def pointer(start: bytes) -> str:
    """Describe the text that lies in place of a volume, by its first bytes; empty if it is none of these."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return LFS
    if re.match(rb"[\x20-\x7e]*annex/objects/", start):
        return ANNEX
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", start, re.IGNORECASE):
        return WEB_PAGE
    return ""


def other_format(start: bytes) -> str:
    """Describe what a file is that is not NIfTI, and what to do, by its first 540 bytes; empty if unknown."""
    if not start:
        return "is empty (0 bytes); copy it again"
    for offset, magic, what in OTHER_FORMATS:
        if start[offset:].startswith(magic):
            return what
    if start[:4] == b"\0\0\0\1" and int.from_bytes(start[20:24], "big") in MGH_TYPES and len(start) > 28:
        return "is MGH, the format of FreeSurfer; convert it with mri_convert"
    if start[:4] in ANALYZE_SIZES and len(start) >= 348:
        return ("is Analyze 7.5, which does not say which side is left, or its header is damaged; convert "
                "the original with dcm2niix, or this one with mri_convert and see that left is left")
    return pointer(start) or _text(start)


def _text(start: bytes) -> str:
    """Describe a text by its beginning; empty for anything else."""
    try:
        text = start.decode()
    except UnicodeDecodeError:
        return ""
    if not all(letter.isprintable() or letter in "\r\n\t\ufeff" for letter in text):
        return ""
    return f"is text, beginning {brief(repr(text[:60]))}; copy or download the file again"
