"""The tables of calibration and of the grey zone: against statsmodels, scikit-learn and by hand."""
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from test_tables import make_run, resave, row, tables_of

from evaluation import statistics
from evaluation.calibration import calibration_error, recalibration
from evaluation.grey_zone import EVERYONE, INVENTED, OUTSIDE, reasons
from evaluation.power import expected_widths
from evaluation.results import load_run, load_runs, save_run
from evaluation.rows import group_runs
from evaluation.statistics import auc_half_width
from evaluation.tables import make_tables
from utils import derived_seed


def made_up(
    seed: int, n: int = 80, slope: float = 1.0, intercept: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities whose recalibration has this slope and intercept, but for chance."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, n)
    label = (rng.random(n) < expit(slope * odds + intercept)).astype(float)
    return label, expit(odds)


# ---------------------------------------------------------------- slope and intercept

@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "slope", "intercept"), [
    (80, 1.0, 0.0), (80, 0.3, -0.5), (80, -1.0, 0.0), (80, 4.0, 1.0), (50, 1.0, -2.0), (2000, 0.7, 0.4)])
def test_recalibration_equals_that_of_statsmodels(seed, n, slope, intercept):
    label, probability = made_up(seed, n, slope, intercept)
    fitted = sm.GLM(label, sm.add_constant(logit(probability)), family=sm.families.Binomial()).fit(tol=1e-12)
    expected_intercept, expected_slope = fitted.params
    assert recalibration(label, probability) == pytest.approx([expected_slope, expected_intercept], abs=1e-5)


def test_what_is_calibrated_has_slope_1_and_intercept_0_and_what_is_too_extreme_a_slope_below_1():
    label, probability = made_up(0, 50_000)
    assert recalibration(label, probability) == pytest.approx([1, 0], abs=0.05)
    assert recalibration(label, expit(2 * logit(probability))) == pytest.approx([0.5, 0], abs=0.03)
    assert recalibration(label, expit(logit(probability) + 1)) == pytest.approx([1, -1], abs=0.05)


@pytest.mark.parametrize(("label", "probability"), [
    ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),                  # apart
    ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1]),                  # apart, the wrong way round
    ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),                  # apart but for a value that both have
    ([0, 1, 0, 1], [0.4, 0.4, 0.4, 0.4]),                  # one probability for everybody
    ([1, 1, 1], [0.1, 0.5, 0.9]),                          # one label
    ([0, 0, 0], [0.1, 0.5, 0.9]),
    ([0, 1, 1, 1], [1e-9, 1e-9, 1e-9, 0.5])])              # the same in 1e-6, so apart
def test_what_separates_the_labels_or_says_nothing_has_no_slope(label, probability):
    assert np.isnan(recalibration(np.array(label, float), np.array(probability))).all()


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_probabilities_of_0_and_1_are_taken_and_one_wrong_one_flattens_the_slope(extreme):
    label, probability = made_up(1)
    wrong = np.argmax(label == (extreme == 0))             # said to be impossible, and it was so
    changed = probability.copy()
    changed[wrong] = extreme
    found, before = recalibration(label, changed), recalibration(label, probability)
    assert np.isfinite(found).all() and found[0] < before[0]


def test_nearly_separated_labels_have_a_steep_slope_as_in_statsmodels():
    odds = np.linspace(-4, 4, 40)
    label = (odds > 0).astype(float)
    label[[19, 20]] = 1, 0                                 # two that overlap by a hair
    fitted = sm.GLM(label, sm.add_constant(odds), family=sm.families.Binomial()).fit(maxiter=500, tol=1e-14)
    assert recalibration(label, expit(odds)) == pytest.approx(fitted.params[::-1], rel=1e-4, abs=1e-5)


