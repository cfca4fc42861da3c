"""The tables, from made-up results: their numbers, what is compared, and what they refuse."""
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from config import PRESETS, Config
from evaluation import results, statistics
from evaluation.layout import to_csv, write_tables
from evaluation.results import Run, load_run, load_runs, save_run
from evaluation.rows import ROW_SETTINGS, SECTION_SETTINGS, SEEDS, Table, group_runs
from evaluation.statistics import (
    STATUS_METRICS,
    agreement,
    area_under_roc,
    bootstrap,
    holm,
    interval,
    status_metrics,
)
from evaluation.tables import image_quality, make_tables
from utils import METRICS, InputError

N = 12


def make_run(root, exp: str, seed: int = 0, cohort: str = "c0", better: float = 0.0, ids=range(N), label=None,
             training: str = "t0", baseline: float | None = None, command: str = "", brain: str = "b0",
             **settings) -> None:
    """Write results of an experiment under root/result.

    il_cldm is `better` than mean_pet in every score, and by `baseline`, if there is one, a latent regression.
    ids: numbers of the test subjects; label: of all of them, else they alternate. cohort, training, brain:
    digests of lists and mask. command: as it was given, else with name and seed.
    """
    ids = list(ids)
    people = pd.DataFrame({"ID": [f"s{i:03d}" for i in ids],
                           "label": np.array([i % 2 for i in ids]) if label is None else label})
    shared = np.random.default_rng([len(ids), *cohort.encode()])
    own = np.random.default_rng([seed, *exp.encode()])
    frames = {"test": made_up_scores(people, shared, own, better, baseline),
              "uptake": made_up_uptake(people, shared, own),
              "predictions": made_up_predictions(people, shared, own)}
    cfg = Config(exp=exp, seed=seed, **settings)
    metadata = {"phantom": False, "notice": "research only", "note": "", "cohort": cohort,
                "training": training, "masks": {"brain": brain},
                "command": command or f"python main.py --exp {exp} --seed {seed}",
                **json.loads(cfg.to_json())}
    folder = root / "result" / exp
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_run(folder, metadata, frames)


def made_up_scores(people: pd.DataFrame, shared, own, better: float, baseline: float | None) -> pd.DataFrame:
    """test.csv of a run. shared, own: generators of what all runs have, and of its own noise."""
    n = len(people)
    scores = {"mean_pet": {name: shared.normal(20 if "PSNR" in name else 0.5, 0.1, n) for name in METRICS}}
    scores["il_cldm"] = {}
    for name, values in scores["mean_pet"].items():
        sign = -1 if "MAE" in name else 1
        scores["il_cldm"][name] = values + sign * better + own.normal(0, 0.01, n)
    if baseline is not None:
        noise = np.random.default_rng([n, int(baseline)]).normal(0, 0.01, n)
        scores["latent_regression"] = {}
        for name, values in scores["mean_pet"].items():
            scores["latent_regression"][name] = values + baseline + noise
    table = pd.concat([people.assign(method=method, **values) for method, values in scores.items()])
    return table[["method", "ID", "label", *METRICS]]


def made_up_uptake(people: pd.DataFrame, shared, own) -> pd.DataFrame:
    """uptake.csv of a run."""
    n = len(people)
    real = shared.normal(1.2, 0.2, n)
    suvr = {"real": real, "il_cldm": real + own.normal(0.05, 0.1, n), "mean_pet": np.full(n, 1.2)}
    table = pd.concat([people.assign(method=method, SUVR=values) for method, values in suvr.items()])
    return table[["method", "ID", "label", "SUVR"]]


def made_up_predictions(people: pd.DataFrame, shared, own) -> pd.DataFrame:
    """predictions.csv of a run."""
    tables = []
    rows = (("mri", "none", shared), ("pet", "real", shared), ("pet", "il_cldm", own))
    for classifier, method, generator in rows:
        score = 0.5 * generator.random(len(people)) + 0.5 * people["label"] * (method == "real")
        score = score.round(2)
        tables.append(people.assign(
            classifier=classifier, method=method, score=score, threshold=0.4,
            positive=(score >= 0.4).astype(float)))
    return pd.concat(tables)[["classifier", "method", "ID", "label", "score", "threshold", "positive"]]


def resave(root, exp: str, frames: dict[str, pd.DataFrame]) -> None:
    """Write these results of a run, with what was noted of it before."""
    folder = root / "result" / exp
    metadata = load_run(folder).metadata
    for name in ("format", "files"):
        del metadata[name]
    save_run(folder, metadata, frames)


def groups_of(root) -> list[list[str]]:
    """Names of the runs under root, group by group."""
    groups, _ = group_runs(load_runs(root / "result")[0])
    return [[run.name for run in group.runs] for group in groups]


