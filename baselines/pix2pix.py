"""Pix2Pix in three dimensions: a U-Net from the MRI to the PET, against a patch discriminator that sees both.

Source: Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017
(arXiv 1611.07004). Networks and start follow the authors' networks.py (pytorch-CycleGAN-and-pix2pix, commit
000f298), losses and order of the updates their pix2pix_model.py (commit 032e884). Not verified there: that
dropout is on in prediction, how the norms start, that the rate's line ends one epoch after the
last. Kept as published: the blocks, binary cross-entropy with logits plus 100 times L1 on values in [-1, 1],
half the discriminator's loss, its update before the generator's, Adam, the start, and the learning rate,
which is constant for half of the epochs and then falls to 0 along a line. How the authors of IL-CLDM adapted
Pix2Pix is unknown.

Departures from the published method, and why:
- Whole volumes instead of images: every 4x4 kernel is 4x4x4.
- 5 levels at 160x192x160 and 3 at 40x48x40 instead of 8: the sizes cannot be halved more often.
- Width 32 instead of 64, in both networks: a 4x4x4 kernel has four times the weights of a 4x4 one.
- Instance norm instead of batch norm, with the learned scale and offset of the batch norm: a batch is one or
  two volumes, so its statistics are those of these volumes in training, and others in prediction. As
  published, no norm stands in the first level, at the bottleneck or before the output: through the first
  level's skip the absolute level of the MRI reaches the output.
- Dropout in the two blocks next to the innermost, or at 40x48x40 in the one that there is, instead of in
  three: as published, that is half of the blocks between the innermost and the outermost, rounded up.
- No dropout in prediction. The paper leaves it on as the only noise; a compared row has to be deterministic.
- The discriminator halves once at 40x48x40 instead of three times: its patch would be larger than the volume.
  So it is 16 voxels of 4 mm, 64 mm a side; at full size it is the published 70 voxels, of 1 mm.
- Volumes are in [0, 1]. They are brought to [-1, 1] and back, and the PET is clamped.
- Epochs, batch size, shifts of the volumes and the choice of the epoch are those of all compared methods.
  Published: 200 epochs, batches of 1, images resized to 286, cropped to 256 and flipped at random.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from baselines.baseline import Baseline
from baselines.patchgan import SLOPE, WIDEST, PatchGAN, norm_of, start_normal
from config import Pix2PixSettings
from model import down
from runtime.fit import draw_rows, linear_decay, set_rate, update
from runtime.gpu import prepare
from utils import InputError, fused_on, size_text


# ---------------------------------------------------------------- the generator

class Generator(nn.Module):
    """U-Net from the MRI to the PET; it halves the grid `downs` times.

    MRI [B, 1, D, H, W] in [-1, 1] -> PET of that shape in [-1, 1]. Down: LeakyReLU (not before the first),
    4x4x4 convolution with stride 2, norm (not after the first and the last). Up: ReLU, 4x4x4 transposed
    convolution, norm, dropout in some blocks, then the features of the same level beside it; the last has no
    norm, and ends in tanh. Widths: width, 2 width, 4 width, then 8 width.

    volume_size: D, H, W. dropout_blocks: number of blocks with dropout, from the one next to the innermost
    outward. norm: 'batch' (paper) or 'instance'. The defaults are the published ones, for sizes of 256.
    Raises InputError for a size that cannot be halved so often.
    """

    def __init__(self, volume_size: tuple[int, ...], downs: int = 8, width: int = 64, dropout_blocks: int = 3,
                 dropout: float = 0.5, norm: str = "batch"):
        super().__init__()
        if any(n % 2 ** downs for n in volume_size):
            raise InputError(f"the generator of Pix2Pix halves the grid {downs} times, so it needs sizes "
                             f"that are multiples of {2 ** downs}; found "
                             f"{size_text(volume_size)}: choose another volume_size, or fewer downs")
        self.dropout_blocks, self.dropout = dropout_blocks, dropout
        widths = [width * min(2 ** i, WIDEST) for i in range(downs)]
        self.down = nn.ModuleList([down(1, widths[0], bias=False)])
        self.up = nn.ModuleList()                          # the innermost first
        for i in range(1, downs):
            convolution = down(widths[i - 1], widths[i], bias=False)
            normed = norm_of(norm, widths[i]) if i < downs - 1 else nn.Identity()
            self.down.append(nn.Sequential(nn.LeakyReLU(SLOPE), convolution, normed))
            below = widths[i] if i == downs - 1 else 2 * widths[i]
            block = nn.Sequential(nn.ReLU(), up(below, widths[i - 1]), norm_of(norm, widths[i - 1]))
            self.up.insert(0, block)
        self.last = nn.Sequential(nn.ReLU(), up(2 * widths[0], 1, bias=True))

    def forward(self, mri: Tensor, noise: bool = False) -> Tensor:
        """mri [B, 1, D, H, W] in [-1, 1] -> PET of that shape in [-1, 1]. noise: whether dropout acts, as in
        training."""
        skips, h = [], mri
        for block in self.down:
            h = block(h)                                                  # [B, channels, d / 2, h / 2, w / 2]
            skips.append(h)
        skips.pop()                                        # the bottleneck goes up by itself
        for i, block in enumerate(self.up):
            h = block(h)
            if noise and 1 <= i <= self.dropout_blocks:    # 0 is the innermost
                h = drop(h, self.dropout)
            h = torch.cat([skips.pop(), h], dim=1)                           # [B, 2 channels, 2 d, 2 h, 2 w]
        return torch.tanh(self.last(h).float())            # bfloat16 would be coarse near -1, the background


def up(in_channels: int, out_channels: int, bias: bool = False) -> nn.ConvTranspose3d:
    """4x4x4 transposed convolution that doubles the grid."""
    return nn.ConvTranspose3d(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)


def drop(h: Tensor, share: float) -> Tensor:
    """h [B, ...] with that share of its values set to 0 at random, and the others scaled up so that the mean
    stays. Drawn for the batches of all ranks, so that their number does not matter."""
    kept = draw_rows(torch.rand, len(h), *h.shape[1:], device=h.device) >= share
    return h * kept.to(h.dtype) / (1 - share)


# ---------------------------------------------------------------- losses

def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of two binary cross-entropies: of the logits of real pairs to 1, and of fake ones to 0."""
    real_loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    fake_loss = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    return 0.5 * (real_loss + fake_loss)


