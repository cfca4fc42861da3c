"""The updates of both stages, one function each, and the epoch that takes them."""
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoints import Progress
from diffusion import Diffusion
from model import AAE, Discriminator, UNet
from stopping import held
from utils import NotFiniteError, seed_everything


def aae_step(aae: AAE, disc: Discriminator, opt_g: Optimizer, opt_d: Optimizer, x: Tensor, lambda_rec: float,
             parts: int = 1, cast: Callable = nullcontext) -> dict[str, float]:
    """Update the autoencoder, then the discriminator, on x [B, 1, D, H, W] in [0, 1] (hinge loss).

    parts: x goes through the networks in so many equal parts, one after the other, and the gradients of the parts' mean loss are added up;
    the discriminator's batch norms see a part alone. cast: gives the context, such as autocast, of the forward passes.
    """
    losses, x_hats = {"rec": 0.0, "adv": 0.0}, []
    opt_g.zero_grad(set_to_none=True)
    for part in x.chunk(parts):
        with cast():
            x_hat = aae(part)
            loss_rec, loss_adv = F.l1_loss(x_hat.float(), part), -disc(x_hat).float().mean()
        ((lambda_rec * loss_rec + loss_adv) / parts).backward(inputs=list(aae.parameters()))  # none for the discriminator
        x_hats.append(x_hat.detach())                                                        # the hinge loss stops at x_hat
        losses["rec"], losses["adv"] = losses["rec"] + loss_rec.item() / parts, losses["adv"] + loss_adv.item() / parts
    update(opt_g, losses)

    losses["disc"] = 0.0
    opt_d.zero_grad(set_to_none=True)
    for part, x_hat in zip(x.chunk(parts), x_hats, strict=True):
        with cast():
            loss_disc = 0.5 * (F.relu(1 - disc(part).float()).mean() + F.relu(1 + disc(x_hat).float()).mean())
        (loss_disc / parts).backward()
        losses["disc"] += loss_disc.item() / parts
    update(opt_d, losses)
    return losses


def denoising_loss(unet: UNet, diffusion: Diffusion, z_0: Tensor, mri: Tensor, label: Tensor, label_dropout: float) -> Tensor:
    """Mean squared error of the network's prediction at a random step of every sample (Ho et al. 2020, Eq. 14).

    z_0 [B, C, d, h, w], mri [B, 1, D, H, W], label [B] int64; a sample goes without its label with probability label_dropout.
    """
    t = torch.randint(1, diffusion.T, (len(z_0),), device=z_0.device)                        # 1 .. T - 1 (paper)
    eps = torch.randn_like(z_0)
    kept = (torch.rand(len(z_0), 1, device=z_0.device) >= label_dropout).float()
    weights = F.one_hot(label, unet.projector.label.num_embeddings).float() * kept           # [B, K]
    return F.mse_loss(unet(diffusion.q_sample(z_0, t, eps), mri, t, weights).float(), diffusion.target(z_0, t, eps))


def ldm_step(unet: UNet, diffusion: Diffusion, opt: Optimizer, z_0: Tensor, mri: Tensor, label: Tensor, label_dropout: float,
             parts: int = 1, cast: Callable = nullcontext) -> dict[str, float]:
    """Update the denoiser on one batch; shapes as in denoising_loss, parts and cast as in aae_step."""
    losses = []
    opt.zero_grad(set_to_none=True)
    for part in zip(z_0.chunk(parts), mri.chunk(parts), label.chunk(parts), strict=True):
        with cast():
            loss = denoising_loss(unet, diffusion, *part, label_dropout)
        (loss / parts).backward()
        losses.append(loss.item() / parts)
    update(opt, {"mse": sum(losses)})
    return {"mse": sum(losses)}


def update(opt: Optimizer, losses: dict[str, float]) -> None:
    """Take the optimizer's step. Raises NotFiniteError before it if a loss or the norm of the gradient is not finite."""
    gradients = [weight.grad for group in opt.param_groups for weight in group["params"] if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not np.isfinite([norm, *losses.values()]).all():
        raise NotFiniteError(f"loss {losses}, norm of the gradient {norm}")
    opt.step()


def train_epoch(loader: DataLoader, step: Callable[[dict], dict[str, float]], seed: int, title: str,
                progress: Progress) -> tuple[dict[str, float], float]:
    """Take the steps of an epoch that are left; a signal waits for the end of the present one.

    seed: what the epoch's order, crops, times and noise follow from. progress: the steps that were taken before an interruption; the
    others are noted there. Returns the mean of each loss over all of them, and the share of the time that was spent waiting for data.
    Raises NotFiniteError that names step and subjects.
    """
    seed_everything(seed)
    progress.restore_random()
    loader.sampler.seed, loader.sampler.first = seed, len(progress.losses) * loader.batch_size
    waited, started, total = 0.0, time.perf_counter(), len(progress.losses) + len(loader)
    batches = iter(tqdm(loader, desc=title, unit="step", leave=False, disable=None, initial=len(progress.losses), total=total))
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        try:
            with held():
                progress.add(step(batch))
        except NotFiniteError as error:
            raise NotFiniteError(f"{title}, step {len(progress.losses) + 1}: {error} on {', '.join(batch['id'])}; "
                                 "the last checkpoint is kept") from error
    means = {name: float(np.mean([row[name] for row in progress.losses])) for name in progress.losses[0]}
    return means, waited / (time.perf_counter() - started)
