"""Samples of a predictive distribution against what was true: CRPS, PIT, coverage and energy score.

An ensemble is m samples of the uptake that a scan might show. It is good if the truth looks like one more
sample (calibrated), and the better the less its samples differ (sharp); CRPS and energy score weigh both in
the unit of the uptake (Gneiting and Raftery 2007, JASA). A value that is not defined is NaN.
"""
import numpy as np
import pandas as pd
import scipy.stats
from numpy import ndarray

LEVELS = (50, 80, 90)                                      # percent, of the central intervals


def fair_crps(samples: ndarray, truth: ndarray) -> ndarray:
    """Continuous ranked probability score of ensembles [n, m] for the truth [n]: [n], 0 is perfect.

    The fair estimator, mean |x_i - y| - sum |x_i - x_j| / (2 m (m - 1)) (Ferro 2014): its mean does not
    depend on m, so that ensembles of different sizes can be compared. Of one sample it is |x - y|.
    """
    return energy_score(samples[:, :, None], truth[:, None])


def energy_score(samples: ndarray, truth: ndarray) -> ndarray:
    """Energy score of ensembles [n, m, r] of r regions for the truth [n, r]: [n]. The fair estimator, with
    Euclidean distances in the place of the CRPS' absolute differences."""
    m = samples.shape[1]
    to_truth = np.linalg.norm(samples - truth[:, None], axis=-1).mean(-1)
    if m == 1:
        return to_truth
    between = np.zeros(len(samples))
    for i in range(1, m):                                  # all pairs at once would not fit into memory
        between += np.linalg.norm(samples[:, i:] - samples[:, :-i], axis=-1).sum(-1)
    return to_truth - between / (m * (m - 1))


def pit(samples: ndarray, truth: ndarray, u: ndarray) -> ndarray:
    """Probability integral transform of the truth [n] in ensembles [n, m]: [n], uniform in [0, 1) if the
    ensembles are calibrated.

    (rank + u) / (m + 1), where the rank is the number of samples below the truth and u [n] is uniform in
    [0, 1) and breaks its steps; samples that equal the truth lie below it with equal chances for every
    number of them.
    """
    below = (samples < truth[:, None]).sum(-1)
    equal = (samples == truth[:, None]).sum(-1)
    places = (below + u * (equal + 1)) / (samples.shape[1] + 1)
    return np.where(np.isfinite(samples.sum(-1) + truth), places, np.nan)


def central_interval(samples: ndarray, level: float) -> tuple[ndarray, ndarray]:
    """Both ends [n] of the central interval of `level` percent of ensembles [n, m].

    By the quantiles of Weibull, at place p (m + 1) of the ordered samples: the chance that one more sample
    lies below the k-th of m is k / (m + 1), so that the interval is not too narrow because m is small. Where
    m is too small for the level, its ends are the smallest and the largest sample.
    """
    tail = (100 - level) / 200
    low, high = np.quantile(samples, [tail, 1 - tail], axis=-1, method="weibull")
    return low, high


def covered(samples: ndarray, truth: ndarray, level: float) -> ndarray:
    """Whether the truth [n] lies in the central interval of ensembles [n, m]: [n] of 0 and 1, or NaN."""
    low, high = central_interval(samples, level)
    inside = ((low <= truth) & (truth <= high)).astype(float)
    return np.where(np.isfinite(low + high + truth), inside, np.nan)


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n subjects (Wilson 1927); NaN of none."""
    if not n:
        return np.nan, np.nan
    found = scipy.stats.binomtest(round(hits), n).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def expected_coverage(level: float, n: int, calibrated_on: int) -> tuple[float, float]:
    """The range in which 95 % of the coverages of n subjects lie if a distribution was calibrated on a list
    of `calibrated_on` others that are like them.

    The chance that an interval of that list covers is itself a draw, from Beta(k, N + 1 - k) with k =
    level (N + 1), and the number of covered subjects is beta-binomial (Vovk 2012). A list too short for the
    level gives no more than its smallest to its largest value, k = N - 1.
    """
    share = min(level / 100 * (calibrated_on + 1), calibrated_on - 1)
    law = scipy.stats.betabinom(n, share, calibrated_on + 1 - share)
    return float(law.ppf(0.025)) / n, float(law.ppf(0.975)) / n


def uniform_p(values: ndarray) -> float:
    """p of the Kolmogorov-Smirnov test that PIT values [n] are uniform; NaN of fewer than two."""
    known = values[np.isfinite(values)]
    return float(scipy.stats.kstest(known, "uniform").pvalue) if len(known) > 1 else np.nan


def score_ensembles(samples: dict[str, ndarray], truth: dict[str, ndarray], u: ndarray) -> pd.DataFrame:
    """A row a scan: SUVR_real, SUVR (mean of its samples), SUVR_sd, CRPS, PIT, covered_<level>; and of
    further regions CRPS_regions and covered_80_regions, their means, and the energy score over them all.

    samples: name of the uptake (SUVR, SUVR_<region>) -> [n, m]. truth: the same names -> [n]. u: [n], for
    pit.
    """
    suvr, real = samples["SUVR"], truth["SUVR"]
    spread = suvr.std(-1, ddof=1) if suvr.shape[1] > 1 else np.zeros(len(suvr))
    table = {"SUVR_real": real, "SUVR": suvr.mean(-1), "SUVR_sd": spread, "CRPS": fair_crps(suvr, real),
             "PIT": pit(suvr, real, u)}
    table |= {f"covered_{level}": covered(suvr, real, level) for level in LEVELS}
    regions = [name for name in samples if name != "SUVR"]
    if regions:
        table["CRPS_regions"] = np.mean([fair_crps(samples[name], truth[name]) for name in regions], axis=0)
        inside = [covered(samples[name], truth[name], 80) for name in regions]
        table["covered_80_regions"] = np.mean(inside, axis=0)
        table["energy"] = energy_score(np.stack([samples[name] for name in regions], axis=-1),
                                       np.stack([truth[name] for name in regions], axis=-1))
    return pd.DataFrame(table)


def with_errors(value: ndarray, errors: ndarray) -> ndarray:
    """Ensembles [n, k] of values [n] with the k errors (true - predicted) of subjects of another list, finite
    ones alone: the split-conformal predictive distribution (Vovk et al. 2017)."""
    return value[:, None] + errors[None, np.isfinite(errors)]
