"""FGAN, the feature-consistency GAN with its disease classifier DSNet: MRI to PET, whole volumes.

Source: Pan, Liu, Xia, Shen, "Disease-image-specific learning for diagnosis-oriented neuroimage synthesis with
incomplete multi-modality data", IEEE TPAMI 44(10):6839-6853, 2022 (first form: MICCAI 2019). Networks,
losses and schedule are those of the first author's code, DRCGAN of 2020, which does not say FGAN but has the
parts that the abstract names; they are not verified against the paper's text. The classes below have its
values as defaults; it trains 151 epochs with batches of 1, on 144x176x144 voxels.

A classifier of real PETs, DSNet, learns the labels beside the generator in the first third of the epochs and
is fixed after it. The generator is to give PETs that this classifier sees as it sees the real ones, in all of
its five layers, and that an unconditional patch discriminator takes for real.

Departures from the published method:
- The InstanceNorm before the generator's tanh is left out by default (FGANSettings.output_norm). It gives
  every volume the same mean and spread, and so removes the subject's overall level of uptake.
- Labels are amyloid status instead of the diagnosis, because that is the label of this comparison.
- From MRI to PET alone. The published code trains the other direction beside it, and a DSNet of the MRI for
  it; without its cycle term, off by default there too, the directions do not touch.
- DSNet learns from the training pairs alone, in the batches of the generator. The published one also learns
  from scans without a partner, which other methods here do not see.
- The learning rate would reach 0 after the last epoch, not in it, so that no epoch is spent at rate 0.
- Epochs, batches, crop and shift are those of all methods here. Phases are shares of the epochs: published 50
  and 100 of 151.
- Convolutions of stride 2 have their zeros before the volume, where TensorFlow has them after it: for even
  sizes the same layer, mirrored. The other layers' borders are as published.
- At 40x48x40 DSNet has two max pools instead of four (preset demo): four would leave no position for its
  spatial descriptor, two leave the published 4x5x4.
- Weights start as torch's layers do; how the published ones start is unknown.

On a GPU torch adds up the backward passes of mirrored borders and pools in no fixed order: two runs differ by
rounding.

What the published losses do not see: every layer of DSNet ends in an InstanceNorm, so the feature consistency
hardly changes when a whole PET gets brighter or dimmer. Without the L1 (lambda_voxel 0, as published) the
level of the PET follows from the discriminator alone.
"""
from collections.abc import Callable
from contextlib import nullcontext
from math import prod

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam

from baselines.baseline import Baseline
from config import FGANSettings
from model import Conv3d, GroupNorm, conv3, down
from runtime import gpu
from runtime.fit import set_rate, update
from utils import InputError, fused_on, size_text


# ---------------------------------------------------------------- networks

def check_size(part: str, volume_size: tuple[int, ...], multiple: int, least: int, advice: str) -> None:
    """Raise InputError unless every side is a multiple of `multiple` and has at least `least` voxels."""
    if any(n % multiple or n < least for n in volume_size):
        raise InputError(f"volume_size is {size_text(volume_size)}; {part} of FGAN needs sides that are "
                         f"multiples of {multiple}, of at least {least} voxels: {advice}")


def instance_norm(channels: int, activation: str = "none") -> GroupNorm:
    """InstanceNorm with a learned scale and offset a channel, and the activation that follows it."""
    return GroupNorm(channels, channels, activation=activation)


class GeneratorBlock(nn.Module):
    """Residual block: two 3x3x3 convolutions with mirrored borders, each with InstanceNorm; ReLU after the
    sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad3d(1), Conv3d(channels, channels, 3), instance_norm(channels, "relu"),
            nn.ReflectionPad3d(1), Conv3d(channels, channels, 3), instance_norm(channels))

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, d, h, w] -> the same shape."""
        return F.relu(h + self.layers(h))


