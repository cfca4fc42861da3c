"""Table 1 against sums by hand, and the flow of participants from the files of `prepare`."""
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from config import Config
from dataset import SPLITS, Scan
from evaluation.participants import count_participants
from evaluation.table_1 import (
    category_difference,
    for_reader,
    make_table_1,
    named_columns,
    number_difference,
    read_cells,
)
from labels.people import read_people

PATTERN = Config().subject_pattern


def test_the_difference_of_numbers_is_cohens_d_by_hand():
    # means 4 and 2; squares 4 + 0 + 4 and 1 + 0 + 1: pooled variance 10 / 4
    assert number_difference([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2.5))
    assert number_difference([1, 2, 3], [2, 4, 6]) == pytest.approx(-2 / math.sqrt(2.5))
    # different numbers of values: means 5 and 1, squares 2 and 2 of 2 and 4 values
    assert number_difference([4, 6], [0, 1, 1, 2]) == pytest.approx(4 / math.sqrt(4 / 4))


@pytest.mark.parametrize(("values", "reference", "expected"), [
    ([3, 3], [3, 3, 3], 0.0), ([4, 4], [3, 3], math.inf), ([2, 2], [3, 3], -math.inf),
    ([5], [4], math.nan), ([], [1, 2], math.nan), ([1, 2], [], math.nan),
    ([5], [1, 2, 3], 3 / math.sqrt(2 / 2)),                # one value adds no spread
    ([0.1 + 0.2] * 3, [0.3] * 3, 0.0)])
def test_the_difference_of_few_or_constant_numbers(values, reference, expected):
    assert number_difference(values, reference) == pytest.approx(expected, nan_ok=True)


def test_the_difference_of_two_categories_is_that_of_a_proportion():
    values, reference = ["F"] * 3 + ["M"] * 7, ["F"] * 5 + ["M"] * 5
    by_hand = 0.2 / math.sqrt((0.3 * 0.7 + 0.5 * 0.5) / 2)
    assert category_difference(values, reference) == pytest.approx(by_hand)
    assert category_difference(reference, values) == pytest.approx(by_hand)


def test_the_difference_of_three_categories_is_the_published_formula_by_hand():
    """T = (0.5, 0.3), C = (0.2, 0.4) of the second and third of three categories; S^-1 of a 2 x 2 by hand."""
    values = ["a"] * 2 + ["b"] * 5 + ["c"] * 3
    reference = ["a"] * 4 + ["b"] * 2 + ["c"] * 4
    s11 = (0.5 * 0.5 + 0.2 * 0.8) / 2
    s22 = (0.3 * 0.7 + 0.4 * 0.6) / 2
    s12 = -(0.5 * 0.3 + 0.2 * 0.4) / 2
    d1, d2 = 0.3, -0.1
    squared = (d1 * d1 * s22 - 2 * d1 * d2 * s12 + d2 * d2 * s11) / (s11 * s22 - s12 ** 2)
    assert category_difference(values, reference) == pytest.approx(math.sqrt(squared))


@pytest.mark.parametrize(("values", "reference", "expected"), [
    (["a"], ["a", "a"], 0.0), (["a"], ["b"], math.inf), (["a", "b"], ["c", "d"], math.inf),
    (["a", "b"], ["b", "a"], 0.0), ([], ["a"], math.nan), (["a"], [], math.nan)])
def test_the_difference_of_few_categories(values, reference, expected):
    assert category_difference(values, reference) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_which_level_is_left_out_of_the_shares_does_not_matter():
    rng = np.random.default_rng(0)
    values, reference = rng.choice(list("abcd"), 40), rng.choice(list("abcd"), 60, p=[0.1, 0.2, 0.3, 0.4])
    swapped = str.maketrans("abcd", "dcba")
    assert category_difference(
        [v.translate(swapped) for v in values], [v.translate(swapped) for v in reference]
    ) == pytest.approx(category_difference(list(values), list(reference)))


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("age", ["70", "90+", "-4", "old", ""], [70.0, 90.0, None, None, None]),
        ("age", ["70", "71"], [70.0, 71.0]),
        ("sex", ["Male", "2", "", "F"], ["M", "2", None, "F"]),
        ("site", ["1", "2", "-4", "10"], ["1", "2", None, "10"]),
        ("apoe4", ["0", "1", "2", ""], ["0", "1", "2", None]),
        (
            "mmse",
            ["30", "29", "28", "27", "26", "25", "24", ""],
            [30.0, 29.0, 28.0, 27.0, 26.0, 25.0, 24.0, None],
        ),
        ("ptau217", ["0.5", "1", ""], [0.5, 1.0, None]),
        ("z", ["-1", "0.5", "-4"], [-1.0, 0.5, -4.0]),  # no code for a missing value here
        ("z", ["1e-1", "2E0", "+.5"], [0.1, 2.0, 0.5]),
        ("word", ["high", "0.5"], ["high", "0.5"]),
        ("number", ["1_0", "0.5"], ["1_0", "0.5"]),
        ("number", ["<0.1", "0.5"], ["<0.1", "0.5"]),
    ],
)
def test_cells_are_numbers_or_categories(name, cells, expected):
    assert read_cells(name, cells) == expected


