"""The uncertainty of a synthetic PET: intervals that cover as often as they say, probabilities that are true,
and nothing of the test list in either."""
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, arguments

import main
from evaluation.spectrum import SPECTRAL
from evaluation.uncertainty import (
    Calibration,
    assess,
    calibrate,
    describe,
    load_calibration,
    save_calibration,
)
from utils import METRICS, InputError

DRAWS = False
PHANTOM = {
    "regions": "auto",
    "data_dir": "data/phantom",
    "phantom_subjects": (6, 10, 4),
    "phantom_voxel": 8,
    "aae_epochs": 1,
    "ldm_epochs": 1,
    "exp": "a",
    "samples_per_scan": 4,
}


def subjects(n: int, rng: np.random.Generator, informative: bool = True) -> pd.DataFrame:
    """A list whose errors grow with the spread of its samples, up to 9-fold; status follows SUVR_real."""
    real = rng.normal(1.3, 0.25, n)
    noise = rng.uniform(0.02, 0.18, n)
    suvr = real + noise * rng.standard_normal(n) if informative else rng.normal(1.3, 0.25, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-12 * (real - 1.3)))).astype(int)
    return pd.DataFrame({"ID": [f"s{i:04d}" for i in range(n)], "label": label, "SUVR": suvr,
                         "SUVR_sd": noise, "SUVR_real": real})


def coverage(table: pd.DataFrame, low: np.ndarray, high: np.ndarray) -> float:
    """Share of the real SUVRs that lie in their interval."""
    return ((low <= table["SUVR_real"]) & (table["SUVR_real"] <= high)).mean()


# ---------------------------------------------------------------- the interval

@pytest.mark.parametrize("n", [9, 10, 19, 50])
def test_intervals_cover_as_often_as_they_say_whatever_the_noise(n):
    rng, shares = np.random.default_rng(n), []
    for _ in range(800):
        test = subjects(20, rng)
        shares.append(assess(calibrate(subjects(n, rng), False), test)["covered"].mean())
    expected = np.ceil(0.9 * (n + 1)) / (n + 1)            # of exchangeable scans without ties
    assert np.mean(shares) == pytest.approx(expected, abs=0.012)
    assert n == 9 or 0.85 < np.mean(shares) < 0.95


def test_scans_whose_samples_lie_apart_get_wider_intervals_whose_coverage_differs_less():
    rng = np.random.default_rng(0)
    test = subjects(4000, rng)
    suvr, std = test["SUVR"].to_numpy(), test["SUVR_sd"].to_numpy()
    low, high = calibrate(subjects(2000, rng), True).interval(suvr, std)
    constant = calibrate(subjects(2000, rng).assign(SUVR_sd=0.0), True).interval(suvr, np.zeros(len(test)))
    wide = test["SUVR_sd"] > test["SUVR_sd"].median()
    assert (high - low)[wide].mean() > 1.5 * (high - low)[~wide].mean()
    assert np.ptp(constant[1] - constant[0]) < 1e-9        # one sample: one width

    def gap(low: np.ndarray, high: np.ndarray) -> float:
        of_narrow = coverage(test[~wide], low[~wide], high[~wide])
        return abs(coverage(test[wide], low[wide], high[wide]) - of_narrow)
    assert gap(low, high) < 0.85 * gap(*constant)


def test_samples_that_differ_much_less_than_they_err_widen_no_interval():
    rng = np.random.default_rng(0)
    validation, test = (subjects(n, rng).assign(SUVR_sd=rng.uniform(0.001, 0.009, n)) for n in (20, 100))
    low, high = calibrate(validation, True).interval(test["SUVR"].to_numpy(), test["SUVR_sd"].to_numpy())
    assert (high - low).max() < 1.2 * (high - low).min()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [9, 13, 29])
def test_the_quantile_is_the_least_that_holds_the_scores_by_the_definition(n, seed):
    rng = np.random.default_rng(seed)
    calibration, std = calibrate(subjects(n, rng), True), 0.05
    floor = calibration.error.mean()
    scores = [error / (sd + floor) for error, sd in zip(calibration.error, calibration.std, strict=True)]
    quantile = min(q for q in scores if sum(score <= q for score in scores) >= 0.9 * (n + 1))
    low, high = calibration.interval(np.array([1.2]), np.array([std]))
    half = quantile * (std + floor)
    assert (low[0], high[0]) == pytest.approx((1.2 - half, 1.2 + half))


