"""The table of subgroups: how people are split, the numbers of groups, and the test of whether groups
differ."""
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics as sk
from test_tables import REGIONS, make_run, resave, row, tables_of

from config import PRESETS
from evaluation.layout import write_tables
from evaluation.results import load_run, load_runs, save_run
from evaluation.rows import group_runs
from evaluation.statistics import area_under_roc, correlation, holm
from evaluation.subgroups import (
    FEW,
    LEAST,
    NUMBERS,
    UNKNOWN,
    heterogeneity_p,
    kruskal_p,
    permutation_p,
    split,
)
from evaluation.tables import make_tables

N = 60
LABELS = {"label_in_training": "true", "label_at_sampling": "mixed"}


def groups_of(column: str, cells: list[str]) -> tuple[list[str], list[str]]:
    """Group of each cell, and the order of the groups."""
    found, order = split(column, pd.Series(cells, dtype=object))
    return found.tolist(), order


@pytest.mark.parametrize(("column", "cells", "groups", "order"), [
    ("label", ["1", "0", "1"], ["1", "0", "1"], ["0", "1"]),
    ("sex", ["F", "", "M"], ["F", UNKNOWN, "M"], ["F", "M", UNKNOWN]),
    ("age", ["64.9", "65.0", "74.99", "75", "101", ""],
     ["< 65", "65-74", "65-74", ">= 75", ">= 75", UNKNOWN], ["< 65", "65-74", ">= 75", UNKNOWN]),
    ("age", ["80", "81"], [">= 75", ">= 75"], [">= 75"]),
    # a site's number is a name: not split at a median, and its zeros stay
    ("site", ["002", "010", "002", "3", "4", "5", "6", "7"],
     ["002", "010", "002", "3", "4", "5", "6", "7"], ["002", "3", "4", "5", "6", "7", "010"]),
    ("apoe4", ["0", "2", "1.0", "1"], ["0", "2", "1", "1"], ["0", "1", "2"]),           # few numbers: each
    ("mmse", ["21", "22", "23", "24", "25", "26", "27"],
     ["<= 24"] * 4 + ["> 24"] * 3, ["<= 24", "> 24"]),
    ("mmse", ["21", "22", "23", "24", "25", "26", "27", "", "28"],
     ["<= 24.5"] * 4 + ["> 24.5"] * 3 + [UNKNOWN, "> 24.5"], ["<= 24.5", "> 24.5", UNKNOWN]),
    # half of the people have the best score: nobody is above the median
    ("mmse", ["30"] * 7 + ["21", "22", "23", "24", "25", "26"],
     [">= 30"] * 7 + ["< 30"] * 6, ["< 30", ">= 30"]),
    ("load", ["0"] * 7 + ["1", "2", "3", "4", "5", "6"], ["<= 0"] * 7 + ["> 0"] * 6, ["<= 0", "> 0"]),
    ("x", ["-1e-3", "1e3", "0.5", "1", "2", "3", "4"],
     ["<= 2", "> 2", "<= 2", "<= 2", "<= 2", "> 2", "> 2"], ["<= 2", "> 2"]),
    ("ptau", [">1700", "1", "2", "3"], [">1700", "1", "2", "3"], ["1", "2", "3", ">1700"]),  # not all numbers
    ("x", ["inf", "1", "2"], ["inf", "1", "2"], ["1", "2", "inf"]),
    ("group", ["é", "B", "a"], ["é", "B", "a"], ["B", "a", "é"]),
    ("empty", ["", ""], [UNKNOWN, UNKNOWN], [UNKNOWN])])
def test_people_are_split_by_a_column(column, cells, groups, order):
    assert groups_of(column, cells) == (groups, order)


def test_seven_numbers_are_two_groups_and_six_are_six():
    assert len(groups_of("x", list(map(str, range(FEW))))[1]) == FEW
    assert len(groups_of("x", list(map(str, range(FEW + 1))))[1]) == 2


# ---------------------------------------------------------------- the numbers

