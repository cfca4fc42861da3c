"""The rows of the tables: runs that differ in their seeds alone are one row, and rows of one section can be
compared: same cohort, lists, crop and masks. Both follow from the marks of the settings in config.py, which
say what a setting affects.
"""
import dataclasses
import json
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd

from config import BASELINES, SECOND_ROWS, Config
from evaluation.results import Run
from evaluation.values import Runs, Values
from imaging.regions import ABOUT

COMPARED = (*BASELINES, *SECOND_ROWS)                      # of a run that trained them
UPPER_BOUNDS = ("aae", "oracle", "real")                   # see the PET or the truth: no contenders
TRAINED = ("il_cldm", "aae", *COMPARED)                   # come out otherwise with another seed
SHARED = "all"                                             # experiment of a method that is the same in all


# ---------------------------------------------------------------- settings that must be equal

def settings_affecting(results: set[str]) -> list[str]:
    """Names of the settings that are marked as affecting any of these results."""
    return [field.name for field in dataclasses.fields(Config) if results & set(field.metadata["affects"])]


def _row_settings() -> list[str]:
    """Names of the settings in which all runs of a row agree: those that affect its numbers, without seeds.

    Only settings of new scans affect no number of the test list.
    """
    results = {result for field in dataclasses.fields(Config) for result in field.metadata["affects"]}
    names = [*settings_affecting(results - {"new_scans"}), *UNMARKED]
    return [name for name in names if name not in SEEDS]


SEEDS = ("seed", "phantom_seed")
# Not marked as affecting the test list: a network may be used in another precision than it was trained in,
# and further regions may be added later. But precision rounds the numbers, and uptake.csv holds the regions.
UNMARKED = ("precision", "atlas")
ROW_SETTINGS = _row_settings()
SECTION_SETTINGS = settings_affecting({"comparison"})      # in which all rows of a section agree


@dataclass
class Group:
    """An experiment with all its seeds. section: what rows must share to be compared, as JSON."""
    name: str
    section: str
    runs: list[Run]


@dataclass(eq=False)
class Row:
    """One row of a table.

    key: (method,), (classifier, method) or (measure, method). runs: (cohort, seed) -> the subjects of a run,
    by ID. commands: name of a run -> its command, as it was given.
    """
    section: str
    experiment: str
    key: tuple[str, ...]
    runs: Runs
    commands: dict[str, str]

    @property
    def method(self) -> str:
        """Method whose PETs the row is about; none for a status classifier without PET."""
        return self.key[-1]

    @property
    def is_contender(self) -> bool:
        """Whether the row needs no PET of the subject, so that it may be the best."""
        return self.method not in UPPER_BOUNDS

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """(cohort, ID) of everyone in the row."""
        return {(cohort, subject) for (cohort, _), frame in self.runs.items() for subject in frame.index}

    @property
    def label(self) -> str:
        """Name of the row where one column holds it."""
        return row_label(self.key, self.experiment)


def row_label(key: tuple[str, ...], experiment: str) -> str:
    """Name of a row where one column holds it: its key, and the experiment unless it is the same in all."""
    name = " ".join(key)
    return name if experiment == SHARED else f"{name} ({experiment})"


# ---------------------------------------------------------------- runs to groups

def group_runs(runs: list[Run]) -> tuple[list[Group], list[str]]:
    """The runs that differ in their seeds alone, by group, and remarks on repetitions, which are left out."""
    groups: list[list[Run]] = []
    remarks = []
    for run in runs:
        group = next((group for group in groups if _belongs(run, group)), None)
        if group is None:
            groups.append([run])
            continue
        repeated = [other for other in group if (_lists(other), other.seed) == (_lists(run), run.seed)]
        if repeated:
            why = f"repeats {repeated[0].name} (same settings, seed and lists)"
            remarks.append(f"{run.name} {why} and is left out")
        else:
            group.append(run)
    for group in groups:
        group.sort(key=lambda run: (run.seed, run.name))
    named = zip(_names(groups), groups, strict=True)
    return [Group(name, _section(group), group) for name, group in named], remarks


def _belongs(run: Run, group: list[Run]) -> bool:
    """Whether the run differs from those of the group in the seeds alone.

    Their lists must be the same, but those of a phantom of another seed.
    """
    settings = run.metadata["settings"]
    for other in group:
        other_settings = other.metadata["settings"]
        if any(settings[name] != other_settings[name] for name in ROW_SETTINGS):
            return False
        if run.metadata["masks"] != other.metadata["masks"]:
            return False
        is_phantom = any(settings["phantom_subjects"])
        is_other_phantom = is_phantom and settings["phantom_seed"] != other_settings["phantom_seed"]
        if _lists(run) != _lists(other) and not is_other_phantom:
            return False
    return True


def _lists(run: Run) -> tuple[str, str]:
    """Digests of the test list, and of the lists of training and validation."""
    return run.metadata["cohort"], run.metadata["training"]


def _section(group: list[Run]) -> str:
    """What rows must share to be compared, as JSON."""
    metadata = group[0].metadata
    section = {name: metadata["settings"][name] for name in (*SECTION_SETTINGS, "data_dir", "info_dir")}
    if any(section["phantom_subjects"]):                   # another folder may hold the same simulation
        section |= {"data_dir": "", "info_dir": ""}
    section["phantom"], section["masks"] = metadata["phantom"], metadata["masks"]
    if metadata["settings"]["regions"] in ABOUT:           # own masks and a phantom's are known without it
        section["regions"] = metadata["settings"]["regions"]
    section["lists"] = sorted({_lists(run) for run in group})
    return json.dumps(section, sort_keys=True)


