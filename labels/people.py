"""The people of a cohort: what data_info.csv says of them beside their label."""
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from labels.cells import is_missing, is_unknown, read_age, read_sex
from labels.covariates import CovariateCoder, column_problems, reading_problems
from runtime.files import brief
from runtime.near_names import NearNames
from runtime.tables import read_table, simplified
from utils import InputError


def read_people(info_dir: Path, ids: Sequence[str]) -> pd.DataFrame:
    """Everything that data_info.csv says of the scans of these IDs, a row a scan in their order: ID, and
    every other column but the label as text, '' where it is not known. Of a column that stands twice the
    first.

    Raises InputError if the table cannot be read.
    """
    table = read_table(info_dir / "data_info.csv", "ID", "label", remarks=[])  # the check has said how
    table = table.loc[:, ~table.columns.duplicated()].drop(columns="label").drop_duplicates("ID")
    known = table.set_index("ID").reindex(list(ids)).fillna("")
    return known.mask(known.map(is_unknown), "").reset_index()


def read_demographics(info_dir: Path, ids: Sequence[str]) -> tuple[pd.DataFrame | None, str]:
    """ID, age (years) and sex of the scans of these IDs, if data_info.csv has these columns with a value for
    each; else None and why."""
    path = info_dir / "data_info.csv"
    table = read_table(path, "ID", remarks=[])             # the check has said how it is read
    missing = [name for name in ("age", "sex") if not places_of(table, name)]
    if missing:
        return None, f"{path} has no column {' and no column '.join(missing)}"
    [age], [sex] = places_of(table, "age"), places_of(table, "sex")
    found = pd.DataFrame({"ID": table["ID"], "age": [_age_or_nan(text) for text in table.iloc[:, age]],
                          "sex": ["" if is_missing(text) else read_sex(text) for text in table.iloc[:, sex]]})
    found = found.drop_duplicates("ID").set_index("ID").reindex(list(ids))[["age", "sex"]].reset_index()
    bad = found.loc[found["age"].isna() | found["sex"].isna() | (found["sex"] == ""), "ID"]
    if len(bad):
        return (None,
                f"{path}: {len(bad)} scans have no sex or no age from 1 to 120 years ({', '.join(bad[:5])})")
    return found, ""


def _age_or_nan(text: str) -> float:
    try:
        return math.nan if is_missing(text) else read_age(text)
    except ValueError:
        return math.nan


def read_tracer(info_dir: Path, ids: Sequence[str]) -> str:
    """The tracer of all the scans of these IDs by the column tracer of data_info.csv, as it is written there;
    '' if there is no such column, or not one tracer alone."""
    table = read_table(info_dir / "data_info.csv", "ID", remarks=[])
    is_asked = table["ID"].isin(list(ids))
    tracers = {tracer for i in places_of(table, "tracer") for tracer in table.loc[is_asked].iloc[:, i]}
    return tracers.pop() if len(tracers) == 1 and not is_missing(*tracers) else ""


def places_of(table: pd.DataFrame, name: str) -> list[int]:
    """Position of the first column of that name, whatever its case and punctuation; empty if there is
    none."""
    return [i for i, heading in enumerate(table.columns) if simplified(heading) == simplified(name)][:1]


# ---------------------------------------------------------------- columns that settings name

def find_column(columns: Iterable[str], name: str) -> str | None:
    """The column that a name means: the same name, or else the only one that differs in case, blanks and
    punctuation alone; None if there is none."""
    if name in columns:
        return name
    alike = [column for column in columns if simplified(column) == simplified(name)]
    return alike[0] if len(alike) == 1 and simplified(name) else None


def missing_columns(info_dir: Path, setting: str, names: tuple[str, ...]) -> list[str]:
    """Problems of names of columns of data_info.csv that a setting gives: a column that is not there, or is
    named twice; none where the table itself cannot be read, which is a problem of its own."""
    path, problems, named = info_dir / "data_info.csv", [], {}
    try:
        columns = list(read_table(path, "ID", "label", remarks=[]).columns)
    except InputError:
        return []
    near, listing = NearNames(columns), ", ".join(brief(column) for column in columns)
    spelled = {simplified(column): column for column in columns}
    for name in names:
        column = find_column(columns, name)
        if column in named:
            problems.append(f"{path}: {named[column]} and {name}, which the setting {setting} names, mean "
                            "the same column; leave one out")
        elif column:
            named[column] = name
        else:
            alike = difflib.get_close_matches(simplified(name), spelled, 1)
            hint = near.hint(name) or (f"; did you mean {spelled[alike[0]]}?" if alike else "")
            problems.append(f"{path}: has no column {brief(repr(name))}, which the setting {setting} "
                            f"names{hint}; its columns are {listing}")
    return problems


def read_covariates(info_dir: Path, ids: Sequence[str], names: tuple[str, ...]) -> pd.DataFrame | None:
    """The columns that these names mean (find_column), a row a scan, as read_people gives them, indexed by ID
    and named as asked for; None if no name is given. Raises InputError with all columns that are not
    there."""
    if not names:
        return None
    if problems := _unusable(info_dir, names):
        raise InputError("\n  ".join(problems))
    people = read_people(info_dir, ids).set_index("ID")
    return pd.DataFrame({name: people[find_column(people.columns, name)] for name in names})


def _unusable(info_dir: Path, names: tuple[str, ...]) -> list[str]:
    """Problems of names that mean no column, or the label or the ID, which are no covariates."""
    problems = missing_columns(info_dir, "covariates", names)
    for name in names:
        if simplified(name) in ("LABEL", "ID"):
            problems.append(f"{info_dir / 'data_info.csv'}: {name} is no covariate; take it out of the "
                            "setting covariates")
    return problems


def covariate_problems(info_dir: Path, labels: dict[str, dict[str, int]],
                       names: tuple[str, ...]) -> list[str]:
    """Problems with the covariates of a cohort: in the training list, or else in the others, which are read
    as it is. labels: list -> ID -> label, the training list first."""
    (_, train), *others = labels.items()
    if not names or not train:
        return []
    if problems := _unusable(info_dir, names):
        return problems
    path, cells = info_dir / "data_info.csv", read_covariates(info_dir, list(train), names)
    problems = [f"{path}: {problem}" for problem in column_problems(cells, np.array(list(train.values())))]
    if problems:
        return problems
    for split, members in others:
        cells_there = read_covariates(info_dir, list(members), names)
        for covariate in CovariateCoder.fit(cells).covariates:
            for problem in reading_problems(covariate, cells_there[covariate.name].tolist()):
                problems.append(f"{path}: {problem} ({split}.txt)")
    return problems
