"""What lies in a BIDS dataset: images, sidecars and tables of subjects. Nothing but names is read at first.

Raw datasets, derivatives of fMRIPrep and PETPrep (sub-*/[ses-*/]anat and pet), and Clinica's CAPS
(subjects/sub-*/ses-*/t1_linear and pet_linear) are known.
"""
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cohort.bids_names import parse_name
from runtime.files import brief, read_text
from utils import InputError

FOLDERS = ("anat", "pet", "t1_linear", "pet_linear")
SUFFIXES = ("T1w", "pet", "mask")
IMAGE = re.compile(r"(.+)\.nii(\.gz)?")
GET = "a broken link, as git-annex leaves where content is not fetched: run `datalad get {}`"
BROKEN, UNUSABLE = "broken link", "file cannot be used"     # reasons of faults


@dataclass(frozen=True)
class Fault:
    """A file or folder that cannot be used: the ID of its visit, the path, a reason in few words, and what
    was found."""
    id: str
    path: Path
    reason: str
    found: str


@dataclass(frozen=True)
class BidsFile:
    """An image of a dataset. fault: why it cannot be used, as far as its link says; None if it may be."""
    path: Path
    entities: dict[str, str]
    suffix: str
    fault: Fault | None = None

    @property
    def visit(self) -> tuple[str, str]:
        """Subject and session, the latter '' if there is none."""
        return self.entities["sub"], self.entities.get("ses", "")


@dataclass
class Listing:
    """The names of a dataset. sidecars, tables: folder -> its .json and .tsv files. faults: of folders and
    names that cannot be used. visits: all that have a folder."""
    root: Path
    images: list[BidsFile] = field(default_factory=list)
    sidecars: dict[Path, list[Path]] = field(default_factory=lambda: defaultdict(list))
    tables: dict[Path, list[Path]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)
    visits: set[tuple[str, str]] = field(default_factory=set)


# ---------------------------------------------------------------- names

def is_dataset(folder: Path) -> bool:
    """Whether a folder is a BIDS dataset, by its dataset_description.json or its folders sub-*.

    One that holds images itself, or the folder T1, is a folder of scans, whatever else lies there.
    """
    if not folder.is_dir() or (folder / "T1").is_dir():
        return False
    if any(IMAGE.fullmatch(name) for name in os.listdir(folder)):
        return False
    described = (folder / "dataset_description.json").is_file()
    return described or any(_has_subjects(place) for place in (folder, folder / "subjects"))


def _has_subjects(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.startswith("sub-") and entry.is_dir() for entry in entries)


def list_dataset(root: Path) -> Listing:
    """List a dataset, each of its folders once. No file is opened."""
    home = root if _has_subjects(root) else root / "subjects"
    listing = Listing(root)
    for place in dict.fromkeys((root, home)):
        if place.is_dir():
            _note_texts(listing, place, _entries(place))
    for entry in _entries(home) if home.is_dir() else []:
        if entry.name.startswith("sub-"):
            _list_subject(listing, entry)
    return listing


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=_name)


def _name(entry: os.DirEntry) -> str:
    return entry.name


def _list_subject(listing: Listing, subject: os.DirEntry) -> None:
    """List a subject's folder: sessions in it, or images without session."""
    if not _is_folder(listing, subject.name, subject):
        return
    listing_sessions = False
    for entry in _open_folder(listing, subject.name, Path(subject.path)):
        if entry.name.startswith("ses-") and _is_folder(listing, f"{subject.name}_{entry.name}", entry):
            listing_sessions = True
            _list_visit(listing, (subject.name, entry.name), Path(entry.path))
        elif entry.name in FOLDERS and _is_folder(listing, subject.name, entry):
            _list_images(listing, (subject.name, ""), Path(entry.path))
            listing.visits.add((subject.name[4:], ""))
    if not listing_sessions:
        listing.visits.add((subject.name[4:], ""))


def _list_visit(listing: Listing, visit: tuple[str, str], folder: Path) -> None:
    listing.visits.add((visit[0][4:], visit[1][4:]))
    for entry in _open_folder(listing, "_".join(visit), folder):
        if entry.name in FOLDERS and _is_folder(listing, "_".join(visit), entry):
            _list_images(listing, visit, Path(entry.path))


