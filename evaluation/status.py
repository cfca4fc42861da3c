"""Amyloid status, read from volumes: every read-out is fitted on the training list, its threshold chosen on the validation list.

A list of subjects is a table with the columns ID, label (0 or 1), mri and pet (arrays [d, h, w], pooled to about 8 mm), SUVR if there are
regions, age and sex if data_info.csv has them. Labels are used by fit_status_classifiers alone; what is read of a test subject never depends on his.
"""
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from labels.linear import LabelClassifier
from runtime.files import atomic, brief, file_status
from utils import InputError

# Read-outs of volumes by a linear classifier: what each sees. PET is the real one in training, a method's own in the test.
CLASSIFIERS = {"mri": ("mri",), "mri_pet": ("mri", "pet"), "pet": ("pet",)}
NEEDS_PET = ("mri_pet", "pet", "suvr")
NO_METHOD = "none"                                         # the method of a read-out that sees no PET


class StatusClassifier(NamedTuple):
    """A read-out: score of a list of subjects, [n] float64, larger is more positive; positive from the threshold on.

    classifier: what gives the score of a read-out of volumes; level: smallest and largest mean, inside the brain, of what it was fitted on.
    """
    score: Callable[[pd.DataFrame], np.ndarray]
    threshold: float
    classifier: LabelClassifier | None = None
    level: tuple[float, float] = (-np.inf, np.inf)


def choose_threshold(label: np.ndarray, score: np.ndarray, otherwise: float) -> float:
    """The threshold with the best balanced accuracy, midway between two scores; of several equally good ones the middle one.

    `otherwise` where there is nothing to choose from: one label only, or one score for everybody.
    """
    if np.ptp(label) == 0 or np.ptp(score) == 0:
        return otherwise
    false_alarms, hits, thresholds = roc_curve(label, score, drop_intermediate=False)        # thresholds[0] is infinite: no call
    gain = (hits - false_alarms)[1:-1]                     # the last one calls everybody positive
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    chosen = best[len(best) // 2] + 1
    return float((thresholds[chosen] + thresholds[chosen + 1]) / 2)


def fit_status_classifiers(train: pd.DataFrame, validation: pd.DataFrame, brain: np.ndarray, pool: int, seed: int) -> dict[str, StatusClassifier]:
    """Name -> reader: majority, age_sex (if known), mri, mri_pet, pet, suvr (if there are regions).

    Both lists hold real PETs; the training list needs both labels. brain: [D, H, W] bool; pool: voxels of a pooled one along an axis.
    """
    label = train["label"].to_numpy()
    prevalence = float(label.mean())
    readers = {"majority": StatusClassifier(lambda subjects: np.full(len(subjects), prevalence), 0.5)}

    def add(name: str, score: Callable[[pd.DataFrame], np.ndarray], otherwise: float = 0.5, **classifier) -> None:
        readers[name] = StatusClassifier(score, choose_threshold(validation["label"].to_numpy(), score(validation), otherwise), **classifier)

    if {"age", "sex"} <= set(train.columns):
        model = make_pipeline(make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["sex"])),
                              LogisticRegression()).fit(train[["age", "sex"]], label)
        add("age_sex", lambda subjects: model.predict_proba(subjects[["age", "sex"]])[:, 1])
    for name, modalities in CLASSIFIERS.items():
        volumes = _stack(train, modalities)
        classifier = LabelClassifier.fit(volumes, label, brain, pool, seed)
        levels = [mean_level(one, classifier) for one in volumes]
        add(name, _classify(classifier, modalities), classifier=classifier, level=(min(levels), max(levels)))
    if "SUVR" in train.columns:
        add("suvr", _suvr, otherwise=float("nan"))
    return readers


def _stack(subjects: pd.DataFrame, modalities: tuple[str, ...]) -> np.ndarray:
    """The pooled volumes as one array [n, M, d, h, w]."""
    return np.stack([np.stack(subjects[name].to_list()) for name in modalities], axis=1)


def mean_level(pooled: np.ndarray, classifier: LabelClassifier) -> float:
    """Mean of a subject's pooled volumes [M, d, h, w] over the voxels that the classifier sees."""
    return float(pooled[:, classifier.voxels].mean())


def _suvr(subjects: pd.DataFrame) -> np.ndarray:
    return subjects["SUVR"].to_numpy()


def _classify(classifier: LabelClassifier, modalities: tuple[str, ...]) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda subjects: classifier.of_pooled(_stack(subjects, modalities))[:, 1].numpy()


def save_status_classifiers(path: Path, readers: dict[str, StatusClassifier], bound_to: dict[str, str]) -> None:
    """Write the read-outs that bound_to names, as plain arrays: for new scans, of which nothing but volumes is known.

    bound_to: name of a read-out -> what it is valid for.
    """
    arrays = {}
    for name, key in bound_to.items():
        reader = readers[name]
        classifier = vars(reader.classifier) if reader.classifier else {}
        parts = {"bound_to": key, "threshold": reader.threshold, "level": reader.level, **classifier}
        arrays |= {f"{name}/{part}": np.asarray(value) for part, value in parts.items()}
    with atomic(path) as partial:
        np.savez(partial, **arrays)


def load_status_classifiers_file(path: Path, bound_to: dict[str, str]) -> dict[str, StatusClassifier]:
    """The read-outs in a file of save_status_classifiers that are valid for what bound_to says. Raises InputError if it is damaged."""
    file_status(path)
    try:
        with np.load(path, allow_pickle=False) as file:    # numpy compares the archive's checksums
            arrays = {name: file[name] for name in file.files}
        readers = {}
        for name, key in bound_to.items():
            if arrays.get(f"{name}/bound_to") != key:
                continue
            parts = [arrays[f"{name}/{part}"] for part in ("coef", "intercept", "voxels", "pool")] if name in CLASSIFIERS else []
            classifier = LabelClassifier(*parts[:3], int(parts[3])) if parts else None
            score = _classify(classifier, CLASSIFIERS[name]) if classifier else _suvr
            readers[name] = StatusClassifier(score, float(arrays[f"{name}/threshold"]), classifier, tuple(arrays[f"{name}/level"].tolist()))
        return readers
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({brief(error)}); --stages test writes it again") from error


def read_status(readers: dict[str, StatusClassifier], methods: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a read-out, method and test subject: classifier, method, ID, label, score, threshold, positive (0 or 1, or NaN).

    methods: method -> the test list with the PETs of that method; read-outs that see no PET are read once.
    """
    rows = []
    for name, reader in readers.items():
        sources = methods if name in NEEDS_PET else {NO_METHOD: next(iter(methods.values()))}
        for method, subjects in sources.items():
            score = reader.score(subjects)
            positive = np.where(np.isfinite(score + reader.threshold), score >= reader.threshold, np.nan)
            rows.append(pd.DataFrame({"classifier": name, "method": method, "ID": subjects["ID"], "label": subjects["label"], "score": score,
                                      "threshold": reader.threshold, "positive": positive}))
    return pd.concat(rows, ignore_index=True)
