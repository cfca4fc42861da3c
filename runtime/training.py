"""The updates of both stages, one function each, and the epoch that takes them."""
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from diffusion import Diffusion
from model import AAE, Discriminator, UNet
from runtime.checkpoints import Progress
from runtime.logs import progress_bar
from runtime.ranks import mean_over_ranks, all_reduce_mean, average_statistics, rank, ranks, stop_together
from runtime.signals import defer_signals
from utils import NotFiniteError, seed_everything


def aae_step(aae: AAE, disc: Discriminator, opt_g: Optimizer, opt_d: Optimizer, x: Tensor, lambda_rec: float,
             cast: Callable = nullcontext) -> dict[str, float]:
    """Update the autoencoder, then the discriminator, on x [B, 1, D, H, W] in [0, 1] (hinge loss).

    cast: gives the context, such as autocast, of the forward passes.
    """
    with cast():
        x_hat = aae(x)                                                                       # [B, 1, D, H, W]
        loss_rec, loss_adv = F.l1_loss(x_hat.float(), x), -disc(x_hat).float().mean()
    losses = {"rec": loss_rec.item(), "adv": loss_adv.item()}
    update(opt_g, lambda_rec * loss_rec + loss_adv, losses)

    with cast():
        real, fake = disc(x).float(), disc(x_hat.detach()).float()                           # the hinge loss stops at x_hat
        loss_disc = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    losses["disc"] = loss_disc.item()
    update(opt_d, loss_disc, losses)
    return losses


class Sample(NamedTuple):
    """What a step of stage 2 sees: z_0 [B, C, d, h, w] shifted and scaled, mri [B, 1, D, H, W], label [B, K] weights of the label
    embeddings, and pet [B, 1, D, H, W] if the objective looks at decoded images."""
    z_0: Tensor
    mri: Tensor
    label: Tensor
    pet: Tensor | None = None


@dataclass(frozen=True)
class ImageLoss:
    """L1 between PET and decoded estimate of z_0 (the idea of CoCoLIT, 2025, on latent diffusion).

    decode: scaled latents -> volumes. weight: of the mean, whose unit is the standard deviation of the PET over voxels, scale.
    """
    decode: Callable[[Tensor], Tensor]
    weight: float
    scale: float

    def __call__(self, z_0: Tensor, pet: Tensor) -> Tensor:
        """Mean loss of estimates z_0 [B, C, d, h, w]."""
        error = (self.decode(z_0) - pet).abs() / self.scale                                  # [B, 1, D, H, W]
        return (self.weight * error.flatten(1).mean(dim=1)).mean()


@dataclass(frozen=True)
class Objective:
    """What the denoiser is trained to lower: the weighted squared error of its prediction at a random step of every sample
    (Ho et al. 2020, Eq. 14), and the error of the decoded image if asked for.

    time_shift, min_snr: see Diffusion.draw_times and loss_weight.
    """
    diffusion: Diffusion
    time_shift: float = 1.0
    min_snr: float = 0.0
    image: ImageLoss | None = None

    def losses(self, unet: UNet, sample: Sample, place: tuple[int, int] = (0, 1)) -> dict[str, Tensor]:
        """The mean loss and its parts: loss, mse, and image if there is one.

        place: (k, n) if this batch is number k of n that make a larger one, for all of which times and noise are drawn.
        """
        z_0, diffusion = sample.z_0, self.diffusion
        own, everyone = slice(place[0] * len(z_0), (place[0] + 1) * len(z_0)), place[1] * len(z_0)
        t = diffusion.draw_times(everyone, self.time_shift).to(z_0.device)[own]
        eps = torch.randn(everyone, *z_0.shape[1:], device=z_0.device)[own]
        torch.rand(everyone, 1, device=z_0.device)         # keeps the random stream of an earlier draw
        z_t = diffusion.q_sample(z_0, t, eps)
        output = unet(z_t, sample.mri, t, sample.label).float()
        error = F.mse_loss(output, diffusion.target(z_0, t, eps), reduction="none").flatten(1).mean(dim=1)   # [B]
        mse = (diffusion.loss_weight(t, self.min_snr) * error).mean()
        if self.image is None:
            return {"loss": mse, "mse": mse}
        estimate, _ = diffusion.z_0_and_eps(output, z_t, t)
        image = self.image(estimate, sample.pet)
        return {"loss": mse + image, "mse": mse, "image": image}


def ldm_step(unet: UNet, objective: Objective, opt: Optimizer, sample: Sample, cast: Callable = nullcontext) -> dict[str, float]:
    """Update the denoiser on one batch: its losses."""
    with cast():
        losses = objective.losses(unet, sample, (rank(), ranks()))
    loss = losses.pop("loss")
    values = {name: value.item() for name, value in losses.items()}
    update(opt, loss, values)
    return values


def set_rate(optimizers: list[Optimizer], rate: float, epoch: int, epochs: int, decay: bool) -> None:
    """Give the optimizers the learning rate of an epoch, counted from 1: the same for all, or with decay half a cosine that would
    reach 0 behind the last of them."""
    factor = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if decay else 1.0
    for group in (group for opt in optimizers for group in opt.param_groups):
        group["lr"] = rate * factor


def update(opt: Optimizer, loss: Tensor, losses: dict[str, float]) -> None:
    """Take the optimizer's step down the loss, with gradients that are averaged over the ranks.

    Weights of other networks that the loss goes through get no gradient. Raises NotFiniteError before the step if a loss or the norm of the
    gradient is not finite.
    """
    weights = [weight for group in opt.param_groups for weight in group["params"]]
    opt.zero_grad(set_to_none=True)
    loss.backward(inputs=weights)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    all_reduce_mean(gradients)
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not np.isfinite([norm, *losses.values()]).all():
        raise NotFiniteError(f"loss {losses}, norm of the gradient {norm}")
    opt.step()


def train_epoch(loader: DataLoader, step: Callable[[dict], dict[str, float]], seed: int, title: str,
                progress: Progress, networks: list[nn.Module]) -> tuple[dict[str, float], float]:
    """Take the steps of an epoch that are left; a signal waits for the end of the present one, and then ends all ranks.

    seed: what the epoch's order, crops, times and noise follow from. progress: the steps that were taken before an interruption; the
    others are noted there. Returns the mean of each loss over all of them, and the share of the time that was spent waiting for data.
    Raises NotFiniteError that names step and subjects.
    """
    seed_everything(seed)
    progress.restore_random()
    loader.sampler.seed, loader.sampler.first = seed, progress.items
    waited, started, total = 0.0, time.perf_counter(), len(progress.losses) + len(loader)
    batches = iter(progress_bar(loader, desc=title, unit="step", initial=len(progress.losses), total=total))
    with stop_together():
        stop = False
        while not stop:
            began = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - began
            if batch is None:
                break
            try:
                with defer_signals():
                    losses, stop = mean_over_ranks(step(batch))
                    average_statistics(networks)
                    progress.add(losses, loader.sampler.step_items)
            except NotFiniteError as error:
                raise NotFiniteError(f"{title}, step {len(progress.losses) + 1}: {error} on {', '.join(batch['id'])}; "
                                     "the last checkpoint is kept") from error
        mean_over_ranks({})
    means = {name: float(np.mean([row[name] for row in progress.losses])) for name in progress.losses[0]}
    return means, waited / (time.perf_counter() - started)
