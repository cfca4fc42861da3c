"""Failure cases: the test subjects whose synthetic PET is best, about as good as usual, and worst."""
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dataset import Scan
from evaluation.results import Run
from evaluation.scores import best_median_worst
from evaluation.table_1 import named_columns
from imaging.grids import Crop
from imaging.volumes import read_in_range

SHOWN = 8                                                  # as best_median_worst picks them
KINDS = ["best"] * 2 + ["median"] * 4 + ["worst"] * 2
CSV = "failure_cases.csv"
WIDTH = 22                                                 # characters that fit beneath a picture


class Case(NamedTuple):
    """A failure case as it is drawn. slices: MRI, real PET and synthetic PET, axial, each [D, H]. text: what
    is known of the subject, a line each."""
    title: str
    text: list[str]
    slices: dict[str, np.ndarray]


def failure_cases(run: Run, people: pd.DataFrame, further: Sequence[str] = ()) -> pd.DataFrame:
    """A row a failure case, from the smallest to the largest error: case, rank (1 is the smallest error) of
    n, ID, label, criterion, error, SUVR_real and SUVR if known, MAE_brain, and what is known of the person.

    The error is the absolute one of the SUVR; without regions, MAE_brain. case: two best, four median, two
    worst; "all" where there are fewer than eight. Equal errors keep the order of the test list. people: as
    read_people gives it. further: columns of it beside age, sex, site, tracer and diagnosis.
    """
    table = run.test[run.test["method"] == "il_cldm"][["ID", "label", "MAE_brain"]].reset_index(drop=True)
    table.insert(2, "criterion", "MAE_brain")
    table.insert(3, "error", table["MAE_brain"])
    if run.uptake is not None:
        suvr = run.uptake.pivot(index="ID", columns="method", values="SUVR")
        known = table["ID"].map((suvr["il_cldm"] - suvr["real"]).notna())
        if known.any():
            table = table[known].assign(criterion="SUVR")
            table.insert(4, "SUVR_real", table["ID"].map(suvr["real"]))
            table.insert(5, "SUVR", table["ID"].map(suvr["il_cldm"]))
            table["error"] = (table["SUVR"] - table["SUVR_real"]).abs()
    errors = table["error"].tolist()
    places = best_median_worst(errors)
    order = sorted(range(len(errors)), key=lambda place: errors[place])
    cases = table.iloc[places].reset_index(drop=True)
    cases.insert(0, "case", KINDS if len(cases) == SHOWN else "all")
    cases.insert(1, "rank", [order.index(place) + 1 for place in places])
    cases.insert(2, "n", len(errors))
    headings = named_columns(people, further)
    known = people.set_index("ID").reindex(cases["ID"]).fillna("")
    columns = {name: known[heading].tolist() for name, heading in headings.items() if name not in cases}
    return cases.assign(**columns)


def read_cases(cases: pd.DataFrame, scans: dict[str, Scan], folder: Path, crop: Crop,
               level: int) -> list[Case]:
    """The failure cases with their slices at a level of the crop; none where a synthetic PET is not in the
    folder.

    cases: as failure_cases gives them. scans: by ID. folder: of the synthetic PETs.
    """
    if not all((folder / f"{name}.nii.gz").is_file() for name in cases["ID"]):
        return []
    read = []
    for row in cases.to_dict("records"):
        scan = scans[row["ID"]]
        files = {"MRI": scan.mri, "real PET": scan.pet, "synthetic PET": folder / f"{scan.id}.nii.gz"}
        slices = {
            name: read_in_range(path)[0][crop.slices()][:, :, level].copy() for name, path in files.items()
        }
        read.append(Case(_title(row), _lines(row), slices))
    return read


def _title(row: dict) -> str:
    """Such as: worst (20 of 20)."""
    place = f"{row['rank']} of {row['n']}"
    return place if row["case"] == "all" else f"{row['case']} ({place})"


def _lines(row: dict) -> list[str]:
    """What stands beneath the pictures of a case."""
    known = list(row)[list(row).index("MAE_brain") + 1:]    # of the person
    lines = [row["ID"], f"label {row['label']}"]
    lines += [f"{name} {row[name]}" for name in known if row[name] != ""]
    if "SUVR" in row:
        lines += [f"SUVR {row['SUVR_real']:.3f} real", f"{row['SUVR']:.3f} synthetic",
                  f"error {row['SUVR'] - row['SUVR_real']:+.3f}"]
    else:
        lines.append(f"MAE in brain {row['MAE_brain']:.4f}")
    wrapped = []
    for line in lines:
        wrapped += textwrap.wrap(line, WIDTH)[:2]
    return wrapped
