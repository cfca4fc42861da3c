"""The update and the prediction of a regression baseline, whatever it regresses: one network evaluation makes
a PET of the MRI.

Optimizer, batches, epochs, moving average and the choice of the best epoch are those of stage 2.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from baselines.image_regression import ImageRegression
from baselines.latent_regression import LatentRegression
from model import UNet
from runtime.fit import update

Regression = LatentRegression | ImageRegression


def regression_step(baseline: Regression, opt: Optimizer, mri: Tensor, target: Tensor,
                    cast: Callable = nullcontext) -> dict[str, float]:
    """Update the baseline's network on mri [B, 1, D, H, W] and the target of its batch (mean squared
    error)."""
    with cast():
        loss = F.mse_loss(baseline.output(baseline.network, mri).float(), target)
    losses = {"mse": loss.item()}
    update(opt, loss, losses)
    return losses


def predict_by(baseline: Regression, network: UNet, cast: Callable = nullcontext) -> Callable[[dict], Tensor]:
    """A predict function for evaluate: MRI -> PET in [0, 1], by one evaluation of the network."""
    device = next(network.parameters()).device

    def predict(batch: dict) -> Tensor:
        """The PETs of a batch, [B, 1, D, H, W]."""
        with cast():
            return baseline.to_pet(baseline.output(network, batch["mri"].to(device))).float().clamp(0, 1)
    return predict
