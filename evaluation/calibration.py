"""The table of calibration: how well predicted probabilities of positive status fit the labels of the test
list."""
import dataclasses

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy.special import expit, logit

from evaluation.results import Run
from evaluation.rows import Group, collect_rows, tidy_table
from evaluation.values import Statistic, values_of_lists

BINS = 10                                                  # of equal width, of the expected calibration error
NEAREST = 1e-6                                           # to 0 and 1 that a probability is taken for its odds
STEPS, LARGEST_STEP, CONVERGED = 200, 2.0, 1e-9            # of Newton's method, in standard deviations
CALIBRATION = ("slope", "intercept", "ECE")
CALIBRATED = "calibrated"                                  # name of the probability in uncertainty.csv

CAPTION = (
    "Calibration of the probabilities of positive status on the test list, with 95 % bootstrap intervals "
    "over subjects ({resamples} resamples; ± SD over seeds where there are several). Slope and intercept: "
    "logistic regression of the label on the log odds of the probability, 1 and 0 if it is calibrated; slope "
    "below 1: too extreme. Not defined if a probability separates the labels, or is the same for everybody. "
    "ECE: expected calibration error in 10 bins of equal width; it is above 0 by chance alone, the more the "
    "fewer the subjects; as its resamples are larger than itself, its interval is twice the estimate minus "
    "their percentiles, not below 0. calibrated: the probability of "
    "uncertainty.csv, from the SUVR of the synthetic PET.")


def recalibration(label: ndarray, probability: ndarray) -> ndarray:
    """Slope and intercept of the logistic regression, without a penalty, of labels [..., n] of 0 and 1 on the
    log odds of probabilities [..., n], over the last axis: [2, ...]. NaN where there is no largest
    likelihood.

    By Newton's method for all lists at once: a fit by scikit-learn for each of thousands of resamples takes
    minutes.
    """
    odds = logit(np.clip(probability, NEAREST, 1 - NEAREST))
    exists = _overlaps(label, odds)
    mean, std = odds.mean(-1), odds.std(-1)
    x = (odds - mean[..., None]) / np.where(exists, std, 1)[..., None]
    slope, intercept = np.zeros(mean.shape), np.zeros(mean.shape)
    for _ in range(STEPS):
        p = expit(slope[..., None] * x + intercept[..., None])
        weight, rest = p * (1 - p), label - p
        a, b, c = weight.sum(-1), (weight * x).sum(-1), (weight * x * x).sum(-1)
        gradient_0, gradient_1 = rest.sum(-1), (rest * x).sum(-1)
        determinant = np.where(exists, np.maximum(a * c - b * b, 1e-300), 1)
        step_0 = np.where(exists, (c * gradient_0 - b * gradient_1) / determinant, 0)
        step_1 = np.where(exists, (a * gradient_1 - b * gradient_0) / determinant, 0)
        intercept = intercept + np.clip(step_0, -LARGEST_STEP, LARGEST_STEP)
        slope = slope + np.clip(step_1, -LARGEST_STEP, LARGEST_STEP)
        moved = np.maximum(np.abs(step_0), np.abs(step_1))
        if moved.max(initial=0) < CONVERGED:
            break
    found = np.stack([slope / np.where(exists, std, 1), intercept - slope * mean / np.where(exists, std, 1)])
    return np.where(exists & (moved < 1e-6), found, np.nan)


def _overlaps(label: ndarray, odds: ndarray) -> ndarray:
    """Whether neither label lies above the other, so that the likelihood has a largest value (Albert and
    Anderson 1984)."""
    is_positive = label == 1
    top_0, low_0 = (np.where(is_positive, -np.inf, odds).max(-1), np.where(is_positive, np.inf, odds).min(-1))
    top_1, low_1 = (np.where(is_positive, odds, -np.inf).max(-1), np.where(is_positive, odds, np.inf).min(-1))
    return (top_0 > low_1) & (top_1 > low_0)


def calibration_error(label: ndarray, probability: ndarray) -> ndarray:
    """Expected calibration error over the last axis, in BINS bins of equal width: the mean over the subjects
    of |mean label - mean probability| of their bin. label, probability: [..., n]. Returns [...]."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)             # 1 lies in the last one
    error = np.zeros(probability.shape[:-1])
    for number in range(BINS):
        error += np.abs(((bins == number) * (label - probability)).sum(-1))
    return error / probability.shape[-1]


def _statistic_of(frame: pd.DataFrame) -> Statistic:
    label, score = (frame[name].to_numpy(float) for name in ("label", "score"))

    def statistic(index: ndarray) -> ndarray:
        chosen, probability = label[index], score[index]
        error = calibration_error(chosen, probability)
        return np.concatenate([recalibration(chosen, probability), error[None]])
    return statistic


def calibration(groups: list[Group], order: tuple[str, ...]) -> pd.DataFrame:
    """Tidy table of the probabilities of all status classifiers that give one.

    order: of classifiers and methods.
    """
    changed = [Group(group.name, group.section, [_probabilities(run) for run in group.runs])
               for group in groups]
    rows = collect_rows(changed, "predictions", ("classifier", "method"), (*order, CALIBRATED))
    values = [values_of_lists(row.runs, CALIBRATION, _statistic_of)[0] for row in rows]
    for of_row in values:
        error = of_row["ECE"]
        # The error of a resample is as far above the estimate as this is above the true error, so the
        # interval is mirrored at the estimate: the basic bootstrap (Davison and Hinkley 1997).
        low, high = 2 * error.value - error.high, 2 * error.value - error.low
        error.low, error.high = max(low, 0.0), max(high, 0.0)
    return tidy_table(rows, ("classifier", "method"), values)


def _probabilities(run: Run) -> Run:
    """The run with the calibrated probability as a status classifier, and without those that give none."""
    if run.predictions is None:
        return run
    gives_one = run.predictions["classifier"] != "suvr"
    parts = [run.predictions.loc[gives_one, ["classifier", "method", "ID", "label", "score"]]]
    if run.uncertainty is not None:
        own = run.uncertainty[["ID", "label", "probability"]].dropna()
        own = own.rename(columns={"probability": "score"})
        parts.append(own.assign(classifier=CALIBRATED, method="il_cldm"))
    return dataclasses.replace(run, predictions=pd.concat(parts, ignore_index=True))