def sections_of(root) -> list[list[str]]:
    """Names of the experiments with il_cldm under root, section by section."""
    table = tables_of(root)["image_quality"].query("method == 'il_cldm'")
    return sorted(sorted(experiments) for _, experiments in table.groupby("data")["experiment"])


def tables_of(root) -> dict[str, pd.DataFrame]:
    """The CSVs of the tables of all runs under root, by name."""
    runs, _ = load_runs(root / "result")
    return {table.name: to_csv(table) for table in make_tables(group_runs(runs)[0])}


def row(table: pd.DataFrame, **key) -> pd.Series:
    """The only row with these values."""
    for name, value in key.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_one_seed_is_a_mean_and_sd_over_subjects(tmp_path):
    make_run(tmp_path, "a")
    frame = pd.read_csv(tmp_path / "result" / "a" / "test.csv").query("method == 'il_cldm'")
    found = row(tables_of(tmp_path)["image_quality"], method="il_cldm")
    for name in METRICS:
        assert found[name] == pytest.approx(frame[name].mean())
        assert found[f"{name}_sd"] == pytest.approx(frame[name].std())
    assert (found["n"], found["seeds"], found["experiment"]) == (N, 1, "a")
    assert found["made_by"] == "python main.py --exp a --seed 0"


def test_several_seeds_are_one_row_with_the_sd_of_their_means(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path, f"a_seed{seed}", seed)
    tables = tables_of(tmp_path)
    frames = [pd.read_csv(tmp_path / "result" / f"a_seed{seed}" / "test.csv") for seed in (0, 1, 2)]
    means = [frame.query("method == 'il_cldm'")["PSNR"].mean() for frame in frames]
    found = row(tables["image_quality"], method="il_cldm")
    assert found["PSNR"] == pytest.approx(np.mean(means))
    assert found["PSNR_sd"] == pytest.approx(np.std(means, ddof=1))
    assert (found["n"], found["seeds"]) == (N, 3)
    assert found["made_by"].split(" ; ")[1] == "python main.py --exp a_seed1 --seed 1"
    assert row(tables["image_quality"], method="mean_pet")["seeds"] == 1      # is the same in every seed

    shutil.rmtree(tmp_path / "result" / "a_seed1")
    assert row(tables_of(tmp_path)["image_quality"], method="il_cldm")["seeds"] == 2


def test_status_and_quantification_equal_their_definitions(tmp_path):
    make_run(tmp_path, "a")
    tables, folder = tables_of(tmp_path), tmp_path / "result" / "a"
    part = pd.read_csv(folder / "predictions.csv").query("classifier == 'pet' and method == 'il_cldm'")
    found = row(tables["amyloid_status"], classifier="pet", method="il_cldm")
    expected = status_metrics(*(part[name].to_numpy() for name in ("label", "score", "positive")))
    np.testing.assert_allclose(found[list(STATUS_METRICS)].astype(float), expected)
    assert found["AUC_low"] < found["AUC"] < found["AUC_high"]
    uptake = pd.read_csv(folder / "uptake.csv").pivot(index="ID", columns="method", values="SUVR")
    found = row(tables["quantification"], method="il_cldm")
    for name, value in agreement(uptake["real"].to_numpy(), uptake["il_cldm"].to_numpy()).items():
        assert found[name] == pytest.approx(value)
    assert row(tables["quantification"], method="mean_pet")["slope"] == 0


def test_the_best_contender_is_bold_and_a_difference_is_marked(tmp_path):
    make_run(tmp_path, "worse", better=-0.2)
    make_run(tmp_path, "better", better=0.2, samples_per_scan=3)
    runs, _ = load_runs(tmp_path / "result")
    write_tables(tmp_path / "t", make_tables(group_runs(runs)[0]))
    lines = (tmp_path / "t" / "image_quality.md").read_text().splitlines()
    [better] = [line for line in lines if line.startswith("| better")]
    assert better.count("**") == 2 * len(METRICS)
    assert better.count("†") == len(METRICS)
    assert sum(line.count("**") for line in lines) == 2 * len(METRICS)
    comparisons = pd.read_csv(tmp_path / "t" / "comparisons.csv")
    comparisons = comparisons.query("metric == 'MAE_brain' and table == 'image_quality'")
    frames = [pd.read_csv(tmp_path / "result" / name / "test.csv") for name in ("better", "worse")]
    better, worse = (frame.set_index(["method", "ID"])["MAE_brain"] for frame in frames)
    pairs = [(better["il_cldm"], better["mean_pet"]), (worse["il_cldm"], worse["mean_pet"]),
             (better["il_cldm"], worse["il_cldm"])]
    p = [scipy.stats.wilcoxon(*pair).pvalue for pair in pairs]
    assert sorted(comparisons["p"]) == pytest.approx(sorted(p))
    assert sorted(comparisons["p_holm"]) == pytest.approx(sorted(holm(p)))


