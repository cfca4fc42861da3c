"""Statistics of the tables: scores of amyloid status, agreement of uptake, bootstrap intervals, paired tests.

A value that is not defined (the sensitivity of a list without positives) is NaN, never 0 and never an error.
"""
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from numpy import ndarray

STATUS_METRICS = ("AUC", "ACC", "balanced_ACC", "SEN", "SPE", "PPV", "NPV", "F1", "MCC", "Brier")
AGREEMENT = ("bias", "MAE", "RMSE", "Pearson", "CCC", "ICC", "LoA_low", "LoA_high", "slope")
RESAMPLES = 2000               # of subjects, behind every 95 % interval and permutation test of the results
DEFINED = 0.95                                             # least share of the replicates


def _ratio(numerator: ndarray, denominator: ndarray) -> ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def area_under_roc(label: ndarray, score: ndarray) -> ndarray:
    """AUC over the last axis, ties counted half (Mann-Whitney); NaN with one label only.

    label: [..., n] of 0 and 1; score: [..., n]. Returns [...].
    """
    positives, negatives = label.sum(-1), (1 - label).sum(-1)
    ranks = scipy.stats.rankdata(score, axis=-1)
    return _ratio((ranks * label).sum(-1) - positives * (positives + 1) / 2, positives * negatives)


def status_metrics(label: ndarray, score: ndarray, positive: ndarray, probability: bool = True) -> ndarray:
    """The STATUS_METRICS over the last axis, as scikit-learn defines them: [10, ...].

    label: [..., n] of 0 and 1. score: [..., n], larger is more positive. positive: [..., n] of 0 and 1, the
    decision at a threshold, or NaN. The Brier score is NaN unless the score is a probability. MCC is 0 where
    all decisions are equal.
    """
    label = label.astype(float)
    tp, fp = (label * positive).sum(-1), ((1 - label) * positive).sum(-1)
    fn, tn = (label * (1 - positive)).sum(-1), ((1 - label) * (1 - positive)).sum(-1)
    sen, spe = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    product = (tp + fp) * (tn + fn)
    mcc = _ratio(tp * tn - fp * fn, np.sqrt(product * (tp + fn) * (tn + fp)))
    mcc = np.where(product == 0, 0 * sen * spe, mcc)       # still NaN with one label only
    brier = ((score - label) ** 2).mean(-1) if probability else np.full(sen.shape, np.nan)
    return np.stack([
        area_under_roc(label, score), (tp + tn) / label.shape[-1], (sen + spe) / 2, sen, spe,
        _ratio(tp, tp + fp), _ratio(tn, tn + fn), _ratio(2 * tp, 2 * tp + fp + fn), mcc, brier])


def correlation(a: ndarray, b: ndarray) -> ndarray:
    """Pearson correlation over the last axis; NaN where one of them is constant. a, b: [..., n]. Returns
    [...]."""
    of_a, of_b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    found = _ratio((of_a * of_b).sum(-1), np.sqrt((of_a ** 2).sum(-1) * (of_b ** 2).sum(-1)))
    return np.where((np.ptp(a, -1) == 0) | (np.ptp(b, -1) == 0), np.nan, found)


def agreement(real: ndarray, synthetic: ndarray) -> dict[str, float]:
    """AGREEMENT of paired uptake values [n]; errors are synthetic - real.

    CCC: concordance correlation (Lin 1989, with n in the denominators). ICC: intraclass correlation
    ICC(A,1). LoA: Bland-Altman limits, bias -+
    1.96 SD. slope: of synthetic on real by least squares; below 1 it compresses toward the mean, 0 shows
    everybody the same.
    """
    if len(real) < 2:
        return dict.fromkeys(AGREEMENT, np.nan)
    error = synthetic - real
    bias, sd = error.mean(), error.std(ddof=1)
    (var_real, cov), (_, var_synthetic) = np.cov(real, synthetic, ddof=0)
    pearson = float(_ratio(cov, np.sqrt(var_real * var_synthetic)))
    concordance = float(_ratio(2 * cov, var_real + var_synthetic + bias ** 2))
    slope = float(_ratio(cov, var_real))
    intraclass = intraclass_correlation(np.column_stack([real, synthetic]))
    if np.ptp(synthetic) == 0:                             # rounding would give a constant some correlation
        pearson, concordance, intraclass, slope = np.nan, 0.0, 0.0, 0.0
    return {"bias": bias, "MAE": np.abs(error).mean(), "RMSE": np.sqrt((error ** 2).mean()),
            "Pearson": pearson, "CCC": concordance, "ICC": intraclass,
            "LoA_low": bias - 1.96 * sd, "LoA_high": bias + 1.96 * sd, "slope": slope}


