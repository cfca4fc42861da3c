"""The uncertainty of a synthetic PET: an interval of its SUVR, and the probability of amyloid status.

Both are calibrated on the validation list alone. A list of subjects is a table with the columns ID, label,
SUVR (of the PET that is written), SUVR_sd (standard deviation over its decoded latent samples) and SUVR_real.

The interval is split conformal prediction with normalised scores (Papadopoulos et al. 2002; Lei et al. 2018,
JASA, Section 5.2): an error counts in units of SUVR_sd plus a floor, and the interval is as wide as COVERAGE
% of the validation errors need. It is a promise on average over scans that are like those of the validation
list, whatever the networks are worth: poor ones have wide intervals.
"""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from runtime.files import atomic, brief, read_own_arrays
from utils import InputError

AGAIN = "--stages test writes it again"                    # of a damaged file
COVERAGE = 90                                              # percent
LEAST = -(-COVERAGE // (100 - COVERAGE))                   # validation subjects that such a quantile needs


@dataclass(frozen=True)
class Calibration:
    """Errors of the SUVR on the validation list, and how its amyloid status follows the SUVR.

    error: |SUVR_real - SUVR| [n], infinite for a PET without SUVR. std: SUVR_sd [n]. slope, intercept: of the
    log odds of positive status in the SUVR, NaN if they are not known. prevalence: of positive status, or
    NaN.
    """
    error: ndarray
    std: ndarray
    slope: float = float("nan")
    intercept: float = float("nan")
    prevalence: float = float("nan")

    @property
    def rank(self) -> int:
        """Position of the quantile among the sorted validation scores, counted from 1; it may be above n."""
        return -(-(len(self.error) + 1) * COVERAGE // 100)

    @property
    def why_no_interval(self) -> str:
        """Why there is no interval, or nothing."""
        usable = int(np.isfinite(self.error).sum())
        if self.rank <= usable:
            return ""
        return f"it needs {max(self.rank, LEAST)} validation subjects with an SUVR, there are {usable}"

    @property
    def floor(self) -> float:
        """The mean error, added to SUVR_sd to get the unit of an error.

        Latent samples that differ much less than they err say little of the errors, and then all intervals
        are nearly as wide; with one sample they are. (The mean SUVR_sd as a floor would let them vary.)
        """
        return float(self.error[np.isfinite(self.error)].mean()) or 1.0

    @property
    def key(self) -> str:
        """8 hexadecimal digits that identify its numbers."""
        numbers = np.concatenate([self.error, self.std, [self.slope, self.intercept, self.prevalence]])
        return hashlib.blake2b(numbers.astype("<f8").tobytes(), digest_size=4).hexdigest()

    def interval(self, suvr: ndarray, std: ndarray) -> tuple[ndarray, ndarray]:
        """Lower and upper end for scans with these SUVR and SUVR_sd, all [k]; NaN where there is none."""
        if self.why_no_interval:
            return np.full_like(suvr, np.nan), np.full_like(suvr, np.nan)
        scores = np.sort(self.error / (self.std + self.floor))
        half = scores[self.rank - 1] * (std + self.floor)
        return suvr - half, suvr + half

    def probability(self, suvr: ndarray) -> ndarray:
        """Probability of positive status [k] at these SUVR; NaN where it is not known."""
        return expit(self.slope * suvr + self.intercept)


def calibrate(validation: pd.DataFrame, binary: bool) -> Calibration:
    """The calibration from the validation list. binary: whether the labels are those of amyloid status."""
    label, suvr, std = (validation[name].to_numpy() for name in ("label", "SUVR", "SUVR_sd"))
    error = np.abs(validation["SUVR_real"].to_numpy() - suvr)
    known = np.isfinite(error) & np.isfinite(std)
    error, std = np.where(known, error, np.inf), np.where(known, std, 0.0)
    has_suvr = np.isfinite(suvr)
    if not binary or len(np.unique(label[has_suvr])) < 2:
        return Calibration(error, std)
    slope, intercept = fit_odds(label[has_suvr], suvr[has_suvr])
    return Calibration(error, std, slope, intercept, prevalence=float(label.mean()))


def fit_odds(label: ndarray, suvr: ndarray) -> tuple[float, float]:
    """Slope and intercept of the log odds of label 1 in the SUVR (Platt 1999).

    By logistic regression on the standardised SUVR, with an L2 penalty.
    label: [n] of 0 and 1, both there; suvr: [n]. A higher SUVR never speaks against amyloid: a slope that a
    short list turns round becomes 0, which leaves the share of label 1.
    """
    flat = 0.0, float(logit(label.mean()))
    if np.ptp(suvr) == 0:
        return flat
    mean, std = suvr.mean(), suvr.std()
    model = LogisticRegression().fit(((suvr - mean) / std)[:, None], label)
    slope = float(model.coef_[0, 0] / std)
    if slope <= 0:
        return flat
    return slope, float(model.intercept_[0] - slope * mean)


# ---------------------------------------------------------------- how good it is, on the test list

def assess(calibration: Calibration, test: pd.DataFrame) -> pd.DataFrame:
    """A row a subject of the test list, with interval and probability; NaN where they are not known.

    Columns: ID, label, SUVR_real, SUVR, SUVR_sd, low, high, covered (0 or 1: whether SUVR_real lies in the
    interval), probability.
    """
    real, suvr, std = (test[name].to_numpy() for name in ("SUVR_real", "SUVR", "SUVR_sd"))
    low, high = calibration.interval(suvr, std)
    covered = np.nan
    if not calibration.why_no_interval:
        covered = ((low <= real) & (real <= high)).astype(int)
    table = test[["ID", "label", "SUVR_real", "SUVR", "SUVR_sd"]]
    return table.assign(low=low, high=high, covered=covered, probability=calibration.probability(suvr))


def describe(calibration: Calibration, assessed: pd.DataFrame) -> str:
    """The quality of intervals and probabilities in a line. assessed: as assess gives it."""
    n, calibrated_on = len(assessed), f"calibrated on {len(calibration.error)} validation subjects"
    if calibration.why_no_interval:
        interval = f"no interval of the SUVR: {calibration.why_no_interval}"
    else:
        hits, width = int(assessed["covered"].sum()), (assessed["high"] - assessed["low"]).mean()
        limits = binomtest(hits, n).proportion_ci(method="wilson")
        interval = (f"{COVERAGE} % interval of the SUVR, {calibrated_on}: holds the real one in {hits} of "
                    f"{n} test subjects ({hits / n:.0%}, 95 % interval {limits.low:.0%} to "
                    f"{limits.high:.0%}), mean width {width:.3f}")
    if np.isnan(calibration.slope):
        return (f"{interval}; no probability of status: it needs num_classes 2 and both labels in the "
                "validation list")
    brier = ((assessed["probability"] - assessed["label"]) ** 2).mean()
    of_prevalence = ((calibration.prevalence - assessed["label"]) ** 2).mean()
    return (f"{interval}; probability of status, {calibrated_on}: Brier score {brier:.3f}, that of their "
            f"prevalence alone {of_prevalence:.3f}")


# ---------------------------------------------------------------- for new scans

def save_calibration(path: Path, calibration: Calibration, bound_to: dict) -> None:
    """Write a calibration as plain arrays, with what it is valid for as JSON."""
    with atomic(path) as partial:
        np.savez(partial, bound_to=np.asarray(json.dumps(bound_to)), **vars(calibration))


def load_calibration(path: Path, bound_to: dict) -> tuple[Calibration | None, str]:
    """The calibration in a file of save_calibration if it is valid for what bound_to says; else None and why.

    Raises InputError if the file is damaged.
    """
    if not path.exists():
        return None, f"not calibrated; --stages test does it and writes {path}"
    arrays = read_own_arrays(path, AGAIN)
    try:
        saved = json.loads(str(arrays.pop("bound_to")))
        numbers = {name: value if value.ndim else float(value) for name, value in arrays.items()}
        calibration = Calibration(**numbers)
        changes = []
        for name, value in bound_to.items():
            if saved.get(name) != value:
                changes.append(f"{name}: {saved.get(name)} -> {value}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); {AGAIN}") from error
    if changes:
        return None, f"calibrated for others (saved -> now): {'; '.join(changes)}"
    return calibration, ""