def test_a_comparison_has_its_difference_with_an_interval_and_an_effect_size(tmp_path):
    make_run(tmp_path, "a")
    tables = tables_of(tmp_path)
    folder = tmp_path / "result" / "a"
    scores = pd.read_csv(folder / "test.csv").pivot(index="ID", columns="method", values="PSNR")
    found = row(tables["comparisons"], metric="PSNR")
    difference = np.sort(scores["mean_pet"] - scores["il_cldm"])
    assert (found["a"], found["b"]) == ("mean_pet", "il_cldm (a)")
    assert found["difference"] == pytest.approx(np.median(difference))
    # ranks of the sign test, n = 12
    assert (found["difference_low"], found["difference_high"]) == pytest.approx(
        (difference[2], difference[9])
    )
    smaller = scipy.stats.wilcoxon(difference).statistic
    assert abs(found["rank_biserial"]) == pytest.approx(1 - 4 * smaller / (N * (N + 1)))

    found = row(tables["comparisons"], metric="AUC")
    status = tables["amyloid_status"].set_index(["classifier", "method"])["AUC"]
    assert found["difference"] == pytest.approx(status["mri", "none"] - status["pet", "il_cldm"])
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert np.isnan(found["rank_biserial"])


def test_what_mri_and_synthetic_pet_are_worth_beside_covariates_is_compared(tmp_path):
    make_run(tmp_path, "a")
    without = tables_of(tmp_path)["comparisons"]
    run = load_run(tmp_path / "result" / "a")
    more = []
    for classifier, method in (("covariates", "none"), ("covariates_mri", "none"), ("suvr", "il_cldm"),
                               ("suvr", "mean_pet")):
        rows = run.predictions[run.predictions["classifier"] == "mri"]
        score = np.random.default_rng(len(more)).random(N).round(2)
        more.append(rows.assign(classifier=classifier, method=method, score=score))
    resave(tmp_path, "a", {"test": run.test, "uptake": run.uptake,
                           "predictions": pd.concat([run.predictions, *more])})
    tables = tables_of(tmp_path)
    found = tables["comparisons"].query("metric == 'AUC'")
    pairs = [{*pair} for pair in zip(found["a"], found["b"], strict=True)]
    worth_of_mri = {"covariates none", "covariates_mri none"}
    assert worth_of_mri in pairs and {"covariates_mri none", "suvr il_cldm (a)"} in pairs
    assert len(pairs) == 6                                 # the other four are with mri
    auc = tables["amyloid_status"].set_index(["classifier", "method"])["AUC"]
    one = found[[pair == worth_of_mri for pair in pairs]].iloc[0]
    assert abs(one["difference"]) == pytest.approx(abs(auc["covariates", "none"]
                                                       - auc["covariates_mri", "none"]))
    assert without.query("metric == 'AUC'")["b"].tolist() == ["pet il_cldm (a)"]


def test_what_cannot_be_compared_stands_apart(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", crop_start=(9, 18, 10))
    make_run(tmp_path, "c", samples_per_scan=4, ids=range(8), cohort="c1")    # another test list
    make_run(tmp_path, "d", samples_per_scan=2)
    tables = tables_of(tmp_path)
    sections = tables["image_quality"].groupby("data")
    experiments = sorted(sections["experiment"].agg(set).map(sorted))
    assert experiments == [["a", "all", "d"], ["all", "b"], ["all", "c"]]
    assert sorted(sections["n"].agg(set).map(list)) == [[8], [N], [N]]
    compared = tables["comparisons"].query("metric == 'PSNR'")
    assert sorted(zip(compared["a"], compared["b"], strict=True)) == sorted(
        [("mean_pet", f"il_cldm ({name})") for name in "abcd"] + [("il_cldm (a)", "il_cldm (d)")])


# ---------------------------------------------------------------- one row, or two; one section, or two

REGIONS = {"cortex_mask": "c.nii", "reference_mask": "r.nii"}
LABELS = {"label_in_training": "true", "label_at_sampling": "mixed"}          # else they follow the regions


@pytest.mark.parametrize(("settings", "is_one_row"), [
    ({}, True), ({"cache": "off"}, True), ({"device": "cpu"}, True), ({"num_workers": 0}, True),
    ({"device": "cpu", "num_workers": 4, "cache": "ram", "recompute": True, "sampling_batch": 1}, True),
    ({"deterministic": True, "resume": "yes"}, True),
    ({"sampler": "dpm"}, False), ({"samples_per_scan": 2}, False), ({"precision": "fp32"}, False),
    ({"conditioning": "input"}, False), ({"aae_epochs": 500}, False), ({"ldm_lr": 1e-3}, False),
    ({"aae_norm_groups": 8}, False), ({"label_at_sampling": "none"}, False), (REGIONS | LABELS, False)])
def test_runs_are_one_row_if_nothing_but_the_seed_affects_its_numbers(tmp_path, settings, is_one_row):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1, **settings)
    assert groups_of(tmp_path) == ([["a", "b"]] if is_one_row else [["a"], ["b"]])
    table = tables_of(tmp_path)["image_quality"].query("method == 'il_cldm'")
    assert table["seeds"].tolist() == ([2] if is_one_row else [1, 1])


