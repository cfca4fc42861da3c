"""Predictor of the amyloid label from an MRI: ridge regression, with probabilities that are calibrated by cross-fitting."""
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from labels.linear import pool_volume
from utils import InputError

INPUT_MM = 4.0                                             # fine enough for sulci and ventricles, and as cheap at 1 mm as at 4
PENALTIES = tuple(10.0 ** np.arange(2, 8.5, 0.5))         # of the ridge regression; the best is chosen by leaving one out
FLOOR = 0.05                                               # least median that intensities are divided by
SURROUNDINGS = 3.0                                         # std of the Gaussian whose mean is taken off, in pooled voxels: about 12 mm


class LabelPredictor:
    """Ridge regression of the soft label on the MRI, without reducing it first: the signal of a slight atrophy is spread over many
    components, of which a few of largest variance would keep little. It sees what features_of makes of an MRI.

    coef: [K, F], intercept: [K]. span: [2], smallest and largest soft label that it was fitted to. voxels: [d, h, w] bool, the F features.
    calibration: [2, K], scale (the same for all labels) and shift of the logits. pool: voxels, along an axis, that become one.
    levels: [2], mean SUVR of the training list with each label, if the soft labels were made of SUVRs, or None.
    """

    def __init__(self, coef: Tensor, intercept: Tensor, span: Tensor, voxels: Tensor, calibration: Tensor, pool: int,
                 levels: Tensor | None = None):
        self.coef, self.intercept, self.span, self.voxels, self.calibration, self.pool = coef, intercept, span, voxels, calibration, pool
        self.levels = levels

    @classmethod
    def cross_fit(cls, mri: Tensor, labels: np.ndarray, soft_labels: np.ndarray, brain: Tensor, pool: int, seed: int,
                  levels: Tensor | None = None) -> "LabelPredictor":
        """Fit to soft labels [n, K] on pooled MRIs [n, 1, d, h, w]. labels: [n]. brain: [d, h, w], share of the pooled voxel that is brain.

        The probabilities are calibrated on fits that did not see the subject. Raises InputError if a label is there only once.
        """
        voxels = (brain + brain.flip(0)) / 2 >= 0.5
        features = features_of(mri, voxels).numpy()
        logits = torch.zeros(soft_labels.shape)
        for rows, left_out in folds_of(labels, seed):
            model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features[rows], soft_labels[rows])
            logits[left_out] = torch.from_numpy(model.predict(features[left_out])).float()
        pipeline = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features, soft_labels)
        scaler, ridge = pipeline[0], pipeline[1]
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

    def corrected(self, soft_labels: Tensor, suvr: Tensor) -> Tensor:
        """Soft labels [B, 2] that make up for what the SUVR [B] of PETs synthesized with the given ones lacks; unchanged where it is NaN."""
        negative, positive = self.levels.tolist()
        lack = soft_labels[:, 1] - (suvr - negative) / (positive - negative)
        return soft_labels + torch.stack([-lack, lack], dim=1).nan_to_num(0.0)

    def _regress(self, volume: Tensor) -> Tensor:
        features = features_of(pool_volume(volume, self.pool), self.voxels)                  # [B, F]
        logits = torch.stack([(features * row).sum(dim=1) for row in self.coef], dim=1)      # not by @: alike in any batch
        return (logits + self.intercept).float()

    def state(self) -> dict:
        """Plain tensors for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict) -> "LabelPredictor":
        """The predictor that gave this state."""
        return cls(**state)


def features_of(mri: Tensor, voxels: Tensor) -> Tensor:
    """How much brighter each voxel of the brain is than its surroundings, in units of the brain's median and as the mean of both sides:
    widths of sulci and ventricles stay, while gain and slow shading of the scanner go.

    mri: [B, 1, d, h, w]; voxels: [d, h, w] bool, the F voxels of the brain, the same on both sides. Returns [B, F] float64.
    """
    brain = voxels.double().numpy()
    share = gaussian_filter(brain, SURROUNDINGS)[voxels]                                     # of the surroundings that is brain
    features = []
    for volume in mri[:, 0].double().numpy():              # one by one: alike in any batch
        inside = volume * brain
        relief = np.zeros_like(volume)
        relief[voxels] = (volume[voxels] - gaussian_filter(inside, SURROUNDINGS)[voxels] / share) / max(np.median(volume[voxels]), FLOOR)
        features.append((relief + relief[::-1])[voxels] / 2)
    return torch.from_numpy(np.stack(features))


def calibrated(logits: Tensor, calibration: Tensor) -> Tensor:
    """Probabilities [n, K] of logits [n, K]; calibration: as calibrate gives."""
    return (logits * calibration[0] + calibration[1]).softmax(dim=1)


def calibrate(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Scale and shift of the logits [n, K] that make them probabilities of the labels [n] (Platt 1999), [2, K].

    For more than two labels the shift is 0 and the scale the inverse of a temperature (Guo et al. 2017).
    """
    classes = logits.shape[1]
    if classes == 2:
        margin = (logits[:, 1] - logits[:, 0]).double().numpy()[:, None]
        fitted = LogisticRegression().fit(margin, labels)
        scale, shift = max(float(fitted.coef_[0, 0]), 0.0), float(fitted.intercept_[0])
        return torch.tensor([[scale, scale], [0.0, shift]])
    best = min(torch.logspace(-2, 1, 61), key=lambda scale: F.cross_entropy(logits * scale, torch.from_numpy(labels)).item())
    return torch.stack([best.expand(classes), torch.zeros(classes)])


def folds_of(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit on, rows left out) of up to five folds with every label in each. Raises InputError if a label is there only once."""
    least = int(np.bincount(labels)[np.unique(labels)].min())
    if least < 2:
        raise InputError("the training list holds one subject with some label, so none can be left out to see how well the MRI predicts "
                         "it; --label_at_sampling none goes without a prediction")
    yield from StratifiedKFold(min(5, least), shuffle=True, random_state=seed).split(labels, labels)
