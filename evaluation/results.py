"""The per-subject results of an experiment: some CSVs and what they were made with, written together, read back only if unchanged."""
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import Config
from runtime.files import write_csv, write_text
from utils import InputError

FORMAT = 2                                                 # raise it when a column changes its meaning
INDEX = "scores.json"
FRAMES = ("test", "uptake", "predictions", "validation_list", "uncertainty")                # the CSVs; the first is always there


@dataclass(frozen=True)
class Run:
    """One experiment's results on its test list.

    facts: settings (with the epochs that were trained), versions, phantom, notice, note, and what identifies the test list (cohort), the
    lists of training and validation (training) and the masks.
    test: method, ID, label and image scores. uptake: method, ID, label, SUVR ... or None. predictions: as read_status gives, or None.
    validation_list, uncertainty: as measure_uncertainty gives, or None.
    """
    name: str
    facts: dict
    test: pd.DataFrame
    uptake: pd.DataFrame | None
    predictions: pd.DataFrame | None
    validation_list: pd.DataFrame | None = None
    uncertainty: pd.DataFrame | None = None

    @property
    def seed(self) -> int:
        return self.metadata["settings"]["seed"]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def forget_run(folder: Path) -> None:
    """What is in the folder counts no longer, because its synthetic PETs are about to change: the index goes first, then its CSVs."""
    for name in (INDEX, *(f"{frame}.csv" for frame in FRAMES)):
        (folder / name).unlink(missing_ok=True)


def save_run(folder: Path, facts: dict, frames: dict[str, pd.DataFrame]) -> None:
    """Write <name>.csv of each frame, then scores.json, without which no CSV counts; CSVs of an earlier run go."""
    forget_run(folder)
    for name, frame in frames.items():
        write_csv(folder / f"{name}.csv", frame)
    digests = {f"{name}.csv": _digest((folder / f"{name}.csv").read_bytes()) for name in frames}
    index = {"format": FORMAT, **facts, "files": digests}
    write_text(folder / INDEX, json.dumps(index | {"digest": _digest(json.dumps(index).encode())}, indent=2) + "\n")


def load_run(folder: Path) -> Run:
    """The results in an experiment's folder. Raises InputError if a file is missing or not as --stages test wrote it."""
    again = f"run --stages test of experiment {folder.name} again"
    try:
        facts = json.loads((folder / INDEX).read_text())
        digest, files = facts.pop("digest"), facts["files"]
        if digest != _digest(json.dumps(facts).encode()):
            raise ValueError("its digest is another")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / INDEX}: not there, damaged or changed; {again}") from error
    if facts["format"] != FORMAT or {f.name for f in dataclasses.fields(Config)} != facts["settings"].keys():
        raise InputError(f"{folder / INDEX}: written by another version of this project; {again}")
    problems = []
    for name, digest in files.items():
        if not (folder / name).is_file():
            problems.append(f"{folder / name}: not there")
        elif _digest((folder / name).read_bytes()) != digest:
            problems.append(f"{folder / name}: not as --stages test wrote it (a row, a column or a value was changed)")
    if problems:
        raise InputError("\n  ".join([*problems, again]))
    def read(name: str) -> pd.DataFrame | None:            # an ID may read NA
        return pd.read_csv(folder / name, dtype={"ID": str}, keep_default_na=False, na_values=[""]) if name in files else None

    return Run(folder.name, facts, *(read(f"{name}.csv") for name in FRAMES))


def load_runs(root: Path, but: str = "") -> tuple[list[Run], list[str]]:
    """All experiments with results under root, by name, and the names of those without; `but` is not looked at.

    Raises InputError with all problems.
    """
    runs, without, problems = [], [], []
    folders = sorted({path.parent for name in ("config.json", INDEX) for path in root.glob(f"*/{name}")})
    for folder in folders:
        if folder.name == but:
            continue
        if not (folder / INDEX).exists():
            without.append(folder.name)
            continue
        try:
            runs.append(load_run(folder))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n  ".join([f"the results of {len(problems)} experiment(s) cannot be used in tables:", *problems,
                                      "or move the folder away, or leave out the stage tables"]))
    return runs, without