def _is_folder(listing: Listing, name: str, entry: os.DirEntry) -> bool:
    """Whether an entry is a folder; a link that leads nowhere is a fault of the visit of that name."""
    try:
        if entry.is_dir():
            return True
        if entry.is_symlink() and not os.path.exists(entry.path):
            _note_fault(listing, name, entry.path, GET.format(entry.path), BROKEN)
    except OSError as error:                               # links in a circle
        _note_fault(listing, name, entry.path, f"cannot be read: {error.strerror}")
    return False


def _open_folder(listing: Listing, name: str, folder: Path) -> list[os.DirEntry]:
    """The entries of a folder, whose sidecars and tables are noted; none if it cannot be read, a fault."""
    try:
        entries = _entries(folder)
    except OSError as error:
        _note_fault(listing, name, folder, f"cannot be read: {error.strerror}")
        return []
    _note_texts(listing, folder, entries)
    return entries


def _note_texts(listing: Listing, folder: Path, entries: list[os.DirEntry]) -> None:
    for entry in entries:
        if entry.name.endswith(".json"):
            listing.sidecars[folder].append(Path(entry.path))
        elif entry.name.endswith(".tsv"):
            listing.tables[folder].append(Path(entry.path))


def _list_images(listing: Listing, visit: tuple[str, str], folder: Path) -> None:
    """List the T1 MRIs, PETs and masks of a folder. visit: names of the folders of subject and session."""
    ids = [name for name in visit if name]
    for entry in _open_folder(listing, "_".join(ids), folder):
        match = IMAGE.fullmatch(entry.name)
        if not match or entry.name.startswith(".") or not match[1].endswith(tuple(f"_{s}" for s in SUFFIXES)):
            continue
        try:
            entities, suffix = parse_name(match[1])
        except ValueError:
            _note_fault(listing, "_".join(ids), entry.path, "is not a name of BIDS")
            continue
        own = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
        if own != ids:
            _note_fault(listing, "_".join(ids), entry.path,
                        f"its name is of {'_'.join(own)}, its folder of {'_'.join(ids)}")
            continue
        listing.images.append(BidsFile(Path(entry.path), entities, suffix,
                                       _fault("_".join(ids), entry)))


def _fault(name: str, entry: os.DirEntry) -> Fault | None:
    """Why an image of a visit cannot be read, as far as its link says; None if it may be."""
    reason, found = UNUSABLE, "is not a file"
    try:
        if entry.is_file():
            return None
        if entry.is_symlink() and not os.path.exists(entry.path):
            reason, found = BROKEN, GET.format(entry.path)
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
    return Fault(name, Path(entry.path), reason, f"{entry.name}: {found}")


def _note_fault(listing: Listing, name: str, path: Path | str, found: str, reason: str = UNUSABLE) -> None:
    """Note a folder or name that cannot be used, of the visit of an ID."""
    listing.faults.append(Fault(name, Path(path), reason, f"{path}: {found}"))


# ---------------------------------------------------------------- sidecars

class Sidecars:
    """Sidecars of the images of a dataset, with what they inherit from folders above: the nearest value wins,
    key by key."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.read: dict[Path, tuple[dict, str]] = {}       # content, and why it cannot be used

    def of(self, image: BidsFile) -> tuple[dict, str]:
        """The values for an image, and the faults of its sidecars, empty if there are none.

        Without any sidecar the values are empty.
        """
        values, faults = {}, []
        for path in self._applicable(image):
            if path not in self.read:
                self.read[path] = read_json(path)
            content, fault = self.read[path]
            values |= content
            if fault:
                faults.append(f"{path.name}: {fault}")
        return values, "; ".join(faults)

    def _applicable(self, image: BidsFile) -> list[Path]:
        """The sidecars that apply to an image, the farthest first."""
        found = []
        for folder in [*reversed(image.path.parents)]:
            here = []
            for path in self.listing.sidecars.get(folder, []):
                *parts, suffix = path.name.removesuffix(".json").split("_")
                entities = dict(part.partition("-")[::2] for part in parts)
                if suffix == image.suffix and entities.items() <= image.entities.items():
                    here.append((len(entities), path))
            found += [path for _, path in sorted(here)]
        return found


def read_json(path: Path) -> tuple[dict, str]:
    """The content of a sidecar, and why it cannot be used; empty content if so, an empty reason if not."""
    try:
        content = json.loads(read_text(path))
    except (InputError, ValueError, RecursionError) as error:
        return {}, f"cannot be read as JSON ({brief(error)})"
    if not isinstance(content, dict):
        return {}, "holds no names with values"
    return content, ""
