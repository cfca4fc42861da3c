"""Prediction of the amyloid label from an MRI, and from covariates where they are known: ridge regression,
with probabilities that are calibrated by cross-fitting."""
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from labels.covariates import CovariateCoder
from labels.linear import pool_volume
from utils import InputError

INPUT_MM = 4.0                       # fine enough for sulci and ventricles, and as cheap at 1 mm as at 4
PENALTIES = tuple(10.0 ** np.arange(2, 8.5, 0.5))          # of the ridge regression; the best leaving one out
SECOND_PENALTIES = tuple(10.0 ** np.arange(-2, 3.5, 0.5))   # of the few inputs of the second step
FLOOR = 0.05                                               # least median that intensities are divided by
SURROUNDINGS = 3.0                   # std in pooled voxels (12 mm) of the Gaussian mean that is taken off


class LabelPredictor:
    """Ridge regression of the soft label on the features of an MRI (features_of), and of that prediction and
    covariates on the soft label again where there are some.

    Without a PCA before it: the signal of a slight atrophy is spread over many components, of which the few
    of largest variance would keep little. In two steps: beside thousands of voxels, a penalty would leave
    nothing of a covariate. The second step learns from predictions of MRIs that the first did not see
    (stacking, Wolpert 1992). coef: [K, F]. intercept: [K]. span: [2], smallest and largest soft label that it
    was fitted to. voxels: [d, h, w] bool, the F features. calibration: [2, K], as calibrate gives. pool:
    voxels, along an axis, that become one. levels: [2], mean SUVR of the training list with each label, or
    None if no SUVR made the soft labels. regions: key of the masks of that SUVR, or nothing. coder: of the P
    covariates, or None. second: [K, K + P + 1], the second step: weights of the MRI's prediction and of the
    covariates, and the intercept.
    """

    def __init__(self, coef: Tensor, intercept: Tensor, span: Tensor, voxels: Tensor, calibration: Tensor,
                 pool: int, levels: Tensor | None = None, regions: str = "",
                 coder: CovariateCoder | None = None, second: Tensor | None = None):
        self.coef, self.intercept, self.span, self.voxels = coef, intercept, span, voxels
        self.calibration, self.pool, self.levels, self.regions = calibration, pool, levels, regions
        self.coder, self.second = coder, second

    @classmethod
    def cross_fit(cls, mri: Tensor, labels: np.ndarray, soft_labels: np.ndarray, brain: Tensor, pool: int,
                  seed: int, levels: Tensor | None = None, cells: pd.DataFrame | None = None,
                  with_mri: bool = True) -> "LabelPredictor":
        """Fit to soft labels [n, K] on pooled MRIs [n, 1, d, h, w]; labels: [n].

        The probabilities are calibrated on fits that did not see the subject.
        brain: [d, h, w], share of each pooled voxel that is brain. pool, levels: as above.
        cells: covariates of the n subjects as text, if there are some. with_mri: whether the second step sees
        the MRI's prediction; a control. Raises InputError if a label is there only once.
        """
        voxels = (brain + brain.flip(0)) / 2 >= 0.5        # the same on both sides
        features = features_of(mri, voxels).numpy()
        folds = list(folds_of(labels, seed))
        logits = _left_out(_ridge(PENALTIES), features, soft_labels, folds)
        coef, intercept = _linear(_ridge(PENALTIES).fit(features, soft_labels))
        coder = second = None
        if cells is not None:
            coder = CovariateCoder.fit(cells)
            inputs = np.concatenate([logits * with_mri, coder.encode(cells)], axis=1)        # [n, K + P]
            logits = _left_out(_ridge(SECOND_PENALTIES), inputs, soft_labels, folds)
            weights, shift = _linear(_ridge(SECOND_PENALTIES).fit(inputs, soft_labels))
            second = torch.from_numpy(np.concatenate([weights, shift[:, None]], axis=1))
        span = torch.tensor([soft_labels.min(), soft_labels.max()])
        calibration = calibrate(torch.from_numpy(logits).float(), labels)
        return cls(
            torch.from_numpy(coef),
            torch.from_numpy(intercept),
            span,
            voxels,
            calibration,
            pool,
            levels,
            coder=coder,
            second=second,
        )

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates beside the MRI."""
        return self.coder.names if self.coder else ()

    def probabilities(self, volume: Tensor, cells: pd.DataFrame | None = None) -> Tensor:
        """Probability of each label for MRIs [B, 1, D, H, W]: [B, K] float32. cells: their B covariates as
        text; one without a column counts as missing, as all do without cells."""
        return calibrated(self._regress(volume, cells), self.calibration)

    def soft_labels(self, volume: Tensor, cells: pd.DataFrame | None = None) -> Tensor:
        """Soft labels for MRIs [B, 1, D, H, W], within those of the training list: [B, K] float32. cells: as
        above."""
        return self._regress(volume, cells).clamp(*self.span)

    def label(self, volume: Tensor, cells: pd.DataFrame | None = None) -> Tensor:
        """What takes the place of the label for MRIs [B, 1, D, H, W], [B, K] float32: soft labels if an SUVR
        made those that it was fitted to, else probabilities. cells: as above."""
        predict = self.probabilities if self.levels is None else self.soft_labels
        return predict(volume, cells)

    def corrected(self, soft_labels: Tensor, suvr: Tensor) -> Tensor:
        """Soft labels [B, 2] with what the SUVR [B] of the PETs that were synthesized with them lacks.

        Unchanged where the SUVR is NaN.
        """
        negative, positive = self.levels.tolist()
        lack = soft_labels[:, 1] - (suvr - negative) / (positive - negative)
        return soft_labels + torch.stack([-lack, lack], dim=1).nan_to_num(0.0)

    def encoded(self, cells: pd.DataFrame | None) -> Tensor:
        """The covariates of B subjects as numbers [B, P] float32, which the denoiser is given beside the soft
        label."""
        return torch.from_numpy(self.coder.encode(cells)).float()

    def _regress(self, volume: Tensor, cells: pd.DataFrame | None) -> Tensor:
        """The regression of MRIs [B, 1, D, H, W] and covariates, not calibrated: [B, K] float32."""
        features = features_of(pool_volume(volume, self.pool), self.voxels)                  # [B, F]
        logits = _sums(features, self.coef) + self.intercept                                 # [B, K]
        if self.coder is not None:
            cells = pd.DataFrame(index=range(len(volume))) if cells is None else cells
            inputs = torch.cat([logits, torch.from_numpy(self.coder.encode(cells))], dim=1)  # [B, K + P]
            logits = _sums(inputs, self.second[:, :-1]) + self.second[:, -1]
        return logits.float()

    def state(self) -> dict:
        """Plain tensors and values, for a checkpoint."""
        return vars(self) | {"coder": self.coder and self.coder.state()}

    @classmethod
    def from_state(cls, state: dict) -> "LabelPredictor":
        """The predictor that gave this state."""
        coder = state.get("coder")
        return cls(**state | {"coder": coder and CovariateCoder.from_state(coder)})


def _sums(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows [B, F] times weights [K, F]: [B, K]. Not by @, which rounds a row by its place among others: an
    MRI gives the same in any batch."""
    return torch.stack([(rows * weight).sum(dim=1) for weight in weights], dim=1)


def _ridge(penalties: tuple[float, ...]) -> Pipeline:
    """Scaler and ridge regression, not fitted."""
    return make_pipeline(StandardScaler(), RidgeCV(penalties))


def _left_out(model: Pipeline, inputs: np.ndarray, soft_labels: np.ndarray,
              folds: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Prediction of every subject by a fit to the other folds, [n, K]. inputs: [n, F]."""
    predicted = np.zeros(soft_labels.shape)
    for rows, left_out in folds:
        predicted[left_out] = model.fit(inputs[rows], soft_labels[rows]).predict(inputs[left_out])
    return predicted


def _linear(fitted: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K, F] and intercept [K] of scaler and ridge regression in one."""
    scaler, ridge = (step for _, step in fitted.steps)
    coef = ridge.coef_ / scaler.scale_
    return coef, ridge.intercept_ - coef @ scaler.mean_


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
