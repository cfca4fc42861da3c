"""A linear classifier of the amyloid label from volumes: what gives a new MRI its label in sampling, and what reads a PET."""
import tempfile
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

FEATURE_MM = 8.0                                           # coarse enough to survive imperfect registration
STRENGTHS = tuple(10.0 ** np.arange(-4, 2))                # C of the logistic regression, strongest penalty first
COMPONENTS = 0.9                                           # share of the variance that the principal components keep


class LabelClassifier:
    """Brain voxels at about 8 mm, standardised, PCA, logistic regression: all linear, so kept as one matrix.

    Its state is plain arrays: coef [R, M F] and intercept [R] with R = 1 for two labels and K otherwise, voxels [d, h, w] bool that
    picks the F features of each of the M pooled volumes of a subject, and the pooling width in voxels.
    """

    def __init__(self, coef: np.ndarray, intercept: np.ndarray, voxels: np.ndarray, pool: int):
        self.coef, self.intercept, self.voxels, self.pool = coef, intercept, voxels, pool

    @classmethod
    def fit(cls, pooled: np.ndarray, labels: np.ndarray, brain: np.ndarray, pool: int, seed: int) -> "LabelClassifier":
        """Fit on pooled volumes [n, M, d, h, w] and labels [n]; the penalty is chosen by cross-validated likelihood.

        brain: [D, H, W] bool. Needs every label at least once; with fewer than two of one label there is no cross-validation and the
        strongest penalty is taken.
        """
        voxels = pool_volume(torch.from_numpy(brain.astype(np.float32))[None, None], pool)[0, 0].numpy() >= 0.5
        features = pooled[:, :, voxels].reshape(len(pooled), -1).astype(np.float64)          # [n, M F]
        folds = min(5, int(np.bincount(labels)[np.unique(labels)].min()))
        with tempfile.TemporaryDirectory() as components, warnings.catch_warnings():         # kept for all strengths of a fold
            pipeline = make_pipeline(StandardScaler(), PCA(COMPONENTS, svd_solver="full"),
                                     LogisticRegression(C=STRENGTHS[0], max_iter=1000), memory=components)
            warnings.simplefilter("ignore", ConvergenceWarning)                              # the weakest penalties of the search
            if folds >= 2:
                search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss",
                                      cv=StratifiedKFold(folds, shuffle=True, random_state=seed))
                pipeline = search.fit(features, labels).best_estimator_
            else:
                pipeline.fit(features, labels)
        scaler, pca, regression = (step for _, step in pipeline.steps)
        coef = regression.coef_ @ pca.components_ / scaler.scale_                            # [R, M F]
        intercept = regression.intercept_ - coef @ scaler.mean_ - regression.coef_ @ pca.components_ @ pca.mean_
        return cls(coef, intercept, voxels, pool)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Probability of each label for volumes [B, M, D, H, W]: [B, K] float32."""
        return self.of_pooled(pool_volume(volume, self.pool).numpy()).float()

    def of_pooled(self, pooled: np.ndarray) -> Tensor:
        """Probability of each label for pooled volumes [B, M, d, h, w]: [B, K] float64."""
        features = pooled[:, :, self.voxels].reshape(len(pooled), -1).astype(np.float64)     # [B, M F]
        # A product of matrices rounds its rows differently: the same picture must give the same score, whoever stands beside it.
        logits = torch.from_numpy(np.stack([(features * row).sum(1) for row in self.coef], axis=1) + self.intercept)   # [B, R]
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)                    # [B, 2]
        return logits.softmax(dim=1)

    def state(self) -> dict[str, Tensor | int]:
        """Plain arrays for a checkpoint."""
        return {"coef": torch.from_numpy(self.coef), "intercept": torch.from_numpy(self.intercept),
                "voxels": torch.from_numpy(self.voxels), "pool": self.pool}

    @classmethod
    def from_state(cls, state: dict[str, Tensor | int]) -> "LabelClassifier":
        """The classifier that gave this state."""
        return cls(state["coef"].numpy(), state["intercept"].numpy(), state["voxels"].numpy(), state["pool"])


def pool_volume(volume: Tensor, pool: int) -> Tensor:
    """Mean over blocks of pool^3 voxels; voxels beyond the last whole block are left out."""
    return F.avg_pool3d(volume.cpu(), pool)


def pool_width(voxel_mm: float, width_mm: float = FEATURE_MM) -> int:
    """Block width in voxels that comes nearest to width_mm."""
    return max(1, round(width_mm / voxel_mm))