def test_runs_with_other_further_regions_are_two_rows(tmp_path):
    make_run(tmp_path, "a", **REGIONS)
    make_run(tmp_path, "b", seed=1, atlas=("x.nii", "x.csv"), **REGIONS)
    assert groups_of(tmp_path) == [["a"], ["b"]]


def test_every_setting_that_training_or_synthesis_depends_on_must_be_equal_in_a_row():
    results = ("aae", "ldm", "latent_regression", "image_regression", "validation", "synthesis", "scores")
    depends = {name.split(".")[0] for name in Config().settings_of(*results)}      # a group is one setting
    assert depends - set(SEEDS) <= set(ROW_SETTINGS)
    assert {"aae_epochs", "ldm_epochs"} <= set(ROW_SETTINGS)
    assert not set(SEEDS) & set(ROW_SETTINGS)
    free = {field.name for field in dataclasses.fields(Config)} - set(ROW_SETTINGS) - set(SEEDS)
    assert free == {
        "exp",
        "aae_from",
        "ldm_from",
        "stages",
        "resume",
        "device",
        "gpus",
        "num_workers",
        "cache",
        "deterministic",
        "recompute",
        "data_dir",
        "latent_dir",
        "info_dir",
        "subject_pattern",
        "sampling_batch",
        "baselines",
        "subgroups",
    }


def test_rows_of_a_section_have_the_same_crop_masks_and_phantom():
    assert set(SECTION_SETTINGS) == {
        "brain_mask",
        "crop_start",
        "volume_size",
        "phantom_subjects",
        "phantom_voxel",
        "phantom_link",
        "phantom_sites",
        "phantom_kind",
        "phantom_discordant",
        "phantom_marker",
        "cortex_mask",
        "reference_mask",
        "centiloid",
    }


@pytest.mark.parametrize("other", [
    {"brain": "b1"}, {"crop_start": (9, 18, 10)}, {"brain_mask": "mask.nii"}, {"training": "t1"},
    {"cohort": "c1"}, {"data_dir": "other", "info_dir": "other_info", "cohort": "c1", "training": "t1"},
    REGIONS | LABELS])
def test_other_lists_crop_or_masks_are_another_section_and_never_another_seed(tmp_path, other):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1, **other)
    make_run(tmp_path, "c", samples_per_scan=2)
    assert groups_of(tmp_path) == [["a"], ["b"], ["c"]]
    assert sections_of(tmp_path) == [["a", "c"], ["b"]]
    compared = tables_of(tmp_path)["comparisons"]
    pairs = set(zip(compared["a"], compared["b"], strict=True))
    assert ("il_cldm (a)", "il_cldm (c)") in pairs
    assert not {("il_cldm (a)", "il_cldm (b)"), ("il_cldm (b)", "il_cldm (c)")} & pairs


def test_phantoms_of_other_seeds_are_one_row_wherever_they_lie_and_of_another_link_another_section(tmp_path):
    demo = PRESETS["demo"]
    for seed in (0, 1):
        make_run(tmp_path, f"d{seed}", cohort=f"c{seed}", training=f"t{seed}",
                 **demo | {"data_dir": f"data/d{seed}", "phantom_seed": seed})
    make_run(tmp_path, "e", cohort="c2", training="t2", **demo | {"phantom_link": 0.0, "phantom_seed": 2})
    assert groups_of(tmp_path) == [["d0", "d1"], ["e"]]
    assert sections_of(tmp_path) == [["d"], ["e"]]


def test_a_phantom_of_one_seed_with_other_lists_is_another_row(tmp_path):
    for name in "ab":
        make_run(tmp_path, name, seed=ord(name), cohort=name, training=name, **PRESETS["demo"])
    assert groups_of(tmp_path) == [["a"], ["b"]]


def test_a_mask_of_another_content_is_another_section_though_its_file_has_the_same_name(tmp_path):
    make_run(tmp_path, "a", brain_mask="mask.nii")
    make_run(tmp_path, "b", seed=1, brain="b1", brain_mask="mask.nii")
    assert groups_of(tmp_path) == [["a"], ["b"]]
    assert sections_of(tmp_path) == [["a"], ["b"]]


