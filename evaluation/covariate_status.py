"""Amyloid status from covariates, alone and with the MRI: so that what the MRI is worth beside them can be
seen."""
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from labels.covariates import CovariateCoder
from labels.linear import LabelClassifier
from labels.ridge import folds_of

PREFIX = "covariate "                     # of the columns of a list of subjects that hold covariates, as text
SURE = 1e-6                                   # least distance of a probability from 0 and 1, in log odds


@dataclass(frozen=True)
class CovariateClassifier:
    """Logistic regression of the status on P covariates, and on the log odds of a classifier of the MRI.

    coef: [P], or [1 + P] with the MRI, which stands first. mri: that classifier, or None.
    """
    coder: CovariateCoder
    coef: np.ndarray
    intercept: float
    mri: LabelClassifier | None = None

    @classmethod
    def fit(cls, train: pd.DataFrame, seed: int, brain: np.ndarray, pool: int,
            mri: LabelClassifier | None = None) -> "CovariateClassifier":
        """Fit to a list of subjects: label, covariates, and pooled MRIs if a classifier of the MRI is given.

        How much the MRI counts is learnt from classifiers that did not see the subject. brain: [D, H, W]
        bool. pool: voxels, along an axis, that became one.
        """
        coder, label = CovariateCoder.fit(cells_in(train)), train["label"].to_numpy()
        inputs = coder.encode(cells_in(train))
        if mri is not None:
            volumes, odds = _volumes(train), np.zeros(len(train))
            for rows, left_out in folds_of(label, seed):
                odds[left_out] = _odds(LabelClassifier.fit(volumes[rows], label[rows], brain, pool, seed),
                                       volumes[left_out])
            inputs = np.column_stack([odds, inputs])
        fitted = LogisticRegression(max_iter=1000).fit(inputs, label)
        return cls(coder, fitted.coef_[0], float(fitted.intercept_[0]), mri)

    def score(self, subjects: pd.DataFrame) -> np.ndarray:
        """Probability of positive status [n]."""
        inputs = self.coder.encode(cells_in(subjects))
        if self.mri is not None:
            inputs = np.column_stack([_odds(self.mri, _volumes(subjects)), inputs])
        # row by row: a subject gets the same, whoever stands beside it
        return expit((inputs * self.coef).sum(axis=1) + self.intercept)

    def arrays(self) -> dict[str, np.ndarray | float | str]:
        """Plain arrays, without the classifier of the MRI."""
        return {"coder": json.dumps(self.coder.state()), "coef": self.coef, "intercept": self.intercept}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], mri: LabelClassifier | None) -> "CovariateClassifier":
        """The classifier that gave these arrays."""
        coder = CovariateCoder.from_state(json.loads(str(arrays["coder"])))
        return cls(coder, arrays["coef"], float(arrays["intercept"]), mri)


def with_cells(subjects: pd.DataFrame, people: pd.DataFrame | None) -> pd.DataFrame:
    """A list of subjects with their covariates. people: as text, indexed by ID, or None."""
    if people is None:
        return subjects
    return subjects.merge(people.add_prefix(PREFIX), left_on="ID", right_index=True, how="left")


def cells_in(subjects: pd.DataFrame) -> pd.DataFrame:
    """The covariates of a list of subjects, as text."""
    cells = subjects[[name for name in subjects if name.startswith(PREFIX)]]
    return cells.rename(columns=lambda name: name.removeprefix(PREFIX))


def _volumes(subjects: pd.DataFrame) -> np.ndarray:
    """The pooled MRIs, [n, 1, d, h, w]."""
    return np.stack(subjects["mri"].to_list())[:, None]


def _odds(classifier: LabelClassifier, volumes: np.ndarray) -> np.ndarray:
    """Log odds of positive status [n] by volumes [n, 1, d, h, w]."""
    return logit(classifier.of_pooled(volumes)[:, 1].numpy().clip(SURE, 1 - SURE))