class FGANGenerator(nn.Module):
    """The generator G: MRI [B, 1, D, H, W] in [-1, 1] -> PET of that shape in (-1, 1).

    Two halvings, the blocks, two doublings; no skips. output_norm: the InstanceNorm before the tanh.
    """

    def __init__(self, volume_size: tuple[int, ...], width: int = 16, blocks: int = 3,
                 output_norm: bool = True):
        super().__init__()
        check_size("the generator", volume_size, 4, 8, "crop or pad the volumes to such sides")
        layers: list[nn.Module] = [nn.ReflectionPad3d(3), Conv3d(1, width, 7), instance_norm(width, "relu")]
        for channels in (width, 2 * width):
            layers += [Conv3d(channels, 2 * channels, 3, stride=2, padding=1),
                       instance_norm(2 * channels, "relu")]
        layers += [GeneratorBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [nn.ConvTranspose3d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1),
                       instance_norm(channels // 2, "relu")]
        layers += [nn.ReflectionPad3d(3), Conv3d(width, 1, 7)]
        if output_norm:
            layers.append(instance_norm(1))
        self.layers = nn.Sequential(*layers)

    def forward(self, mri: Tensor) -> Tensor:
        """mri [B, 1, D, H, W] in [-1, 1] -> PET of that shape in (-1, 1), float32."""
        return torch.tanh(self.layers(mri).float())        # bfloat16 would be coarse near -1, the background


class FGANDiscriminator(nn.Module):
    """The discriminator D of PETs: [B, 1, D, H, W] in [-1, 1] -> one score a patch, [B, 1, D/8, H/8, W/8],
    near 1 where the patch looks real and near 0 where it does not."""

    def __init__(self, volume_size: tuple[int, ...], width: int = 32, leak: float = 0.2):
        super().__init__()
        check_size("the discriminator", volume_size, 8, 16, "crop or pad the volumes to such sides")
        layers: list[nn.Module] = [down(1, width), nn.LeakyReLU(leak)]
        for channels in (width, 2 * width):
            layers += [down(channels, 2 * channels), instance_norm(2 * channels), nn.LeakyReLU(leak)]
        # a kernel of 4 that keeps the grid needs one zero before and two after
        keep_grid = (1, 2, 1, 2, 1, 2)
        layers += [nn.ZeroPad3d(keep_grid), Conv3d(4 * width, 8 * width, 4), instance_norm(8 * width),
                   nn.LeakyReLU(leak), nn.ZeroPad3d(keep_grid), Conv3d(8 * width, 1, 4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pet: Tensor) -> Tensor:
        """pet [B, 1, D, H, W] in [-1, 1] -> scores, one a patch."""
        return self.layers(pet)


class DSNet(nn.Module):
    """The classifier of PETs with a spatial cosine module: [B, 1, D, H, W] in [-1, 1] -> logits
    [B, num_classes].

    Its layers are 3x3x3 convolution, InstanceNorm and ReLU; a max pool halves the grid after each of the
    first `pools`, and an average pool follows the last. The module keeps the position: the features of every
    position become a unit vector, all of them together one again, and a linear layer has a weight for each.
    second_order: f^2 - 1 stands beside the features f.
    """

    def __init__(self, volume_size: tuple[int, ...], channels: tuple[int, ...] = (16, 32, 64, 64, 64),
                 pools: int = 4, second_order: bool = True, num_classes: int = 2):
        super().__init__()
        shrink = 2 ** pools
        check_size("the classifier", volume_size, shrink, 3 * shrink,
                   "crop or pad the volumes to such sides, or take fewer classifier_pools (2 at 40x48x40)")
        self.pools, self.second_order = pools, second_order
        self.layers = nn.ModuleList(
            nn.Sequential(conv3(before, after), instance_norm(after, "relu"))
            for before, after in zip((1, *channels[:-1]), channels, strict=True))
        positions = prod((n // shrink - 1) // 2 for n in volume_size)
        self.linear = nn.Linear(channels[-1] * positions * (2 if second_order else 1), num_classes)

    def features(self, pet: Tensor) -> list[Tensor]:
        """pet [B, 1, D, H, W] in [-1, 1] -> the outputs phi_k of the layers, before their pools, the finest
        first."""
        phi, h = [], pet
        for number, layer in enumerate(self.layers):
            h = layer(h)
            phi.append(h)
            if number < self.pools:
                h = F.max_pool3d(h, 3, stride=2, ceil_mode=True)                      # [B, c, d/2, h/2, w/2]
        return phi

    def descriptor(self, pet: Tensor) -> Tensor:
        """pet [B, 1, D, H, W] in [-1, 1] -> the spatial descriptor, a unit vector [B, values] in float32."""
        f = F.avg_pool3d(self.features(pet)[-1].float(), 3, stride=2)
        if self.second_order:
            f = torch.cat([f, f.square() - 1], dim=1)
        return F.normalize(F.normalize(f, dim=1).flatten(1), dim=1)                              # [B, values]

    def forward(self, pet: Tensor) -> Tensor:
        """pet [B, 1, D, H, W] in [-1, 1] -> logits of the labels, [B, num_classes]."""
        return self.linear(self.descriptor(pet))


# ---------------------------------------------------------------- losses

def feature_consistency(fake: list[Tensor], real: list[Tensor], layers: tuple[int, ...]) -> Tensor:
    """Sum over the layers k of mean |phi_k(fake) - phi_k(real)|. fake, real: outputs of DSNet.features."""
    return torch.stack([F.l1_loss(fake[k].float(), real[k].float()) for k in layers]).sum()


def adversarial_loss(fake: Tensor) -> Tensor:
    """mean |D(fake) - 1|, the generator's. fake: scores of any shape."""
    return (fake - 1).abs().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean |D(fake)| + mean |D(real) - 1|) / 2, absolute values, not squares. real, fake: scores."""
    return 0.5 * (fake.abs().mean() + (real - 1).abs().mean())


# ---------------------------------------------------------------- the method

class FGAN(Baseline):
    """The generator, its discriminator and the classifier DSNet that learns beside it, and their updates.

    volume_size: D, H, W. num_classes: labels that DSNet tells apart.
    """

    name, shifts_crop = "fgan", True

    def __init__(self, settings: FGANSettings, volume_size: tuple[int, ...], device: torch.device,
                 num_classes: int = 2):
        s = self.settings = settings
        self.device = device
        generator = FGANGenerator(volume_size, s.generator_width, s.generator_blocks, s.output_norm)
        discriminator = FGANDiscriminator(volume_size, s.discriminator_width)
        classifier = DSNet(volume_size, s.classifier_channels, s.classifier_pools, s.second_order,
                           num_classes)
        self.generator = gpu.prepare(generator, device)
        self.discriminator = gpu.prepare(discriminator, device)
        self.classifier = gpu.prepare(classifier, device)
        self.opt_g = Adam(self.generator.parameters(), s.lr, betas=s.betas, fused=fused_on(device))
        self.opt_d = Adam(self.discriminator.parameters(), s.lr, betas=s.betas, fused=fused_on(device))
        self.opt_c = SGD(self.classifier.parameters(), s.classifier_lr)
        self.classifier_learns = True
        super().__init__({"generator": self.generator, "discriminator": self.discriminator,
                          "classifier": self.classifier, "opt_g": self.opt_g, "opt_d": self.opt_d,
                          "opt_c": self.opt_c})

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Fix DSNet after its share of the epochs, of which it has one at least, and set the rate of the
        other two: constant at first, then linear to 0."""
        s = self.settings
        self.classifier_learns = epoch <= max(1, round(s.classifier_share * epochs))
        self.classifier.train(self.classifier_learns).requires_grad_(self.classifier_learns)
        left = (epochs - (epoch - 1)) / (epochs - s.constant_share * epochs)
        set_rate([self.opt_g, self.opt_d], s.lr * min(1.0, left))

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the generator, then the discriminator on its PETs, then DSNet on the real ones while it
        learns.

        Terms: feature, adv and voxel of the generator (voxel: mean |G(MRI) - PET| in [-1, 1], also where its
        weight is 0), disc, and cls, the cross-entropy of DSNet while it learns.
        """
        mri, pet = self._to_range(batch["mri"]), self._to_range(batch["pet"])
        fake, losses = self._generator_step(mri, pet, cast)

        with cast():
            real_score, fake_score = self.discriminator(pet).float(), self.discriminator(fake).float()
        loss = discriminator_loss(real_score, fake_score)
        losses |= update(self.opt_d, loss, {"disc": loss})

        if self.classifier_learns:
            with cast():
                logits = self.classifier(pet).float()
            loss = F.cross_entropy(logits, batch["label"].to(self.device, non_blocking=True))
            losses |= update(self.opt_c, loss, {"cls": loss})
        return losses

    def _generator_step(self, mri: Tensor, pet: Tensor, cast: Callable) -> tuple[Tensor, dict[str, float]]:
        """Update the generator; mri and pet [B, 1, D, H, W] in [-1, 1]. Returns the PETs that it gave before
        the update, without their graph, and the terms."""
        s = self.settings
        with torch.no_grad(), cast():
            real_phi = self.classifier.features(pet)
        with cast():
            fake = self.generator(mri)
            fake_phi, score = self.classifier.features(fake), self.discriminator(fake).float()
        feature, adv = feature_consistency(fake_phi, real_phi, s.feature_layers), adversarial_loss(score)
        voxel = F.l1_loss(fake, pet)
        loss = s.lambda_feature * feature + s.lambda_adv * adv + s.lambda_voxel * voxel
        return fake.detach(), update(self.opt_g, loss, {"feature": feature, "adv": adv, "voxel": voxel})

    @torch.no_grad()
    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """mri [B, 1, D, H, W] in [0, 1] -> PET of that shape, float32 in [0, 1], by one evaluation of the
        generator. ids are ignored, because nothing is sampled."""
        with cast():
            fake = self.generator(self._to_range(mri))
        return ((fake + 1) / 2).clamp(0, 1)

    def _to_range(self, volume: Tensor) -> Tensor:
        """A volume in [0, 1], on the device and in [-1, 1]."""
        return volume.to(self.device, non_blocking=True) * 2 - 1