def _names(groups: list[list[Run]]) -> list[str]:
    """The common beginning of the names in each group; if it is empty or not unique, the first name."""
    beginnings = [os.path.commonprefix([run.name for run in group]).rstrip("_-.") for group in groups]
    names = []
    for group, beginning in zip(groups, beginnings, strict=True):
        is_name = beginning and beginnings.count(beginning) == 1
        names.append(beginning if is_name else group[0].name)
    return names


# ---------------------------------------------------------------- groups to rows

def collect_rows(groups: list[Group], frame: str, keys: tuple[str, ...], order: tuple[str, ...]) -> list[Row]:
    """A row for each experiment and method of a CSV; a method that several experiments share is one row.

    frame: name of the CSV. keys: its columns that tell rows apart, "method" last. order: the parts of a key
    in the order of the table.
    """
    rows: list[Row] = []
    for group in groups:
        for row in _rows_of_group(group, frame, keys):
            shared = next((other for other in rows if _is_shared(row, other)), None)
            if shared is None:
                rows.append(row)
            else:
                shared.runs |= row.runs
                shared.commands |= row.commands
    for row in rows:
        for cohort in {cohort for cohort, _ in row.runs}:
            _keep_common_subjects(row, cohort)
            _keep_one_of_equal_seeds(row, cohort)
    _name_shared(rows)
    return sorted(rows, key=lambda row: (row.section, _position(row.key, order), row.experiment))


def _rows_of_group(group: Group, frame: str, keys: tuple[str, ...]) -> list[Row]:
    rows: dict[tuple, Row] = {}
    for run in group.runs:
        table = getattr(run, frame)
        if table is None:
            continue
        for key, subjects in table.groupby(list(keys), sort=False):
            row = rows.setdefault(key, Row(group.section, group.name, key, {}, {}))
            row.runs[run.metadata["cohort"], run.seed] = subjects.set_index("ID").sort_index()
            row.commands[run.name] = run.metadata["command"]
    return list(rows.values())


def _is_shared(row: Row, other: Row) -> bool:
    """Whether the rows of two experiments are one: not of il_cldm, and equal in the runs that both have.

    Of a trained method all runs must be in common: nothing says that other seeds were trained in the same
    way.
    """
    if (row.section, row.key) != (other.section, other.key) or row.method == "il_cldm":
        return False
    if row.method in TRAINED and row.runs.keys() != other.runs.keys():
        return False
    common = [name for name in row.runs if name in other.runs]
    return all(_equal(row.runs[name], other.runs[name]) for name in common)


def _equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two tables hold the same values of the same subjects, but for rounding, in the columns that
    both have."""
    if not one.index.equals(other.index):
        return False
    common = one.select_dtypes("number").columns.intersection(other.columns)
    return np.allclose(one[common], other[common], rtol=1e-6, atol=1e-9, equal_nan=True)


def _keep_common_subjects(row: Row, cohort: str) -> None:
    """Keep the subjects of the cohort that all its seeds have."""
    runs = sorted(name for name in row.runs if name[0] == cohort)
    common = row.runs[runs[0]].index
    for name in runs[1:]:
        common = common.intersection(row.runs[name].index)
    for name in runs:
        row.runs[name] = row.runs[name].loc[common]


def _keep_one_of_equal_seeds(row: Row, cohort: str) -> None:
    """Keep the cohort's first seed of a method that is not trained, if it is the same in all of them."""
    first, *others = sorted(name for name in row.runs if name[0] == cohort)
    if row.method not in TRAINED and all(_equal(row.runs[first], row.runs[name]) for name in others):
        for name in others:
            del row.runs[name]


def _name_shared(rows: list[Row]) -> None:
    """Call the experiment SHARED where a method has one row; of a baseline only if all runs have it."""
    for row in rows:
        section = [other for other in rows if other.section == row.section]
        is_only = [other.key for other in section].count(row.key) == 1
        of_all_runs = all(other.commands.keys() <= row.commands.keys() for other in section)
        if is_only and row.method != "il_cldm" and (of_all_runs or row.method not in COMPARED):
            row.experiment = SHARED


def _position(key: tuple[str, ...], order: tuple[str, ...]) -> list[int]:
    return [order.index(part) if part in order else len(order) for part in key]


# ---------------------------------------------------------------- rows to a table

@dataclass(frozen=True)
class Table:
    """A tidy table, the columns that tell its rows apart beside the experiment, and its caption."""
    name: str
    tidy: pd.DataFrame
    keys: tuple[str, ...]
    caption: str


def tidy_table(rows: list[Row], keys: tuple[str, ...], values: list[dict[str, Values]]) -> pd.DataFrame:
    """A record a row and metric."""
    records = []
    for row, metrics in zip(rows, values, strict=True):
        key, commands = dict(zip(keys, row.key, strict=True)), list(dict.fromkeys(row.commands.values()))
        for metric, found in metrics.items():
            records.append({
                "section": row.section, "experiment": row.experiment, **key, "n": len(row.subjects),
                "seeds": len(row.runs), "is_contender": row.is_contender, "metric": metric, **vars(found),
                "made_by": commands})
    return pd.DataFrame(records)
