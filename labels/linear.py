"""A linear classifier of the amyloid label from volumes, which reads their status, and the pooling that makes
volumes coarse."""
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

FEATURE_MM = 8.0                                           # coarse enough to survive imperfect registration
STRENGTHS = tuple(10.0 ** np.arange(-4, 2))        # C of the logistic regression, strongest penalty first
COMPONENTS = 0.9                                           # share of the variance that the components keep


class LabelClassifier:
    """Brain voxels at about 8 mm, standardised, PCA, logistic regression: all linear, so kept as one matrix.

    coef: [R, M F], intercept: [R], with R = 1 for two labels and K otherwise. voxels: [d, h, w] bool, picks
    the F features of each of the M pooled volumes of a subject. pool: voxels, along an axis, that become one.
    """

    def __init__(self, coef: np.ndarray, intercept: np.ndarray, voxels: np.ndarray, pool: int):
        self.coef, self.intercept, self.voxels, self.pool = coef, intercept, voxels, pool

    @classmethod
    def fit(cls, pooled: np.ndarray, labels: np.ndarray, brain: np.ndarray, pool: int,
            seed: int) -> "LabelClassifier":
        """Fit to labels [n] on pooled volumes [n, M, d, h, w]; the penalty is the one of best cross-validated
        likelihood.

        brain: [D, H, W] bool. Every label must be there. Where one is there only once, nothing can be
        cross-validated, and the strongest penalty is taken.
        """
        share = pool_volume(torch.from_numpy(brain.astype(np.float32))[None, None], pool)[0, 0]
        voxels = share.numpy() >= 0.5
        features = pooled[:, :, voxels].reshape(len(pooled), -1).astype(np.float64)          # [n, M F]
        scaler, pca, regression = (step for _, step in _fit_pipeline(features, labels, seed).steps)
        coef = regression.coef_ @ pca.components_ / scaler.scale_                            # [R, M F]
        intercept = regression.intercept_ - coef @ scaler.mean_                              # [R]
        intercept = intercept - regression.coef_ @ pca.components_ @ pca.mean_
        return cls(coef, intercept, voxels, pool)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Probability of each label for volumes [B, M, D, H, W]: [B, K] float32."""
        return self.of_pooled(pool_volume(volume, self.pool).numpy()).float()

    def of_pooled(self, pooled: np.ndarray) -> Tensor:
        """Probability of each label for pooled volumes [B, M, d, h, w]: [B, K] float64.

        A product of matrices would round its rows differently: the same picture must give the same score,
        whoever stands beside it.
        """
        features = pooled[:, :, self.voxels].reshape(len(pooled), -1).astype(np.float64)     # [B, M F]
        sums = np.stack([(features * row).sum(1) for row in self.coef], axis=1)
        logits = torch.from_numpy(sums + self.intercept)                                     # [B, R]
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)                    # [B, 2]
        return logits.softmax(dim=1)

    def state(self) -> dict[str, Tensor | int]:
        """Plain tensors and the pooling width, for a checkpoint."""
        return {"coef": torch.from_numpy(self.coef), "intercept": torch.from_numpy(self.intercept),
                "voxels": torch.from_numpy(self.voxels), "pool": self.pool}

    @classmethod
    def from_state(cls, state: dict[str, Tensor | int]) -> "LabelClassifier":
        """The classifier that gave this state."""
        return cls(state["coef"].numpy(), state["intercept"].numpy(), state["voxels"].numpy(), state["pool"])


def _fit_pipeline(features: np.ndarray, labels: np.ndarray, seed: int) -> Pipeline:
    """Scaler, PCA and logistic regression, fitted to features [n, M F] and labels [n]."""
    folds = min(5, int(np.bincount(labels)[np.unique(labels)].min()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)      # of the weakest penalties of the search
        strength = _best_strength(features, labels, folds, seed) if folds > 1 else STRENGTHS[0]
        return make_pipeline(StandardScaler(), _components(), _regression(strength)).fit(features, labels)


def _best_strength(features: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> float:
    """The first of STRENGTHS with the best cross-validated likelihood. A fold's PCA serves all of them."""
    score = get_scorer("neg_log_loss")
    scores = []
    for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
        coarse = make_pipeline(StandardScaler(), _components())
        seen = coarse.fit_transform(features[train])
        unseen = coarse.transform(features[held_out])
        regressions = [_regression(strength).fit(seen, labels[train]) for strength in STRENGTHS]
        scores.append([score(regression, unseen, labels[held_out]) for regression in regressions])
    return STRENGTHS[int(np.mean(scores, axis=0).argmax())]


def _components() -> PCA:
    return PCA(COMPONENTS, svd_solver="full")


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000)


def pool_volume(volume: Tensor, pool: int) -> Tensor:
    """Means over blocks of pool^3 voxels of volumes [B, M, D, H, W], on the CPU: [B, M, d, h, w].

    Voxels after the last whole block are left out.
    """
    return F.avg_pool3d(volume.cpu(), pool)


def pool_width(voxel_mm: float, width_mm: float = FEATURE_MM) -> int:
    """Block width in voxels that comes nearest to width_mm, 1 or more."""
    return max(1, round(width_mm / voxel_mm))