def scans_of(ids: list[str], labels: list[int]) -> list[Scan]:
    """Scans with these IDs and labels, without files."""
    return [Scan(name, label, Path(), Path()) for name, label in zip(ids, labels, strict=True)]


LISTS = {
    "train": scans_of(["a_bl", "a_m12", "b", "c"], [0, 0, 1, 1]),
    "validation": scans_of(["d", "e"], [0, 1]),
    "test": scans_of(["f"], [1]),
}
IDS = [scan.id for split in SPLITS for scan in LISTS[split]]


def people(**columns: list[str]) -> pd.DataFrame:
    """A table of people as read_people gives it."""
    return pd.DataFrame({"ID": IDS, **columns})


def row_of(table: pd.DataFrame, variable: str, level: str = "") -> pd.Series:
    """The only row of a variable and level."""
    [row] = [row for _, row in table.iterrows() if (row["variable"], row["level"]) == (variable, level)]
    return row


def test_table_1_by_hand():
    known = people(Age=["70", "71", "80", "", "60", "62", "75"], SEX=["F", "F", "Male", "M", "M", "F", ""],
                   site=["2", "2", "10", "10", "2", "10", "2"], dx=["AD", "AD", "", "", "", "", ""],
                   apoe4=["0", "0", "1", "2", "", "1", "0"], education=[""] * 7)
    table = make_table_1(LISTS, known, PATTERN, ("apoe4", "education", "absent"))
    assert list(table.columns) == ["variable", "level", "measure", "train", "validation", "test", "all",
                                   "SMD_validation", "SMD_test"]
    assert row_of(table, "scans")[["train", "validation", "test", "all"]].tolist() == ["4", "2", "1", "7"]
    assert row_of(table, "subjects")[["train", "validation", "test", "all"]].tolist() == ["3", "2", "1", "6"]
    assert row_of(table, "label", "1")["train"] == "2 (50.0 %)"
    assert row_of(table, "label")["SMD_validation"] == 0
    assert row_of(table, "label")["SMD_test"] == pytest.approx(0.5 / math.sqrt(0.25 / 2))
    age = row_of(table, "age (years)")
    assert age["train"] == f"{221 / 3:.1f} ± {np.std([70, 71, 80], ddof=1):.1f}"
    assert age["test"] == "75.0"
    squares = np.var([70, 71, 80]) * 3 + 2                 # of 61 +- 1
    assert age["SMD_validation"] == pytest.approx((61 - 221 / 3) / math.sqrt(squares / 3))
    assert row_of(table, "age (years)", "missing")[["train", "validation", "test", "all"]].tolist() == [
        "1", "0", "0", "1"]
    assert row_of(table, "sex", "F")[["train", "validation", "test"]].tolist() == [
        "2 (50.0 %)", "1 (50.0 %)", "not known"]
    assert math.isnan(row_of(table, "sex")["SMD_test"])
    assert table[table["variable"] == "site"]["level"].tolist() == ["", "2", "10"]
    assert row_of(table, "diagnosis", "missing")["all"] == "5"
    assert table[table["variable"] == "apoe4"]["level"].tolist() == ["", "0", "1", "2", "missing"]
    assert {"education", "absent"}.isdisjoint(table["variable"])


def test_many_categories_are_counted_and_not_listed():
    lists = {"train": scans_of([f"s{i}" for i in range(20)], [0] * 20), "validation": scans_of(["v"], [1]),
             "test": scans_of(["t"], [1])}
    ids = [scan.id for split in SPLITS for scan in lists[split]]
    table = make_table_1(
        lists, pd.DataFrame({"ID": ids, "site": [f"{i % 13:03}" for i in range(22)]}), PATTERN
    )
    [row] = table[table["variable"] == "site"].to_dict("records")
    assert (row["measure"], row["train"], row["test"], row["all"]) == ("categories", "13", "1", "13")
    assert math.isnan(row["SMD_test"])


def test_a_table_without_anything_but_labels():
    table = make_table_1(LISTS, people(), PATTERN)
    assert table["variable"].unique().tolist() == ["scans", "subjects", "label"]
    assert for_reader(table)["SMD validation"].tolist()[:3] == ["", "", "0.00"]