def make_people(root, exp: str, n: int = N, seed: int = 0, extra: dict | None = None, **arguments) -> None:
    """A run with SUVR, its classifier, coverage, and people.csv."""
    make_run(root, exp, seed=seed, ids=range(n), **REGIONS, **LABELS, **arguments)
    run = load_run(root / "result" / exp)
    rng = np.random.default_rng(seed)
    synthetic = run.uptake[run.uptake["method"] == "il_cldm"]
    suvr = synthetic.rename(columns={"SUVR": "score"}).assign(classifier="suvr", threshold=1.2, positive=1.0)
    uncertainty = synthetic[["ID", "label"]].assign(covered=(rng.random(n) < 0.8).astype(int),
                                                    probability=rng.random(n).round(3))
    people = run.test.drop_duplicates("ID")[["ID", "label"]].assign(
        age=np.linspace(55, 90, n).round(1), sex=["F", "M", "M"] * (n // 3), **extra or {})
    frames = {"test": run.test, "uptake": run.uptake, "uncertainty": uncertainty, "people": people,
              "predictions": pd.concat([run.predictions, suvr[run.predictions.columns]])}
    resave(root, exp, frames)


def by_hand(root, exp: str, members: list[str]) -> dict[str, float]:
    """The numbers of a group from the CSVs, by other libraries."""
    folder = root / "result" / exp

    def chosen(file: str, **key) -> pd.DataFrame:
        table = pd.read_csv(folder / file, dtype={"ID": str})
        for name, value in key.items():
            table = table[table[name] == value]
        return table.set_index("ID").loc[members]

    test = chosen("test.csv", method="il_cldm")
    real, suvr = (chosen("uptake.csv", method=name)["SUVR"] for name in ("real", "il_cldm"))
    mri = chosen("predictions.csv", classifier="mri")
    pet = chosen("predictions.csv", classifier="pet", method="il_cldm")
    rates = {}
    for name, label in (("SEN_pet", 1), ("SPE_pet", 0)):
        is_enough = (pet["label"] == label).sum() >= LEAST
        rates[name] = sk.recall_score(pet["label"], pet["positive"], pos_label=label) if is_enough else np.nan
    return rates | {"PSNR_brain": test["PSNR_brain"].mean(), "SSIM_brain": test["SSIM_brain"].mean(),
            "SUVR_MAE": sk.mean_absolute_error(real, suvr), "SUVR_bias": (suvr - real).mean(),
            "SUVR_r": scipy.stats.pearsonr(real, suvr)[0],
            "AUC_suvr": sk.roc_auc_score(test["label"], suvr),
            "AUC_mri": sk.roc_auc_score(mri["label"], mri["score"]),
            "AUC_pet": sk.roc_auc_score(pet["label"], pet["score"]),
            "coverage": chosen("uncertainty.csv")["covered"].mean()}


def test_every_number_of_a_group_is_that_of_its_members(tmp_path):
    make_people(tmp_path, "a")
    table = tables_of(tmp_path)["subgroups"]
    people = pd.read_csv(tmp_path / "result" / "a" / "people.csv")
    groups = {
        ("all", "all"): people["ID"],
        ("sex", "F"): people.query("sex == 'F'")["ID"],
        ("sex", "M"): people.query("sex == 'M'")["ID"],
        ("age", "65-74"): people.query("65 <= age < 75")["ID"],
        ("age", ">= 75"): people.query("age >= 75")["ID"],
    }
    for (column, group), members in groups.items():
        found = row(table, column=column, group=group)
        assert (found["n"], found["seeds"], found["experiment"]) == (len(members), 1, "a")
        for name, value in by_hand(tmp_path, "a", members.tolist()).items():
            assert found[name] == pytest.approx(value, nan_ok=True), (group, name)
            assert np.isnan(value) or found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    # with one label there is no AUC, but there is all else
    found = row(table, column="label", group="1")
    assert found[["AUC_suvr", "AUC_mri", "AUC_pet", "SPE_pet"]].isna().all()
    assert np.isfinite(found[["SUVR_r", "SEN_pet"]].to_list()).all()
    assert table["column"].drop_duplicates().tolist() == ["all", "label", "age", "sex"]


def test_the_interval_of_a_group_is_that_of_the_central_limit(tmp_path):
    make_people(tmp_path, "a")
    found = row(tables_of(tmp_path)["subgroups"], column="sex", group="M")
    members = pd.read_csv(tmp_path / "result" / "a" / "people.csv").query("sex == 'M'")["ID"]
    test = pd.read_csv(tmp_path / "result" / "a" / "test.csv").query("method == 'il_cldm'").set_index("ID")
    error = test.loc[members, "PSNR_brain"].sem()
    assert found["PSNR_brain_high"] - found["PSNR_brain_low"] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_a_small_group_has_its_n_and_no_number_and_does_not_enter_the_test(tmp_path):
    site = ["A"] * 30 + ["B"] * (N - 30 - LEAST + 1) + ["C"] * (LEAST - 1)
    make_people(tmp_path, "a", extra={"site": site})
    table = tables_of(tmp_path)["subgroups"]
    small = row(table, column="site", group="C")
    assert small["n"] == LEAST - 1
    numbers = [name for name in table if name.startswith(("PSNR", "SSIM", "SUVR", "AUC", "SEN", "SPE",
                                                              "cov"))]
    assert small[[name for name in numbers if "_p" not in name]].isna().all()
    test = pd.read_csv(tmp_path / "result" / "a" / "test.csv").query("method == 'il_cldm'")
    psnr, sites = test["PSNR_brain"].to_numpy(), np.array(site)
    expected = scipy.stats.kruskal(psnr[sites == "A"], psnr[sites == "B"]).pvalue
    assert small["PSNR_brain_p"] == pytest.approx(expected)
    make_people(tmp_path / "exactly", "a", extra={"site": ["A"] * (N - LEAST) + ["B"] * LEAST})
    assert np.isfinite(
        row(tables_of(tmp_path / "exactly")["subgroups"], column="site", group="B")["PSNR_brain"]
    )


def test_p_is_corrected_over_all_tests_of_an_experiment(tmp_path):
    make_people(tmp_path, "a")
    table = tables_of(tmp_path)["subgroups"].drop_duplicates("column").set_index("column")
    columns = [name for name in NUMBERS if f"{name}_p" in table]
    p = table[[f"{name}_p" for name in columns]].to_numpy()
    corrected = table[[f"{name}_p_holm" for name in columns]].to_numpy()
    np.testing.assert_allclose(corrected.ravel(), holm(p.ravel()))
    assert np.isnan(p[0]).all() and np.isfinite(p[1:]).sum() > 15


def test_several_seeds_are_their_mean_and_old_results_without_people_are_left_out(tmp_path):
    for seed in (0, 1):
        make_people(tmp_path, f"a{seed}", seed=seed)
    found = row(tables_of(tmp_path)["subgroups"], column="sex", group="M")
    members = pd.read_csv(tmp_path / "result" / "a0" / "people.csv").query("sex == 'M'")["ID"].tolist()
    each = [by_hand(tmp_path, f"a{seed}", members) for seed in (0, 1)]
    for name in ("PSNR_brain", "AUC_suvr", "SUVR_r"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in each]))
        assert found[f"{name}_sd"] == pytest.approx(np.std([one[name] for one in each], ddof=1))
    assert (found["seeds"], found["n"]) == (2, len(members))
    run = load_run(tmp_path / "result" / "a1")
    resave(tmp_path, "a1", {"test": run.test, "predictions": run.predictions})
    assert row(tables_of(tmp_path)["subgroups"], column="sex", group="M")["seeds"] == 1


