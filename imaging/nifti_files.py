"""Files of volumes: their names, the volumes of a folder, and the two files of a pair."""
import hashlib
import os
import re
from pathlib import Path

from runtime.files import file_status, link_problem
from runtime.near_names import NearNames
from utils import InputError

SUFFIX = re.compile(r"\.(nii|img)(\.gz)?$", re.IGNORECASE)
PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)
NOT_READ = {                                               # suffix -> what to do with such a file
    ".bz2": "unpack it with bunzip2", ".zst": "unpack it with unzstd", ".xz": "unpack it with unxz",
    ".zip": "unpack it with unzip", ".mgz": "convert it with mri_convert",
    ".mgh": "convert it with mri_convert", ".mnc": "convert it with mri_convert",
    ".dcm": "convert its series with dcm2niix", ".hdr": "its voxels, a file .img, are missing",
}


def is_volume_name(name: str) -> bool:
    """Whether a file is a volume by its name: .nii, .nii.gz, or the voxels .img of a pair, in any case.

    A hidden file is none: macOS puts ._a.nii beside a.nii.
    """
    return bool(SUFFIX.search(name)) and not name.startswith(".")


def stem_of(name: str) -> str:
    """The name of a volume's file without its suffix."""
    return SUFFIX.sub("", name)


def parts_of(path: Path) -> list[Path]:
    """The files of a volume: itself, or header and voxels of a pair .hdr and .img, if either is named.

    Raises InputError if one of them is missing, twice there, or not a regular file.
    """
    pair = PAIR.search(path.name)
    if not pair:
        file_status(path)
        return [path]
    found: dict[str, list[Path]] = {"hdr": [], "img": []}
    for name in _names(path.parent):
        match = PAIR.search(name)
        if match and name[:match.start()] == path.name[:pair.start()]:
            found[match[1].lower()].append(path.parent / name)
    for kind in ("hdr", "img"):
        if not found[kind]:
            raise InputError(f"{path}: {path.name[:pair.start()]}.{kind} is not there; a volume of this name "
                             "is a pair of .hdr and .img")
        if len(found[kind]) > 1:
            raise InputError(f"{found[kind][0]} and {found[kind][1].name}: both are there; keep one")
        file_status(found[kind][0])
    return [found["hdr"][0], found["img"][0]]


def digest_of(path: Path, algorithm: str) -> str:
    """Checksum of a volume's file, in hexadecimal digits; of a pair, of header and voxels in turn.

    algorithm: name that hashlib knows. Raises InputError for what is not there or no file, OSError for what
    cannot be read.
    """
    digest = hashlib.new(algorithm)
    for part in parts_of(path):
        with part.open("rb") as file:
            while chunk := file.read(2 ** 20):
                digest.update(chunk)
    return digest.hexdigest()


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if it is not there. Raises InputError if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error


class VolumeFolder:
    """The volumes that lie in a folder; it is listed once.

    by_stem: name without suffix -> names of the files. Raises InputError if it is there and cannot be listed.
    """

    def __init__(self, folder: Path):
        self.folder, self.names = folder, _names(folder)
        self.by_stem: dict[str, list[str]] = {}
        for name in filter(is_volume_name, self.names):
            self.by_stem.setdefault(stem_of(name), []).append(name)
        self.near = NearNames(self.by_stem)

    def find(self, stem: str) -> Path:
        """The file of a name without suffix, which may be a link. Raises InputError if there is none, or two,
        or something that is no file, such as a link to what is not there."""
        names = self.by_stem.get(stem, [])
        if not names:
            path = self.folder / f"{stem}.nii"
            raise InputError(link_problem(path) or f"{path}[.gz]: not there{self._instead(stem)}")
        if len(names) > 1:
            others = ", ".join(names[1:])
            raise InputError(f"{self.folder / names[0]} and {others}: both are there; keep one")
        path = self.folder / names[0]
        file_status(path)
        return path

    def _instead(self, stem: str) -> str:
        """What may be meant by a name that is not there, among what lies in the folder; empty if nothing."""
        for name in self.names:
            if name.lower().startswith(f"{stem}.".lower()):
                advice = NOT_READ.get(Path(name).suffix.lower())
                if advice:
                    return f"; {name} is: {advice}"
        return self.near.hint(stem)
