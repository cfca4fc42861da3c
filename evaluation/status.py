"""Amyloid status by status classifiers: fitted on the training list, thresholds from the validation list.

A list of subjects is a table with the columns ID, label (0 or 1), mri and pet (arrays [d, h, w], pooled to
about 8 mm), SUVR if there are regions, age and sex if data_info.csv has them, and the covariates that the
settings name. Labels are used by fit_status_classifiers alone: the score of a test subject never depends on a
label of the test list.
"""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from evaluation.covariate_status import CovariateClassifier, cells_in
from labels.linear import LabelClassifier
from runtime.files import atomic, brief, read_own_arrays
from utils import InputError

# Linear classifier -> the volumes that it sees. The PET is real in training, that of a method in the test.
CLASSIFIERS = {"mri": ("mri",), "mri_pet": ("mri", "pet"), "pet": ("pet",)}
OF_COVARIATES = ("covariates", "covariates_mri")           # if there are some: alone, and with the MRI
NEEDS_PET = ("mri_pet", "pet", "suvr")
NO_METHOD = "none"                                         # the method of a classifier that sees no PET
AGAIN = "--stages test writes it again"                    # of a damaged file
STATE = ("coef", "intercept", "voxels", "pool")            # of a linear classifier

Score = Callable[[pd.DataFrame], np.ndarray]


class StatusClassifier(NamedTuple):
    """Amyloid status of a list of subjects: positive where the score reaches the threshold.

    score: list of subjects -> [n] float64, larger is more positive. classifier: that of volumes or covariates
    behind the score. level: smallest and largest mean intensity, inside the brain, of the subjects that
    it was fitted on.
    """
    score: Score
    threshold: float
    classifier: LabelClassifier | CovariateClassifier | None = None
    level: tuple[float, float] = (-np.inf, np.inf)


# ---------------------------------------------------------------- scores

def _score_by_prevalence(subjects: pd.DataFrame, prevalence: float) -> np.ndarray:
    return np.full(len(subjects), prevalence)


def _score_by_age_and_sex(subjects: pd.DataFrame, model: Pipeline) -> np.ndarray:
    return model.predict_proba(subjects[["age", "sex"]])[:, 1]


def _score_by_volumes(subjects: pd.DataFrame, classifier: LabelClassifier,
                      modalities: tuple[str, ...]) -> np.ndarray:
    return classifier.of_pooled(_stack(subjects, modalities))[:, 1].numpy()


def _score_by_suvr(subjects: pd.DataFrame) -> np.ndarray:
    return subjects["SUVR"].to_numpy()


def _stack(subjects: pd.DataFrame, modalities: tuple[str, ...]) -> np.ndarray:
    """The pooled volumes as one array [n, M, d, h, w]."""
    return np.stack([np.stack(subjects[name].to_list()) for name in modalities], axis=1)


def mean_level(pooled: np.ndarray, classifier: LabelClassifier) -> float:
    """Mean of a subject's pooled volumes [M, d, h, w] over the voxels that the classifier sees."""
    return float(pooled[:, classifier.voxels].mean())


# ---------------------------------------------------------------- fit