@pytest.mark.parametrize("n", [2, 8])
def test_too_few_subjects_give_no_interval_and_say_so(n):
    rng = np.random.default_rng(n)
    calibration, test = calibrate(subjects(n, rng), True), subjects(5, rng)
    table = assess(calibration, test)
    assert table[["low", "high", "covered"]].isna().all(axis=None)
    assert f"it needs 9 validation subjects with an SUVR, there are {n}" in describe(calibration, table)


def test_a_pet_without_suvr_counts_as_the_worst_and_has_no_interval_itself():
    rng = np.random.default_rng(0)
    whole = subjects(19, rng)
    lost = calibrate(whole.assign(SUVR=whole["SUVR"].where(whole.index > 0)), True)
    seen = calibrate(whole[1:], True)
    worst = (seen.error / (seen.std + seen.floor)).max()   # the 18th of 19 scores
    low, high = lost.interval(np.array([1.2]), np.array([0.05]))
    assert (high - low).item() == pytest.approx(2 * worst * (0.05 + seen.floor))
    lost = calibrate(whole.assign(SUVR_sd=whole["SUVR_sd"].where(whole.index > 1)), True)
    assert "it needs 18 validation subjects with an SUVR, there are 17" in lost.why_no_interval
    table = assess(calibrate(whole, True), whole.assign(SUVR=whole["SUVR"].where(whole.index > 0)))
    assert table.loc[0, ["low", "high", "probability"]].isna().all()
    assert table.loc[0, "covered"] == 0
    assert table.loc[1:, ["low", "high", "probability"]].notna().all(axis=None)


# ---------------------------------------------------------------- the probability

def brier(table: pd.DataFrame, probability) -> float:
    """Brier score of a probability of label 1."""
    return ((probability - table["label"]) ** 2).mean()


def test_the_probability_is_true_and_better_than_the_base_rate_where_the_suvr_tells_something():
    rng = np.random.default_rng(0)
    calibration, test = calibrate(subjects(2000, rng), True), subjects(6000, rng)
    p = calibration.probability(test["SUVR"].to_numpy())
    assert brier(test, p) < 0.7 * brier(test, calibration.prevalence)
    for _, rows in test.assign(p=p).groupby(pd.cut(p, [0, 0.2, 0.4, 0.6, 0.8, 1])):
        assert rows["label"].mean() == pytest.approx(rows["p"].mean(), abs=0.08)
    assert np.ptp(p) > 0.9


@pytest.mark.parametrize(("n", "margin"), [(10, 0.025), (50, 0.006)])
def test_the_probability_is_hardly_worse_than_the_base_rate_where_the_suvr_tells_nothing(n, margin):
    rng, worse = np.random.default_rng(n), []
    for _ in range(300):
        calibration = calibrate(subjects(n, rng, informative=False), True)
        test = subjects(400, rng, informative=False)
        if not np.isnan(calibration.slope):
            of_suvr = brier(test, calibration.probability(test["SUVR"].to_numpy()))
            worse.append(of_suvr - brier(test, calibration.prevalence))
    assert 0 < np.mean(worse) < margin


def test_an_suvr_that_falls_with_the_status_gives_the_share_of_positives():
    table = subjects(50, np.random.default_rng(0))
    calibration = calibrate(table.assign(label=1 - table["label"]), True)
    assert calibration.probability(np.array([0.8, 2.0])) == pytest.approx([1 - table["label"].mean()] * 2)
    constant = calibrate(table.assign(SUVR=1.2), True)
    assert constant.probability(np.array([0.8, 2.0])) == pytest.approx([table["label"].mean()] * 2)


@pytest.mark.parametrize(("binary", "label"), [(False, None), (True, 0), (True, 1)])
def test_there_is_no_probability_of_one_label_or_of_several(binary, label):
    table = subjects(20, np.random.default_rng(0))
    calibration = calibrate(table if label is None else table.assign(label=label), binary)
    assessed = assess(calibration, table)
    assert assessed["probability"].isna().all() and assessed["low"].notna().all()
    assert "no probability of status: it needs" in describe(calibration, assessed)


def test_the_line_says_what_the_table_holds():
    rng = np.random.default_rng(3)
    calibration = calibrate(subjects(20, rng), True)
    table = assess(calibration, subjects(40, rng))
    line = describe(calibration, table)
    assert f"in {table['covered'].sum():.0f} of 40 test subjects" in line
    assert "calibrated on 20 validation subjects" in line
    assert f"mean width {(table['high'] - table['low']).mean():.3f}" in line
    assert f"Brier score {brier(table, table['probability']):.3f}" in line
    assert f"alone {brier(table, calibration.prevalence):.3f}" in line


