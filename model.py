"""The networks and the diffusion process of IL-CLDM (Ou et al., IEEE JBHI 29(2):1221-1231, 2025).

Dimension key: B batch, C latent channels, K labels, D H W volume voxels, d h w latent voxels, T diffusion
steps, m samples of a scan. Symbols: x PET, x_hat reconstruction, y label, z_0 latent, z_t latent noised to
step t, eps noise. The defaults of the classes are the published networks.
"""
import math
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FEW_VOXELS = 2 ** 17                  # so few that synthetic volumes of both memory layouts agree within 1e-5


class Conv3d(nn.Conv3d):
    """nn.Conv3d that can zero-pad its channels, because on a GPU a convolution of 8 channels is several times
    faster than one of a single channel.

    least_channels: as many as input and output get at least (runtime/gpu.py:prepare sets it); 0: no padding.
    """

    least_channels = 0

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_channels, D, H, W] -> [B, out_channels, ...]."""
        more_in, more_out = (max(0, self.least_channels - n) for n in (self.in_channels, self.out_channels))
        if not more_in and not more_out:
            return super().forward(h)
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, 0, 0, more_in, 0, more_out))
        bias = None if self.bias is None else F.pad(self.bias, (0, more_out))
        if more_in:
            h = F.pad(h, (0, 0, 0, 0, 0, 0, 0, more_in))
        h = h.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(h, weight, bias, self.stride, self.padding)[:, :self.out_channels]


def conv3(in_channels: int, out_channels: int) -> Conv3d:
    """3x3x3 convolution that keeps the grid."""
    return Conv3d(in_channels, out_channels, 3, padding=1)


def down(in_channels: int, out_channels: int, bias: bool = True) -> Conv3d:
    """4x4x4 convolution that halves the grid."""
    return Conv3d(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)


def up(channels: int) -> nn.ConvTranspose3d:
    """4x4x4 transposed convolution that doubles the grid."""
    return nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1)


class BlurredUp(nn.ConvTranspose3d):
    """up, followed by the binomial filter [1, 2, 1] / 4 along each axis.

    A transposed convolution of stride 2 makes even and odd voxels with different weights, which shows as a
    checkerboard in its output (Odena et al. 2016, Distill). The filter is 0 at the Nyquist frequency, where
    that lies; StyleGAN2 blurs in the same place (Karras et al. 2020, after Zhang 2019). Outside the faces the
    outermost voxels repeat, so that what is constant stays constant.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, d, h, w] -> [B, channels, 2 d, 2 h, 2 w]."""
        for axis in (2, 3, 4):                             # F.pad's gradient is not deterministic on a GPU
            h = torch.cat([h.narrow(axis, 0, 1), h, h.narrow(axis, -1, 1)], axis)
        weight, bias = self.weight / 64, self.bias / 64    # the filter's 4 * 4 * 4, where it costs least
        h = F.conv_transpose3d(h, weight, bias, stride=2, padding=2)         # [B, channels, 2 d + 2, ...]
        for axis in (2, 3, 4):
            n = h.shape[axis] - 2
            before, here, after = (h.narrow(axis, start, n) for start in range(3))
            h = torch.add(before + after, here, alpha=2)
        return h


UPSAMPLING: dict[str, Callable[[int], nn.Module]] = {"transposed": up, "blurred": BlurredUp}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda h: h, "relu": F.relu, "silu": F.silu}


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm with the activation that follows it ('none', 'relu' or 'silu'), exact on large volumes.

    torch's CPU kernel for channels_last adds up in plain float32: on 160x192x160 voxels it is off by 1e-2, on
    40x48x40 by 1e-4. fused: a function that does both in one pass, where the device has one
    (runtime/gpu.py:prepare sets it).
    """

    fused: Callable | None = None

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, activation: str = "none"):
        super().__init__(groups, channels, eps)
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, ...] -> the same shape."""
        if self.fused is not None:
            return self.fused(h, self.num_groups, self.weight, self.bias, self.eps, self.activation)
        if h.device.type == "cpu" and h[0, 0].numel() > FEW_VOXELS:
            h = h.contiguous()
        return ACTIVATIONS[self.activation](super().forward(h))


class RecomputedBlock(nn.Module):
    """A block whose activations can be recomputed in the backward pass instead of kept; see
    recompute_activations."""

    recomputed = False

    def forward(self, *inputs: Tensor) -> Tensor:
        """compute(*inputs), whose activations are kept for the backward pass or recomputed in it."""
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)


def recompute_activations(network: nn.Module) -> None:
    """Trade time for memory in training: every residual block keeps its inputs alone (Chen et al. 2016, arXiv
    1604.06174)."""
    for block in network.modules():
        if isinstance(block, RecomputedBlock):
            block.recomputed = True


# ---------------------------------------------------------------- stage 1: the adversarial autoencoder (AAE)

class ResBlock(RecomputedBlock):
    """Residual block of the AAE and the Extractor. norm_groups 0: without GroupNorms."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int = 16):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels, 1e-6, "relu") if norm_groups else nn.ReLU()
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = GroupNorm(norm_groups, out_channels, 1e-6, "relu") if norm_groups else nn.ReLU()
        self.conv2 = conv3(out_channels, out_channels)
        self.skip = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def compute(self, h: Tensor) -> Tensor:
        """h [B, in_channels, D, H, W] -> [B, out_channels, D, H, W]."""
        residual = self.conv1(self.norm1(h))
        return self.skip(h) + self.conv2(self.norm2(residual))