def test_every_name_that_subgroups_know_is_known_here_and_the_first_is_taken():
    table = people(gender=["1"] * 7, Sex=["F"] * 7, SITEID=["3"] * 7, dx_bl=["AD"] * 7, centre=["4"] * 7)
    assert named_columns(table) == {"sex": "Sex", "site": "SITEID", "diagnosis": "dx_bl"}


def test_a_further_column_that_is_one_of_the_usual_stands_once():
    assert named_columns(people(Age=["70"] * 7, mmse=["30"] * 7), ("age", "mmse", "MMSE")) == {
        "age": "Age", "mmse": "mmse"}


# ---------------------------------------------------------------- the flow

def write(folder: Path, **files: str) -> None:
    """Write texts as CSVs of these names."""
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


GOOD = {"cohort": "list,subjects,scans,label 0\ntrain,3,4,2\nvalidation,2,2,1\ntest,1,1,0\nall,6,7,3\n",
        "left_out": "ID,reason,found\nx1,no PET,\na_m24,no PET,\nx2,no label,row 7\n"}


def test_the_flow_is_that_of_the_files_of_prepare(tmp_path):
    write(tmp_path, **GOOD)
    flow = count_participants(tmp_path, LISTS, PATTERN)
    assert flow.found == (10, 8)                           # a has a further scan that is left out
    assert flow.all_left_out == (3, 3)
    assert list(flow.left_out.items()) == [("no PET", (2, 2)), ("no label", (1, 1))]
    assert flow.labelled == (7, 6)
    assert flow.lists == {"train": (4, 3), "validation": (2, 2), "test": (1, 1)}
    assert flow.labels["train"] == {0: 2, 1: 2}
    assert flow.labels["test"] == {0: 0, 1: 1}
    assert flow.text() == (
        "Found, with an MRI or a PET: 10 scans of 8 subjects; 3 scans of 3 subjects left out (2 no PET, 1 no "
        "label); 7 scans of 6 subjects with both and a label. "
        "Training list: 4 scans of 3 subjects (label 0: 2, label 1: 2). Validation list: 2 scans of 2 "
        "subjects (label 0: 1, label 1: 1). Test list: 1 scan (label 0: 0, label 1: 1).")


def test_nobody_left_out(tmp_path):
    write(tmp_path, cohort=GOOD["cohort"], left_out="ID,reason,found\n")
    flow = count_participants(tmp_path, LISTS, PATTERN)
    assert (flow.found, flow.left_out, flow.remark) == ((7, 6), {}, "")
    assert "none left out" in flow.text()


@pytest.mark.parametrize(("changes", "remark"), [
    ({"cohort": GOOD["cohort"].replace("train,3,4", "train,3,5")}, "train 5 scans, now 4"),
    ({"cohort": GOOD["cohort"].replace("test,1,1,0\n", "")}, "test None scans, now 1"),
    ({"left_out": GOOD["left_out"] + "b,no date,\n"}, "b stands in it and in a list"),
    ({"left_out": None}, "left_out.csv is not beside it"),
    ({"cohort": None}, "cohort.csv is not beside it"),
    ({"cohort": "name,age\nMaria,3\n"}, "column(s) list, scans missing"),
    ({"cohort": ""}, "it is empty"),
    ({"left_out": "ID,why\nx,y\n"}, "column(s) reason missing")])
def test_files_of_other_lists_are_not_used_and_that_is_said(tmp_path, changes, remark):
    write(tmp_path, **{name: text for name, text in (GOOD | changes).items() if text is not None})
    flow = count_participants(tmp_path, LISTS, PATTERN)
    assert flow.found is None
    assert remark in flow.remark
    assert flow.lists["train"] == (4, 3)


def test_the_lists_alone(tmp_path):
    flow = count_participants(tmp_path, LISTS, PATTERN)
    assert (flow.found, flow.remark) == (None, "")
    assert flow.text().startswith("Training list: 4 scans of 3 subjects")


def test_reasons_and_ids_of_any_kind(tmp_path):
    write(tmp_path, cohort=GOOD["cohort"], left_out="ID,reason,found\nNA,,\n\"a, b\",\"<b>&\",\n")
    flow = count_participants(tmp_path, LISTS, PATTERN)
    assert flow.left_out == {"<b>&": (1, 1), "no reason given": (1, 1)}


def test_people_are_read_in_the_order_of_the_scans(tmp_path):
    write(tmp_path, data_info="id,label,age,note\ne,1,NA,x\nd,0,70,.\nd,0,71,twice\n")
    found = read_people(tmp_path, [scan.id for scan in LISTS["validation"]])
    assert found.to_dict("list") == {"ID": ["d", "e"], "age": ["70", ""], "note": ["", "x"]}