# ---------------------------------------------------------------- the file

BOUND = {"networks and masks": "abc", "sampler": "ddim", "samples_per_scan": 4}


def test_a_saved_calibration_comes_back_and_only_for_what_it_was_made_with(tmp_path):
    path, calibration = tmp_path / "c.npz", calibrate(subjects(12, np.random.default_rng(0)), True)
    assert "--stages test does it" in load_calibration(path, BOUND)[1]
    save_calibration(path, calibration, BOUND)
    found, why_not = load_calibration(path, BOUND)
    assert (found.key, why_not) == (calibration.key, "")
    suvr, std = np.array([1.2]), np.array([0.03])
    assert found.interval(suvr, std) == calibration.interval(suvr, std)
    assert found.probability(suvr) == calibration.probability(suvr)
    others = {"networks and masks": "abd", "sampler": "dpm", "samples_per_scan": 5, "new": True}
    for name, value in others.items():
        found, why_not = load_calibration(path, BOUND | {name: value})
        assert found is None
        assert f"{name}: {BOUND.get(name)} -> {value}" in why_not
    content = path.read_bytes()
    for spoilt in (b"", content[:-100], content[:300] + bytes([content[300] ^ 1]) + content[301:]):
        assert spoilt != content
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="damaged"):
            load_calibration(path, BOUND)


def test_the_key_tells_two_calibrations_apart():
    keys = set()
    for error in ([0.1, 0.2], [0.2, 0.1]):
        for slope in (1.0, 2.0):
            keys.add(Calibration(np.array(error), np.array([0.1, 0.1]), slope).key)
    assert len(keys) == 4


# ---------------------------------------------------------------- the stages

def run(*stages: str, **settings) -> int:
    """Run these stages of the phantom's experiment: the exit code."""
    return main.main([*arguments(TINY | PHANTOM | settings), "--stages", *stages])


def synthesize(mri: str, **settings) -> int:
    """Synthesize new scans into out/ with the experiment's own settings, but for these: the exit code."""
    return main.main(["synthesize", *arguments({"exp": "a", "mri": mri, "out": "out"} | settings)])


