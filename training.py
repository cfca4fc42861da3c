"""The updates of both stages, one function each, and the epoch that takes them."""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from model import AAE, Diffusion, Discriminator, UNet
from utils import NotFiniteError


def aae_step(aae: AAE, disc: Discriminator, opt_g: Optimizer, opt_d: Optimizer, x: Tensor,
             lambda_rec: float) -> dict[str, float]:
    """Update the autoencoder, then the discriminator, on x [B, 1, D, H, W] in [0, 1] (hinge loss)."""
    x_hat = aae(x)
    loss_rec, loss_adv = F.l1_loss(x_hat, x), -disc(x_hat).mean()
    opt_g.zero_grad(set_to_none=True)
    (lambda_rec * loss_rec + loss_adv).backward()
    opt_g.step()

    opt_d.zero_grad(set_to_none=True)                                                        # drops what loss_adv left in disc
    real, fake = disc(x), disc(x_hat.detach())                                               # the hinge loss stops at x_hat
    loss_disc = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    loss_disc.backward()
    opt_d.step()
    return {"rec": loss_rec.item(), "adv": loss_adv.item(), "disc": loss_disc.item()}


def denoising_loss(unet: UNet, diffusion: Diffusion, z_0: Tensor, mri: Tensor, label: Tensor, label_dropout: float) -> Tensor:
    """Mean squared error of the network's prediction at a random step of every sample (Ho et al. 2020, Eq. 14).

    z_0 [B, C, d, h, w], mri [B, 1, D, H, W], label [B] int64; a sample goes without its label with probability label_dropout.
    """
    t = torch.randint(1, diffusion.T, (len(z_0),), device=z_0.device)                        # 1 .. T - 1 (paper)
    eps = torch.randn_like(z_0)
    kept = (torch.rand(len(z_0), 1, device=z_0.device) >= label_dropout).float()
    weights = F.one_hot(label, unet.projector.label.num_embeddings).float() * kept           # [B, K]
    return F.mse_loss(unet(diffusion.q_sample(z_0, t, eps), mri, t, weights), diffusion.target(z_0, t, eps))


def ldm_step(unet: UNet, diffusion: Diffusion, opt: Optimizer, z_0: Tensor, mri: Tensor, label: Tensor,
             label_dropout: float) -> dict[str, float]:
    """Update the denoiser on one batch; shapes as in denoising_loss."""
    loss = denoising_loss(unet, diffusion, z_0, mri, label, label_dropout)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()
    return {"mse": loss.item()}


def train_epoch(loader: DataLoader, step: Callable[[dict], dict[str, float]], title: str) -> dict[str, float]:
    """Take a step on every batch; returns the mean of each loss. Raises NotFiniteError that names step and subjects."""
    losses = []
    for number, batch in enumerate(tqdm(loader, desc=title, unit="step", leave=False, disable=None), 1):
        losses.append(step(batch))
        if not np.isfinite(list(losses[-1].values())).all():
            raise NotFiniteError(f"{title}, step {number}: loss {losses[-1]} on {', '.join(batch['id'])}; "
                                 "the checkpoint of the epoch before is kept")
    return {name: float(np.mean([row[name] for row in losses])) for name in losses[0]}
