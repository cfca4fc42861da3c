"""Regression from the MRI to the PET by one network evaluation, without noise: what baselines of this kind
share.

Optimizer, batches, epochs, moving average and the choice of the best epoch are those of stage 2. Each is
trained twice: without label, and as a labelled one with all that the diffusion has beside noise. What the
diffusion has over the labelled one is the diffusion's; the rest is the label's and the image loss's.

To add one: a subclass in a file of its own here; its name in config.BASELINES; its construction in
experiment/networks.py:build_baseline. Training, checkpoints, scores and tables follow. For the pictures: its
title in evaluation/figures.py:CURVES.
"""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from model import UNet
from runtime.fit import update


@dataclass(frozen=True)
class Labels:
    """What a labelled regression knows of labels, as stage 2 does.

    of: ID -> weights of the label embeddings [K] in training. predict: MRI [B, 1, D, H, W] -> the same
    [B, K], predicted from it, which takes their place afterwards. image_loss: weight of the L1 between PET
    and decoded output, in units of pet_std, the standard deviation over all voxels of all training PETs.
    """
    of: dict[str, Tensor]
    predict: Callable[[Tensor], Tensor]
    image_loss: float = 0.0
    pet_std: float = 1.0


class Regression:
    """A baseline that is trained by mean squared error. A subclass says what its network gives, and makes a
    PET of it.

    network: the one that is trained; in prediction its moving average takes its place. labels: of a labelled
    one, or None.
    """

    def __init__(self, network: UNet, num_classes: int, labels: Labels | None = None):
        self.network, self.num_classes, self.labels = network, num_classes, labels

    @property
    def modalities(self) -> tuple[str, ...]:
        """Volumes that its training needs, 'mri' and 'pet'."""
        raise NotImplementedError

    def target(self, batch: dict) -> Tensor:
        """What the network is to give for a batch {id, and the modalities}."""
        raise NotImplementedError

    def output(self, network: UNet, mri: Tensor, label: Tensor) -> Tensor:
        """mri [B, 1, D, H, W], label [B, K] (zeros: none) -> what is compared with the target."""
        raise NotImplementedError

    def to_pet(self, output: Tensor) -> Tensor:
        """The network's output as a PET [B, 1, D, H, W], not clamped; gradients pass through."""
        raise NotImplementedError

    def metadata(self) -> dict:
        """Plain values that a checkpoint keeps, as `build_baseline` needs them for a trained one."""
        return {}

    def step(self, opt: Optimizer, batch: dict, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the network on a batch: the terms of its loss. cast: gives the context, such as autocast, of
        the forward pass."""
        device = next(self.network.parameters()).device
        mri, target = (batch["mri"].to(device, non_blocking=True),
                       self.target(batch).to(device, non_blocking=True))
        label = mri.new_zeros(len(mri), self.num_classes)
        if self.labels:
            label = torch.stack([self.labels.of[name] for name in batch["id"]]).to(device)
        with cast():
            output = self.output(self.network, mri, label).float()
            terms = {"mse": F.mse_loss(output, target)}
            if self.labels and self.labels.image_loss:
                error = F.l1_loss(self.to_pet(output), batch["pet"].to(device, non_blocking=True))
                terms["image"] = self.labels.image_loss * error / self.labels.pet_std
        return update(opt, sum(terms.values()), terms)

    def predictor(self, network: UNet, cast: Callable = nullcontext) -> Callable[[dict], Tensor]:
        """A predict function for evaluate: MRI -> PET in [0, 1], by one evaluation of this network."""
        device = next(network.parameters()).device

        def predict(batch: dict) -> Tensor:
            """The PETs of a batch, [B, 1, D, H, W]."""
            mri = batch["mri"].to(device)
            label = mri.new_zeros(len(mri), self.num_classes)
            if self.labels:
                label = self.labels.predict(batch["mri"]).to(device)
            with cast():
                return self.to_pet(self.output(network, mri, label)).float().clamp(0, 1)
        return predict
