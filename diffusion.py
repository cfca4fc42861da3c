"""The diffusion process of IL-CLDM, its samplers, and the synthesis of a PET from them.

Dimension key and symbols as in model.py.
"""
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from model import UNet


class Diffusion(nn.Module):
    """The Gaussian diffusion with linear beta (Ho et al. 2020) and its samplers.

    prediction: what the network's output means: 'eps' the noise (published), 'v' = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0
    (Salimans and Ho 2022), or 'x0' the clean latent. zero_terminal_snr: shrink sqrt(alpha_bar) until it ends at 0 (Lin et al. 2024,
    Algorithm 1); for DDIM and for v and x0 alone. A denoise function takes z_t [B, C, d, h, w] and t [B] int64.
    """

    def __init__(self, T: int = 1000, beta: tuple[float, float] = (1e-4, 0.02), prediction: str = "eps",
                 zero_terminal_snr: bool = False):
        super().__init__()
        assert prediction in ("eps", "v", "x0"), prediction
        assert not (zero_terminal_snr and prediction == "eps"), "of pure noise, the noise says nothing about z_0"
        self.T, self.prediction = T, prediction
        beta_t = torch.linspace(*beta, T, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta_t, dim=0)
        if zero_terminal_snr:
            signal = alpha_bar.sqrt()
            alpha_bar = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
            beta_t = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        self.register_buffer("beta", beta_t.float(), persistent=False)
        self.register_buffer("alpha_bar", alpha_bar.float(), persistent=False)

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
        if self.prediction == "x0":
            return z_0
        alpha_bar_t = self._alpha_bar(t)
        return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * z_0

    def z_0_and_eps(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that a network output at z_t stands for; both [B, C, d, h, w]."""
        alpha_bar_t = self._alpha_bar(t)
        signal, noise = alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()
        if self.prediction == "eps":
            return (z_t - noise * output) / signal, output
        if self.prediction == "x0":
            return output, (z_t - signal * output) / noise
        return signal * z_t - noise * output, noise * z_t + signal * output

    def draw_times(self, n: int, shift: float = 1.0) -> Tensor:
        """Random steps for training, [n] int64 in 1 .. T - 1 (paper); uniform at shift 1, above it more of them at high noise: the u of
        T u becomes shift u / (1 + (shift - 1) u) (Esser et al. 2024, Eq. 23)."""
        if shift == 1:
            return torch.randint(1, self.T, (n,), device=self.beta.device)
        u = torch.rand(n, device=self.beta.device)
        return 1 + (shift * u / (1 + (shift - 1) * u) * (self.T - 1)).long().clamp(max=self.T - 2)

    def loss_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Min-SNR-gamma weight of the squared error of the network's output at t (Hang et al. 2023, Section 3.4), [B]: that of z_0 is
        min(SNR, gamma). gamma 0: no weights."""
        if not gamma:
            return torch.ones_like(self.alpha_bar[t])
        snr = self.alpha_bar[t] / (1 - self.alpha_bar[t])
        of_z_0 = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction]     # how the output's error counts in z_0's
        return snr.clamp(max=gamma) / of_z_0

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

    def evaluations(self, sampler: str, steps: int) -> int:
        """Network evaluations (NFE) of one latent sample."""
        return {"ddpm": self.T - 1, "ddim": steps, "dpm": len(self._even_in_lambda(steps))}[sampler]


class LatentSamples(NamedTuple):
    """Sampled latents. z_0: [B, m, C, d, h, w]; label: [B, K], the probabilities that were predicted for the sampling, or None."""
    z_0: Tensor
    label: Tensor | None = None

    def mean(self) -> Tensor:
        """The mean of each scan's samples, [B, C, d, h, w]."""
        return self.z_0.mean(dim=1)


def std_over_samples(values: Tensor) -> Tensor:
    """Standard deviation over the m samples of each scan, [B, m, ...] -> [B, ...]; 0 for a single one."""
    m = values.shape[1]
    return ((values - values.mean(dim=1, keepdim=True)) ** 2).sum(dim=1).div(max(m - 1, 1)).sqrt()


class LatentScale(NamedTuple):
    """The latents that the diffusion sees: z_0 = (E(x) - mean) / std."""
    mean: float = 0.0
    std: float = 1.0

    def apply(self, latent: Tensor) -> Tensor:
        """E(x) [..., C, d, h, w] -> z_0."""
        return (latent - self.mean) / self.std

    def undo(self, z_0: Tensor) -> Tensor:
        """z_0 [..., C, d, h, w] -> what the decoder takes."""
        return z_0 * self.std + self.mean

    def metadata(self) -> dict:
        """As a checkpoint keeps it."""
        return {f"latent_{name}": value for name, value in self._asdict().items()}

    @classmethod
    def of(cls, metadata: dict) -> "LatentScale":
        """That of a checkpoint."""
        return cls(metadata["latent_mean"], metadata["latent_std"])


class Synthesizer:
    """From MRIs to their PETs: sample latents, average them, decode.

    scale: the one that the denoiser was trained with. batch: how many samples go through the denoiser at once. cast: gives the context,
    such as autocast, in which the networks compute.
    """

    def __init__(self, decoder: nn.Module, unet: UNet, diffusion: Diffusion, scale: LatentScale | None = None, batch: int = 8,
                 cast: Callable = nullcontext):
        self.decoder, self.unet, self.diffusion, self.scale = decoder, unet, diffusion, scale or LatentScale()
        self.batch, self.cast = batch, cast

    @torch.no_grad()
    def sample(self, mri: Tensor, label: Tensor | None, noise: list[list[Iterator[Tensor]]], sampler: str, steps: int) -> Tensor:
        """mri [B, 1, D, H, W] in [0, 1] -> m samples of each latent, [B, m, C, d, h, w].

        label: weights of the label embeddings of each scan [B, K], or None. noise[b][k] gives tensors [C, d, h, w] for sample k of
        scan b, z_T first. sampler: 'ddpm' (T - 1 calls), 'ddim' or 'dpm' (`steps` calls). The Extractor sees each MRI once.
        """
        draws, streams = len(noise[0]), [stream for scan in noise for stream in scan]        # B m streams
        with self.cast():
            condition = self.unet.condition(mri)
        condition = [one.float().repeat_interleave(draws, dim=0) for one in condition]       # [B m, ...] each
        label = None if label is None else label.to(mri.device).repeat_interleave(draws, dim=0)   # [B m, K]
        chunks = [slice(first, first + self.batch) for first in range(0, len(streams), self.batch)]
        z_0 = [self._sample([one[part] for one in condition], label if label is None else label[part], streams[part], sampler, steps)
               for part in chunks]
        return self.scale.undo(torch.cat(z_0)).unflatten(0, (len(mri), draws))

    def _sample(self, condition: list[Tensor], label: Tensor | None, streams: list[Iterator[Tensor]], sampler: str, steps: int) -> Tensor:
        """One sample for each stream of noise, all at once: [n, C, d, h, w]."""
        noise = (torch.stack(tensors).to(condition[0].device) for tensors in zip(*streams, strict=True))

        def denoise(z_t: Tensor, t: Tensor) -> Tensor:
            """The network's output at z_t; both [n, C, d, h, w]."""
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

    def decode_samples(self, z_0: Tensor) -> Tensor:
        """Samples [B, m, C, d, h, w] -> each decoded, [B, m, 1, D, H, W]."""
        return torch.stack([self.decode(z) for z in z_0.unbind(dim=1)], dim=1)