def adversarial_loss(fake: Tensor) -> Tensor:
    """Binary cross-entropy of the logits of fake pairs to 1: small where the discriminator takes them for
    real."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


# ---------------------------------------------------------------- the method

class Pix2Pix(Baseline):
    """Pix2Pix on volumes of one size. parts: generator, disc, opt_g, opt_d.

    volume_size: D, H, W. device: where its networks compute. The start of the networks comes from torch's
    global generator.
    """

    name, shifts_crop = "pix2pix", True

    def __init__(self, settings: Pix2PixSettings, volume_size: tuple[int, ...], device: torch.device):
        s = self.settings = settings
        generator = Generator(volume_size, s.downs, s.width, s.dropout_blocks, s.dropout, s.norm)
        disc = PatchGAN(volume_size, 2, s.disc_width, s.disc_layers, s.norm)
        for network in (generator, disc):
            start_normal(network, s.init_std)
        self.device = device
        self.generator, self.disc = prepare(generator, device), prepare(disc, device)
        self.opt_g = Adam(self.generator.parameters(), s.lr, betas=s.betas, fused=fused_on(device))
        self.opt_d = Adam(self.disc.parameters(), s.lr, betas=s.betas, fused=fused_on(device))
        super().__init__({"generator": self.generator, "disc": self.disc, "opt_g": self.opt_g,
                          "opt_d": self.opt_d})

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the learning rate of both optimizers; there is one phase."""
        factor = linear_decay(epoch, epochs, self.settings.constant_share)
        set_rate([self.opt_g, self.opt_d], self.settings.lr * factor)

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the discriminator, then the generator, on the same synthetic PETs.

        Returns disc: the discriminator's loss; rec: L1 on values in [-1, 1], without its weight; adv: the
        generator's adversarial loss, judged by the discriminator after its update.
        """
        mri = to_signed(batch["mri"].to(self.device, non_blocking=True))
        pet = to_signed(batch["pet"].to(self.device, non_blocking=True))
        with cast():
            pet_hat = self.generator(mri, noise=True).float()                                # [B, 1, D, H, W]
            real = self.disc(torch.cat([mri, pet], dim=1)).float()
            fake = self.disc(torch.cat([mri, pet_hat.detach()], dim=1)).float()    # its loss stops at pet_hat
            loss_disc = discriminator_loss(real, fake)
        losses = update(self.opt_d, loss_disc, {"disc": loss_disc})

        with cast():
            loss_adv = adversarial_loss(self.disc(torch.cat([mri, pet_hat], dim=1)).float())
            loss_rec = F.l1_loss(pet_hat, pet)
        return losses | update(self.opt_g, self.settings.lambda_l1 * loss_rec + loss_adv,
                               {"rec": loss_rec, "adv": loss_adv})

    @torch.no_grad()
    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """mri [B, 1, D, H, W] in [0, 1] -> PET of that shape, float32 in [0, 1], without dropout. ids do not
        matter."""
        with cast():
            pet_hat = self.generator(to_signed(mri.to(self.device)))
        return ((pet_hat.float() + 1) / 2).clamp(0, 1)


def to_signed(x: Tensor) -> Tensor:
    """Values in [0, 1] brought to [-1, 1]."""
    return 2 * x - 1
