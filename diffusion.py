"""The diffusion process of IL-CLDM, its samplers, and the synthesis of a PET from them.

Dimension key and symbols as in model.py.
"""
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.nn as nn
from torch import Tensor

from model import UNet


class Diffusion(nn.Module):
    """The Gaussian diffusion with linear beta (Ho et al. 2020) and its samplers.

    prediction: what the network's output means. 'eps' the noise (published), or 'v' = sqrt(alpha_bar) eps -
    sqrt(1 - alpha_bar) z_0 (Salimans and Ho 2022). A denoise function takes z_t [B, C, d, h, w] and t [B] int64.
    """

    def __init__(self, T: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02, prediction: str = "eps"):
        super().__init__()
        assert prediction in ("eps", "v"), prediction
        self.T, self.prediction = T, prediction
        beta = torch.linspace(beta_first, beta_last, T, dtype=torch.float64)
        self.register_buffer("beta", beta.float(), persistent=False)
        self.register_buffer("alpha_bar", torch.cumprod(1 - beta, dim=0).float(), persistent=False)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return self.alpha_bar[t].view(-1, 1, 1, 1, 1)                                        # [B, 1, 1, 1, 1]

    def q_sample(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Draw z_t ~ q(z_t | z_0) (Ho et al. 2020, Eq. 4). z_0, eps: [B, C, d, h, w]; t: [B] int64 in [0, T)."""
        alpha_bar_t = self._alpha_bar(t)
        return alpha_bar_t.sqrt() * z_0 + (1 - alpha_bar_t).sqrt() * eps

    def target(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network is to predict for q_sample(z_0, t, eps); [B, C, d, h, w]."""
        if self.prediction == "eps":
            return eps
        alpha_bar_t = self._alpha_bar(t)
        return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * z_0

    def z_0_and_eps(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that a network output at z_t stands for; both [B, C, d, h, w]."""
        alpha_bar_t = self._alpha_bar(t)
        signal, noise = alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()
        if self.prediction == "eps":
            return (z_t - noise * output) / signal, output
        return signal * z_t - noise * output, noise * z_t + signal * output

    def ddpm(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor, noise: Iterator[Tensor]) -> Tensor:
        """Ancestral sampling (Ho et al. 2020, Algorithm 2, variance beta_t) over t = T - 1, ..., 1.

        z_T: [B, C, d, h, w]. noise gives T - 2 further tensors of that shape, one a step but the last. Returns z_0.
        """
        z_t = z_T
        for t in range(self.T - 1, 0, -1):
            steps = torch.full((len(z_t),), t, device=z_t.device)
            _, eps = self.z_0_and_eps(denoise(z_t, steps), z_t, steps)
            beta_t = self.beta[t]
            z_t = (z_t - beta_t / (1 - self.alpha_bar[t]).sqrt() * eps) / (1 - beta_t).sqrt()
            if t > 1:
                z_t = z_t + beta_t.sqrt() * next(noise)
        return z_t

    def ddim(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor, steps: int) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, Eq. 12, eta 0) over `steps` network calls, evenly spaced in t.

        z_T: [B, C, d, h, w]. Returns z_0; the last call's estimate is the result.
        """
        z_t = z_T
        times = torch.linspace(self.T - 1, 1, steps).round().long().tolist()
        for t, t_next in zip(times, [*times[1:], None], strict=True):
            batch_t = torch.full((len(z_t),), t, device=z_t.device)
            z_0, eps = self.z_0_and_eps(denoise(z_t, batch_t), z_t, batch_t)
            z_t = z_0 if t_next is None else self.q_sample(z_0, torch.full_like(batch_t, t_next), eps)
        return z_t

    def dpm(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor, steps: int) -> Tensor:
        """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): deterministic, second order, `steps` network calls.

        z_T: [B, C, d, h, w]. Returns z_0; the last call's estimate is the result. The steps are even in lambda = log(alpha / sigma), half
        the log of the signal-to-noise ratio; where two would fall on one t, there is one call less.
        """
        alpha_bar, lambda_t = self.alpha_bar.double(), self._lambda()
        times = self._even_in_lambda(steps)
        z_t, z_0_before, h_before = z_T, None, None
        for t, t_next in zip(times, [*times[1:], None], strict=True):
            z_0, _ = self.z_0_and_eps(denoise(z_t, batch_t := torch.full((len(z_t),), t, device=z_t.device)), z_t, batch_t)
            if t_next is None:
                return z_0
            h = (lambda_t[t_next] - lambda_t[t]).item()
            slope = 0 if z_0_before is None else (z_0 - z_0_before) * (h / (2 * h_before))
            sigma_ratio = ((1 - alpha_bar[t_next]) / (1 - alpha_bar[t])).sqrt().item()
            z_t = sigma_ratio * z_t - alpha_bar[t_next].sqrt().item() * math.expm1(-h) * (z_0 + slope)
            z_0_before, h_before = z_0, h


    def _lambda(self) -> Tensor:
        """lambda at every t, [T] float64; it falls with t."""
        alpha_bar = self.alpha_bar.double()
        return (alpha_bar.log() - (1 - alpha_bar).log()) / 2

    def _even_in_lambda(self, steps: int) -> list[int]:
        """Times from T - 1 down to 1, as even in lambda as whole steps can be."""
        lambda_t = self._lambda()
        even = torch.linspace(lambda_t[-1].item(), lambda_t[1].item(), steps, dtype=torch.float64, device=lambda_t.device)
        return torch.unique((lambda_t[1:, None] - even).abs().argmin(dim=0) + 1).flip(0).tolist()

    def calls(self, sampler: str, steps: int) -> int:
        """Network calls of a draw."""
        return {"ddpm": self.T - 1, "ddim": steps, "dpm": len(self._even_in_lambda(steps))}[sampler]


class Synthesizer:
    """From MRIs to their PETs: draw latents, average them, decode.

    latent_mean, latent_std: the shift and scale that the latents were trained with, z_0 = (E(x) - mean) / std.
    batch: how many draws go through the denoiser at once. cast: gives the context, such as autocast, in which the networks compute.
    """

    def __init__(self, decoder: nn.Module, unet: UNet, diffusion: Diffusion, latent_mean: float = 0.0, latent_std: float = 1.0,
                 batch: int = 8, cast: Callable = nullcontext):
        self.decoder, self.unet, self.diffusion = decoder, unet, diffusion
        self.latent_mean, self.latent_std, self.batch, self.cast = latent_mean, latent_std, batch, cast

    @torch.no_grad()
    def draw(self, mri: Tensor, label: Tensor | None, noise: list[list[Iterator[Tensor]]], sampler: str, steps: int) -> Tensor:
        """mri [B, 1, D, H, W] in [0, 1] -> m draws of each latent, [B, m, C, d, h, w].

        label: weights of the label embeddings [B, K], or None. noise[b][k] gives tensors [C, d, h, w] for draw k of scan b, z_T first.
        sampler: 'ddpm' (T - 1 calls), 'ddim' or 'dpm' (`steps` calls). The Extractor sees each MRI once.
        """
        draws, streams = len(noise[0]), [stream for scan in noise for stream in scan]        # B m streams
        with self.cast():
            condition = self.unet.extractor(mri)
        condition = condition.float().repeat_interleave(draws, dim=0)                        # [B m, 1, d, h, w]
        label = label if label is None else label.to(mri.device).repeat_interleave(draws, dim=0)   # [B m, K]
        chunks = [slice(first, first + self.batch) for first in range(0, len(streams), self.batch)]
        z_0 = [self._sample(condition[part], label if label is None else label[part], streams[part], sampler, steps) for part in chunks]
        return torch.cat(z_0).unflatten(0, (len(mri), draws)) * self.latent_std + self.latent_mean

    def _sample(self, condition: Tensor, label: Tensor | None, streams: list[Iterator[Tensor]], sampler: str, steps: int) -> Tensor:
        """One draw for each stream of noise, all at once: [n, C, d, h, w]."""
        noise = (torch.stack(tensors).to(condition.device) for tensors in zip(*streams, strict=True))

        def denoise(z_t: Tensor, t: Tensor) -> Tensor:
            with self.cast():
                return self.unet.denoise(z_t, condition, t, label).float()

        z_T = next(noise)
        if sampler == "ddpm":
            return self.diffusion.ddpm(denoise, z_T, noise)
        return {"ddim": self.diffusion.ddim, "dpm": self.diffusion.dpm}[sampler](denoise, z_T, steps)

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        """Latents [B, C, d, h, w] -> x_hat [B, 1, D, H, W], clamped to [0, 1]."""
        with self.cast():                                  # two at a time: a decoder's activations are the largest of all
            return torch.cat([self.decoder(part).float().clamp(0, 1) for part in z_0.split(2)])

    def deviation(self, z_0: Tensor) -> Tensor:
        """Draws [B, m, C, d, h, w], m at least 2 -> the standard deviation (m - 1) of the decoded draws in every voxel, [B, 1, D, H, W]."""
        return torch.stack([self.decode(z) for z in z_0.unbind(dim=1)]).std(dim=0)
