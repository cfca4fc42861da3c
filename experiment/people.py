"""The people of the test list: what data_info.csv says of them."""
from pathlib import Path

import numpy as np
import pandas as pd

from dataset import Scan
from evaluation.table_1 import COLUMNS
from labels.cells import are_codes, is_missing, read_age, read_sex
from labels.people import find_column, read_people


def people_of_test_list(info_dir: Path, scans: list[Scan], named: tuple[str, ...]) -> pd.DataFrame:
    """A row a scan: ID, label, those of COLUMNS that data_info.csv has with any value, and the named columns.

    age: in years, NaN where it is not known or no age. sex: M, F, or as it is written. All else is text,
    empty where it is missing.
    """
    cells = read_people(info_dir, [scan.id for scan in scans])
    people, taken = cells[["ID"]].assign(label=[scan.label for scan in scans]), {"ID", "label"}
    for name, names in COLUMNS.items():
        column = next(filter(None, (find_column(cells.columns, one) for one in names)), None)
        texts = cells[column].mask(cells[column].map(is_missing), "") if column else pd.Series(dtype=str)
        if (texts != "").any():
            people[name] = texts
            taken |= {name, column}
    for name in named:
        column = find_column(cells.columns, name)
        if column and column not in taken:
            people[column] = cells[column].mask(are_codes(cells[column]), "")
            taken.add(column)
    if "age" in people:
        people["age"] = [_age(text) for text in people["age"]]
    if "sex" in people:
        people["sex"] = [read_sex(text) if text else "" for text in people["sex"]]
    return people


def _age(text: str) -> float:
    try:
        return read_age(text)
    except ValueError:
        return np.nan
