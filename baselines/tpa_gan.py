"""TPA-GAN: a 3D GAN from the MRI to the PET with a pyramid, an attention gate and a frozen classifier.

Gao, Shi, Shen, Liu, "Task-induced pyramid and attention GAN for multimodal brain image imputation and
classification in Alzheimer's disease", IEEE JBHI 26(1):36-43, 2022, doi 10.1109/JBHI.2021.3097721. Networks,
losses and schedule follow the authors' code (xiaoxingxingkz/TPA-GAN at 836fe8d) and the figure beside it, not
the text of the paper. Published for MRI to FDG-PET, AD against NC, 76x94x76 voxels.

Three networks: the generator G, the standard discriminator D, which sees PETs alone, and the task-induced
discriminator T, a classifier of the label. T learns from real PETs first and is then frozen. G then learns
from the reconstruction alone, then from D as well, then from T instead of D. Only the training sees a label.

The gate has two 1x1x1 convolutions, as in the code (the figure draws three). All convolutions of the
residual units are one and the same kernel, as in the code (`shared_kernel`); whether the paper means that is
not known. The weights that the authors released are those of a generator without the pyramid, and do not fit
this one.

Departures from the published code, and why:
- The output paddings of G's transposed convolutions follow from the volume, as other sizes need others. At
  76x94x76 they are the published ones.
- The last convolution of D is padded, and its map of logits is averaged: unpadded it fails at 40x48x40, where
  its input has 2x2x2 voxels. D's sigmoid is part of its loss, which is the same and exact in bfloat16.
- T's last max pool is global: the published (4, 5, 4) is that at 76x94x76.
- T judges synthetic PETs in eval mode. The code leaves its batch norms in training mode, where the verdict on
  one scan depends on the others of its batch, and T's running statistics drift though T is frozen.
- PETs and MRIs are in [0, 1], and SSIM has range 1, not 255: the weights of the terms adapt by themselves.
- T's training counts as exposure: it takes a share of the epochs, with the batches of all methods (published:
  40 epochs of batches of 4, beside 300 of G). T as it is after the last of them is frozen.
- The phases of G are shares of the epochs left (published: 40, 41 and 219 of 300). The epoch that is kept is
  the one with the best score on the validation list, as for all methods, not one chosen on the test list.
- T tells the K labels of the project apart, such as the amyloid status.
- In the weights of the terms, a term counts as `least_term` at least: a term of 0 would give an infinite one.
  With several ranks the weights follow from the batches of all of them.
- Weights begin as torch draws them by default; how the authors' begin is unknown.

torch's backward pass of a 3D max pool adds up in no fixed order on a GPU: two runs there differ by rounding.
"""
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from baselines.baseline import Baseline
from config import TPAGANSettings
from model import Conv3d, RecomputedBlock, conv3
from runtime.fit import set_rate, update
from runtime.gpu import prepare
from runtime.ranks import all_reduce_mean
from utils import InputError, fused_on, size_text


def check_size(network: str, volume_size: tuple[int, ...], least: int) -> None:
    """Raise InputError if an axis of the volume has fewer voxels than a network needs to halve it so often.
    No axis has to divide by anything."""
    if min(volume_size) < least:
        raise InputError(f"{network} of TPA-GAN needs at least {least} voxels along every axis of a volume, "
                         f"but the volumes have {size_text(volume_size)}; take larger volumes, or "
                         "leave this method out")


# ---------------------------------------------------------------- the generator G

MULTIPLES = (3, 12, 24, 48)                                # channels of G's four levels, in its width d
KERNELS = ((3, 7, 5), (3, 5), (3,), (3,))                  # of the parallel paths of each level