def test_many_lists_at_once_are_recalibrated_as_one_by_one():
    label, probability = made_up(2, 20)
    index = np.random.default_rng(0).integers(0, 20, (3, 50, 20))
    together = recalibration(label[index], probability[index])
    assert together.shape == (2, 3, 50)
    for i in np.ndindex(3, 50):
        alone = recalibration(label[index[i]], probability[index[i]])
        np.testing.assert_allclose(together[:, *i], alone, rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- the calibration error

def test_the_calibration_error_by_hand():
    label, probability = np.array([0, 1, 1, 0, 1]), np.array([0.12, 0.18, 0.55, 0.95, 1.0])
    # bins [0.1, 0.2): mean label 0.5, mean p 0.15; [0.5, 0.6): 1 and 0.55; [0.9, 1]: 0.5 and 0.975
    assert calibration_error(label, probability) == pytest.approx((2 * 0.35 + 0.45 + 2 * 0.475) / 5)


@pytest.mark.parametrize("seed", range(4))
def test_the_calibration_error_follows_from_the_curve_of_scikit_learn(seed):
    label, probability = made_up(seed, 200, slope=0.4)
    share, mean = calibration_curve(label, probability, n_bins=10, strategy="uniform")
    sizes = np.histogram(probability, bins=10, range=(0, 1))[0]
    assert calibration_error(label, probability) == pytest.approx(
        (np.abs(share - mean) * sizes[sizes > 0]).sum() / 200
    )


@pytest.mark.parametrize(
    ("label", "probability", "error"),
    [
        ([0, 1], [0.0, 1.0], 0),
        ([1, 0], [0.0, 1.0], 1),
        ([0, 1, 0, 1], [0.5] * 4, 0),
        ([1, 1], [0.3, 0.3], 0.7),
    ],
)
def test_the_ends_of_the_calibration_error(label, probability, error):
    assert calibration_error(np.array(label, float), np.array(probability)) == pytest.approx(error)


# ---------------------------------------------------------------- the table of calibration

def with_probability(root, exp: str, **arguments) -> None:
    """A run whose classifiers overlap, with a calibrated probability and a score that is none."""
    make_run(root, exp, ids=range(60), **arguments)
    run = load_run(root / "result" / exp)
    people = run.test.drop_duplicates("ID")[["ID", "label"]].reset_index(drop=True)
    rng = np.random.default_rng(5)
    uncertainty = people.assign(covered=1, probability=expit(people["label"] + rng.normal(0, 1, 60)))
    suvr = people.assign(classifier="suvr", method="il_cldm", score=1.2, threshold=1.1, positive=1.0)
    predictions = pd.concat([run.predictions, suvr])[list(run.predictions)]
    resave(root, exp, {"test": run.test, "predictions": predictions, "uncertainty": uncertainty})


def test_every_probability_has_its_row_and_a_suvr_has_none(tmp_path):
    with_probability(tmp_path, "a")
    table = tables_of(tmp_path)["calibration"]
    rows = list(zip(table["classifier"], table["method"], strict=True))
    assert rows == [("mri", "none"), ("pet", "il_cldm"), ("pet", "real"), ("calibrated", "il_cldm")]
    uncertain = pd.read_csv(tmp_path / "result" / "a" / "uncertainty.csv")
    label, probability = uncertain["label"].to_numpy(float), uncertain["probability"].to_numpy()
    fitted = sm.GLM(label, sm.add_constant(logit(probability)), family=sm.families.Binomial()).fit()
    found = row(table, classifier="calibrated")
    assert (found["slope"], found["intercept"]) == pytest.approx(
        (fitted.params[1], fitted.params[0]), rel=1e-5
    )
    assert found["ECE"] == pytest.approx(calibration_error(label, probability))
    # Wald's interval of the slope, which a percentile bootstrap resembles
    low, high = fitted.conf_int()[1]
    assert (found["slope_low"], found["slope_high"]) == pytest.approx((low, high), abs=0.5 * (high - low))
    assert found["slope_low"] < found["slope"] < found["slope_high"]


def plain_error(label: np.ndarray, probability: np.ndarray) -> float:
    """The calibration error by a loop over bins and subjects."""
    total = 0.0
    for number in range(10):
        inside = [i for i, p in enumerate(probability) if min(int(p * 10), 9) == number]
        if inside:
            total += abs(sum(label[i] - probability[i] for i in inside))
    return total / len(label)


def test_the_interval_of_the_calibration_error_by_a_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    with_probability(tmp_path, "a")
    found = row(tables_of(tmp_path)["calibration"], classifier="calibrated")
    uncertain = pd.read_csv(tmp_path / "result" / "a" / "uncertainty.csv")
    label, probability = uncertain["label"].to_numpy(float), uncertain["probability"].to_numpy()
    chosen = statistics.bootstrap(lambda index: np.moveaxis(index, -1, 0).astype(float), 60, 300,
                                  derived_seed("bootstrap", "c0"))                       # [60, 300]
    errors = [plain_error(label[index], probability[index]) for index in chosen.T.astype(int)]
    value, (low, high) = plain_error(label, probability), np.percentile(errors, [2.5, 97.5])
    assert found["ECE"] == pytest.approx(value) and np.mean(errors) > value
    assert (found["ECE_low"], found["ECE_high"]) == pytest.approx((max(2 * value - high, 0), 2 * value - low))


def test_several_seeds_are_one_row_of_the_table(tmp_path):
    with_probability(tmp_path, "a0")
    with_probability(tmp_path, "a1", seed=1)
    found = row(tables_of(tmp_path)["calibration"], classifier="pet", method="il_cldm")
    assert found["seeds"] == 2 and np.isfinite(found["ECE_sd"])


def test_without_predictions_there_is_no_table_of_calibration(tmp_path):
    make_run(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    resave(tmp_path, "a", {"test": run.test, "uptake": run.uptake})
    assert not {"calibration", "grey_zone"} & set(tables_of(tmp_path))


# ---------------------------------------------------------------- the grey zone

CL = {"centiloid": (100.0, -100.0), "cortex_mask": "c.nii", "reference_mask": "r.nii",
      "label_in_training": "true", "label_at_sampling": "mixed"}


def with_centiloids(root, exp: str, levels: list[float]) -> None:
    """A run whose real PETs have these Centiloids; those of the synthetic ones are all in the grey zone."""
    make_run(root, exp, ids=range(len(levels)), **CL)
    run = load_run(root / "result" / exp)
    real = dict(zip(run.test["ID"].drop_duplicates(), levels, strict=True))
    is_real = run.uptake["method"] == "real"
    uptake = run.uptake.assign(CL=run.uptake["ID"].map(real).where(is_real, 20.0))
    resave(root, exp, {"test": run.test, "uptake": uptake, "predictions": run.predictions})


def test_the_grey_zone_is_left_out_by_the_real_pet_with_both_ends_and_n_of_both(tmp_path):
    levels = [9.99, 10.0, 20.0, 30.0, 30.01, -5.0, 120.0, 3.0, 50.0, 15.0, 60.0, 0.0]
    with_centiloids(tmp_path, "a", levels)
    tables = tables_of(tmp_path)
    everyone = row(tables["grey_zone"], classifier="pet", method="il_cldm", subjects=EVERYONE)
    outside = row(tables["grey_zone"], classifier="pet", method="il_cldm", subjects=OUTSIDE)
    assert (everyone["n"], outside["n"]) == (12, 8)
    same = row(tables["amyloid_status"], classifier="pet", method="il_cldm")
    shared = ["AUC", "AUC_low", "AUC_high", "ACC", "Brier"]
    assert everyone[shared].tolist() == same[shared].tolist()
    part = pd.read_csv(tmp_path / "result" / "a" / "predictions.csv").query("method == 'il_cldm'")
    part = part[[not 10 <= level <= 30 for level in levels]]
    assert outside["AUC"] == pytest.approx(sk.roc_auc_score(part["label"], part["score"]))
    assert outside["SEN"] == pytest.approx(sk.recall_score(part["label"], part["positive"]))
    assert len(tables["grey_zone"]) == 2 * len(tables["amyloid_status"])


@pytest.mark.parametrize(("levels", "n"), [([0.0, 100.0] * 6, 12), ([20.0] * 4 + [0.0, 100.0] * 4, 8),
                                           ([np.nan, *[0.0, 100.0] * 5, 5.0], 11)])
def test_the_grey_zone_may_be_empty_and_an_unknown_centiloid_is_not_outside(tmp_path, levels, n):
    with_centiloids(tmp_path, "a", levels)
    assert row(tables_of(tmp_path)["grey_zone"], classifier="mri", subjects=OUTSIDE)["n"] == n


def test_with_everybody_in_the_grey_zone_only_the_rows_of_everyone_are_left(tmp_path):
    with_centiloids(tmp_path, "a", [20.0] * 12)
    assert set(tables_of(tmp_path)["grey_zone"]["subjects"]) == {EVERYONE}


def test_one_label_outside_the_grey_zone_is_not_defined_and_no_crash(tmp_path):
    with_centiloids(tmp_path, "a", [0.0, 20.0] * 6)        # all positives are grey
    assert np.isnan(row(tables_of(tmp_path)["grey_zone"], classifier="mri", subjects=OUTSIDE)["AUC"])


@pytest.mark.parametrize(("change", "why"), [
    ({}, f"no Centiloids of the real PETs are known (setting centiloid){INVENTED}"),
    ({"phantom": True}, f"a digital phantom has no Centiloids{INVENTED}"),
    ({"uptake": False}, f"no Centiloids of the real PETs are known (setting centiloid){INVENTED}"),
    ({"predictions": False}, "amyloid status was not read")])
def test_why_there_is_no_grey_zone_is_said(tmp_path, change, why):
    make_run(tmp_path, "a")
    run = load_run(tmp_path / "result" / "a")
    run.metadata["phantom"] = change.get("phantom", False)
    frames = {
        name: getattr(run, name) for name in ("test", "uptake", "predictions") if change.get(name, True)
    }
    metadata = {name: value for name, value in run.metadata.items() if name not in ("format", "files")}
    save_run(tmp_path / "result" / "a", metadata, frames)
    groups, _ = group_runs(load_runs(tmp_path / "result")[0])
    assert reasons(groups) == [f"no grey zone of 10 to 30 CL is left out for a: {why}"]
    assert "grey_zone" not in tables_of(tmp_path)


def test_a_phantom_with_a_slope_of_centiloids_has_no_grey_zone_all_the_same(tmp_path):
    with_centiloids(tmp_path, "a", [0.0, 100.0] * 6)
    run = load_run(tmp_path / "result" / "a")
    groups, _ = group_runs([run])
    assert reasons(groups) == []
    run.metadata["phantom"] = True
    assert "a digital phantom has no Centiloids" in reasons(groups)[0]


# ---------------------------------------------------------------- what n can show

def test_the_line_of_what_n_can_show():
    line = expected_widths(12, 8)
    assert line.startswith("with 12 positive and 8 negative test subjects the 95 % interval of an AUC is "
                           "expected")
    assert f"0.7 ± {auc_half_width(0.7, 12, 8):.2f}," in line
    for counts in ((0, 9), (9, 0)):
        assert expected_widths(*counts).endswith("have no AUC: it needs both labels")


def test_the_caption_of_amyloid_status_says_it_for_every_list(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", ids=range(30), cohort="c1")
    tables = make_tables(group_runs(load_runs(tmp_path / "result")[0])[0])
    [caption] = [table.caption for table in tables if table.name == "amyloid_status"]
    assert "With 6 positive and 6 negative" in caption and "With 15 positive and 15 negative" in caption
