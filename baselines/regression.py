"""Regression from the MRI to the PET by one network evaluation, without noise and without label: what
baselines of this kind share.

Optimizer, batches, epochs, moving average and the choice of the best epoch are those of stage 2.

To add one: a subclass in a file of its own here; its name in config.BASELINES, and in the `affects` marks of
the settings that it depends on; its construction in experiment/networks.py:build_baseline. Training,
checkpoints, scores and tables follow. For the pictures: its title in evaluation/figures.py:CURVES.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from model import UNet
from runtime.fit import update


class Regression:
    """A baseline that is trained by mean squared error. A subclass says what its network gives, and makes a
    PET of it.

    name: of the baseline, its stage and its method in the tables. modalities: volumes that its training
    needs, 'mri' and 'pet'. network: the one that is trained; in prediction its moving average takes its
    place.
    """

    name: str
    modalities: tuple[str, ...]

    def __init__(self, network: UNet):
        self.network = network

    def target(self, batch: dict) -> Tensor:
        """What the network is to give for a batch {id, and the modalities}."""
        raise NotImplementedError

    def output(self, network: UNet, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> what is compared with the target."""
        raise NotImplementedError

    def to_pet(self, output: Tensor) -> Tensor:
        """The network's output as a PET [B, 1, D, H, W], not clamped."""
        raise NotImplementedError

    def metadata(self) -> dict:
        """Plain values that a checkpoint keeps, as `build_baseline` needs them for a trained one."""
        return {}

    def step(self, opt: Optimizer, batch: dict, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the network on a batch: its loss. cast: gives the context, such as autocast, of the forward
        pass."""
        device = next(self.network.parameters()).device
        mri, target = (batch["mri"].to(device, non_blocking=True),
                       self.target(batch).to(device, non_blocking=True))
        with cast():
            loss = F.mse_loss(self.output(self.network, mri).float(), target)
        return update(opt, loss, {"mse": loss})

    def predictor(self, network: UNet, cast: Callable = nullcontext) -> Callable[[dict], Tensor]:
        """A predict function for evaluate: MRI -> PET in [0, 1], by one evaluation of this network."""
        device = next(network.parameters()).device

        def predict(batch: dict) -> Tensor:
            """The PETs of a batch, [B, 1, D, H, W]."""
            with cast():
                return self.to_pet(self.output(network, batch["mri"].to(device))).float().clamp(0, 1)
        return predict