class ParallelPaths(RecomputedBlock):
    """Paths conv-ReLU-conv side by side, one a kernel size, with equal shares of the output's channels."""

    def __init__(self, in_channels: int, out_channels: int, kernels: tuple[int, ...]):
        super().__init__()
        share = out_channels // len(kernels)
        self.paths = nn.ModuleList()
        for kernel in kernels:
            self.paths.append(nn.Sequential(Conv3d(in_channels, share, kernel, padding=kernel // 2),
                                            nn.ReLU(inplace=True),
                                            Conv3d(share, share, kernel, padding=kernel // 2)))

    def compute(self, h: Tensor) -> Tensor:
        """h [B, in_channels, D, H, W] -> [B, out_channels, D, H, W]."""
        return torch.cat([path(h) for path in self.paths], dim=1)


class Merge(RecomputedBlock, nn.Sequential):
    """Layers that see the features from below and the skip connection side by side."""

    def compute(self, h: Tensor, skip: Tensor) -> Tensor:
        """h, skip [B, channels, D, H, W] -> the same shape."""
        return nn.Sequential.forward(self, torch.cat([h, skip], dim=1))      # [B, 2 channels, D, H, W]


class ResidualUnits(nn.Module):
    """Units h + conv(ReLU(conv(ReLU(h)))). shared: whether one kernel serves all their convolutions."""

    def __init__(self, channels: int, units: int, shared: bool):
        super().__init__()
        self.units = units
        self.convs = nn.ModuleList(conv3(channels, channels) for _ in range(1 if shared else 2 * units))

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, D, H, W] -> the same shape."""
        for unit in range(self.units):
            first = self.convs[2 * unit % len(self.convs)]
            second = self.convs[(2 * unit + 1) % len(self.convs)]
            h = h + second(F.relu(first(F.relu(h)), inplace=True))
        return h


class Generator(nn.Module):
    """G: pyramid, residual units, a decoder with skip connections and a gate, without any norm.

    MRI [B, 1, D, H, W] in [0, 1] -> PET of the same shape, not clamped. volume_size: D, H, W, 15 at least.
    """

    def __init__(self, volume_size: tuple[int, ...] = (160, 192, 160), width: int = 8,
                 residual_units: int = 6, shared_kernel: bool = True):
        super().__init__()
        check_size("the generator", volume_size, 2 ** len(MULTIPLES) - 1)
        channels = [multiple * width for multiple in MULTIPLES]
        levels = [ParallelPaths(*sizes) for sizes in zip([1, *channels[:-1]], channels, KERNELS, strict=True)]
        self.levels, self.last_level = nn.ModuleList(levels[:-1]), levels[-1]
        self.residual = ResidualUnits(channels[-1], residual_units, shared_kernel)
        self.ups, self.merges = nn.ModuleList(), nn.ModuleList()
        for wide, narrow in zip(channels[:0:-1], channels[-2::-1], strict=True):
            self.ups.append(nn.ConvTranspose3d(wide, narrow, 3, stride=2))
            merge = [nn.ReLU(inplace=True), conv3(2 * narrow, narrow), nn.ReLU(inplace=True)]
            if narrow > channels[0]:                       # the finest grid has one convolution, not two
                merge += [conv3(narrow, narrow), nn.ReLU(inplace=True)]
            self.merges.append(Merge(*merge))
        first = channels[0]
        self.gate = nn.Sequential(Conv3d(first, first, 1), nn.ReLU(inplace=True), Conv3d(first, first, 1))
        self.value, self.output = conv3(first, first), conv3(first, 1)

    def forward(self, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] -> PET of that shape."""
        h, skips = mri, []
        for level in self.levels:
            h = level(h)
            skips.append(h)
            h = F.relu(F.max_pool3d(h, 3, stride=2))       # as ReLU and then the pool, with less memory
        h = F.relu(self.residual(self.last_level(h)))
        for up, merge in zip(self.ups, self.merges, strict=True):
            skip = skips.pop()
            h = merge(up(h, output_size=skip.shape[2:]), skip)
        return self.output(self.value(h) * torch.sigmoid(self.gate(h)))


# ---------------------------------------------------------------- the discriminators D and T

class StandardDiscriminator(nn.Module):
    """D: PET [B, 1, D, H, W] in [0, 1] -> one logit a scan [B], large where it looks real.

    channels: one entry a halving of the grid, which is rounded up. last_grid: voxels of the coarsest one.
    """

    def __init__(self, volume_size: tuple[int, ...] = (160, 192, 160),
                 channels: tuple[int, ...] = (32, 64, 128, 256, 512)):
        super().__init__()
        layers: list[nn.Module] = []
        for width, next_width in zip((1, *channels), channels, strict=False):
            layers += [Conv3d(width, next_width, 3, stride=2, padding=1), nn.BatchNorm3d(next_width),
                       nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, conv3(channels[-1], 1))
        self.last_grid = tuple(math.ceil(n / 2 ** len(channels)) for n in volume_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, D, H, W] -> the mean logit of each scan, [B]."""
        return self.layers(x).flatten(1).mean(dim=1)


class DenseLayer(nn.Module):
    """Layer of a dense block: adds `growth` channels to those that it is given."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int):
        super().__init__()
        inner = bottleneck * growth
        self.layers = nn.Sequential(
            nn.BatchNorm3d(in_channels), nn.ReLU(inplace=True), Conv3d(in_channels, inner, 1, bias=False),
            nn.BatchNorm3d(inner), nn.ReLU(inplace=True), Conv3d(inner, growth, 3, padding=1, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_channels, D, H, W] -> [B, in_channels + growth, D, H, W]."""
        return torch.cat([h, self.layers(h)], dim=1)


class TaskDiscriminator(nn.Module):
    """T, a small 3D DenseNet: PET [B, 1, D, H, W] in [0, 1] -> logits of the labels [B, K].

    layers: of each dense block; between two blocks channels and grid are halved. last_grid: voxels of the
    coarsest one.
    """

    def __init__(self, volume_size: tuple[int, ...] = (160, 192, 160), num_classes: int = 2,
                 layers: tuple[int, ...] = (2, 2, 2, 2), channels: int = 16, growth: int = 16,
                 bottleneck: int = 4):
        super().__init__()
        check_size("the task-induced discriminator", volume_size, 2 ** len(layers) - 1)
        found = [Conv3d(1, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels),
                 nn.ReLU(inplace=True), nn.MaxPool3d(3, stride=2, padding=1)]
        for block, depth in enumerate(layers):
            if block:
                found += [nn.BatchNorm3d(channels), nn.ReLU(inplace=True),
                          Conv3d(channels, channels // 2, 1, bias=False), nn.AvgPool3d(2)]
                channels //= 2
            for _ in range(depth):
                found.append(DenseLayer(channels, growth, bottleneck))
                channels += growth
        self.layers = nn.Sequential(*found, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))
        self.label = nn.Linear(channels, num_classes)
        self.last_grid = tuple((n + 1) // 2 // 2 ** (len(layers) - 1) for n in volume_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, D, H, W] -> logits [B, K]."""
        return self.label(self.layers(x).amax(dim=(2, 3, 4)))


# ---------------------------------------------------------------- losses

def gaussian_weights(window: int = 11, sigma: float = 1.5) -> list[float]:
    """Weights of a Gaussian window along one axis; their sum is 1."""
    weights = [math.exp(-((i - (window - 1) / 2) / sigma) ** 2 / 2) for i in range(window)]
    return [weight / sum(weights) for weight in weights]


def weighted_sums(h: Tensor, weights: list[float], axis: int) -> Tensor:
    """Weighted sums over a window that moves along an axis, where it fits as a whole: [..., n, ...] ->
    [..., n - len(weights) + 1, ...].

    Not a convolution, which a GPU may compute in TF32: variances of SSIM are small differences of its
    results.
    """
    length = h.shape[axis] - len(weights) + 1
    total = weights[0] * h.narrow(axis, 0, length)
    for i in range(1, len(weights)):
        total = total.add_(h.narrow(axis, i, length), alpha=weights[i])
    return total


def slice_ssim(x_hat: Tensor, x: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Mean SSIM (Wang et al. 2004, data range 1) over the 2D slices along the last axis, in a Gaussian window
    that is moved where it fits as a whole. x_hat, x: [B, 1, D, H, W] float32."""
    weights, fields = gaussian_weights(window, sigma), torch.stack([x_hat, x, x_hat ** 2, x ** 2, x_hat * x])
    for axis in (-3, -2):                                  # the window is separable; W counts the slices
        fields = weighted_sums(fields, weights, axis)
    mean_hat, mean, square_hat, square, product = fields
    c_1, c_2 = 0.01 ** 2, 0.03 ** 2                        # SSIM's own constants
    variances = square_hat - mean_hat ** 2 + square - mean ** 2
    covariance = product - mean_hat * mean
    ssim = ((2 * mean_hat * mean + c_1) * (2 * covariance + c_2)
            / ((mean_hat ** 2 + mean ** 2 + c_1) * (variances + c_2)))
    return ssim.mean()


def reconstruction_terms(x_hat: Tensor, x: Tensor, window: int = 11, sigma: float = 1.5) -> dict[str, Tensor]:
    """L1, MSE and 1 - SSIM between the synthetic and the real PET, [B, 1, D, H, W] float32 in [0, 1]."""
    return {"l1": F.l1_loss(x_hat, x), "mse": F.mse_loss(x_hat, x),
            "dssim": 1 - slice_ssim(x_hat, x, window, sigma)}


def magnitude_weights(terms: Tensor, least: float = 1e-8) -> Tensor:
    """Powers of ten that give all terms [n] the largest one's order of magnitude: 10^floor(log10(largest /
    term)), without gradient. Terms below `least` count as that."""
    magnitudes = terms.detach().clone()
    all_reduce_mean([magnitudes])
    magnitudes = magnitudes.clamp(min=least)
    return 10 ** (magnitudes.max() / magnitudes).log10().floor()


def adversarial_loss(fake: Tensor) -> Tensor:
    """G's part: cross-entropy of D's logits [B] on synthetic PETs with 'real'."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """D's loss: cross-entropy of its logits [B] on real PETs with 'real', plus that on synthetic ones with
    'synthetic'; the sum, not its half."""
    return (F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))


# ---------------------------------------------------------------- training and prediction

PHASES = ("classifier", "reconstruction", "adversarial", "task")


def phase_ends(settings: TPAGANSettings, epochs: int) -> tuple[int, int, int]:
    """Last epochs, counted from 1, of the first three phases of a training of so many epochs.

    Every phase has an epoch at least. If there are fewer epochs than phases, the last phases are left out;
    a single epoch is one of reconstruction.
    """
    classifier = max(1, round(settings.task_share * epochs)) if epochs > 1 else 0
    left = epochs - classifier
    reconstruction = max(1, round(settings.rec_share * left))
    adversarial = max(1, round(settings.adv_share * left))
    return classifier, classifier + reconstruction, classifier + reconstruction + adversarial


class TPAGAN(Baseline):
    """TPA-GAN's networks and optimizers, and their updates in its four phases.

    volume_size: D, H, W. num_classes: labels K that T tells apart. phase: one of PHASES, of the present
    epoch.
    """

    name, shifts_crop = "tpa_gan", True

    def __init__(self, settings: TPAGANSettings, volume_size: tuple[int, ...], device: torch.device,
                 num_classes: int = 2):
        self.settings, self.volume_size, self.device = settings, volume_size, device
        g = Generator(volume_size, settings.width, settings.residual_units, settings.shared_kernel)
        d = StandardDiscriminator(volume_size, settings.disc_channels)
        t = TaskDiscriminator(volume_size, num_classes, settings.task_layers, settings.task_channels,
                              settings.task_growth, settings.task_bottleneck)
        self.g, self.d, self.t = (prepare(network, device) for network in (g, d, t))
        self.opt_g = Adam(self.g.parameters(), settings.g_lr, settings.betas, fused=fused_on(device))
        self.opt_d = Adam(self.d.parameters(), settings.d_lr, settings.betas, fused=fused_on(device))
        self.opt_t = Adam(self.t.parameters(), settings.task_lr, settings.betas,
                          weight_decay=settings.task_weight_decay, fused=fused_on(device))
        if settings.ssim_window > min(volume_size[:2]):
            raise InputError(f"tpa_gan.ssim_window is {settings.ssim_window}, but slices have "
                             f"{volume_size[0]}x{volume_size[1]} voxels; take a smaller window")
        self.phase = PHASES[0]
        super().__init__({"g": self.g, "d": self.d, "t": self.t, "opt_g": self.opt_g, "opt_d": self.opt_d,
                          "opt_t": self.opt_t})

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the phase and the learning rates; freeze T after its own phase."""
        settings, ends = self.settings, phase_ends(self.settings, epochs)
        self.phase = PHASES[sum(epoch > end for end in ends)]
        is_learning = self.phase == "classifier"
        self.t.requires_grad_(is_learning).train(is_learning)
        falls = sum(epoch > max(1, round(share * ends[0])) for share in settings.task_decays)
        set_rate([self.opt_g], settings.g_lr)
        set_rate([self.opt_d], settings.d_lr)
        set_rate([self.opt_t], settings.task_lr * settings.task_decay ** falls)

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update T in its phase, else G, and then D in the adversarial phase. The terms: classifier (T's
        cross-entropy on real PETs), or l1, mse, dssim and, where they count, adv and disc, or task."""
        pet, label = batch["pet"].to(self.device, non_blocking=True), batch["label"].to(self.device)
        self._check_batch(len(pet))
        if self.phase == "classifier":
            with cast():
                logits = self.t(pet)
            loss = F.cross_entropy(logits.float(), label)
            return update(self.opt_t, loss, {"classifier": loss})

        with cast():
            fake = self.g(batch["mri"].to(self.device, non_blocking=True))                   # [B, 1, D, H, W]
        loss, terms = self.generator_loss(fake.float(), pet, label, cast)
        losses = update(self.opt_g, loss, terms)
        if self.phase == "adversarial":
            with cast():
                real_logit, fake_logit = self.d(pet), self.d(fake.detach())
            loss = discriminator_loss(real_logit.float(), fake_logit.float())
            losses |= update(self.opt_d, loss, {"disc": loss})
        return losses

    def generator_loss(self, fake: Tensor, pet: Tensor, label: Tensor,
                       cast: Callable = nullcontext) -> tuple[Tensor, dict[str, Tensor]]:
        """G's loss in the present phase, and its terms without their weights.

        fake, pet: synthetic and real PET [B, 1, D, H, W] float32. label: [B] int64 in [0, K).
        """
        settings = self.settings
        terms = reconstruction_terms(fake, pet, settings.ssim_window, settings.ssim_sigma)
        values = torch.stack(list(terms.values()))                                           # [3]
        loss = (magnitude_weights(values, settings.least_term) * values).sum()
        if self.phase == "adversarial":
            with cast():
                logit = self.d(fake)
            terms["adv"] = adversarial_loss(logit.float())
            loss = loss + settings.adv_weight * terms["adv"]
        elif self.phase == "task":
            with cast():
                logits = self.t(fake)
            terms["task"] = F.cross_entropy(logits.float(), label)
            loss = loss + settings.task_weight * terms["task"]
        return loss, terms

    def _check_batch(self, scans: int) -> None:
        """Raise InputError for one scan that is so small that a batch norm would see a single value."""
        if scans == 1 and 1 in (math.prod(self.d.last_grid), math.prod(self.t.last_grid)):
            raise InputError("TPA-GAN cannot train on a batch of one scan of "
                             f"{size_text(self.volume_size)} voxels, whose coarsest grid has one "
                             "voxel, because its batch norms need two values; take batches of two that "
                             "divide the training list, or larger volumes")

    @torch.no_grad()
    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """mri [B, 1, D, H, W] -> PET of that shape, float32 in [0, 1], by one evaluation of G. ids: not
        used, as nothing is sampled."""
        with cast():
            pet = self.g(mri.to(self.device))
        return pet.float().clamp(0, 1)
