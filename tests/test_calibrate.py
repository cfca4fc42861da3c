"""The calibration of a Centiloid conversion from paired values, against lines that were made by hand."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.calibrate import fit_line, main

YC, AD = 34, 45


def reference_pairs(slope: float = 90.0, intercept: float = -85.0, noise: float = 0.0) -> pd.DataFrame:
    """The standard's 79 scans with Centiloids whose group means are 0 and 100, and an SUVR that follows
    them."""
    spread = np.concatenate([np.linspace(-8, 8, YC), np.linspace(-40, 40, AD)])
    centiloids = np.repeat([0.0, 100.0], [YC, AD]) + spread
    suvr = (centiloids - intercept) / slope + noise * np.where(np.arange(YC + AD) % 2, 1, -1)
    names = [f"YC{100 + i}" for i in range(YC)] + [f"AD{i:02d}" for i in range(AD)]
    return pd.DataFrame({"ID": names, "SUVR": suvr, "Centiloid": centiloids})


def run(tmp_path: Path, table: pd.DataFrame, *more: str) -> tuple[int, dict]:
    """Exit code of the command, and what it wrote."""
    table.to_csv(tmp_path / "pairs.csv", index=False)
    code = main(["--table", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "out"), *more])
    written = tmp_path / "out" / "calibration.json"
    return code, json.loads(written.read_text()) if written.exists() else {}


def test_level_1_finds_the_line_that_made_the_pairs_and_keeps_all_limits(tmp_path, drawn, capsys):
    code, found = run(tmp_path, reference_pairs())
    assert code == 0
    assert (found["centiloid_slope"], found["centiloid_intercept"]) == pytest.approx((90.0, -85.0))
    assert (found["regression_slope"], found["regression_intercept"], found["r2"]) == pytest.approx(
        (1, 0, 1), abs=1e-9
    )
    assert found["valid"]
    assert found["n"] == 79
    assert found["settings"] == "--centiloid 90.00 -85.00"
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 5000
    assert "valid for the same tracer, preprocessing and masks alone" in capsys.readouterr().out


def test_level_1_by_hand_from_four_scans_says_that_the_reference_data_are_not_whole(tmp_path, capsys):
    table = pd.DataFrame(
        {
            "subject": list("abcd"),
            "SUVR": [1.0, 1.2, 2.0, 2.2],
            "CL": [-9.0, 11.0, 89.0, 110.0],
            "group": ["YC", "YC-0", "AD", "ad-100"],
        }
    )
    code, found = run(tmp_path, table)
    assert code == 0
    assert (found["centiloid_slope"], found["centiloid_intercept"]) == pytest.approx((100.0, -110.0))
    assert not found["valid"]
    said = capsys.readouterr().out
    assert "NOT kept: 34 YC and 45 AD, all of the reference data: 2 and 2" in said
    assert "cannot be compared with those of others" in said


def test_level_1_with_noise_breaks_the_limit_of_r2(tmp_path):
    _, found = run(tmp_path, reference_pairs(noise=0.15))
    kept = list(found["limits"].values())
    assert kept[0]
    assert not kept[3]
    assert not found["valid"]


@pytest.mark.parametrize(("column", "values"), [("Centiloid", [0.0, 50.0, 100.0, 30.0]),
                                                ("SUVR_standard", [1.009, 1.5425, 2.076, 1.3291])])
def test_level_2_solves_the_line_for_the_standard_given_as_centiloids_or_as_suvr(tmp_path, column, values):
    """SUVR = 0.005 CL + 1.1, so CL = 200 SUVR - 220."""
    suvr = 0.005 * np.array([0.0, 50.0, 100.0, 30.0]) + 1.1
    table = pd.DataFrame({"ID": list("abcd"), "SUVR": suvr, column: values})
    code, found = run(tmp_path, table, "--level", "2")
    assert code == 0
    assert (found["centiloid_slope"], found["centiloid_intercept"]) == pytest.approx(
        (200.0, -220.0), rel=1e-6
    )
    assert found["valid"]


def test_level_2_below_its_r2_is_not_valid(tmp_path):
    table = pd.DataFrame({"ID": list("abcd"), "SUVR": [1.0, 1.5, 1.1, 1.3], "CL": [0.0, 20.0, 40.0, 60.0]})
    code, found = run(tmp_path, table, "--level", "2")
    assert code == 0
    assert found["r2"] < 0.7
    assert not found["valid"]


def test_the_line_is_that_of_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20))
    slope, intercept, r2 = fit_line(x, y)
    assert (slope, intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_rows_without_a_value_are_left_out_and_said(tmp_path, capsys):
    table = reference_pairs()
    table["SUVR"] = table["SUVR"].astype(str)
    table.loc[2, "SUVR"] = "NA"
    code, found = run(tmp_path, table)
    assert (code, found["n"]) == (0, 78)
    assert "1 row(s) without both values are left out: row 4" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "expected"), [
    ({"SUVR": "high"}, "column SUVR: rows 2 ('high')"),
    ({"ID": "YC100"}, "YC100 more than once"),
    ({"ID": [f"s{i}" for i in range(79)]}, "neither group nor ID begins with YC (young control) or AD"),
    ({"SUVR": 1.5}, "a line needs at least 3 that are not all alike"),
    ({"group": "YC"}, "all pairs are of one group"),
    ({"group": ["AD"] * YC + ["YC"] * AD}, "the mean SUVR of AD"),
    ({"SUVR": 1.0 + np.arange(79) * 1e-6}, "is no conversion of an SUVR")])
def test_pairs_that_give_no_conversion_are_refused_with_the_reason(tmp_path, capsys, change, expected):
    code, found = run(tmp_path, reference_pairs().assign(**change))
    assert (code, found) == (2, {})
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("name", "expected"), [
    ("SUVR", "no column for the SUVR"), ("Centiloid", "no column for the Centiloids"),
    ("ID", "no column for the subject")])
def test_a_column_that_is_missing_is_named(tmp_path, capsys, name, expected):
    assert run(tmp_path, reference_pairs().drop(columns=name))[0] == 2
    assert expected in capsys.readouterr().err


def test_level_2_refuses_an_suvr_that_falls(tmp_path, capsys):
    table = pd.DataFrame({"ID": list("abc"), "SUVR": [1.5, 1.2, 1.0], "CL": [0.0, 50.0, 90.0]})
    assert run(tmp_path, table, "--level", "2")[0] == 2
    assert "does not rise" in capsys.readouterr().err
    assert main(["--table", str(tmp_path / "nowhere.csv")]) == 2
