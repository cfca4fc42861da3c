"""BIDS derivative datasets, as preprocess and synthesize write them: the names of their files, what every
sidecar says, and the description of the dataset with links to those that its files were made from.
"""
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cohort.bids_names import dataset_root, parse_name
from config import VERSION
from runtime.files import brief, read_text, write_text
from utils import InputError

PROGRAM = "il_cldm"                                        # the name that our datasets give their maker
BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
OF_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+/(ses-[A-Za-z0-9]+|anat|pet|t1_linear|pet_linear)")
SPACE = "MNI152NLin2009aSym"                               # of the template that nilearn carries
STANDARD_SPACES = {                                        # those of MNI that the standard defines by name
    SPACE, "MNI152Lin", "MNI152NLin6Sym", "MNI152NLin6Asym", "MNI152NLin2009aAsym", "MNI152NLin2009bSym",
    "MNI152NLin2009bAsym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym", "MNI305", "MNIColin27",
}
ENTITIES = {                                               # of a derived file, by the folder in which it lies
    "anat": ("sub", "ses", "acq", "ce", "rec", "run", "space", "res", "desc"),
    "pet": ("sub", "ses", "trc", "rec", "run", "space", "res", "desc"),
}
IGNORED = (                                                # what we write beside the dataset's own files
    "*.png", "/synthesized.csv", "/whole_MRI", "/whole_Abeta", "/latent_Abeta", "/preprocess", "/truth",
    "/data_info", "/phantom", "/sub-*_pet.*",              # the last: of versions that wrote no folders
)


# ---------------------------------------------------------------- names

def derived_entities(stem: str, kind: str, desc: str) -> dict[str, str]:
    """Entities of a file that is made from one with the name `stem`, without extension: its entities, with
    this desc, and SPACE where it names none.

    kind: 'anat' or 'pet'. Entities that the standard does not allow there are added to desc (acq-mp becomes
    Acqmp), so that two files stay two. The letters and digits of any other name than one of BIDS name the
    subject; sub is '' if there are none.
    """
    try:
        entities, _ = parse_name(stem)
    except ValueError:
        entities = {"sub": re.sub(r"[^A-Za-z0-9]", "", stem.removeprefix("sub-"))}
    kept, others = {"space": SPACE}, ""
    for key, value in entities.items():
        if key in ENTITIES[kind]:
            kept[key] = value
        else:
            others += key.capitalize() + value.replace("+", "")
    return kept | {"desc": desc + others}


def home_of(dataset: Path, entities: dict[str, str], kind: str) -> Path:
    """The folder 'anat' or 'pet' of a subject, or of its session, in a dataset."""
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    return dataset.joinpath(f"sub-{entities['sub']}", *session, kind)


def resolution(sizes_mm: Iterable[float]) -> tuple[str, str]:
    """Label of the entity res and text of the key Resolution of voxels of these sizes along x, y and z: 1mm
    and '1 mm isotropic', or 1x1x1p2mm and '1 x 1 x 1.2 mm'; p stands for the decimal point, sizes are rounded
    to 0.01 mm."""
    sizes = [f"{size:.2f}".rstrip("0").rstrip(".") for size in sizes_mm]
    if len(set(sizes)) == 1:
        return f"{sizes[0]}mm".replace(".", "p"), f"{sizes[0]} mm isotropic"
    return f"{'x'.join(sizes)}mm".replace(".", "p"), f"{' x '.join(sizes)} mm"


# ---------------------------------------------------------------- sidecars

def shared_keys(entities: dict[str, str], sizes_mm: Iterable[float], sources: list[Path],
                dataset: Path) -> dict:
    """What the standard asks of the sidecar of every derived volume: SkullStripped, Resolution; Sources, if
    they lie in a dataset that is linked; SpatialReference, the first source, in a space without a standard.
    """
    uris = [uri for uri in (bids_uri(path, dataset) for path in sources) if uri]
    keys = {"SkullStripped": True, "Resolution": resolution(sizes_mm)[1]}
    if uris:
        keys["Sources"] = uris
    if entities["space"] not in STANDARD_SPACES:
        keys["SpatialReference"] = uris[0] if uris else relative(sources[0], dataset)
    return keys


def bids_uri(path: Path, dataset: Path) -> str:
    """The BIDS URI of a file by the links of a dataset, such as bids:raw:sub-01/anat/sub-01_T1w.nii.gz; ''
    unless it is a subject's file in a dataset that is linked."""
    home = subjects_dataset(path)
    for name, place in _links(dataset).items():
        if home and place == relative(home, dataset):
            return f"bids:{name}:{relative(path, home)}"
    return ""