def test_results_of_an_earlier_version_are_read_and_have_no_subgroups(tmp_path):
    make_run(tmp_path, "a")
    folder = tmp_path / "result" / "a"
    run = load_run(folder)
    settings = {name: value for name, value in run.metadata["settings"].items() if name != "subgroups"}
    metadata = {name: value for name, value in run.metadata.items() if name not in ("format", "files")}
    save_run(folder, metadata | {"settings": settings}, {"test": run.test, "predictions": run.predictions})
    assert "subgroups" not in json.loads((folder / "scores.json").read_text())["settings"]
    assert load_run(folder).people is None
    assert "subgroups" not in tables_of(tmp_path) and "amyloid_status" in tables_of(tmp_path)


def test_a_missing_value_is_a_group_that_is_not_tested(tmp_path):
    make_people(tmp_path, "a", extra={"apoe4": ["0", "1", ""] * (N // 3)})
    table = tables_of(tmp_path)["subgroups"].query("column == 'apoe4'")
    assert table["group"].tolist() == ["0", "1", UNKNOWN]
    assert table["n"].tolist() == [N // 3] * 3
    test = (
        pd.read_csv(tmp_path / "result" / "a" / "test.csv")
        .query("method == 'il_cldm'")["PSNR_brain"]
        .to_numpy()
    )
    assert table["PSNR_brain_p"].iloc[0] == pytest.approx(scipy.stats.kruskal(test[::3], test[1::3]).pvalue)


def test_a_column_of_one_group_is_left_out(tmp_path):
    make_people(tmp_path, "a", extra={"tracer": "FBP", "dx": ["AD"] * 30 + [""] * 30})
    assert not {"tracer", "dx"} & set(tables_of(tmp_path)["subgroups"]["column"])


@pytest.mark.parametrize("without", ["uptake", "predictions", "uncertainty"])
def test_what_a_run_has_not_is_no_column(tmp_path, without):
    make_people(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    frames = {name: getattr(run, name) for name in ("test", "uptake", "predictions", "uncertainty", "people")}
    resave(tmp_path, "a", {name: frame for name, frame in frames.items() if name != without})
    columns = set(tables_of(tmp_path)["subgroups"])
    lacks = {
        "uptake": {"SUVR_MAE", "SUVR_r"},
        "predictions": {"AUC_suvr", "AUC_mri", "AUC_pet", "SEN_pet", "SPE_pet"},
        "uncertainty": {"coverage"},
    }
    for name, numbers in lacks.items():
        assert (numbers <= columns) == (name != without)


def test_lists_of_two_cohorts_are_split_in_one_way(tmp_path):
    for seed in (0, 1):
        settings = PRESETS["demo"] | {"data_dir": f"data/d{seed}", "phantom_seed": seed}
        make_run(
            tmp_path, f"d{seed}", seed=seed, cohort=f"c{seed}", training=f"t{seed}", ids=range(40), **settings
        )
        run = load_run(tmp_path / "result" / f"d{seed}")
        people = run.test.drop_duplicates("ID")[["ID", "label"]].assign(x=np.arange(40) + 10 * seed)
        resave(tmp_path, f"d{seed}", {"test": run.test, "uptake": run.uptake, "predictions": run.predictions,
                                      "people": people})
    table = tables_of(tmp_path)["subgroups"].query("column == 'x'")
    assert table["group"].tolist() == ["<= 24.5", "> 24.5"]              # of 0 .. 39 and 10 .. 49 together
    assert table["n"].tolist() == [25 + 15, 15 + 25]
    each = []
    for seed in (0, 1):
        test = pd.read_csv(tmp_path / "result" / f"d{seed}" / "test.csv").query("method == 'il_cldm'")
        each.append(test["PSNR_brain"].to_numpy()[np.arange(40) + 10 * seed <= 24.5].mean())
    assert table["PSNR_brain"].iloc[0] == pytest.approx(np.mean(each))


def test_the_table_is_the_same_byte_for_byte_and_marks_what_differs(tmp_path):
    make_people(tmp_path, "a_b")
    run = load_run(tmp_path / "result" / "a_b")
    is_woman = run.test["ID"].map(run.people.set_index("ID")["sex"]) == "F"
    worse = run.test.assign(PSNR_brain=run.test["PSNR_brain"] - 5 * is_woman)
    frames = {name: getattr(run, name) for name in ("uptake", "predictions", "uncertainty", "people")}
    resave(tmp_path, "a_b", {"test": worse, **frames})
    texts = []
    for folder in ("one", "two"):
        write_tables(tmp_path / folder, make_tables(group_runs(load_runs(tmp_path / "result")[0])[0]))
        texts.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert texts[0] == texts[1]
    lines = texts[0]["subgroups.md"].decode().splitlines()
    rows = [line for line in lines if line.startswith("| a_b")]
    assert all(("†" in line) == ("| sex" in line) for line in rows)
    assert r"\begin{tabular}" in texts[0]["subgroups.tex"].decode()


# ---------------------------------------------------------------- do the groups differ?

def test_kruskal_wallis_of_two_groups_is_the_rank_sum_test_and_of_equal_values_1():
    one, other = np.random.default_rng(0).normal(0, 1, (2, 20))
    expected = scipy.stats.mannwhitneyu(one, other, use_continuity=False, method="asymptotic").pvalue
    assert kruskal_p([one, other]) == pytest.approx(expected)
    assert kruskal_p([np.ones(5), np.ones(8)]) == 1.0


def test_permutation_of_one_pair_of_groups_equals_counting_all_of_them():
    """Correlation of 3 + 3 subjects: all 20 choices of the first group, by hand."""
    a, b = np.array([1.0, 2, 3, 1, 2, 3.5]), np.array([1.0, 2, 3.2, 3, 2.5, 1])
    names = np.array(["x"] * 3 + ["y"] * 3)

    def spread(chosen: tuple[int, ...]) -> float:
        rest = [i for i in range(6) if i not in chosen]
        one, other = (np.corrcoef(a[list(part)], b[list(part)])[0, 1] for part in (chosen, rest))
        return (one - other) ** 2
    every = np.array([spread(chosen) for chosen in combinations(range(6), 3)])
    exact = np.mean(every >= spread((0, 1, 2)) - 1e-12)
    found = permutation_p(correlation, a, b, names, np.zeros(6), 20_000, seed=1)
    assert found == pytest.approx(exact, abs=0.01)


def test_permutation_within_labels_keeps_the_labels_of_every_group():
    seen = []

    def spy(label: np.ndarray, score: np.ndarray) -> np.ndarray:
        seen.append(label.sum(-1))
        return area_under_roc(label, score)
    label = np.array([1] * 8 + [0] * 4 + [1] * 2 + [0] * 10)
    names = np.array(["x"] * 12 + ["y"] * 12)
    permutation_p(spy, label.astype(float), np.random.default_rng(0).random(24), names, label, 50, seed=0)
    assert set(np.unique(np.concatenate([np.ravel(one) for one in seen]))) == {2, 8}


@pytest.mark.parametrize("number", ["AUC_suvr", "SUVR_r", "PSNR_brain"])
@pytest.mark.parametrize(("differ", "low", "high"), [(False, 0.01, 0.10), (True, 0.8, 1.0)])
def test_the_test_keeps_its_level_and_finds_a_difference(number, differ, low, high):
    rng, rejected, n = np.random.default_rng(3), [], 120
    names = pd.Series(np.arange(n) % 3).map({0: "a", 1: "b", 2: "c"})
    for i in range(150 if not differ else 40):
        label = (np.arange(n) // 3) % 2
        signal = np.where(names == "a", -1.0, 2.0) if differ else 1.0
        table = pd.DataFrame({"label": label, "score_suvr": signal * label + rng.normal(0, 1, n)})
        table["SUVR_real"] = rng.normal(0, 1, n)
        table["SUVR"] = signal * table["SUVR_real"] + rng.normal(0, 1, n)
        table["PSNR_brain"] = rng.normal(0, 1, n) + (signal if differ else 0)
        rejected.append(heterogeneity_p(number, table, names, 199, i) < 0.05)
    assert low <= np.mean(rejected) <= high


def test_a_group_without_an_auc_is_left_out_of_its_test():
    n = 60
    names = pd.Series(["a"] * 20 + ["b"] * 20 + ["c"] * 20)
    label = np.array([0, 1] * 20 + [1] * 20)
    table = pd.DataFrame({"label": label, "score_suvr": np.random.default_rng(0).random(n)})
    with_it = heterogeneity_p("AUC_suvr", table, names, 500, 0)
    without = heterogeneity_p("AUC_suvr", table[:40], names[:40], 500, 0)
    assert with_it == without and 0 < with_it <= 1
    assert np.isnan(heterogeneity_p("AUC_suvr", table[20:], names[20:], 500, 0))


def test_correlation_is_that_of_numpy_and_not_defined_of_a_constant():
    a, b = np.random.default_rng(0).normal(0, 1, (2, 7, 12))
    np.testing.assert_allclose(
        correlation(a, b), [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    )
    assert np.isnan(correlation(np.full(5, 0.1), np.arange(5.0)))
