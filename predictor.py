"""What predicts the amyloid label from an MRI, beside the linear classifier: ridge regression, and small 3D networks.

Both are cross-fitted: what a subject of the training list gets comes from a fit that did not see him, and on these the probabilities
are calibrated.
"""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from classifier import folds_of, pool_volume
from logs import progress_bar
from stopping import stop_if_asked
from utils import seed_everything

INPUT_MM = 4.0                                             # fine enough for sulci and ventricles, and as cheap at 1 mm as at 4
CHANNELS = (8, 16)
EPOCHS, BATCH, RATE, DECAY, DROPOUT = 8, 8, 1e-3, 0.1, 0.5
PENALTIES = tuple(10.0 ** np.arange(2, 8.5, 0.5))         # of the ridge regression; the best is chosen by leaving one out
FLOOR = 0.05                                               # of the deviation that voxels are divided by, in intensities of the MRI
SURROUNDINGS = 3.0                                         # SD of the Gaussian whose mean is taken off, in pooled voxels: about 12 mm


class RidgeClassifier:
    """Ridge regression of the label's weights on the MRI, without reducing it first: the signal of a slight atrophy is spread over many
    components, of which a few of largest variance would keep little. It sees what features_of makes of an MRI.

    coef: [K, F], intercept: [K]; span: smallest and largest weight that it was fitted to, [2]; voxels [d, h, w] bool picks the F features;
    calibration as in NetworkClassifier; levels: mean SUVR of the training list with each label, [2], if the weights were made of SUVRs.
    """

    def __init__(self, coef: Tensor, intercept: Tensor, span: Tensor, voxels: Tensor, calibration: Tensor, pool: int,
                 levels: Tensor | None = None):
        self.coef, self.intercept, self.span, self.voxels, self.calibration, self.pool = coef, intercept, span, voxels, calibration, pool
        self.levels = levels

    @classmethod
    def cross_fit(cls, mri: Tensor, labels: np.ndarray, weights: np.ndarray, brain: Tensor, pool: int, seed: int) \
            -> tuple["RidgeClassifier", Tensor]:
        """Fit to weights [n, K] on pooled MRIs [n, 1, d, h, w]; labels: [n]; brain: [d, h, w], the share of the pooled voxel that is brain.

        Returns the classifier, and probabilities [n, K], each from a fit that did not see the subject.
        """
        voxels = (brain + brain.flip(0)) / 2 >= 0.5
        features = features_of(mri, voxels).numpy()
        logits = torch.zeros(weights.shape)
        for rows, left_out in folds_of(labels, seed):
            model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features[rows], weights[rows])
            logits[left_out] = torch.from_numpy(model.predict(features[left_out])).float()
        scaler, ridge = (step for _, step in make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features, weights).steps)
        coef = ridge.coef_ / scaler.scale_
        span = torch.tensor([weights.min(), weights.max()])
        classifier = cls(torch.from_numpy(coef), torch.from_numpy(ridge.intercept_ - coef @ scaler.mean_), span, voxels,
                         calibrate(logits, labels), pool)
        return classifier, calibrated(logits, classifier.calibration)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Probability of each label for MRIs [B, 1, D, H, W]: [B, K] float32."""
        return calibrated(self._regress(volume), self.calibration)

    def weights(self, volume: Tensor) -> Tensor:
        """The weights of the label, for MRIs [B, 1, D, H, W], within those of training: [B, K] float32."""
        return self._regress(volume).clamp(*self.span)

    def corrected(self, weights: Tensor, suvr: Tensor) -> Tensor:
        """Weights [B, 2] that make up for what the SUVR [B] of PETs synthesized with these weights lacks; as they are where it is NaN."""
        negative, positive = self.levels.tolist()
        lack = weights[:, 1] - (suvr - negative) / (positive - negative)
        return weights + torch.stack([-lack, lack], dim=1).nan_to_num(0.0)

    def _regress(self, volume: Tensor) -> Tensor:
        features = features_of(pool_volume(volume, self.pool), self.voxels)                  # [B, F]
        return (torch.stack([(features * row).sum(dim=1) for row in self.coef], dim=1) + self.intercept).float()   # alike in any batch

    def state(self) -> dict:
        """Plain tensors for a checkpoint."""
        return {"ridge": True, **vars(self)}

    @classmethod
    def from_state(cls, state: dict) -> "RidgeClassifier":
        """The classifier that gave this state."""
        return cls(**{name: value for name, value in state.items() if name != "ridge"})


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


class SmallNetwork(nn.Module):
    """MRI [B, 1, d, h, w] -> logits [B, K]; it sees how far each voxel is from the mean of its training list, and where."""

    def __init__(self, num_classes: int, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)                 # [1, d, h, w]
        self.register_buffer("deviation", deviation)
        layers: list[nn.Module] = []
        for a, b in zip((1, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv3d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.AvgPool3d(2), nn.Flatten(), nn.Dropout(DROPOUT))
        self.head = nn.Linear(self.features(mean[None]).shape[1], num_classes)
        nn.init.zeros_(self.head.weight)                   # thousands of features: it begins by knowing nothing

    def forward(self, mri: Tensor) -> Tensor:
        return self.head(self.features((mri - self.mean) / self.deviation))


class NetworkClassifier:
    """The mean of networks that were each trained on all folds but one, its logits scaled and shifted to be probabilities.

    calibration: [2, K], scale (the same for all labels) and shift of the logits. pool: voxels of an MRI, along an axis, that become one.
    """

    def __init__(self, networks: list[nn.Module], calibration: Tensor, pool: int):
        self.networks, self.calibration, self.pool = networks, calibration, pool

    @classmethod
    def cross_fit(cls, mri: Tensor, labels: np.ndarray, pool: int, seed: int, device: torch.device) \
            -> tuple["NetworkClassifier", Tensor]:
        """Fit on pooled MRIs [n, 1, d, h, w] and labels [n].

        Returns the classifier, and probabilities [n, K], each from the network that did not see the subject.
        """
        classes = int(labels.max()) + 1
        logits, networks = torch.zeros(len(mri), classes), []
        for number, (rows, left_out) in enumerate(folds_of(labels, seed), start=1):
            seed_everything(seed, "label network", number)
            seen = mri[rows]
            network = SmallNetwork(classes, seen.mean(dim=0), seen.std(dim=0) + FLOOR).to(device)
            networks.append(train_network(network, seen, torch.from_numpy(labels)[rows], f"label network {number}"))
            with torch.no_grad():
                logits[left_out] = network(mri[left_out].to(device)).cpu()
        classifier = cls(networks, calibrate(logits, labels), pool)
        return classifier, calibrated(logits, classifier.calibration)

    def probabilities(self, volume: Tensor) -> Tensor:
        """Probability of each label for MRIs [B, 1, D, H, W]: [B, K] float32."""
        mri = pool_volume(volume, self.pool).to(self.networks[0].mean.device)
        with torch.no_grad():
            logits = torch.stack([network(mri) for network in self.networks]).mean(dim=0).cpu()
        return calibrated(logits, self.calibration)

    def state(self) -> dict:
        """Plain tensors for a checkpoint."""
        return {"networks": [network.state_dict() for network in self.networks], "calibration": self.calibration, "pool": self.pool}

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> "NetworkClassifier":
        """The classifier that gave this state."""
        networks = []
        for weights in state["networks"]:
            network = SmallNetwork(state["calibration"].shape[1], weights["mean"], weights["deviation"])
            network.load_state_dict(weights)
            networks.append(network.to(device).eval().requires_grad_(False))
        return cls(networks, state["calibration"], state["pool"])


def train_network(network: nn.Module, mri: Tensor, labels: Tensor, title: str) -> nn.Module:
    """The network, trained on MRIs [n, 1, d, h, w] of which each is mirrored left to right half of the time; then frozen."""
    device = next(network.parameters()).device
    opt = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    batches = -(-len(mri) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, RATE, total_steps=EPOCHS * batches)
    for _ in progress_bar(range(EPOCHS), desc=title, unit="epoch"):
        for rows in torch.randperm(len(mri)).tensor_split(batches):
            stop_if_asked()
            mirrored = torch.rand(len(rows), 1, 1, 1, 1) < 0.5
            x = torch.where(mirrored, mri[rows].flip(2), mri[rows]).to(device)
            loss = F.cross_entropy(network(x), labels[rows].to(device))
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
    return network.eval().requires_grad_(False)


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
