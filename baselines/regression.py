"""Regression from the MRI to the PET by one network evaluation, without noise: what baselines of this kind
share.

Optimizer, batches, moving average and the choice of the best epoch are those of stage 2. Each is trained
twice: without label, and as a labelled one with all that the diffusion has beside noise. What the diffusion
has over the labelled one is the diffusion's; the rest is the label's and the image loss's.
"""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from baselines.baseline import Baseline
from model import UNet
from runtime.fit import set_rate, update
from utils import EMA, fused_on


@dataclass(frozen=True)
class Training:
    """How a regression is trained: the settings of stage 2."""
    lr: float = 1e-4
    ema_decay: float = 0.9999
    ema_start: int = 2000


@dataclass(frozen=True)
class Labels:
    """What a labelled regression knows of labels, as stage 2 does.

    of: ID -> weights of the label embeddings [K] in training. predict: MRI [B, 1, D, H, W] and
    IDs -> the same [B, K], predicted from MRI and covariates, which takes their place afterwards. image_loss:
    weight of the L1 between PET and decoded output, in units of pet_std, the standard deviation over all
    voxels of all training PETs.
    """
    of: dict[str, Tensor]
    predict: Callable[[Tensor, list[str] | None], Tensor]
    image_loss: float = 0.0
    pet_std: float = 1.0


class Regression(Baseline):
    """A baseline that is trained by mean squared error. A subclass says what its network gives, and makes a
    PET of it.

    parts: unet, the network that is trained; ema, its moving average, which predicts; opt. labels: of a
    labelled one, or None.
    """

    def __init__(self, network: UNet, num_classes: int, training: Training, labels: Labels | None = None):
        self.network, self.num_classes, self.training, self.labels = network, num_classes, training, labels
        self.device = next(network.parameters()).device
        self.ema = EMA(network, training.ema_decay, training.ema_start)
        self.opt = AdamW(network.parameters(), training.lr, fused=fused_on(self.device))
        super().__init__({"unet": network, "ema": self.ema.module, "opt": self.opt})

    def target(self, batch: dict) -> Tensor:
        """What the network is to give for a batch."""
        raise NotImplementedError

    def output(self, network: UNet, mri: Tensor, label: Tensor) -> Tensor:
        """mri [B, 1, D, H, W], label [B, K] (zeros: none) -> what is compared with the target."""
        raise NotImplementedError

    def to_pet(self, output: Tensor) -> Tensor:
        """The network's output as a PET [B, 1, D, H, W], not clamped; gradients pass through."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the learning rate, which is the same in all epochs."""
        set_rate([self.opt], self.training.lr)

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the network and its moving average on a batch: its loss and its terms."""
        mri, target = (batch["mri"].to(self.device, non_blocking=True),
                       self.target(batch).to(self.device, non_blocking=True))
        label = mri.new_zeros(len(mri), self.num_classes)
        if self.labels:
            label = torch.stack([self.labels.of[name] for name in batch["id"]]).to(self.device)
        with cast():
            output = self.output(self.network, mri, label).float()
            terms = {"mse": F.mse_loss(output, target)}
            if self.labels and self.labels.image_loss:
                error = F.l1_loss(self.to_pet(output), batch["pet"].to(self.device, non_blocking=True))
                terms["image"] = self.labels.image_loss * error / self.labels.pet_std
        losses = update(self.opt, sum(terms.values()), terms)
        self.ema.update(self.network, number)
        return losses

    @torch.no_grad()
    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """The PETs of MRIs by one evaluation of the moving average."""
        label = mri.new_zeros(len(mri), self.num_classes)
        if self.labels:
            label = self.labels.predict(mri, ids)          # on the CPU, as the MRIs come
        with cast():
            output = self.output(self.ema.module, mri.to(self.device), label.to(self.device))
            return self.to_pet(output).float().clamp(0, 1)
