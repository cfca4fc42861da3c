"""The updates of both stages, one function each, and the epoch that takes them."""
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from checkpoints import Progress
from diffusion import Diffusion
from logs import progress_bar
from model import AAE, Discriminator, UNet
from ranks import agree, average_statistics, bare, rank, ranks, stopping_together, summing
from stopping import held
from utils import NotFiniteError, seed_everything


def aae_step(aae: AAE, disc: Discriminator, opt_g: Optimizer, opt_d: Optimizer, x: Tensor, lambda_rec: float,
             parts: int = 1, cast: Callable = nullcontext) -> dict[str, float]:
    """Update the autoencoder, then the discriminator, on x [B, 1, D, H, W] in [0, 1] (hinge loss).

    parts: x goes through the networks in so many equal parts, one after the other, and the gradients of the parts' mean loss are added up;
    the discriminator's batch norms see a part alone. cast: gives the context, such as autocast, of the forward passes.
    Under several ranks both are wrapped (ranks.wrap), and x is this rank's; each update averages the gradients of its own network.
    """
    losses, x_hats, parts_of_x = {"rec": 0.0, "adv": 0.0}, [], x.chunk(parts)
    opt_g.zero_grad(set_to_none=True)
    for number, part in enumerate(parts_of_x, start=1):
        with summing(aae, last=number == parts):
            with cast():
                x_hat = aae(part)
                loss_rec, loss_adv = F.l1_loss(x_hat.float(), part), -bare(disc)(x_hat).float().mean()
            ((lambda_rec * loss_rec + loss_adv) / parts).backward(inputs=list(aae.parameters()))  # none for the discriminator
        x_hats.append(x_hat.detach())                                                        # the hinge loss stops at x_hat
        losses["rec"], losses["adv"] = losses["rec"] + loss_rec.item() / parts, losses["adv"] + loss_adv.item() / parts
    update(opt_g, losses)

    losses["disc"] = 0.0
    opt_d.zero_grad(set_to_none=True)
    for number, (part, x_hat) in enumerate(zip(parts_of_x, x_hats, strict=True), start=1):
        with summing(disc, last=number == parts):
            with cast():
                loss_disc = 0.5 * (F.relu(1 - disc(part).float()).mean() + F.relu(1 + disc(x_hat).float()).mean())
            (loss_disc / parts).backward()
        losses["disc"] += loss_disc.item() / parts
    update(opt_d, losses)
    average_statistics(bare(disc))
    return losses


class Sample(NamedTuple):
    """What a step of stage 2 sees: z_0 [B, C, d, h, w] shifted and scaled, mri [B, 1, D, H, W], label [B, K] weights of the label
    embeddings, and pet [B, 1, D, H, W] if the objective looks at decoded images."""
    z_0: Tensor
    mri: Tensor
    label: Tensor
    pet: Tensor | None = None

    def parts(self, n: int) -> list["Sample"]:
        """n equal parts."""
        chunks = [[None] * n if one is None else one.chunk(n) for one in self]
        return [Sample(*part) for part in zip(*chunks, strict=True)]


@dataclass(frozen=True)
class ImageLoss:
    """L1 between PET and decoded estimate of z_0, over the volume and inside the cortex (the idea of CoCoLIT, 2025, on latent diffusion).

    decode: shifted and scaled latents -> volumes. weight, cortex_weight: those of the two means, whose unit is the deviation of the PET
    over voxels. cortex: [D, H, W] bool, or None. over_time: 'even', or 'signal' for a weight of alpha_bar.
    """
    decode: Callable[[Tensor], Tensor]
    weight: float
    cortex_weight: float
    cortex: Tensor | None
    scale: float
    over_time: str

    def __call__(self, z_0: Tensor, pet: Tensor, alpha_bar: Tensor) -> Tensor:
        """Mean loss of estimates z_0 [B, C, d, h, w], made at steps with these alpha_bar [B]."""
        error = (self.decode(z_0) - pet).abs() / self.scale                                  # [B, 1, D, H, W]
        loss = self.weight * error.flatten(1).mean(dim=1)
        if self.cortex_weight:
            loss = loss + self.cortex_weight * error[:, 0, self.cortex].mean(dim=1)
        return (loss * (alpha_bar if self.over_time == "signal" else 1)).mean()


@dataclass(frozen=True)
class Objective:
    """What the denoiser is trained to lower: the weighted squared error of its prediction at a random step of every sample
    (Ho et al. 2020, Eq. 14), and the error of the decoded image if asked for.

    A sample goes without its label with probability label_dropout. time_shift, min_snr: see Diffusion.draw_times and loss_weight.
    """
    diffusion: Diffusion
    label_dropout: float
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
        kept = (torch.rand(everyone, 1, device=z_0.device)[own] >= self.label_dropout).float()
        z_t = diffusion.q_sample(z_0, t, eps)
        output = unet(z_t, sample.mri, t, sample.label * kept).float()
        error = F.mse_loss(output, diffusion.target(z_0, t, eps), reduction="none").flatten(1).mean(dim=1)   # [B]
        mse = (diffusion.loss_weight(t, self.min_snr) * error).mean()
        if self.image is None:
            return {"loss": mse, "mse": mse}
        estimate, _ = diffusion.z_0_and_eps(output, z_t, t)
        image = self.image(estimate, sample.pet, diffusion.alpha_bar[t])
        return {"loss": mse + image, "mse": mse, "image": image}


def ldm_step(unet: UNet, objective: Objective, opt: Optimizer, sample: Sample, parts: int = 1, cast: Callable = nullcontext) \
        -> dict[str, float]:
    """Update the denoiser on one batch: its losses; parts, cast and ranks as in aae_step."""
    totals: dict[str, float] = {}
    opt.zero_grad(set_to_none=True)
    for number, part in enumerate(sample.parts(parts), start=1):
        with summing(unet, last=number == parts):
            with cast():
                losses = objective.losses(unet, part, (rank(), ranks()))
            (losses.pop("loss") / parts).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item() / parts
    update(opt, totals)
    return totals


def set_rate(optimizers: list[Optimizer], rate: float, epoch: int, epochs: int, decay: bool) -> None:
    """Give the optimizers the learning rate of an epoch, counted from 1: the same for all, or with decay half a cosine that would
    reach 0 behind the last of them."""
    factor = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if decay else 1.0
    for group in (group for opt in optimizers for group in opt.param_groups):
        group["lr"] = rate * factor


def update(opt: Optimizer, losses: dict[str, float]) -> None:
    """Take the optimizer's step. Raises NotFiniteError before it if a loss or the norm of the gradient is not finite."""
    gradients = [weight.grad for group in opt.param_groups for weight in group["params"] if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not np.isfinite([norm, *losses.values()]).all():
        raise NotFiniteError(f"loss {losses}, norm of the gradient {norm}")
    opt.step()


def train_epoch(loader: DataLoader, step: Callable[[dict], dict[str, float]], seed: int, title: str,
                progress: Progress) -> tuple[dict[str, float], float]:
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
    with stopping_together():
        stop = False
        while not stop:
            began = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - began
            if batch is None:
                break
            try:
                with held():
                    losses, stop = agree(step(batch))
                    progress.add(losses, loader.sampler.step_items)
            except NotFiniteError as error:
                raise NotFiniteError(f"{title}, step {len(progress.losses) + 1}: {error} on {', '.join(batch['id'])}; "
                                     "the last checkpoint is kept") from error
        agree({})
    means = {name: float(np.mean([row[name] for row in progress.losses])) for name in progress.losses[0]}
    return means, waited / (time.perf_counter() - started)