def test_runs_of_another_training_list_are_no_repetition(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", training="t1")
    make_run(tmp_path, "c", seed=1, training="t1")
    groups, remarks = group_runs(load_runs(tmp_path / "result")[0])
    assert ([[run.name for run in group.runs] for group in groups], remarks) == ([["a"], ["b", "c"]], [])
    assert tables_of(tmp_path)["image_quality"].groupby("data").size().tolist() == [2, 2]


def test_a_test_list_that_changed_between_two_seeds_makes_two_rows(tmp_path):
    make_run(tmp_path, "a_seed0")
    make_run(tmp_path, "a_seed1", seed=1, ids=range(N - 1), cohort="c1")
    found = tables_of(tmp_path)["image_quality"].query("method == 'il_cldm'")
    rows = sorted(zip(found["experiment"], found["n"], found["seeds"], strict=True))
    assert rows == [("a_seed0", N, 1), ("a_seed1", N - 1, 1)]


def test_simulated_cohorts_of_several_seeds_are_one_row_of_all_their_subjects(tmp_path):
    for seed in (0, 1, 2):
        demo = PRESETS["demo"] | {"data_dir": f"data/d{seed}", "phantom_seed": seed}
        make_run(tmp_path, f"d{seed}", seed=seed, cohort=f"c{seed}", training=f"t{seed}", **demo)
    tables = tables_of(tmp_path)
    found = row(tables["image_quality"], method="il_cldm")
    assert (found["n"], found["seeds"], found["experiment"]) == (3 * N, 3, "d")
    areas, widths = [], []
    for seed in (0, 1, 2):
        part = pd.read_csv(tmp_path / "result" / f"d{seed}" / "predictions.csv").query("classifier == 'mri'")
        label, score = part["label"].to_numpy(), part["score"].to_numpy()
        areas.append(area_under_roc(label, score))
        widths.append(interval_width(label, score))
    found = row(tables["amyloid_status"], classifier="mri")
    assert found["AUC"] == pytest.approx(np.mean(areas))
    assert found["AUC_sd"] == pytest.approx(np.std(areas, ddof=1))
    width = np.sqrt(np.square(widths).sum()) / 3           # of the mean of independent lists
    assert found["AUC_high"] - found["AUC_low"] == pytest.approx(width, rel=0.25)


def interval_width(label: np.ndarray, score: np.ndarray) -> float:
    """Width of the 95 % interval of the AUC of one list."""
    low, high = interval(bootstrap(lambda index: area_under_roc(label[index], score[index]), N, 2000, seed=0))
    return high - low


def test_intervals_are_of_the_number_of_resamples_that_page_and_caption_say(tmp_path, monkeypatch, resamples):
    page = Path(__file__).parents[1] / "docs" / "results.md"
    assert f"of {resamples} resamples" in page.read_text(encoding="utf-8")
    make_run(tmp_path, "a")
    intervals = []
    for number in (20, 100):
        monkeypatch.setattr(statistics, "RESAMPLES", number)
        tables = make_tables(group_runs(load_runs(tmp_path / "result")[0])[0])
        [table] = [table for table in tables if table.name == "amyloid_status"]
        assert f"({number} resamples" in table.caption
        status = row(to_csv(table), classifier="mri")
        intervals.append((status["AUC_low"], status["AUC_high"]))
    assert intervals[0] != intervals[1]


def test_experiments_whose_names_begin_alike_stay_apart(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"s{seed}", seed)
        make_run(tmp_path, f"s{seed}_noimg", seed, conditioning="none")
    found = tables_of(tmp_path)["image_quality"].query("method == 'il_cldm'")
    assert found["seeds"].tolist() == [2, 2]
    assert found["experiment"].nunique() == 2
    assert [text.count("python main.py") for text in found["made_by"]] == [2, 2]
    assert found["made_by"].str.contains("noimg").sum() == 1


def test_a_method_that_differs_in_one_seed_counts_every_seed(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path, f"a{seed}", seed)
    run = load_run(tmp_path / "result" / "a2")
    is_mri, score = run.predictions["classifier"] == "mri", run.predictions["score"]
    other = run.predictions.assign(score=score.where(~is_mri, 1 - score))
    resave(tmp_path, "a2", {"test": run.test, "uptake": run.uptake, "predictions": other})
    part = other[other["classifier"] == "mri"]
    scores = np.stack([1 - part["score"], 1 - part["score"], part["score"]])
    areas = area_under_roc(part["label"].to_numpy(), scores)
    found = row(tables_of(tmp_path)["amyloid_status"], classifier="mri")
    assert (found["seeds"], found["AUC"]) == (3, pytest.approx(areas.mean()))
    assert found["AUC_sd"] == pytest.approx(areas.std(ddof=1))
    assert row(tables_of(tmp_path)["amyloid_status"], classifier="pet", method="real")["seeds"] == 1


def test_decisions_of_an_even_number_of_seeds_are_compared_without_favour(tmp_path):
    """Two seeds that are right for half of the subjects each, and so is the MRI: no difference."""
    for seed in (0, 1):
        make_run(tmp_path, f"a{seed}", seed, ids=range(40))
        run = load_run(tmp_path / "result" / f"a{seed}")
        half = (np.arange(40) // 2 % 2).astype(bool)
        right = {"mri": half, "pet": half if seed else ~half}
        predictions = run.predictions.copy()
        for classifier, values in right.items():
            mask = (predictions["classifier"] == classifier) & (predictions["method"] != "real")
            label = predictions.loc[mask, "label"]
            predictions.loc[mask, "positive"] = np.where(values, label, 1 - label)
        resave(tmp_path, f"a{seed}", {"test": run.test, "predictions": predictions})
    compared = tables_of(tmp_path)["comparisons"].query("table == 'amyloid_status' and metric == 'ACC'")
    assert compared["p"].min() > 0.5


def test_a_repeated_experiment_is_left_out_and_named(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", device="cpu")
    groups, remarks = group_runs(load_runs(tmp_path / "result")[0])
    assert [[run.name for run in group.runs] for group in groups] == [["a"]]
    assert remarks == ["b repeats a (same settings, seed and lists) and is left out"]


def test_a_test_list_of_one_label_is_not_defined_and_no_crash(tmp_path):
    make_run(tmp_path, "a", label=0)
    runs, _ = load_runs(tmp_path / "result")
    write_tables(tmp_path / "t", make_tables(group_runs(runs)[0]))
    lines = (tmp_path / "t" / "amyloid_status.md").read_text().splitlines()
    [line] = [line for line in lines if "| il_cldm" in line]
    assert line.count("not defined") == 4                  # AUC, balanced ACC, SEN, MCC
    found = row(pd.read_csv(tmp_path / "t" / "amyloid_status.csv"), classifier="pet", method="il_cldm")
    assert np.isnan(found["AUC"])
    assert 0 <= found["SPE"] <= 1


def shuffle(values: pd.Series) -> np.ndarray:
    """The values in another order."""
    return values.sample(frac=1, random_state=0).to_numpy()


def change(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table with one kind of change."""
    if name == "a column less":
        return table.drop(columns="label")
    if name == "the last column less":
        return table.drop(columns=table.columns[-1])
    if name == "a subject less":
        return table[table["ID"] != "s003"]
    if name == "subjects shuffled":
        return table.assign(ID=shuffle(table["ID"]))
    if name == "labels shuffled":
        return table.assign(label=shuffle(table["label"]))
    return table.sample(frac=1, random_state=0)


@pytest.mark.parametrize("file", ["test.csv", "uptake.csv", "predictions.csv"])
@pytest.mark.parametrize("how", [
    "a column less", "the last column less", "a subject less", "subjects shuffled", "labels shuffled",
    "rows shuffled", "not there", "cut"])
def test_changed_results_are_left_out_with_file_and_remedy(tmp_path, file, how):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1)
    path = tmp_path / "result" / "b" / file
    if how == "not there":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        change(how, pd.read_csv(path, dtype={"ID": str})).to_csv(path, index=False)
    runs, left_out = load_runs(tmp_path / "result")
    assert [run.name for run in runs] == ["a"]
    assert left_out["b"].startswith("its results cannot be used: ") and f"b/{file}" in left_out["b"]
    assert "run --stages test of experiment b again" in left_out["b"]


def test_a_changed_index_is_an_error(tmp_path):
    make_run(tmp_path, "a")
    path = tmp_path / "result" / "a" / "scores.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 99'))
    with pytest.raises(InputError, match="scores.json: not there, damaged or changed"):
        load_run(tmp_path / "result" / "a")


def test_results_of_another_format_are_refused_in_a_sentence(tmp_path, monkeypatch):
    assert results.FORMAT == 2
    monkeypatch.setattr(results, "FORMAT", 1)
    make_run(tmp_path, "a")
    monkeypatch.undo()
    with pytest.raises(InputError) as error:
        load_run(tmp_path / "result" / "a")
    assert str(error.value) == (
        f"{tmp_path}/result/a/scores.json: written by another version of this project, in format 1 instead "
        "of 2; run --stages test of experiment a again")


def test_results_with_other_settings_are_refused_in_a_sentence(tmp_path):
    make_run(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    settings = {name: value for name, value in run.metadata["settings"].items() if name != "volume_size"}
    save_run(tmp_path / "result" / "a", {"settings": settings}, {"test": run.test})
    words = "written by another version of this project, which has other settings; run --stages test"
    with pytest.raises(InputError, match=words):
        load_run(tmp_path / "result" / "a")


def test_a_copied_folder_of_results_is_used(tmp_path):
    make_run(tmp_path, "a")
    (tmp_path / "result" / "a" / "config.json").unlink()
    assert [run.name for run in load_runs(tmp_path / "result")[0]] == ["a"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 0}'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    make_run(tmp_path, "a")
    (tmp_path / "result" / "a" / "scores.json").write_text(text)
    with pytest.raises(InputError, match="scores.json: not there, damaged or changed"):
        load_run(tmp_path / "result" / "a")


def test_an_experiment_without_scores_is_left_out(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1)
    (tmp_path / "result" / "b" / "scores.json").unlink()
    runs, left_out = load_runs(tmp_path / "result")
    assert [run.name for run in runs] == ["a"]
    assert left_out == {"b": "has no scores yet (--stages test writes them)"}


def spoil_path(folder: Path) -> None:
    """A run of a cohort in a folder whose name is not UTF-8, as earlier versions took it."""
    text = (folder / "scores.json").read_text()
    index = json.loads(text) | {"note": "M\udcfcller"}
    del index["digest"]
    index["digest"] = results._digest(json.dumps(index).encode())
    (folder / "scores.json").write_text(json.dumps(index))


SPOILT = {"path that is not UTF-8": spoil_path,
          "index of bytes": lambda folder: (folder / "scores.json").write_bytes(b"\xff\x00"),
          "index that is a folder": lambda folder: [(folder / "scores.json").unlink(),
                                                    (folder / "scores.json").mkdir()],
          "scores that are a folder": lambda folder: [(folder / "test.csv").unlink(),
                                                      (folder / "test.csv").mkdir()],
          "index of a list": lambda folder: (folder / "scores.json").write_text("[1]"),
          "another name": lambda folder: folder.rename(Path(os.fsdecode(os.fsencode(folder) + b"\xfc")))}


@pytest.mark.parametrize("how", SPOILT)
def test_one_spoilt_experiment_never_stops_the_tables_of_the_others(tmp_path, how):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", seed=1)
    SPOILT[how](tmp_path / "result" / "b")
    runs, left_out = load_runs(tmp_path / "result")
    if how == "another name":
        assert [run.name for run in runs] == ["a"] and "UTF-8" in left_out["b\\xfc"]
        return
    assert [run.name for run in runs] == ["a"] and "its results cannot be used" in left_out["b"]
    for reason in left_out.values():
        reason.encode()                                    # can be printed and written


def test_an_id_that_looks_like_a_missing_value_survives(tmp_path):
    make_run(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    frame = run.test.assign(ID=["NA", *run.test["ID"][1:]])
    save_run(tmp_path / "result" / "a", run.metadata, {"test": frame})
    again = load_run(tmp_path / "result" / "a")
    assert isinstance(again, Run)
    assert again.test["ID"].tolist()[0] == "NA"
    assert again.predictions is None


def test_latex_is_balanced_and_has_no_bare_special_character(tmp_path):
    make_run(tmp_path, "a_b", better=0.3)
    runs, _ = load_runs(tmp_path / "result")
    for path in write_tables(tmp_path / "t", make_tables(group_runs(runs)[0])):
        text = path.with_suffix(".tex").read_text()
        assert text.count(r"\begin{") == text.count(r"\end{") >= 2
        bare = re.sub(r"\\.", "", text)
        assert bare.count("{") == bare.count("}")
        assert "_" not in bare
        assert not re.search(r"[^\x00-\x7f]", text)
        widths = {line.replace(r"\&", "").count("&") for line in text.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1


def test_a_row_names_the_commands_of_its_runs_as_they_were_given(tmp_path):
    command = "python main.py --preset demo --data_dir 'data/a b'  --exp a --seed 1"
    make_run(tmp_path, "a", command=command)
    make_run(tmp_path, "b", seed=2, command="python main.py --seed 2 --exp b")
    found = row(tables_of(tmp_path)["image_quality"], method="il_cldm")
    assert found["made_by"] == f"{command} ; python main.py --seed 2 --exp b"
    write_tables(tmp_path / "t", make_tables(group_runs(load_runs(tmp_path / "result")[0])[0]))
    assert f"1. `{command}`" in (tmp_path / "t" / "image_quality.md").read_text()


def test_two_experiments_with_one_command_are_told_apart(tmp_path):
    """As after an edit of a default in config.py."""
    make_run(tmp_path, "a", baseline=1.0, command="python main.py")
    make_run(tmp_path, "b", samples_per_scan=2, command="python main.py")
    table = tables_of(tmp_path)["image_quality"]
    assert sorted(table.query("method == 'il_cldm'")["experiment"]) == ["a", "b"]
    assert table.query("method == 'latent_regression'")["experiment"].tolist() == ["a"]      # b has none


@pytest.mark.parametrize(("baselines", "seed", "expected"), [
    ((1.0,), 0, [("all", 1)]),                             # that of the only experiment
    ((1.0, None), 0, [("a", 1)]),                          # the other experiment has none
    ((1.0, 1.0), 0, [("all", 1)]),                         # the same in both
    ((1.0, 2.0), 0, [("a", 1), ("b", 1)]),
    ((1.0, 2.0), 1, [("a", 1), ("b", 1)])])                # no seed in common
def test_a_baseline_is_that_of_all_only_if_all_have_it(tmp_path, baselines, seed, expected):
    make_run(tmp_path, "a", baseline=baselines[0])
    if len(baselines) == 2:
        make_run(tmp_path, "b", baseline=baselines[1], ldm_lr=1e-3, seed=seed)
    table = image_quality(group_runs(load_runs(tmp_path / "result")[0])[0])[0].query("metric == 'PSNR'")
    found = table.query("method == 'latent_regression'")
    assert list(zip(found["experiment"], found["seeds"], strict=True)) == expected
    assert table["method"].tolist()[:2] == ["mean_pet", "latent_regression"]


def test_seeds_of_a_baseline_are_all_kept(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, f"a{seed}", seed=seed, baseline=1.0)
    table = image_quality(group_runs(load_runs(tmp_path / "result")[0])[0])[0].query("metric == 'PSNR'")
    assert row(table, method="latent_regression")["seeds"] == 2
    assert row(table, method="mean_pet")["seeds"] == 1


def add_spectra(root, exp: str, errors: dict[str, float]) -> None:
    """Give every subject of a method this error of its spectrum, and a grid, as this version measures
    them."""
    run = load_run(root / "result" / exp)
    ranks = run.test.groupby("method").cumcount()
    test = run.test.assign(spectrum_brain=run.test["method"].map(errors) + 0.01 * ranks,
                           nyquist=run.test["method"].map({"mean_pet": 3.0, "il_cldm": 170.0}),
                           nyquist_real=7.6)
    resave(root, exp, {"test": test, "uptake": run.uptake, "predictions": run.predictions})


def made_tables(root) -> dict[str, Table]:
    """The tables of all runs under root, by name."""
    return {table.name: table for table in make_tables(group_runs(load_runs(root / "result")[0])[0])}


def test_the_least_error_of_the_spectrum_is_best_and_a_grid_is_never(tmp_path):
    make_run(tmp_path, "a", better=1.0)
    add_spectra(tmp_path, "a", {"mean_pet": 6.0, "il_cldm": 2.0})
    tables = made_tables(tmp_path)
    tidy, compared = tables["image_quality"].tidy, tables["comparisons"].tidy
    assert row(tidy, method="mean_pet", metric="spectrum_brain")["value"] == pytest.approx(6.055)
    best = tidy.query("best").groupby("metric")["method"].agg(list)
    assert best["spectrum_brain"] == ["il_cldm"]
    assert not {"nyquist", "nyquist_real"} & set(best.index)
    assert row(compared, metric="spectrum_brain", a="mean_pet")["difference"] == pytest.approx(4.0)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_results_of_an_earlier_version_are_compared_in_what_it_measured(tmp_path, order):
    """The method that both have, mean_pet, stays one row."""
    earlier, later = order
    make_run(tmp_path, earlier, better=0.5)
    make_run(tmp_path, later, better=1.0, ldm_lr=1e-3)
    add_spectra(tmp_path, later, {"mean_pet": 6.0, "il_cldm": 2.0})
    tables = made_tables(tmp_path)
    found = to_csv(tables["image_quality"])
    assert row(found, experiment="all")["method"] == "mean_pet"
    assert row(found, experiment=later)["spectrum_brain"] == pytest.approx(2.055)
    assert np.isnan(row(found, experiment=earlier)["spectrum_brain"])
    assert np.isfinite(row(found, experiment=earlier)["PSNR"])
    assert set(tables["comparisons"].tidy["metric"]) >= set(METRICS)
    write_tables(tmp_path / "tables", [tables["image_quality"]])
    text = (tmp_path / "tables" / "image_quality.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "not measured" in "".join(line for line in lines if f"| {earlier} " in line)
    assert "not measured" not in "".join(line for line in lines if f"| {later} " in line)
    assert lines[0].split("|")[-2].strip() == "made by"
