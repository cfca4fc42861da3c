"""Statistics of the tables: scores of amyloid status, agreement of uptake, bootstrap intervals, paired tests.

A value that is not defined (the sensitivity of a list without positives) is NaN, never 0 and never an error.
"""
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from numpy import ndarray

STATUS_METRICS = ("AUC", "ACC", "balanced_ACC", "SEN", "SPE", "PPV", "NPV", "F1", "MCC", "Brier")
AGREEMENT = ("bias", "MAE", "RMSE", "Pearson", "CCC", "LoA_low", "LoA_high", "slope")
DEFINED = 0.95                                             # share of the resamples in which a metric must exist to get an interval


def _ratio(numerator: ndarray, denominator: ndarray) -> ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def area_under_roc(label: ndarray, score: ndarray) -> ndarray:
    """AUC over the last axis, ties counted half (Mann-Whitney); NaN with one label only. label, score: [..., n] -> [...]."""
    positives, negatives = label.sum(-1), (1 - label).sum(-1)
    ranks = scipy.stats.rankdata(score, axis=-1)
    return _ratio((ranks * label).sum(-1) - positives * (positives + 1) / 2, positives * negatives)


def status_metrics(label: ndarray, score: ndarray, positive: ndarray, probability: bool = True) -> ndarray:
    """The STATUS_METRICS over the last axis, as scikit-learn defines them: [10, ...].

    label: [..., n] of 0 and 1; score: [..., n], larger is more positive; positive: [..., n] of 0 and 1, the call at a threshold, or NaN.
    The Brier score is NaN unless the score is a probability. MCC is 0 where all calls are equal.
    """
    label = label.astype(float)
    tp, fp = (label * positive).sum(-1), ((1 - label) * positive).sum(-1)
    fn, tn = (label * (1 - positive)).sum(-1), ((1 - label) * (1 - positive)).sum(-1)
    sen, spe = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    product = (tp + fp) * (tn + fn)
    mcc = np.where(product == 0, 0 * sen * spe, _ratio(tp * tn - fp * fn, np.sqrt(product * (tp + fn) * (tn + fp))))
    brier = ((score - label) ** 2).mean(-1) if probability else np.full(sen.shape, np.nan)
    return np.stack([area_under_roc(label, score), (tp + tn) / label.shape[-1], (sen + spe) / 2, sen, spe, _ratio(tp, tp + fp),
                     _ratio(tn, tn + fn), _ratio(2 * tp, 2 * tp + fp + fn), mcc, brier])


def agreement(real: ndarray, synthetic: ndarray) -> dict[str, float]:
    """AGREEMENT of paired uptake values [n]; errors are synthetic - real.

    CCC: concordance correlation (Lin 1989, with n in the denominators). LoA: Bland-Altman limits, bias -+ 1.96 SD. slope: of synthetic
    on real by least squares; below 1 it compresses toward the mean, 0 shows everybody the same.
    """
    error = synthetic - real
    if len(real) < 2:
        return dict.fromkeys(AGREEMENT, np.nan)
    bias, sd = error.mean(), error.std(ddof=1)
    (var_real, cov), (_, var_synthetic) = np.cov(real, synthetic, ddof=0)
    constant = np.ptp(synthetic) == 0                      # rounding would give a constant some correlation
    return {"bias": bias, "MAE": np.abs(error).mean(), "RMSE": np.sqrt((error ** 2).mean()),
            "Pearson": np.nan if constant else float(_ratio(cov, np.sqrt(var_real * var_synthetic))),
            "CCC": 0.0 if constant else float(_ratio(2 * cov, var_real + var_synthetic + bias ** 2)),
            "LoA_low": bias - 1.96 * sd, "LoA_high": bias + 1.96 * sd, "slope": 0.0 if constant else float(_ratio(cov, var_real))}


# ---------------------------------------------------------------- bootstrap

def bootstrap(statistic: Callable[[ndarray], ndarray], n: int, resamples: int, seed: int) -> ndarray:
    """The statistic of `resamples` draws of n subjects with replacement: [..., resamples].

    statistic: indices [R, n] -> [..., R]; NaN for fewer than two subjects. The draws depend on n and seed alone, so that two
    statistics of one list are paired.
    """
    if n < 2:
        return np.full_like(statistic(np.zeros((resamples, n), int)), np.nan)

    def of_draws(indices: ndarray, axis: int) -> ndarray:
        return statistic(indices)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)                   # a constant: its interval is a point
        return scipy.stats.bootstrap((np.arange(n),), of_draws, n_resamples=resamples, method="percentile", batch=500,
                                     rng=np.random.default_rng(seed)).bootstrap_distribution


def interval(draws: ndarray) -> tuple[ndarray, ndarray]:
    """95 % percentile interval over the last axis; NaN where fewer than DEFINED of the draws are."""
    defined = np.isfinite(draws).mean(-1) >= DEFINED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)    # a metric that no draw defines
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=-1)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def bootstrap_p(draws_a: ndarray, draws_b: ndarray) -> float:
    """Two-sided p of "no difference" from paired bootstrap draws [R]: the share of differences beyond 0, doubled; NaN if undefined."""
    difference = (draws_a - draws_b)[np.isfinite(draws_a - draws_b)]
    if len(difference) < DEFINED * len(draws_a):
        return np.nan
    tail = min((difference <= 0).sum(), (difference >= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(difference) + 1))                                  # + 1: p is never 0


# ---------------------------------------------------------------- paired tests

def wilcoxon_p(a: ndarray, b: ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test of paired values [n]; 1 if they are all equal."""
    if np.array_equal(a, b):
        return 1.0
    return float(scipy.stats.wilcoxon(a, b).pvalue)


def mcnemar_p(right_a: ndarray, right_b: ndarray) -> float:
    """Two-sided p of the exact McNemar test, from which calls [n] bool of two methods are right."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p: Sequence[float]) -> ndarray:
    """p values adjusted for their number (Holm 1979); NaN stays NaN and does not count."""
    from statsmodels.stats.multitest import multipletests  # here, because importing it takes seconds

    p = np.asarray(p, float)
    adjusted, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted
