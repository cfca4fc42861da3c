"""The results of an experiment on its test list: CSVs with a row a subject, and an index of what made them.

Test stage and tables meet in these files alone. They are written together and read back only if nobody has
changed them.
"""
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import Config, with_later_settings
from runtime.files import write_csv, write_text
from runtime.logs import readable
from runtime.settings import why_refused
from utils import InputError

FORMAT = 2                                                 # raise it when a column changes its meaning
INDEX = "scores.json"
EXTERNAL = "external"                                    # folder of external cohorts in that of an experiment
MADE_FROM_THEM = ("failure_cases.csv", "methods.txt")      # by the stage report
FRAMES = ("test", "uptake", "predictions", "validation_list", "uncertainty", "people")  # the first always


@dataclass(frozen=True)
class Run:
    """The results of one experiment on its test list.

    metadata: settings (with the number of epochs that were trained), versions, command (as it was given),
    phantom (whether the data are simulated), notice, note, and digests of the test list (cohort), of the
    lists of training and validation (training) and of the masks. test: columns method, ID, label and the
    image scores. uptake: method, ID, label, SUVR and further regions, or None. predictions: as read_status
    gives them, or None. validation_list: label and scores of the validation list. uncertainty: as assess
    gives it, or None. people: what is known of the test subjects as text, a row each: ID, label and further
    columns, or None if an earlier version wrote the results.
    """
    name: str
    metadata: dict
    test: pd.DataFrame
    uptake: pd.DataFrame | None
    predictions: pd.DataFrame | None
    validation_list: pd.DataFrame | None = None
    uncertainty: pd.DataFrame | None = None
    people: pd.DataFrame | None = None

    @property
    def seed(self) -> int:
        """Seed that the networks were trained with."""
        return self.metadata["settings"]["seed"]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def forget_run(folder: Path) -> None:
    """Remove the results in the folder, the index first: networks or synthetic PETs are about to change."""
    for name in (INDEX, *(f"{frame}.csv" for frame in FRAMES), *MADE_FROM_THEM):
        (folder / name).unlink(missing_ok=True)


def save_run(folder: Path, metadata: dict, frames: dict[str, pd.DataFrame]) -> None:
    """Write <name>.csv of each frame, then scores.json, without which no CSV counts; older CSVs go."""
    forget_run(folder)
    digests = {}
    for name, frame in frames.items():
        path = folder / f"{name}.csv"
        write_csv(path, frame)
        digests[path.name] = _digest(path.read_bytes())
    index = {"format": FORMAT, **metadata, "files": digests}
    index["digest"] = _digest(json.dumps(index).encode())
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def load_run(folder: Path) -> Run:
    """The results in an experiment's folder.

    Raises InputError if a file is missing or not as the test stage wrote it.
    """
    if readable(folder.name) != folder.name:
        raise InputError(f"{readable(str(folder))}: its name is not UTF-8, which no table can hold; rename "
                         "it")
    metadata = _read_index(folder)
    problems = []
    for name, digest in metadata["files"].items():
        if not (folder / name).is_file():
            problems.append(f"{folder / name}: not there")
        elif _digest((folder / name).read_bytes()) != digest:
            problems.append(f"{folder / name}: not as it was written (a row, a column or a value was "
                            "changed)")
    if problems:
        raise InputError("\n  ".join([*problems, remedy(folder)]))
    frames = {}
    for name in FRAMES:
        written = f"{name}.csv" in metadata["files"]
        frames[name] = _read_csv(folder / f"{name}.csv", name == "people") if written else None
    return Run(folder.name, metadata, **frames)


def _read_index(folder: Path) -> dict:
    """The content of scores.json. Raises InputError if it is damaged, changed, or of another version."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        digest = index.pop("digest")
        if digest != _digest(json.dumps(index).encode()):
            raise ValueError("its digest is another")
        index["settings"] = with_later_settings(index["settings"])
        found, settings = index["format"], index["settings"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not there, damaged or changed; {remedy(folder)}") from error
    if readable(text := json.dumps(index, ensure_ascii=False)) != text:
        raise InputError(f"{path}: holds a path that is not UTF-8, which no table can name; rename that "
                         f"folder, and {remedy(folder)}")
    if found != FORMAT:
        raise InputError(f"{path}: written by another version of this project, in format {found} instead of "
                         f"{FORMAT}; {remedy(folder)}")
    if why := why_refused(index["settings"]):
        raise InputError(f"{path} {why}")
    if settings != {field.name for field in dataclasses.fields(Config)}:
        raise InputError(f"{path}: written by another version of this project, which has other settings; "
                         f"{remedy(folder)}")
    return index


def remedy(folder: Path) -> str:
    """The command that makes the results in a folder again, for a message."""
    if folder.parent.name == EXTERNAL:
        exp = folder.parent.parent.name
        return f"run python main.py external --exp {exp} --name {folder.name} --test_data DIR again"
    return f"run --stages test of experiment {folder.name} again"


def _read_csv(path: Path, is_text: bool) -> pd.DataFrame:
    """A CSV of the test stage; as text, '' where a cell is empty, if its numbers may be names (site 003)."""
    if is_text:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    return pd.read_csv(path, dtype={"ID": str}, keep_default_na=False, na_values=[""])    # an ID may read NA


def load_runs(root: Path) -> tuple[list[Run], dict[str, str]]:
    """The experiments with results under root, by name, and of all others the name and why they have none.
    One that cannot be read never stops the others."""
    runs, left_out = [], {}
    folders = sorted(root.iterdir()) if root.is_dir() else []
    for folder in folders:
        name = readable(folder.name)
        try:
            if any((folder / file).exists() for file in ("config.json", INDEX)):
                if (folder / INDEX).exists():
                    runs.append(load_run(folder))
                else:
                    left_out[name] = "has no scores yet (--stages test writes them)"
        except (InputError, OSError) as error:
            left_out[name] = f"its results cannot be used: {readable(str(error))}"
    return runs, left_out