@pytest.fixture(scope="module")
def tested(tmp_path_factory) -> Path:
    """A project folder with a tiny experiment that was trained and tested on a phantom."""
    root, before = tmp_path_factory.mktemp("tested"), os.getcwd()
    os.chdir(root)
    torch.set_num_threads(1)
    try:
        assert run("check", "aae", "encode", "ldm", "test") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def project(tested, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as the working directory."""
    shutil.copytree(tested, tmp_path / "project", ignore=shutil.ignore_patterns("latent_Abeta"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def names(project: Path, split: str) -> list[str]:
    """IDs of a list of the phantom."""
    return (project / f"data/phantom/data_info/{split}.txt").read_text().split()


def test_the_test_stage_writes_both_tables(tested):
    folder = tested / "result/a"
    listed, uncertain = pd.read_csv(folder / "validation_list.csv"), pd.read_csv(folder / "uncertainty.csv")
    assert listed.columns.tolist() == [
        "ID", "label", *METRICS, *SPECTRAL, "SUVR", "SUVR_sd", "SUVR_real", "p_mri", "score_mri",
        "score_mri_pet", "score_pet"]
    assert uncertain.columns.tolist() == [
        "ID", "label", "SUVR_real", "SUVR", "SUVR_sd", "low", "high", "covered", "probability", "p_mri"]
    assert listed["p_mri"].between(0, 1).all()
    assert listed["ID"].tolist() == names(tested, "validation")
    assert uncertain["ID"].tolist() == names(tested, "test")
    for table in (listed, uncertain):
        assert np.isfinite(table[table.columns[1:]].to_numpy()).all()
    assert (uncertain["SUVR_sd"] > 0).all()
    assert uncertain["SUVR_sd"].nunique() == 4
    is_inside = uncertain["SUVR_real"].between(uncertain["low"], uncertain["high"])
    assert (uncertain["covered"] == is_inside).all()
    values = pd.read_csv(folder / "uptake.csv").pivot(index="ID", columns="method", values="SUVR")
    values = values.loc[uncertain["ID"], ["real", "il_cldm"]]
    np.testing.assert_array_equal(values, uncertain[["SUVR_real", "SUVR"]])
    suvr, std = uncertain["SUVR"].to_numpy(), uncertain["SUVR_sd"].to_numpy()
    low, high = calibrate(listed, True).interval(suvr, std)
    np.testing.assert_allclose(low, uncertain["low"])
    np.testing.assert_allclose(high, uncertain["high"])
    written = {path.name for path in (folder / "synthesized").iterdir()}
    assert written == {f"{name}.nii.gz" for name in names(tested, "test")}
    log = (folder / "run.log").read_text()
    assert "90 % interval of the SUVR, calibrated on 10 validation subjects" in log


def test_pets_and_labels_of_the_test_list_change_neither_calibration_nor_interval(project):
    folder, changed = project / "result/a", names(project, "test")[0]
    before = {name: (folder / name).read_bytes() for name in ("calibration.npz", "validation_list.csv")}
    one = pd.read_csv(folder / "uncertainty.csv")
    pet = project / f"data/phantom/whole_Abeta/{changed}.nii.gz"
    image = nib.load(pet)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[:, ::-1].copy(), image.affine), pet)
    path = project / "data/phantom/data_info/data_info.csv"
    table = pd.read_csv(path)
    table["label"] = np.where(table["ID"].isin(names(project, "test")), 1 - table["label"], table["label"])
    table.to_csv(path, index=False)
    (folder / "calibration.npz").unlink()
    assert run("test") == 0
    other = pd.read_csv(folder / "uncertainty.csv")
    assert {name: (folder / name).read_bytes() for name in before} == before
    same = ["ID", "SUVR", "SUVR_sd", "low", "high", "probability"]
    pd.testing.assert_frame_equal(other[same], one[same])
    assert (other["label"] == 1 - one["label"]).all()
    assert (other["SUVR_real"] != one["SUVR_real"]).tolist() == [True, False, False, False]


def test_nothing_stale_survives_a_further_training(project):
    folder = project / "result/a"
    assert run("encode", "ldm", ldm_epochs=2) == 0
    assert not [name for name in ("validation_list.csv", "uncertainty.csv") if (folder / name).exists()]


def test_a_new_scan_gets_the_interval_of_the_test_stage(project):
    Path("scans").mkdir()
    for name in names(project, "test"):
        shutil.copy(f"data/phantom/whole_MRI/{name}.nii.gz", "scans")
    assert synthesize("scans") == 0
    found = pd.read_csv("out/synthesized.csv").set_index("ID")
    expected = pd.read_csv("result/a/uncertainty.csv").set_index("ID")
    columns = {"SUVR": "SUVR", "SUVR_sd": "SUVR_sd", "low": "SUVR_low", "high": "SUVR_high",
               "probability": "p_calibrated"}
    for name, column in columns.items():
        np.testing.assert_allclose(found.loc[expected.index, column], expected[name], rtol=1e-3)
    assert set(found["SUVR_interval"]) == {"90 %, calibrated on 10 validation subjects"}
    assert (found["SUVR_samples_min"] <= found["SUVR_samples_max"]).all()


def test_a_calibration_of_another_sampling_is_not_used(project, capsys):
    mri = f"data/phantom/whole_MRI/{names(project, 'test')[0]}.nii.gz"
    assert synthesize(mri, samples_per_scan=2) == 0
    remark = "no calibrated interval: calibrated for others (saved -> now): samples_per_scan: 4 -> 2"
    assert remark in capsys.readouterr().out
    found = pd.read_csv("out/synthesized.csv").iloc[0]
    assert not {"SUVR_low", "SUVR_high", "p_calibrated"} & set(found.index)
    assert {"SUVR_sd", "SUVR_samples_min", "SUVR_samples_max"} < set(found.index)
    assert found["SUVR_interval"].startswith("none: calibrated for others")
    assert synthesize(mri, label_at_sampling="mixed", overwrite=True) == 0
    assert "label_at_sampling: matched -> mixed" in capsys.readouterr().out


def test_a_new_calibration_is_another_result_of_a_new_scan(project, capsys):
    mri = f"data/phantom/whole_MRI/{names(project, 'test')[0]}.nii.gz"
    assert synthesize(mri, label_at_sampling="mixed") == 0
    assert run("test", label_at_sampling="mixed") == 0
    assert synthesize(mri, label_at_sampling="mixed") == 2
    assert "calibration: null ->" in capsys.readouterr().err
    assert synthesize(mri, label_at_sampling="mixed", overwrite=True) == 0
    found = pd.read_csv("out/synthesized.csv").iloc[0]
    expected = pd.read_csv("result/a/uncertainty.csv").iloc[0]
    assert found["SUVR_sd"] == pytest.approx(expected["SUVR_sd"], rel=1e-3)
    assert found["SUVR_low"] == pytest.approx(expected["low"], rel=1e-3)
