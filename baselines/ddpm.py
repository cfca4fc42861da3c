"""DDPM (image space): a diffusion model of the PET volume itself, conditioned on the MRI.

Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, with the condition as a
second input channel, as in SR3 (Saharia et al., TPAMI 2022) and Palette (Saharia et al., SIGGRAPH 2022).
IL-CLDM's paper compares with a "DDPM" and
says nothing of its network, size, condition or steps. So this is the nearest reading: the UNet, schedule,
optimizer and moving average of IL-CLDM, on the grid of the PET instead of a latent one, without label.

Kept from the source: T 1000, beta linear from 1e-4 to 0.02, the network predicts the noise, mean squared
error, times drawn uniformly, ancestral sampling ('ddpm'), moving average 0.9999, data in [-1, 1], every
estimate of z_0 clamped to it in sampling, and the raw MRI as a channel beside z_t that no noise is added to.

Departures, and why:
- 3D convolutions and one PET channel; the source has 2D pictures.
- At 160x192x160 it trains and samples at half the size, 80x96x80 (average pooling), and its result is
  resampled trilinearly, because of memory: one channel of a whole volume takes 19.7 MB, eight times that of
  the half size. What is finer than two voxels is lost. downsample 1 leaves this out, as at 40x48x40.
- Attention in the middle alone, and halving by convolutions of kernel 4, as in IL-CLDM's UNet.
- Times are drawn from 1 .. T - 1, and the moving average starts at step 2000, both as in IL-CLDM.
- AdamW at 1e-4 and no dropout, as IL-CLDM; the source has Adam at 2e-4, 2e-5 for large pictures.
- No GroupNorm before the last convolution (setting output_norm; published: on). It takes the level of the
  features out, and with it what the noise says about the level of uptake: at t = T - 1 an error of the
  noise's mean is 157 times as large in z_0.
- Sampling by 50 steps of DDIM (Song et al., ICLR 2021); 'ddpm' takes T - 1 = 999 and is too slow for a
  volume. One sample carries its own variance, which costs PSNR: report the mean of several samples beside it.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from baselines.baseline import Baseline, Method
from config import DDPMSettings
from model import Diffusion, LatentSpace, Synthesizer, UNet
from runtime.fit import draw_rows, set_rate, update
from runtime.gpu import prepare
from utils import EMA, InputError, draw_noise, fused_on, size_text


class ImageUNet(UNet):
    """The denoiser on the grid of the PET: the MRI itself is the second input channel, and there is no label.

    unet(z_t, mri, t): z_t and mri [B, 1, d, h, w] in about [-1, 1], t [B] int64 in [0, T); returns the noise
    [B, 1, d, h, w]. d, h, w are grid_size or another multiple of the coarsest level. UNet makes its first
    convolution for z_t and the one channel of an Extractor; here the MRI takes the place of that channel,
    because it has the grid already. output_norm: see DDPMSettings. Raises InputError if grid_size cannot be
    halved from level to level.
    """

    def __init__(self, grid_size: tuple[int, ...] = (80, 96, 80), base_channels: int = 32,
                 channel_mults: tuple[int, ...] = (1, 2, 4, 8), res_blocks: int = 2, time_dim: int = 32,
                 norm_groups: int = 32, attention_levels: tuple[int, ...] = (), output_norm: bool = True):
        coarsest = 2 ** (len(channel_mults) - 1)
        if any(n % coarsest for n in grid_size):
            raise InputError(f"the grid of the DDPM is {size_text(grid_size)}, and each side must be "
                             f"divisible by {coarsest}, because its UNet has {len(channel_mults)} levels; "
                             "take another volume_size or downsample, or fewer channel_mults")
        super().__init__(1, base_channels, channel_mults, res_blocks, time_dim, norm_groups=norm_groups,
                         attention_levels=attention_levels, downscale=1)
        self.extractor = nn.Identity()
        del self.projector.label                           # weights that nothing would train
        if not output_norm:
            self.out[0] = nn.Identity()


class Resampler(nn.Module):
    """The way between volume and grid. It stands where a LatentSpace has its autoencoder.

    encoder: [B, 1, D, H, W] -> [B, 1, d, h, w] by average pooling, d = D / downsample; decoder: back,
    trilinearly. With downsample 1 both leave everything as it is.
    """

    def __init__(self, downsample: int):
        super().__init__()
        self.encoder, self.decoder = nn.Identity(), nn.Identity()
        if downsample > 1:
            self.encoder = nn.AvgPool3d(downsample)
            self.decoder = nn.Upsample(scale_factor=downsample, mode="trilinear", align_corners=False)


class ClampedDiffusion(Diffusion):
    """The diffusion whose estimates of z_0 are clamped to the data's range [-1, 1] in sampling, as in Ho's
    code: at high noise the predicted noise gives them errors many times that range."""

    def z_0_and_eps(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clamped z_0, and the noise that z_t holds beside it; both [B, 1, d, h, w]."""
        z_0 = super().z_0_and_eps(output, z_t, t)[0].clamp(-1, 1)
        alpha_bar_t = self._alpha_bar(t)
        return z_0, (z_t - alpha_bar_t.sqrt() * z_0) / (1 - alpha_bar_t).sqrt()


