"""Prediction of the amyloid label from an MRI: ridge regression, with probabilities that are calibrated by
cross-fitting."""
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from labels.linear import pool_volume
from utils import InputError

INPUT_MM = 4.0                       # fine enough for sulci and ventricles, and as cheap at 1 mm as at 4
PENALTIES = tuple(10.0 ** np.arange(2, 8.5, 0.5))          # of the ridge regression; the best leaving one out
FLOOR = 0.05                                               # least median that intensities are divided by
SURROUNDINGS = 3.0                   # std in pooled voxels (12 mm) of the Gaussian mean that is taken off


class LabelPredictor:
    """Ridge regression of the soft label on the features of an MRI (features_of).

    Without a PCA before it: the signal of a slight atrophy is spread over many components, of which the few
    of largest variance would keep little.
    coef: [K, F]. intercept: [K]. span: [2], smallest and largest soft label that it was fitted to.
    voxels: [d, h, w] bool, the F features. calibration: [2, K], as calibrate gives.
    pool: voxels, along an axis, that become one.
    levels: [2], mean SUVR of the training list with each label, or None if no SUVR made the soft labels.
    regions: key of the masks of that SUVR, or nothing.
    """

    def __init__(self, coef: Tensor, intercept: Tensor, span: Tensor, voxels: Tensor, calibration: Tensor,
                 pool: int, levels: Tensor | None = None, regions: str = ""):
        self.coef, self.intercept, self.span, self.voxels = coef, intercept, span, voxels
        self.calibration, self.pool, self.levels, self.regions = calibration, pool, levels, regions

    @classmethod
    def cross_fit(cls, mri: Tensor, labels: np.ndarray, soft_labels: np.ndarray, brain: Tensor, pool: int,
                  seed: int, levels: Tensor | None = None) -> "LabelPredictor":
        """Fit to soft labels [n, K] on pooled MRIs [n, 1, d, h, w]; labels: [n].

        The probabilities are calibrated on fits that did not see the subject.
        brain: [d, h, w], share of each pooled voxel that is brain. pool, levels: as above.
        Raises InputError if a label is there only once.
        """
        voxels = (brain + brain.flip(0)) / 2 >= 0.5        # the same on both sides
        features = features_of(mri, voxels).numpy()
        logits = torch.zeros(soft_labels.shape)
        for rows, left_out in folds_of(labels, seed):
            model = _ridge().fit(features[rows], soft_labels[rows])
            logits[left_out] = torch.from_numpy(model.predict(features[left_out])).float()
        scaler, ridge = (step for _, step in _ridge().fit(features, soft_labels).steps)
        coef = ridge.coef_ / scaler.scale_
        intercept = torch.from_numpy(ridge.intercept_ - coef @ scaler.mean_)
        span = torch.tensor([soft_labels.min(), soft_labels.max()])
        return cls(torch.from_numpy(coef), intercept, span, voxels, calibrate(logits, labels), pool, levels)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Probability of each label for MRIs [B, 1, D, H, W]: [B, K] float32."""
        return calibrated(self._regress(volume), self.calibration)

    def soft_labels(self, volume: Tensor) -> Tensor:
        """Soft labels for MRIs [B, 1, D, H, W], within those of the training list: [B, K] float32."""
        return self._regress(volume).clamp(*self.span)

    def label(self, volume: Tensor) -> Tensor:
        """What takes the place of the label for MRIs [B, 1, D, H, W], [B, K] float32: soft labels if an SUVR
        made those that it was fitted to, else probabilities."""
        return self.probabilities(volume) if self.levels is None else self.soft_labels(volume)

    def corrected(self, soft_labels: Tensor, suvr: Tensor) -> Tensor:
        """Soft labels [B, 2] with what the SUVR [B] of the PETs that were synthesized with them lacks.

        Unchanged where the SUVR is NaN.
        """
        negative, positive = self.levels.tolist()
        lack = soft_labels[:, 1] - (suvr - negative) / (positive - negative)
        return soft_labels + torch.stack([-lack, lack], dim=1).nan_to_num(0.0)

    def _regress(self, volume: Tensor) -> Tensor:
        """The regression of MRIs [B, 1, D, H, W], not calibrated: [B, K] float32."""
        features = features_of(pool_volume(volume, self.pool), self.voxels)                  # [B, F]
        # Not by @, which rounds a row by its place among others: an MRI gives the same in any batch.
        logits = torch.stack([(features * row).sum(dim=1) for row in self.coef], dim=1)      # [B, K]
        return (logits + self.intercept).float()

    def state(self) -> dict:
        """Plain tensors and the pooling width, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict) -> "LabelPredictor":
        """The predictor that gave this state."""
        return cls(**state)


def _ridge() -> Pipeline:
    """Scaler and ridge regression, not fitted."""
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES))


def features_of(mri: Tensor, voxels: Tensor) -> Tensor:
    """How much brighter each brain voxel is than its surroundings, in units of the brain's median, and as the
    mean of both sides.

    The widths of sulci and ventricles stay in it, while gain and slow shading of the scanner go.
    mri: [B, 1, d, h, w]. voxels: [d, h, w] bool, the F voxels of the brain, the same on both sides.
    Returns [B, F] float64.
    """
    brain = voxels.double().numpy()
    share = gaussian_filter(brain, SURROUNDINGS)[voxels]                   # of the surroundings that is brain
    features = []
    for volume in mri[:, 0].double().numpy():              # one by one: an MRI gives the same in any batch
        surroundings = gaussian_filter(volume * brain, SURROUNDINGS)[voxels] / share
        relief = np.zeros_like(volume)
        relief[voxels] = (volume[voxels] - surroundings) / max(np.median(volume[voxels]), FLOOR)
        features.append((relief + relief[::-1])[voxels] / 2)
    return torch.from_numpy(np.stack(features))


# ---------------------------------------------------------------- probabilities

def calibrated(logits: Tensor, calibration: Tensor) -> Tensor:
    """Probabilities [n, K] of logits [n, K]. calibration: [2, K], as calibrate gives."""
    return (logits * calibration[0] + calibration[1]).softmax(dim=1)


def calibrate(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Scale (the same for all labels) and shift that make logits [n, K] probabilities of labels [n]: [2, K].

    Of two labels those of Platt (1999), the scale not below 0; of more, the shift is 0 and the scale the
    inverse of a temperature (Guo et al. 2017).
    """
    classes = logits.shape[1]
    if classes == 2:
        margin = (logits[:, 1] - logits[:, 0]).double().numpy()[:, None]
        fitted = LogisticRegression().fit(margin, labels)
        scale, shift = max(float(fitted.coef_[0, 0]), 0.0), float(fitted.intercept_[0])
        return torch.tensor([[scale, scale], [0.0, shift]])
    scales, truth = torch.logspace(-2, 1, 61), torch.from_numpy(labels)
    losses = torch.stack([F.cross_entropy(logits * scale, truth) for scale in scales])
    return torch.stack([scales[losses.argmin()].expand(classes), torch.zeros(classes)])


def folds_of(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows left out) of up to five folds of subjects with labels [n], every label in each.

    Raises InputError if a label is there only once.
    """
    least = int(np.bincount(labels)[np.unique(labels)].min())
    if least < 2:
        raise InputError("the training list holds one subject with some label, so none can be left out to "
                         "see how well the MRI predicts it; --label_at_sampling none goes without a "
                         "prediction")
    yield from StratifiedKFold(min(5, least), shuffle=True, random_state=seed).split(labels, labels)