def choose_threshold(label: np.ndarray, score: np.ndarray, otherwise: float) -> float:
    """The threshold with the best balanced accuracy, midway between two scores; the middle of equal ones.

    label: [n] of 0 and 1; score: [n]. `otherwise` where there is nothing to choose from: one label only, or
    one score for everybody.
    """
    if np.ptp(label) == 0 or np.ptp(score) == 0:
        return otherwise
    false_positives, true_positives, thresholds = roc_curve(label, score, drop_intermediate=False)
    gain = (true_positives - false_positives)[1:-1]        # not the ends: nobody positive, everybody positive
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    chosen = best[len(best) // 2] + 1
    return float((thresholds[chosen] + thresholds[chosen + 1]) / 2)


def fit_status_classifiers(train: pd.DataFrame, validation: pd.DataFrame, brain: np.ndarray, pool: int,
                           seed: int) -> dict[str, StatusClassifier]:
    """Name -> status classifier: majority, age_sex (if known), mri, mri_pet, pet, covariates and
    covariates_mri (if there are some), suvr (with regions).

    Both lists hold real PETs; the training list needs both labels. brain: [D, H, W] bool. pool: voxels of a
    volume per voxel of a pooled one, along each axis.
    """
    label = train["label"].to_numpy()
    majority = partial(_score_by_prevalence, prevalence=float(label.mean()))
    classifiers = {"majority": StatusClassifier(majority, 0.5)}
    if {"age", "sex"} <= set(train.columns):
        score = partial(_score_by_age_and_sex, model=_fit_age_and_sex(train))
        classifiers["age_sex"] = StatusClassifier(score, _threshold(score, validation))
    for name, modalities in CLASSIFIERS.items():
        volumes = _stack(train, modalities)
        classifier = LabelClassifier.fit(volumes, label, brain, pool, seed)
        score = partial(_score_by_volumes, classifier=classifier, modalities=modalities)
        levels = [mean_level(volume, classifier) for volume in volumes]
        level = (min(levels), max(levels))
        classifiers[name] = StatusClassifier(score, _threshold(score, validation), classifier, level)
    if not cells_in(train).empty:
        for name, mri in zip(OF_COVARIATES, (None, classifiers["mri"].classifier), strict=True):
            classifier = CovariateClassifier.fit(train, seed, brain, pool, mri)
            classifiers[name] = StatusClassifier(classifier.score, _threshold(classifier.score, validation),
                                                 classifier)
    if "SUVR" in train.columns:
        threshold = _threshold(_score_by_suvr, validation, otherwise=float("nan"))
        classifiers["suvr"] = StatusClassifier(_score_by_suvr, threshold)
    return classifiers


def _fit_age_and_sex(train: pd.DataFrame) -> Pipeline:
    columns = make_column_transformer(
        (StandardScaler(), ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["sex"]))
    return make_pipeline(columns, LogisticRegression()).fit(train[["age", "sex"]], train["label"].to_numpy())


def _threshold(score: Score, validation: pd.DataFrame, otherwise: float = 0.5) -> float:
    return choose_threshold(validation["label"].to_numpy(), score(validation), otherwise)


# ---------------------------------------------------------------- test

def read_status(classifiers: dict[str, StatusClassifier], methods: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a status classifier, method and test subject.

    Columns: classifier, method, ID, label, score, threshold, positive (0 or 1, or NaN). methods: method ->
    the test list with the PETs of that method; a classifier that sees no PET is used once.
    """
    tables = []
    without_pet = {NO_METHOD: next(iter(methods.values()))}
    for name, classifier in classifiers.items():
        for method, subjects in (methods if name in NEEDS_PET else without_pet).items():
            score, threshold = classifier.score(subjects), classifier.threshold
            positive = np.where(np.isfinite(score + threshold), score >= threshold, np.nan)
            tables.append(pd.DataFrame({
                "classifier": name, "method": method, "ID": subjects["ID"], "label": subjects["label"],
                "score": score, "threshold": threshold, "positive": positive}))
    return pd.concat(tables, ignore_index=True)


# ---------------------------------------------------------------- for new scans

def save_status_classifiers(path: Path, classifiers: dict[str, StatusClassifier],
                            bound_to: dict[str, str]) -> None:
    """Write the status classifiers that bound_to names, as plain arrays.

    bound_to: name of a status classifier -> what it is valid for.
    """
    arrays = {}
    for name, key in bound_to.items():
        threshold, classifier, level = classifiers[name][1:]
        parts = {"bound_to": key, "threshold": threshold, "level": level}
        if name in OF_COVARIATES:
            parts |= classifier.arrays()
        elif classifier:
            parts |= {part: getattr(classifier, part) for part in STATE}
        for part, value in parts.items():
            arrays[f"{name}/{part}"] = np.asarray(value)
    with atomic(path) as partial_file:
        np.savez(partial_file, **arrays)


def load_status_classifiers(path: Path, bound_to: dict[str, str]) -> dict[str, StatusClassifier]:
    """The status classifiers in a file of save_status_classifiers that are valid for what bound_to says.

    Raises InputError if the file is damaged.
    """
    arrays, classifiers = read_own_arrays(path, AGAIN), {}
    try:
        for name, key in bound_to.items():
            if arrays.get(f"{name}/bound_to") == key:
                classifiers[name] = _from_arrays(name, arrays)
        return classifiers
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); {AGAIN}") from error


def _from_arrays(name: str, arrays: dict[str, np.ndarray]) -> StatusClassifier:
    score, classifier = _score_by_suvr, None
    if name in CLASSIFIERS:
        classifier = _linear_from_arrays(name, arrays)
        score = partial(_score_by_volumes, classifier=classifier, modalities=CLASSIFIERS[name])
    elif name in OF_COVARIATES:
        own = {part: arrays[f"{name}/{part}"] for part in ("coder", "coef", "intercept")}
        mri = _linear_from_arrays("mri", arrays) if name == "covariates_mri" else None
        classifier = CovariateClassifier.from_arrays(own, mri)
        score = classifier.score
    level = tuple(arrays[f"{name}/level"].tolist())
    return StatusClassifier(score, float(arrays[f"{name}/threshold"]), classifier, level)


def _linear_from_arrays(name: str, arrays: dict[str, np.ndarray]) -> LabelClassifier:
    """The linear classifier behind a score of volumes."""
    coef, intercept, voxels, pool = [arrays[f"{name}/{part}"] for part in STATE]
    return LabelClassifier(coef, intercept, voxels, int(pool))