def intraclass_correlation(ratings: ndarray) -> float:
    """ICC(A,1) of ratings [n, k] of n subjects by k raters: two-way, absolute agreement, single measure
    (McGraw and Wong 1996). NaN if nothing differs."""
    n, k = ratings.shape
    of_subjects, of_raters = ratings.mean(1), ratings.mean(0)
    rest = ratings - of_subjects[:, None] - of_raters + ratings.mean()
    between_subjects = k * of_subjects.var(ddof=1)                            # mean squares
    between_raters = n * of_raters.var(ddof=1)
    residual = (rest ** 2).sum() / ((n - 1) * (k - 1))
    total = between_subjects + (k - 1) * residual + k / n * (between_raters - residual)
    return float(_ratio(between_subjects - residual, total))


def auc_half_width(auc: float, positives: int, negatives: int) -> float:
    """Expected half-width of the 95 % interval of an AUC with so many subjects (Hanley and McNeil 1982).

    NaN with one label only.
    """
    if not positives or not negatives:
        return np.nan
    both_above = auc / (2 - auc)                           # two positives above one negative
    both_below = 2 * auc ** 2 / (1 + auc)  # one positive above two negatives
    variance = (
        auc * (1 - auc) + (positives - 1) * (both_above - auc**2) + (negatives - 1) * (both_below - auc**2)
    )
    return 1.96 * float(np.sqrt(variance / (positives * negatives)))


# ---------------------------------------------------------------- bootstrap

def bootstrap(statistic: Callable[[ndarray], ndarray], n: int, resamples: int, seed: int) -> ndarray:
    """Replicates of a statistic, [..., resamples]: its values on lists of n subjects drawn with replacement.

    statistic: indices of subjects [R, n] -> [..., R]; NaN for fewer than two subjects. The indices depend on
    n and seed alone, so that the replicates of two statistics of one list are paired.
    """
    if n < 2:
        return np.full_like(statistic(np.zeros((resamples, n), int)), np.nan)

    def statistic_over_last_axis(indices: ndarray, axis: int) -> ndarray:
        return statistic(indices)                          # the axis of the subjects is always the last here

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)    # of a constant
        result = scipy.stats.bootstrap(
            (np.arange(n),), statistic_over_last_axis, n_resamples=resamples, method="percentile", batch=500,
            rng=np.random.default_rng(seed))
    return result.bootstrap_distribution


def interval(replicates: ndarray) -> tuple[ndarray, ndarray]:
    """95 % percentile interval over the last axis; NaN where fewer than DEFINED of them exist."""
    defined = np.isfinite(replicates).mean(-1) >= DEFINED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)    # of a metric without any defined replicate
        low, high = np.nanpercentile(replicates, [2.5, 97.5], axis=-1)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def bootstrap_p(replicates_a: ndarray, replicates_b: ndarray) -> float:
    """Two-sided p of "no difference" from paired bootstrap replicates [R].

    It is the share of differences beyond 0, doubled; NaN if fewer than DEFINED of them exist.
    """
    difference = replicates_a - replicates_b
    difference = difference[np.isfinite(difference)]
    if len(difference) < DEFINED * len(replicates_a):
        return np.nan
    tail = min((difference <= 0).sum(), (difference >= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(difference) + 1))                   # + 1: p is never 0


# ---------------------------------------------------------------- paired tests

def wilcoxon_p(a: ndarray, b: ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test of paired values [n]; 1 if they are all equal."""
    if np.array_equal(a, b):
        return 1.0
    return float(scipy.stats.wilcoxon(a, b).pvalue)


def rank_biserial(a: ndarray, b: ndarray) -> float:
    """Matched-pairs rank-biserial correlation of paired values [n], in [-1, 1] (Kerby 2014): share of the
    ranks of the differences in which a is larger, less that in which b is; equal pairs are left out, 0 if all
    are. The effect size of wilcoxon_p."""
    difference = (a - b)[a != b]
    if not len(difference):
        return 0.0
    ranks = scipy.stats.rankdata(np.abs(difference))
    return float((ranks * np.sign(difference)).sum() / ranks.sum())


def median_interval(values: ndarray) -> tuple[float, float]:
    """95 % interval of the median of values [n], between two of them (Conover 1999); NaN below 6 values."""
    found = scipy.stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(found.low), float(found.high)


def mcnemar_p(correct_a: ndarray, correct_b: ndarray) -> float:
    """Two-sided p of the exact McNemar test. correct_a, correct_b: [n] bool, whether one is right."""
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p: Sequence[float]) -> ndarray:
    """p values adjusted for their number (Holm 1979); NaN stays NaN and does not count."""
    p = np.asarray(p, float)
    order = np.argsort(p)[:np.isfinite(p).sum()]           # from the smallest; NaN would be last
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted
