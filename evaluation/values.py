"""The values of one row of a table: every metric over its runs, with spread and interval, and paired tests.

The runs of a row are tables of subjects, indexed by ID, by (cohort, seed): several seeds on one list, or
several lists.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation import statistics
from evaluation.spectrum import SPECTRAL
from evaluation.statistics import (
    AGREEMENT,
    STATUS_METRICS,
    agreement,
    bootstrap,
    bootstrap_p,
    interval,
    mcnemar_p,
    median_interval,
    rank_biserial,
    status_metrics,
    wilcoxon_p,
)
from utils import METRICS, derived_seed

Runs = dict[tuple[str, int], pd.DataFrame]


@dataclass
class Values:
    """One metric of one row. spread: SD over seeds or subjects. low, high: ends of its 95 % interval."""
    value: float
    spread: float = np.nan
    low: float = np.nan
    high: float = np.nan


def _over_seeds(values: list[float], std_over_subjects: float = np.nan) -> Values:
    """Mean and SD over the seeds; with one seed the SD is that over subjects."""
    spread = std_over_subjects if len(values) == 1 else float(np.std(values, ddof=1))
    return Values(float(np.mean(values)), spread)


def image_values(runs: Runs) -> dict[str, Values]:
    """Every image score that all runs have: an earlier version measured no spectrum."""
    frames = list(runs.values())
    values = {}
    for name in (*METRICS, *SPECTRAL):
        if not all(name in frame for frame in frames):
            continue
        values[name] = _over_seeds([frame[name].mean() for frame in frames], frames[0][name].std())
    return values


def uptake_values(runs: Runs) -> dict[str, Values]:
    """Agreement of a method's uptake (column value) with that of the real PET (column real).

    With one seed, bias and MAE have an SD over subjects.
    """
    frames = list(runs.values())
    found = [agreement(frame["real"].to_numpy(), frame["value"].to_numpy()) for frame in frames]
    error = frames[0]["value"] - frames[0]["real"]
    over_subjects = {"bias": error.std(), "MAE": error.abs().std()}
    values = {}
    for name in AGREEMENT:
        values[name] = _over_seeds([one[name] for one in found], over_subjects.get(name, np.nan))
    return values


Statistic = Callable[[np.ndarray], np.ndarray]             # indices of subjects [..., n] -> [metrics, ...]


def values_of_lists(runs: Runs, names: tuple[str, ...], statistic_of: Callable[[pd.DataFrame], Statistic]
                    ) -> tuple[dict[str, Values], dict[str, np.ndarray]]:
    """Metrics of lists as a whole with their intervals, and their bootstrap replicates [RESAMPLES].

    names: of what the statistic of a run's subjects gives. Values and replicates are averaged over the seeds,
    so that the replicates of two rows of one list stay paired.
    """
    scores, replicates = [], []                            # of each run: [metrics] and [metrics, RESAMPLES]
    for (cohort, _), frame in runs.items():
        statistic = statistic_of(frame)
        scores.append(statistic(np.arange(len(frame))))
        seed = derived_seed("bootstrap", cohort)
        replicates.append(bootstrap(statistic, len(frame), statistics.RESAMPLES, seed))
    mean_replicates = np.mean(replicates, axis=0)
    low, high = interval(mean_replicates)
    values = {}
    for i, name in enumerate(names):
        values[name] = _over_seeds([one[i] for one in scores])
        values[name].low, values[name].high = low[i], high[i]
    return values, dict(zip(names, mean_replicates, strict=True))


def status_values(runs: Runs, is_probability: bool) -> tuple[dict[str, Values], dict[str, np.ndarray]]:
    """Every status metric with its interval, and its bootstrap replicates [RESAMPLES].

    is_probability: whether the column score is one.
    """
    def statistic_of(frame: pd.DataFrame) -> Statistic:
        """The status metrics of the subjects of one run, as a function of their indices."""
        label, score, positive = (frame[name].to_numpy(float) for name in ("label", "score", "positive"))

        def metrics(index: np.ndarray) -> np.ndarray:
            return status_metrics(label[index], score[index], positive[index], is_probability)
        return metrics
    return values_of_lists(runs, STATUS_METRICS, statistic_of)


# ---------------------------------------------------------------- paired tests of two rows

def per_subject(runs: Runs, value: Callable[[pd.DataFrame], pd.Series]) -> np.ndarray:
    """The value of every subject, averaged over the seeds, in the order of (cohort, ID): [n]."""
    series = [value(frame) for frame in runs.values()]
    stacked = pd.concat(series, keys=[cohort for cohort, _ in runs])
    return stacked.groupby(level=[0, 1]).mean().to_numpy()


def absolute_error(frame: pd.DataFrame) -> pd.Series:
    """Absolute error of the uptake of each subject."""
    return (frame["value"] - frame["real"]).abs()


def correct(frame: pd.DataFrame) -> pd.Series:
    """1 where the decision on the status is right, 0 where not, NaN where there is no threshold."""
    return 1 - (frame["positive"] - frame["label"]).abs()


@dataclass(frozen=True)
class Comparison:
    """How two rows differ in a metric: two-sided p of "no difference"; difference a - b with its 95 %
    interval, of a value per subject the median over the subjects; and for that the rank-biserial
    correlation."""
    p: float
    difference: float
    difference_low: float
    difference_high: float
    rank_biserial: float = np.nan


def compare_values(a: Runs, b: Runs, value: Callable[[pd.DataFrame], pd.Series]) -> Comparison:
    """The Wilcoxon test of a value per subject, with its effect sizes."""
    of_a, of_b = per_subject(a, value), per_subject(b, value)
    difference = of_a - of_b
    return Comparison(wilcoxon_p(of_a, of_b), float(np.median(difference)), *median_interval(difference),
                      rank_biserial(of_a, of_b))


def compare_replicates(p: float, a: Values, b: Values, replicates_a: np.ndarray,
                       replicates_b: np.ndarray) -> Comparison:
    """The difference of a metric of the lists as a whole, with its interval from paired bootstrap replicates
    [R].
    """
    low, high = interval(replicates_a - replicates_b)
    return Comparison(p, a.value - b.value, float(low), float(high))


def accuracy_p(a: Runs, b: Runs, replicates_a: np.ndarray, replicates_b: np.ndarray) -> float:
    """p of McNemar's test, which takes one decision a subject; of the bootstrap if seeds give several.

    replicates_a, replicates_b: bootstrap replicates of the accuracy, [R].
    """
    if _has_several_seeds(a) or _has_several_seeds(b):
        return bootstrap_p(replicates_a, replicates_b)
    correct_a, correct_b = per_subject(a, correct), per_subject(b, correct)
    if not (np.isfinite(correct_a).all() and np.isfinite(correct_b).all()):
        return np.nan
    return mcnemar_p(correct_a == 1, correct_b == 1)


def _has_several_seeds(runs: Runs) -> bool:
    return len(runs) > len({cohort for cohort, _ in runs})