class AAE(nn.Module):
    """3D autoencoder of PET volumes, trained against a Discriminator; one entry of channels a resolution
    level.

    aae(x) reconstructs x: [B, 1, D, H, W] in [0, 1] -> the same shape, not clamped. aae.encoder(x) is the
    latent [B, C, d, h, w] with d = D / 2**(len(channels) - 1); aae.decoder turns it back. norms: where both
    have GroupNorms (published: 'blocks' and 'output'; the project's default: nowhere). 'output': before the
    last convolution; it removes the absolute level of the features and with it the level of uptake. 'blocks':
    in the residual blocks, which leave the level to the paths beside them. upsampling: how the decoder
    doubles the grid, a key of UPSAMPLING (published: 'transposed').
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64), latent_channels: int = 1,
                 norms: tuple[str, ...] = ("blocks", "output"), norm_groups: int = 16,
                 upsampling: str = "transposed"):
        super().__init__()

        def block(in_channels: int, out_channels: int) -> ResBlock:
            return ResBlock(in_channels, out_channels, norm_groups if "blocks" in norms else 0)

        def norm(width: int) -> nn.Module:
            return GroupNorm(norm_groups, width, eps=1e-6) if "output" in norms else nn.Identity()

        first, last = channels[0], channels[-1]
        encoder: list[nn.Module] = [conv3(1, first)]
        for width, next_width in zip(channels, channels[1:], strict=False):
            encoder += [block(width, next_width), down(next_width, next_width)]
        encoder += [block(last, last), norm(last), nn.ReLU(), conv3(last, latent_channels)]

        decoder: list[nn.Module] = [conv3(latent_channels, last), block(last, last), block(last, last)]
        for width, next_width in zip(channels[:0:-1], channels[-2::-1], strict=True):
            decoder += [block(width, next_width), UPSAMPLING[upsampling](next_width)]
        decoder += [norm(first), nn.ReLU(), conv3(first, 1)]

        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, D, H, W] in [0, 1] -> x_hat of the same shape, not clamped."""
        return self.decoder(self.encoder(x))


class Discriminator(nn.Module):
    """Patch discriminator: [B, 1, D, H, W] -> one logit a patch [B, 1, D / 2**n, ...].

    n is len(channels) + 1.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = [down(1, channels[0]), nn.LeakyReLU(0.2)]
        for width, next_width in zip(channels, channels[1:], strict=False):
            layers += [down(width, next_width, bias=False), nn.BatchNorm3d(next_width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, down(channels[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, D, H, W] -> logits, one a patch; large where the patch looks real."""
        return self.layers(x)


# ---------------------------------------------------------------- stage 2: the conditioned denoiser

