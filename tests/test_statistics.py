"""Every statistic against an independent computation: scikit-learn, SciPy, statsmodels, or by hand."""
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluation.statistics import (
    AGREEMENT,
    STATUS_METRICS,
    agreement,
    area_under_roc,
    auc_half_width,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    intraclass_correlation,
    mcnemar_p,
    median_interval,
    rank_biserial,
    status_metrics,
    wilcoxon_p,
)


def made_up_scores(seed: int, n: int = 40, effect: float = 0.25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores with ties, and decisions at 0.5, all [n]."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    score = (rng.random(n) * 0.75 + effect * label).round(1)
    return label, score, (score >= 0.5).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_status_metrics_equal_those_of_scikit_learn(seed):
    label, score, positive = made_up_scores(seed)
    found = dict(zip(STATUS_METRICS, status_metrics(label, score, positive), strict=True))
    expected = {
        "AUC": sk.roc_auc_score(label, score), "ACC": sk.accuracy_score(label, positive),
        "balanced_ACC": sk.balanced_accuracy_score(label, positive),
        "SEN": sk.recall_score(label, positive), "SPE": sk.recall_score(label, positive, pos_label=0),
        "PPV": sk.precision_score(label, positive), "NPV": sk.precision_score(label, positive, pos_label=0),
        "F1": sk.f1_score(label, positive), "MCC": sk.matthews_corrcoef(label, positive),
        "Brier": sk.brier_score_loss(label, score)}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_many_lists_at_once_score_as_one_by_one():
    label, score, positive = made_up_scores(0)
    indices = np.random.default_rng(1).integers(0, 40, (7, 40))
    together = status_metrics(label[indices], score[indices], positive[indices])
    for k, row in enumerate(indices):
        np.testing.assert_allclose(together[:, k], status_metrics(label[row], score[row], positive[row]))


def test_one_score_for_everybody_is_exactly_chance():
    label = np.array([0, 1, 1, 0, 1, 0])
    found = dict(zip(STATUS_METRICS, status_metrics(label, np.full(6, 0.7), np.ones(6)), strict=True))
    assert [found[name] for name in ("AUC", "balanced_ACC", "MCC", "SEN", "SPE")] == [0.5, 0.5, 0, 1, 0]
    assert np.isnan(found["NPV"])


def test_a_list_of_one_label_leaves_undefined_what_needs_two():
    label, score, positive = np.zeros(4, int), np.array([.1, .2, .6, .3]), np.array([0., 0, 1, 0])
    found = dict(zip(STATUS_METRICS, status_metrics(label, score, positive), strict=True))
    assert {name for name, value in found.items() if np.isnan(value)} == {"AUC", "balanced_ACC", "SEN", "MCC"}
    assert found["SPE"] == 0.75
    unknown = status_metrics(np.array([0, 1]), np.array([.2, .6]), np.full(2, np.nan), probability=False)
    assert np.isfinite(unknown).sum() == 1                 # without threshold and probability: the AUC alone
    assert unknown[0] == 1


def test_agreement_by_hand():
    real, synthetic = np.array([1.0, 1.2, 1.4, 1.8]), np.array([1.1, 1.2, 1.3, 1.4])
    found = agreement(real, synthetic)
    assert list(found) == list(AGREEMENT)
    assert found["bias"] == pytest.approx(-0.1)
    assert found["MAE"] == pytest.approx(0.15)
    assert found["RMSE"] == pytest.approx(np.sqrt(0.18 / 4))
    assert found["Pearson"] == pytest.approx(scipy.stats.pearsonr(real, synthetic)[0])
    assert found["slope"] == pytest.approx(scipy.stats.linregress(real, synthetic).slope)
    sd = np.sqrt((0.2 ** 2 + 0.1 ** 2 + 0 + 0.3 ** 2) / 3)                    # of .1, 0, -.1, -.4 about -.1
    assert (found["LoA_low"], found["LoA_high"]) == pytest.approx((-0.1 - 1.96 * sd, -0.1 + 1.96 * sd))
    # Lin 1989, about the means 1.35 and 1.25: s_xy = 0.13 / 4, s_x^2 = 0.35 / 4, s_y^2 = 0.05 / 4
    assert found["CCC"] == pytest.approx(2 * 0.13 / (0.35 + 0.05 + 4 * 0.1 ** 2))


def test_concordance_punishes_what_correlation_forgives():
    real = np.linspace(1, 2, 9)
    assert agreement(real, real)["CCC"] == pytest.approx(1)
    for shifted in (real + 0.5, 0.3 * real):
        assert agreement(real, shifted)["Pearson"] == pytest.approx(1)
        assert agreement(real, shifted)["CCC"] < 0.6
    assert agreement(real, 1.5 + 0.2 * (real - 1.5))["slope"] == pytest.approx(0.2)
    constant = agreement(real, np.full(9, 1.5))
    assert (constant["slope"], constant["CCC"], constant["ICC"]) == (0, 0, 0)
    assert np.isnan(constant["Pearson"])
    assert np.isnan(list(agreement(real[:1], real[:1]).values())).all()


def test_the_intraclass_correlation_of_a_published_example():
    """Shrout and Fleiss 1979, Table 2: six targets, four judges; ICC(2,1), which is ICC(A,1), is 0.29."""
    ratings = np.array([[9., 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    # their Table 3, mean squares: 11.24 between targets, 32.49 between judges, 1.02 residual
    by_hand = (11.24 - 1.02) / (11.24 + 3 * 1.02 + 4 * (32.49 - 1.02) / 6)
    assert intraclass_correlation(ratings) == pytest.approx(by_hand, abs=1e-3)
    assert round(intraclass_correlation(ratings), 2) == 0.29


def test_the_intraclass_correlation_of_two_by_hand():
    real, synthetic = np.array([1.0, 2, 4, 5]), np.array([2.0, 2, 5, 7])
    # means of subjects 1.5, 2, 4.5, 6 about 3.5: mean square 2 * 13.5 / 3 = 9
    # means of raters 3 and 4: 4 * 0.5 = 2
    # residuals of the differences 1, 0, 1, 2 about their mean 1: (0 + 1 + 0 + 1) / 2 / 3 = 1 / 3
    expected = (9 - 1 / 3) / (9 + 1 / 3 + 2 * (2 - 1 / 3) / 4)
    assert agreement(real, synthetic)["ICC"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_intraclass_correlation_of_two_by_their_covariance(seed):
    """Another form: 2 s_xy / (s_x^2 + s_y^2 + d^2 - s_d^2 / n), d the differences, variances with n - 1."""
    rng = np.random.default_rng(seed)
    real = rng.normal(1.3, 0.2, 15)
    synthetic = 0.1 + 0.7 * real + rng.normal(0, 0.1, 15)
    cov, d = np.cov(real, synthetic), synthetic - real
    expected = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + d.mean() ** 2 - d.var(ddof=1) / 15)
    assert agreement(real, synthetic)["ICC"] == pytest.approx(expected)
    assert agreement(real, synthetic)["ICC"] == pytest.approx(agreement(real, synthetic)["CCC"], abs=0.03)


@pytest.mark.parametrize("ratings", [[[1.0, 1], [1, 1]], [[2.0, 2]] * 5])
def test_without_any_difference_the_intraclass_correlation_is_not_defined(ratings):
    assert np.isnan(intraclass_correlation(np.array(ratings)))


@pytest.mark.parametrize(("auc", "positives", "negatives"), [
    (0.6, 40, 40), (0.7, 10, 10), (0.8, 60, 20), (0.8, 20, 60), (0.9, 40, 40)])
@pytest.mark.parametrize(("normal", "tolerance"), [(False, 0.1), (True, 0.2)])
def test_the_expected_width_of_an_auc_is_that_of_the_bootstrap_on_simulated_subjects(
    auc, positives, negatives, normal, tolerance
):
    """The formula supposes exponential scores; with normal ones it is less exact where the labels are
    unequal."""
    rng, widths = np.random.default_rng(5), []
    label = np.repeat([1, 0], [positives, negatives])
    for _ in range(60):
        if normal:
            score = rng.normal(0, 1, len(label)) + np.sqrt(2) * scipy.stats.norm.ppf(auc) * label
        else:
            score = rng.exponential(np.where(label == 1, auc / (1 - auc), 1))
        replicates = bootstrap(
            lambda index, score=score: area_under_roc(label[index], score[index]), len(label), 400, seed=1
        )
        low, high = interval(replicates)
        widths.append(high - low)
    assert auc_half_width(auc, positives, negatives) == pytest.approx(np.nanmean(widths) / 2, rel=tolerance)


def test_the_expected_width_of_an_auc_by_hand():
    # A = 0.75: Q1 = 0.75 / 1.25 = 0.6, Q2 = 1.125 / 1.75; 2 positives, 3 negatives
    variance = (0.1875 + 1 * (0.6 - 0.5625) + 2 * (1.125 / 1.75 - 0.5625)) / 6
    assert auc_half_width(0.75, 2, 3) == pytest.approx(1.96 * np.sqrt(variance))
    assert np.isnan(auc_half_width(0.75, 0, 3)) and np.isnan(auc_half_width(0.75, 3, 0))
    assert auc_half_width(1.0, 5, 5) == 0


def test_bootstrap_interval_equals_one_by_hand():
    values = np.random.default_rng(0).normal(3, 2, 200)

    def mean(index: np.ndarray) -> np.ndarray:
        return values[index].mean(-1)
    replicates = bootstrap(mean, 200, 4000, seed=5)
    assert replicates.shape == (4000,)
    low, high = interval(replicates)
    error = values.std(ddof=0) / np.sqrt(200)              # the central limit
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    rng = np.random.default_rng(7)
    by_hand = np.percentile([values[rng.integers(0, 200, 200)].mean() for _ in range(4000)], [2.5, 97.5])
    np.testing.assert_allclose([low, high], by_hand, atol=0.1 * error)
    np.testing.assert_array_equal(replicates, bootstrap(mean, 200, 4000, seed=5))
    assert not np.array_equal(replicates, bootstrap(mean, 200, 4000, seed=6))


def test_an_interval_that_too_few_replicates_define_is_not_defined():
    replicates = np.array([[0.5] * 90 + [np.nan] * 10, [0.5] * 96 + [np.nan] * 4, [np.nan] * 100])
    low, high = interval(replicates)
    np.testing.assert_array_equal(np.isnan(low), [True, False, True])
    assert (low[1], high[1]) == (0.5, 0.5)


def delong_p(label, a, b) -> float:
    """DeLong et al. 1988 from its definition, by placement values."""
    parts = []
    for score in (a, b):
        wins = np.sign(score[label == 1][:, None] - score[label == 0][None]) / 2 + 0.5
        parts.append((wins.mean(), wins.mean(1), wins.mean(0)))
    (auc_a, pos_a, neg_a), (auc_b, pos_b, neg_b) = parts
    variance = np.var(pos_a - pos_b, ddof=1) / len(pos_a) + np.var(neg_a - neg_b, ddof=1) / len(neg_a)
    return 2 * scipy.stats.norm.sf(abs(auc_a - auc_b) / np.sqrt(variance))


@pytest.mark.parametrize("gain", [0.0, 0.15, 0.3, 0.8])
def test_paired_bootstrap_of_the_auc_agrees_with_delong(gain):
    rng = np.random.default_rng(3)
    label = np.arange(300) % 2
    a = rng.normal(0, 1, 300) + 0.5 * label
    b = a + rng.normal(0, 0.5, 300) + gain * label
    of_a = bootstrap(lambda index: area_under_roc(label[index], a[index]), 300, 4000, seed=0)
    of_b = bootstrap(lambda index: area_under_roc(label[index], b[index]), 300, 4000, seed=0)
    assert bootstrap_p(of_a, of_b) == pytest.approx(delong_p(label, a, b), abs=0.03)
    assert bootstrap_p(of_a, of_a) == 1


def test_a_difference_that_is_undefined_has_no_p():
    assert np.isnan(bootstrap_p(np.full(100, np.nan), np.zeros(100)))


def test_wilcoxon_by_hand():
    a = np.array([1.0, 2, 3, 4, 5])
    smaller = a - [0.1, 0.2, 0.3, 0.4, 0.5]
    assert wilcoxon_p(a, smaller) == pytest.approx(2 / 2 ** 5)                # 2 of 32 assignments of signs
    assert wilcoxon_p(a, a) == 1


def test_the_rank_biserial_correlation_by_hand():
    a, b = np.array([3.0, 5, 2, 7, 4]), np.array([1.0, 6, 2, 3, 1])
    # differences 2, -1, 0, 4, 3: ranks 2, 1, none, 4, 3, so (9 - 1) / 10
    assert rank_biserial(a, b) == pytest.approx(0.8)
    assert rank_biserial(b, a) == pytest.approx(-0.8)
    assert rank_biserial(a, a) == 0
    assert rank_biserial(a + 10, b) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_biserial_correlation_follows_from_the_statistic_of_wilcoxon(seed):
    """SciPy's one-sided statistic is the sum of the ranks in which a is larger, of n (n + 1) / 2 in all."""
    a, b = np.random.default_rng(seed).normal(0, 1, (2, 30)) + [[0.3], [0]]
    larger = scipy.stats.wilcoxon(a, b, alternative="greater").statistic
    assert rank_biserial(a, b) == pytest.approx(2 * larger / (30 * 31 / 2) - 1)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15),
                                                (25, 8, 18), (30, 10, 21)])
def test_the_interval_of_a_median_has_the_ends_of_published_tables(n, low, high):
    """Ranks of the sign test's 95 % interval, such as in Conover 1999 or Hollander and Wolfe 1999."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert median_interval(values) == (low, high)
    assert scipy.stats.binom.cdf(low - 1, n, 0.5) <= 0.025 < scipy.stats.binom.cdf(low, n, 0.5)


def test_five_values_have_no_interval_of_their_median_and_many_cover_it():
    assert np.isnan(median_interval(np.arange(5.0))).all()
    samples = np.random.default_rng(1).exponential(1, (400, 25))
    covered = [low <= np.log(2) <= high for low, high in map(median_interval, samples)]
    assert 0.94 <= np.mean(covered) <= 0.99                # 0.957 in theory


@pytest.mark.parametrize("seed", range(3))
def test_mcnemar_equals_that_of_statsmodels(seed):
    a, b = np.random.default_rng(seed).random((2, 60)) < [[0.8], [0.5]]
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert mcnemar_p(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert mcnemar_p(a, a) == 1


@pytest.mark.parametrize("seed", range(3))
def test_holm_equals_that_of_statsmodels(seed):
    p = np.random.default_rng(seed).random(12).round(2) ** 3
    np.testing.assert_array_equal(holm(p), multipletests(p, method="holm")[1])


def test_holm_by_hand_and_without_what_is_undefined():
    # sorted 0.01, 0.02, 0.03 times 3, 2, 1, never falling
    np.testing.assert_allclose(holm([0.02, np.nan, 0.01, 0.03]), [0.04, np.nan, 0.03, 0.04])
    assert np.isnan(holm([np.nan])).all()
    assert len(holm([])) == 0
