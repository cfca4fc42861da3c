"""BIDS names: their entities, and the dataset in which a file lies.

A name is entities `key-value`, joined by `_`, and a suffix: sub-01_ses-2_trc-18FAV45_pet. The order of the
entities is the standard's (BIDS 1.10.0).
"""
import re
from pathlib import Path

NAME = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9+]+)*(_[A-Za-z0-9]+)?")
ORDER = ("sub", "ses", "task", "trc", "acq", "ce", "rec", "run", "space", "res", "den", "label", "desc")
OURS = "ilcldm"                                            # begins desc- of what this program synthesizes


def parse_name(stem: str) -> tuple[dict[str, str], str]:
    """Entities, key -> value in their order, and the suffix of a file's name without extension; the suffix is
    '' where the name has none.

    Raises ValueError unless the name is one of BIDS.
    """
    if not NAME.fullmatch(stem):
        raise ValueError(f"{stem!r} is no BIDS name")
    parts = stem.split("_")
    suffix = "" if "-" in parts[-1] else parts.pop()
    return dict(part.split("-", 1) for part in parts), suffix


def join_name(entities: dict[str, str], suffix: str) -> str:
    """The name of entities and suffix, entities in the standard's order; others come before space-."""
    def place(key: str) -> int:
        return ORDER.index(key if key in ORDER else "run")

    return "_".join([*(f"{key}-{entities[key]}" for key in sorted(entities, key=place)), suffix])


def dataset_root(path: Path) -> Path | None:
    """The folder of the BIDS dataset in which a file or folder lies, itself if it is one; None if it lies in
    none. A dataset is known by its dataset_description.json.
    """
    places = (path, *path.absolute().parents)
    return next((place for place in places if (place / "dataset_description.json").is_file()), None)