def grid_of(volume_size: tuple[int, ...], downsample: int) -> tuple[int, ...]:
    """The grid [d, h, w] that the network sees. Raises InputError if the volume cannot be divided so."""
    if any(n % downsample for n in volume_size):
        raise InputError(f"the volumes are {size_text(volume_size)}, and each side must be divisible by the "
                         f"DDPM's downsample {downsample}; take another volume_size or downsample")
    return tuple(n // downsample for n in volume_size)


def noise_loss(unet: UNet, diffusion: Diffusion, z_0: Tensor, mri: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at steps t (Ho et al. 2020, Eq. 14).

    z_0, mri: [B, 1, d, h, w] in [-1, 1]; t: [B] int64 in [0, T); eps: [B, 1, d, h, w] standard normal.
    """
    z_t = diffusion.q_sample(z_0, t, eps)
    return F.mse_loss(unet(z_t, mri, t).float(), eps)


class DDPM(Baseline):
    """The image-space DDPM: one network, trained on noise, whose moving average samples PETs.

    volume_size: [D, H, W] of the volumes. seed: of the noise of the samples. at_once: samples that go through
    the network together. Raises InputError for sizes that do not fit.
    """

    name, shifts_crop = "ddpm", True

    def __init__(self, settings: DDPMSettings, volume_size: tuple[int, ...], device: torch.device,
                 seed: int = 0, at_once: int = 4):
        self.settings, self.device, self.seed, self.at_once = settings, device, seed, at_once
        grid_size = grid_of(volume_size, settings.downsample)
        unet = ImageUNet(grid_size, settings.base_channels, settings.channel_mults, settings.res_blocks,
                         settings.time_dim, settings.norm_groups, settings.attention_levels,
                         settings.output_norm)
        self.unet = prepare(unet, device)
        self.ema = EMA(self.unet, settings.ema_decay, settings.ema_start)
        self.opt = AdamW(self.unet.parameters(), settings.lr, betas=settings.betas,
                         weight_decay=settings.weight_decay, fused=fused_on(device))
        self.diffusion = ClampedDiffusion(settings.T, settings.beta).to(device)
        self.space = LatentSpace(Resampler(settings.downsample), mean=0.5, std=0.5)        # z_0 = 2 x - 1
        super().__init__({"unet": self.unet, "ema": self.ema.module, "opt": self.opt})

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) of one scan."""
        settings = self.settings
        return settings.samples * self.diffusion.evaluations(settings.sampler, settings.sampling_steps)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the learning rate, which is the same in all epochs; there is one phase."""
        set_rate([self.opt], self.settings.lr)

    def to_grid(self, volumes: Tensor) -> Tensor:
        """Volumes [B, 1, D, H, W] in [0, 1] -> what the network sees, [B, 1, d, h, w] in [-1, 1]."""
        return self.space.scale(self.space.encoder(volumes.to(self.device, non_blocking=True)))

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the network at random steps and noise, then its moving average; as Baseline.step."""
        z_0, mri = self.to_grid(batch["pet"]), self.to_grid(batch["mri"])                    # [B, 1, d, h, w]
        t = draw_rows(self.diffusion.draw_times, len(z_0), self.settings.time_shift)         # [B]
        eps = draw_rows(torch.randn, *z_0.shape, device=z_0.device)
        with cast():
            loss = noise_loss(self.unet, self.diffusion, z_0, mri, t, eps)
        losses = update(self.opt, loss, {"mse": loss})
        self.ema.update(self.unet, number)
        return losses

    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """The mean of m samples of the moving average, as Baseline.predict. Raises ValueError without one ID
        a scan."""
        s = self.settings
        return self._sample(mri, cast, ids, s.samples, s.sampler, s.sampling_steps)

    def predict_one(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """The first sample alone, as predict."""
        return self._sample(mri, cast, ids, 1, self.settings.sampler, self.settings.sampling_steps)

    def methods(self) -> dict[str, Method]:
        """ddpm, one sample, which carries its own variance; with several, also ddpm_mean."""
        samples = self.settings.samples
        one = {"ddpm": Method(self.predict_one, self.evaluations // samples)}
        return one | {"ddpm_mean": Method(self.predict, self.evaluations)} if samples > 1 else one

    def predict_for_validation(self, mri: Tensor, cast: Callable = nullcontext,
                               ids: list[str] | None = None) -> Tensor:
        """One sample by a few steps of DDIM: enough to choose an epoch."""
        return self._sample(mri, cast, ids, 1, "ddim", self.settings.validation_steps)

    def _sample(self, mri: Tensor, cast: Callable, ids: list[str] | None, samples: int, sampler: str,
                steps: int) -> Tensor:
        """The mean of so many samples of each scan. The noise of sample k of a scan follows from the seed,
        its ID and k alone."""
        if ids is None or len(ids) != len(mri):
            raise ValueError(f"the DDPM's noise depends on the ID of a scan, and {len(mri)} scans came with "
                             f"{'no' if ids is None else len(ids)} IDs; give predict one ID a scan")
        grid_mri, noise = self.to_grid(mri), []                                              # [B, 1, d, h, w]
        for name in ids:
            noise.append([draw_noise(self.seed, name, k, grid_mri.shape[1:]) for k in range(samples)])
        sampling = Synthesizer(self.space, self.ema.module, self.diffusion, self.at_once, cast)
        z_0 = sampling.sample(grid_mri, None, noise, sampler, steps)                      # [B, m, 1, d, h, w]
        return sampling.decode(z_0.mean(dim=1))                                              # [B, 1, D, H, W]