def subjects_dataset(path: Path) -> Path | None:
    """The BIDS dataset that has a file in the folder of a subject, or None."""
    home = dataset_root(path)
    return home if home and relative(path, home).startswith("sub-") else None


def relative(path: Path, folder: Path) -> str:
    """The path as it is seen from a folder, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


# ---------------------------------------------------------------- the dataset

def refuse_foreign(dataset: Path) -> None:
    """Raise InputError if a folder is a BIDS dataset that this program did not make."""
    path = dataset / DESCRIPTION
    if os.path.lexists(path) and not _is_ours(_read(path)):
        raise InputError(f"{path}: is the description of a BIDS dataset that {PROGRAM} has not made; give a "
                         "folder of its own, which may lie in the folder derivatives of that dataset")


def foreign_datasets(path: Path) -> list[Path]:
    """The BIDS datasets in which a file or folder lies that this program did not make, by their descriptions
    or by folders such as sub-01/anat or sub-01/ses-1 on the path."""
    above = dict.fromkeys(place for full in (path.absolute(), path.resolve())
                          for place in (full, *full.parents))
    found = {place.parents[1]: None for place in above if OF_SUBJECT.fullmatch("/".join(place.parts[-2:]))
             and not (place.parents[1] / DESCRIPTION).is_file()}
    for place in above:
        if (place / DESCRIPTION).is_file():
            try:
                is_ours = _is_ours(_read(place / DESCRIPTION))
            except InputError:                             # a description that cannot be read is not ours
                is_ours = False
            if not is_ours:
                found[place] = None
    return list(found)


def _is_ours(description: dict) -> bool:
    """Whether a dataset says that this program made it."""
    return any(maker.get("Name") == PROGRAM for maker in _makers(description))


def _makers(description: dict) -> list[dict]:
    """The programs that a dataset says made it."""
    makers = description.get("GeneratedBy")
    return [maker for maker in makers if isinstance(maker, dict)] if isinstance(makers, list) else []


def _read(path: Path) -> dict:
    """A dataset's description. Raises InputError if it cannot be read as JSON."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {brief(error)}") from error
    return content if isinstance(content, dict) else {}


def _links(dataset: Path) -> dict[str, str]:
    """The datasets that a dataset of ours is linked with: name -> path from its own folder."""
    path = dataset / DESCRIPTION
    links = _read(path).get("DatasetLinks") if path.exists() else {}
    return links if isinstance(links, dict) else {}


def write_dataset(dataset: Path, title: str, readme: str, sources: Iterable[Path],
                  ignored: Iterable[str] = ()) -> None:
    """Write description, README.md and .bidsignore of a dataset, and link it with those of its sources.

    Keys and lines that users have added, and a README.md that is there, stay. The folder must be there.
    sources: files that the volumes are made from. ignored: further lines of .bidsignore.
    """
    path = dataset / DESCRIPTION
    known, links = _read(path) if path.exists() else {}, _links(dataset)
    homes = {subjects_dataset(source) for source in sources} - {None}
    for place in sorted(relative(home, dataset) for home in homes):
        if place not in links.values():
            links[_free_name(links)] = place
    others = [maker for maker in _makers(known) if maker.get("Name") != PROGRAM]
    new = {"Name": title} | known | {"BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
                                     "GeneratedBy": [{"Name": PROGRAM, "Version": VERSION}, *others]}
    if links:
        new["DatasetLinks"] = links
    write_if_new(path, json.dumps(new, indent=2) + "\n")
    if not (dataset / "README.md").exists():
        write_text(dataset / "README.md", readme)
    ignore = dataset / ".bidsignore"
    lines = read_text(ignore).splitlines() if ignore.exists() else []
    write_if_new(ignore, "".join(f"{line}\n" for line in dict.fromkeys([*lines, *IGNORED, *ignored])))


def _free_name(links: dict[str, str]) -> str:
    """A name for one more link: raw, raw2, raw3 and so on."""
    name, number = "raw", 1
    while name in links:
        number += 1
        name = f"raw{number}"
    return name


def write_if_new(path: Path, text: str) -> None:
    """Write a text, unless it is there."""
    if not path.exists() or read_text(path) != text:
        write_text(path, text)