class Extractor(nn.Module):
    """Image conditioning: the MRI [B, 1, D, H, W] as one channel on the latent grid, [B, 1, d, h, w].

    downscale = D / d, a power of two. The published network halves the grid in its first and last
    convolution.
    """

    def __init__(self, downscale: int = 4, channels: int = 16):
        super().__init__()
        halvings = int(math.log2(downscale))
        layers: list[nn.Module] = [(down if halvings >= 1 else conv3)(1, channels),
                                   ResBlock(channels, channels)]
        for _ in range(halvings - 2):
            layers += [down(channels, channels), ResBlock(channels, channels)]
        layers += [GroupNorm(16, channels, eps=1e-6), nn.SiLU(),
                   (down if halvings >= 2 else conv3)(channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> [B, 1, d, h, w]."""
        return self.layers(mri)


class NoExtractor(nn.Module):
    """The ablation without the MRI, in the place of the Extractor: a condition of no channels."""

    def __init__(self, downscale: int):
        super().__init__()
        self.downscale = downscale

    def forward(self, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> [B, 0, d, h, w]."""
        step = self.downscale
        return mri[:, :0, ::step, ::step, ::step]


class Pyramid(nn.Module):
    """Multi-scale image conditioning: features of the MRI at every level of the UNet.

    mri [B, 1, D, H, W] -> a list of [B, channels, d, h, w], the first on the latent grid, each further one at
    half the one before.
    """

    def __init__(self, downscale: int, levels: int, channels: int = 16):
        super().__init__()
        halvings = int(math.log2(downscale))
        first = [conv3(1, channels), *(down(channels, channels) for _ in range(halvings)),
                 ResBlock(channels, channels)]
        further = [nn.Sequential(down(channels, channels), ResBlock(channels, channels))
                   for _ in range(levels - 1)]
        self.levels = nn.ModuleList([nn.Sequential(*first), *further])

    def forward(self, mri: Tensor) -> list[Tensor]:
        """mri [B, 1, D, H, W] -> its features at every level, the finest first."""
        features, h = [], mri
        for level in self.levels:
            h = level(h)
            features.append(h)
        return features


class Projector(nn.Module):
    """Label conditioning: the time step and, if given, the label as one embedding [B, time_dim].

    t: [B] int64. label: None (no label), [B] int64 in [0, K), or [B, K] float weights of the K label
    embeddings: a one-hot row is a label, a row of probabilities mixes the embeddings, a row of zeros is no
    label.
    """

    def __init__(self, time_dim: int = 128, num_classes: int = 2):
        super().__init__()
        k = torch.arange(time_dim // 2, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * 2 * k / time_dim))
        self.time = nn.Sequential(nn.Linear(time_dim, 4 * time_dim), nn.SiLU(),
                                  nn.Linear(4 * time_dim, time_dim))
        self.label = nn.Embedding(num_classes, time_dim)

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """t [B], label as above -> the embedding [B, time_dim]."""
        phase = t[:, None].float() * self.frequencies
        embedding = self.time(torch.cat([phase.sin(), phase.cos()], dim=1))                  # [B, time_dim]
        if label is None:
            return embedding
        if label.is_floating_point():
            return embedding + label @ self.label.weight
        return embedding + self.label(label)


class Attention(nn.Module):
    """Single-head self-attention over all voxels of [B, channels, d, h, w], plus the input."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv3d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv3d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, d, h, w] -> the same shape."""
        # each [B, d*h*w, channels]
        q, k, v = self.qkv(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(attended.transpose(1, 2).reshape(h.shape))                # [B, channels, d, h, w]


class UNetBlock(RecomputedBlock):
    """Residual block that adds the time-and-label embedding to every channel, with attention after it if
    wanted."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, norm_groups: int,
                 attention: bool = False):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels, activation="silu")
        self.conv1 = conv3(in_channels, out_channels)
        self.embed = nn.Linear(time_dim, out_channels)
        self.norm2 = GroupNorm(norm_groups, out_channels, activation="silu")
        self.conv2 = conv3(out_channels, out_channels)
        self.skip = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.attention = Attention(out_channels, norm_groups) if attention else nn.Identity()

    def compute(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, in_channels, d, h, w], embedding [B, time_dim] -> [B, out_channels, d, h, w]."""
        residual = self.conv1(self.norm1(h))
        residual = residual + self.embed(F.silu(embedding))[:, :, None, None, None]
        residual = self.conv2(self.norm2(residual))
        return self.attention(self.skip(h) + residual)


class UNet(nn.Module):
    """The denoiser: the network that predicts noise or v from z_t, the MRI, the time step and the label.

    unet(z_t, mri, t, label): z_t [B, C, d, h, w], mri [B, 1, D, H, W] in [0, 1], t [B] int64 in [0, T), label
    as in Projector; returns [B, C, d, h, w]. What it sees of the MRI is the same at every step of a sampling
    run, so samplers call unet.condition(mri) once and then unet.denoise(z_t, condition, t, label). downscale
    = D / d. attention_levels: levels of channel_mults with attention in every block (the middle always has
    it). image_conditioning False leaves the MRI out. multiscale: features of the MRI are added at every level
    (not published). regression: a network from MRI to PET, whose input is the MRI itself; then z_t has no
    channels and C is 1.
    """

    def __init__(self, latent_channels: int = 1, base_channels: int = 128,
                 channel_mults: tuple[int, ...] = (1, 2, 2, 4), res_blocks: int = 2, time_dim: int = 128,
                 num_classes: int = 2, norm_groups: int = 32, attention_levels: tuple[int, ...] = (),
                 downscale: int = 4, image_conditioning: bool = True, multiscale: bool = False,
                 regression: bool = False):
        super().__init__()
        if regression:
            self.extractor, inputs = nn.Identity(), 1
        elif image_conditioning:
            self.extractor, inputs = Extractor(downscale), latent_channels + 1
        else:
            self.extractor, inputs = NoExtractor(downscale), latent_channels
        self.projector = Projector(time_dim, num_classes)

        def block(in_channels: int, out_channels: int, attention: bool) -> UNetBlock:
            return UNetBlock(in_channels, out_channels, time_dim, norm_groups, attention)

        widths, last = [base_channels * mult for mult in channel_mults], len(channel_mults) - 1
        self.multiscale = multiscale and image_conditioning
        if self.multiscale:
            self.pyramid = Pyramid(downscale, len(widths))
            first_widths = (base_channels, *widths[:-1])                        # with which each level begins
            self.inject = nn.ModuleList(nn.Conv3d(16, width, 1) for width in first_widths)

        layers: list[nn.Module] = [conv3(inputs, base_channels)]
        width, skips = base_channels, [base_channels]
        for level, next_width in enumerate(widths):
            for _ in range(res_blocks):
                layers.append(block(width, next_width, level in attention_levels))
                width = next_width
                skips.append(width)
            if level < last:
                layers.append(down(width, width))
                skips.append(width)
        self.down = nn.ModuleList(layers)
        self.mid = nn.ModuleList([block(width, width, True), block(width, width, False)])

        layers = []
        for level in range(last, -1, -1):
            for _ in range(res_blocks + 1):
                layers.append(block(width + skips.pop(), widths[level], level in attention_levels))
                width = widths[level]
            if level > 0:
                layers.append(up(width))
        self.up = nn.ModuleList(layers)
        self.out = nn.Sequential(GroupNorm(norm_groups, width), nn.SiLU(), conv3(width, latent_channels))

    def forward(self, z_t: Tensor, mri: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction at z_t, [B, C, d, h, w]; arguments as above."""
        return self.denoise(z_t, self.condition(mri), t, label)

    def condition(self, mri: Tensor) -> list[Tensor]:
        """What the denoiser sees of the MRI: the Extractor's channel [B, 1, d, h, w], and with multiscale the
        features of all levels."""
        return [self.extractor(mri), *(self.pyramid(mri) if self.multiscale else [])]

    def denoise(self, z_t: Tensor, condition: list[Tensor], t: Tensor, label: Tensor | None = None) -> Tensor:
        """As forward, with condition(mri) in place of the MRI."""
        embedding = self.projector(t, label)                                                 # [B, time_dim]
        h, skips = torch.cat([z_t, condition[0]], dim=1), []                             # [B, C + 1, d, h, w]
        features = []
        if self.multiscale:
            features = [inject(one) for inject, one in zip(self.inject, condition[1:], strict=True)]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, UNetBlock) else layer(h)
            if features and not isinstance(layer, UNetBlock):                             # a new level begins
                h = h + features.pop(0)
            skips.append(h)
        for layer in self.mid:
            h = layer(h, embedding)
        for layer in self.up:
            if isinstance(layer, UNetBlock):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h)
        return self.out(h)                                                                   # [B, C, d, h, w]


# ---------------------------------------------------------------- the diffusion process and its samplers

class Diffusion(nn.Module):
    """The Gaussian diffusion with linear beta (Ho et al. 2020) and its samplers.

    prediction: what the network's output means: 'eps' the noise (published), or 'v' = sqrt(alpha_bar) eps -
    sqrt(1 - alpha_bar) z_0 (Salimans and Ho 2022). A denoise function takes z_t [B, C, d, h, w] and t [B]
    int64.
    """

    def __init__(self, T: int = 1000, beta: tuple[float, float] = (1e-4, 0.02), prediction: str = "eps"):
        super().__init__()
        assert prediction in ("eps", "v"), prediction
        self.T, self.prediction = T, prediction
        beta_t = torch.linspace(*beta, T, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta_t, dim=0)
        self.register_buffer("beta", beta_t.float(), persistent=False)
        self.register_buffer("alpha_bar", alpha_bar.float(), persistent=False)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return self.alpha_bar[t].view(-1, 1, 1, 1, 1)                                        # [B, 1, 1, 1, 1]

    def q_sample(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Draw z_t ~ q(z_t | z_0) (Ho et al. 2020, Eq. 4). z_0, eps: [B, C, d, h, w]; t: [B] int64 in [0,
        T)."""
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

    def draw_times(self, n: int, shift: float = 1.0) -> Tensor:
        """Random steps for training, [n] int64 in 1 .. T - 1 (paper).

        u, uniform in [0, 1), becomes u' = shift u / (1 + (shift - 1) u) (Esser et al. 2024, Eq. 23), and
        t = 1 + floor((T - 1) u'): uniform at shift 1, above it more steps at high noise.
        """
        if shift == 1:
            return torch.randint(1, self.T, (n,), device=self.beta.device)
        u = torch.rand(n, device=self.beta.device)
        return 1 + (shift * u / (1 + (shift - 1) * u) * (self.T - 1)).long().clamp(max=self.T - 2)

    def ddpm(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor,
             noise: Iterator[Tensor]) -> Tensor:
        """Ancestral sampling (Ho et al. 2020, Algorithm 2, variance beta_t) over t = T - 1, ..., 1.

        z_T: [B, C, d, h, w]. noise gives T - 2 further tensors of that shape, one a step but the last.
        Returns z_0.
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

    def ddim(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor, steps: int,
             last: int = 1) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, Eq. 12, eta 0) with `steps` network evaluations, evenly
        spaced in t from T - 1 to `last`.

        z_T: [B, C, d, h, w]. Returns z_0; the estimate of the last evaluation is the result.
        """
        z_t = z_T
        times = torch.linspace(self.T - 1, last, steps).round().long().tolist()
        for t, t_next in zip(times, [*times[1:], None], strict=True):
            batch_t = torch.full((len(z_t),), t, device=z_t.device)
            z_0, eps = self.z_0_and_eps(denoise(z_t, batch_t), z_t, batch_t)
            z_t = z_0 if t_next is None else self.q_sample(z_0, torch.full_like(batch_t, t_next), eps)
        return z_t

    def dpm(self, denoise: Callable[[Tensor, Tensor], Tensor], z_T: Tensor, steps: int) -> Tensor:
        """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): deterministic, second order,
        `steps` network evaluations.

        z_T: [B, C, d, h, w]. Returns z_0; the estimate of the last evaluation is the result. The steps are
        even in lambda = log(alpha / sigma), half the log of the signal-to-noise ratio; where two would fall
        on one t, there is one less.
        """
        alpha_bar, lambda_t = self.alpha_bar.double(), self._lambda()
        times = self._even_in_lambda(steps)
        z_t, previous_z_0, previous_h = z_T, None, None
        for t, t_next in zip(times, [*times[1:], None], strict=True):
            batch_t = torch.full((len(z_t),), t, device=z_t.device)
            z_0, _ = self.z_0_and_eps(denoise(z_t, batch_t), z_t, batch_t)
            if t_next is None:
                return z_0
            h = (lambda_t[t_next] - lambda_t[t]).item()
            slope = 0 if previous_z_0 is None else (z_0 - previous_z_0) * (h / (2 * previous_h))
            sigma_ratio = ((1 - alpha_bar[t_next]) / (1 - alpha_bar[t])).sqrt().item()
            z_t = sigma_ratio * z_t - alpha_bar[t_next].sqrt().item() * math.expm1(-h) * (z_0 + slope)
            previous_z_0, previous_h = z_0, h

    def _lambda(self) -> Tensor:
        """lambda at every t, [T] float64; it falls with t."""
        alpha_bar = self.alpha_bar.double()
        return (alpha_bar.log() - (1 - alpha_bar).log()) / 2

    def _even_in_lambda(self, steps: int) -> list[int]:
        """Times from T - 1 down to 1, as even in lambda as whole steps can be."""
        lambda_t = self._lambda()
        even = torch.linspace(lambda_t[-1].item(), lambda_t[1].item(), steps, dtype=torch.float64,
                              device=lambda_t.device)
        return torch.unique((lambda_t[1:, None] - even).abs().argmin(dim=0) + 1).flip(0).tolist()

    def evaluations(self, sampler: str, steps: int) -> int:
        """Network evaluations (NFE) of one latent sample."""
        return {"ddpm": self.T - 1, "ddim": steps, "dpm": len(self._even_in_lambda(steps))}[sampler]


# ---------------------------------------------------------------- latents, and the synthesis of a PET

class LatentSpace:
    """The latents that the diffusion sees, z_0 = (E(x) - mean) / std, with the frozen autoencoder that they
    belong to.

    mean, std: of E(x) over the training list, or 0 and 1 where latents are taken as they come (published).
    """

    def __init__(self, aae: AAE, mean: float = 0.0, std: float = 1.0):
        self.aae, self.encoder, self.decoder, self.mean, self.std = aae, aae.encoder, aae.decoder, mean, std

    def scale(self, latent: Tensor) -> Tensor:
        """E(x) [..., C, d, h, w] -> z_0 of the same shape."""
        return (latent - self.mean) / self.std

    def decode(self, z_0: Tensor) -> Tensor:
        """z_0 [B, C, d, h, w] -> D(z_0) [B, 1, D, H, W] float32, not clamped; gradients pass through."""
        return self.decoder(z_0 * self.std + self.mean).float()


class Synthesizer:
    """From MRIs to their PETs: sample latents, decode. Its caller gives label and noise; in a run that is
    experiment/networks.py:LatentSampler.

    batch: latent samples that go through the denoiser at once. cast: gives the context, such as autocast, in
    which the networks compute.
    """

    def __init__(self, space: LatentSpace, unet: UNet, diffusion: Diffusion, batch: int = 8,
                 cast: Callable = nullcontext):
        self.space, self.unet, self.diffusion, self.batch, self.cast = space, unet, diffusion, batch, cast

    @torch.no_grad()
    def sample(self, mri: Tensor, label: Tensor | None, noise: list[list[Iterator[Tensor]]], sampler: str,
               steps: int, last: int = 1) -> Tensor:
        """mri [B, 1, D, H, W] in [0, 1] -> m samples of each z_0, [B, m, C, d, h, w].

        label: weights of the label embeddings, of each scan [B, K] or of each sample [B, m, K], or None.
        noise[b][k] gives tensors [C, d, h, w] for sample k of scan b, z_T first. sampler: 'ddpm' (T - 1
        evaluations), 'ddim' or 'dpm' (`steps` evaluations). last: t of ddim's last evaluation. The Extractor
        sees each MRI once.
        """
        m, streams = len(noise[0]), []
        for scan in noise:
            streams += scan                                                                  # B m of them
        with self.cast():
            condition = self.unet.condition(mri)
        condition = [one.float().repeat_interleave(m, dim=0) for one in condition]           # [B m, ...] each
        if label is not None:
            of_samples = label if label.dim() == 3 else label[:, None].expand(-1, m, -1)     # [B, m, K]
            label = of_samples.to(mri.device).flatten(0, 1)                                  # [B m, K]
        z_0 = []
        for first in range(0, len(streams), self.batch):
            part = slice(first, first + self.batch)
            z_0.append(
                self._sample([one[part] for one in condition], None if label is None else label[part],
                             streams[part], sampler, steps, last)
            )
        return torch.cat(z_0).unflatten(0, (len(mri), m))

    def _sample(self, condition: list[Tensor], label: Tensor | None, streams: list[Iterator[Tensor]],
                sampler: str, steps: int, last: int) -> Tensor:
        """One sample for each stream of noise, all at once: [n, C, d, h, w]."""
        noise = (torch.stack(tensors).to(condition[0].device) for tensors in zip(*streams, strict=True))

        def denoise(z_t: Tensor, t: Tensor) -> Tensor:
            """The network's output at z_t; both [n, C, d, h, w]."""
            with self.cast():
                return self.unet.denoise(z_t, condition, t, label).float()

        z_T = next(noise)
        if sampler == "ddpm":
            return self.diffusion.ddpm(denoise, z_T, noise)
        if sampler == "ddim":
            return self.diffusion.ddim(denoise, z_T, steps, last)
        return self.diffusion.dpm(denoise, z_T, steps)

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        """z_0 [B, C, d, h, w] -> x_hat [B, 1, D, H, W], clamped to [0, 1]."""
        with self.cast():                      # two at a time: a decoder's activations are the largest of all
            return torch.cat([self.space.decode(part).clamp(0, 1) for part in z_0.split(2)])

    def decode_samples(self, z_0: Tensor) -> Tensor:
        """Samples [B, m, C, d, h, w] -> each decoded, [B, m, 1, D, H, W]."""
        return torch.stack([self.decode(z) for z in z_0.unbind(dim=1)], dim=1)


def std_over_samples(values: Tensor) -> Tensor:
    """Standard deviation over the m samples of each scan, [B, m, ...] -> [B, ...]; 0 for a single one."""
    return values.std(dim=1, correction=min(1, values.shape[1] - 1))


# ---------------------------------------------------------------- weights of the published code

_PUBLISHED_NAMES = [                                 # (pattern in the published name, ours), applied in order
    (r"^module\.", ""),
    (r"^(encoder|decoder)\.model\.", r"\1."),
    (r"^model\.", "layers."),
    (r"^cond\.", "extractor.layers."),
    (r"^time_mlp\.0\.inv_freq$", "projector.frequencies"),
    (r"^time_mlp\.1\.", "projector.time.0."),
    (r"^time_mlp\.3\.", "projector.time.2."),
    (r"^label_emb\.", "projector.label."),
    (r"^downs\.", "down."),
    (r"^ups\.", "up."),
    (r"^final_conv\.block\.0\.", "out.0."),
    (r"^final_conv\.block\.3\.", "out.2."),
    (r"\.res_block\.mlp\.1\.", ".embed."),
    (r"\.res_block\.block([12])\.block\.0\.", r".norm\1."),
    (r"\.res_block\.block([12])\.block\.3\.", r".conv\1."),
    (r"\.res_block\.res_conv\.", ".skip."),
    (r"\.attn\.", ".attention."),
    (r"\.block\.0\.gn\.", ".norm1."),
    (r"\.block\.2\.", ".conv1."),
    (r"\.block\.3\.gn\.", ".norm2."),
    (r"\.block\.5\.", ".conv2."),
    (r"\.channel_up\.", ".skip."),
    (r"\.(\d+)\.(?:conv|gn)\.", r".\1."),
]


def load_published(module: nn.Module, state_dict: dict) -> None:
    """Load weights under the published names into our AAE, Discriminator or UNet, in place.

    state_dict: name -> tensor, or a whole published checkpoint {"state_dict", "optimizer"}; names may carry
    the prefix `module.`. Running statistics of batch norms may be absent: the published code does not save
    the discriminator. Raises ValueError that lists every missing, unknown or misshapen weight; the module is
    then unchanged.
    """
    weights = {}
    for published, tensor in state_dict.get("state_dict", state_dict).items():
        name = published
        for pattern, ours in _PUBLISHED_NAMES:
            name = re.sub(pattern, ours, name)
        weights[name] = (published, torch.as_tensor(tensor))

    own = module.state_dict()
    optional = ("running_mean", "running_var", "num_batches_tracked")
    problems = [f"missing: {name}, shape {tuple(own[name].shape)}"
                for name in own if name not in weights and not name.endswith(optional)]
    for name, (published, tensor) in weights.items():
        if name not in own:
            problems.append(f"unknown: {published}, shape {tuple(tensor.shape)}")
        elif own[name].shape != tensor.shape:
            problems.append(f"misshapen: {published} is {tuple(tensor.shape)}, the network has "
                            f"{tuple(own[name].shape)}")
    if problems:
        raise ValueError(
            f"these weights do not fit this {type(module).__name__}; check its channels, levels and norms:\n "
            " "
            + "\n  ".join(problems)
        )
    module.load_state_dict({name: tensor for name, (_, tensor) in weights.items()}, strict=False)
