"""The patch discriminator of Pix2Pix in three dimensions, with the norms and the start of both its networks.

Source: Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017
(arXiv 1611.07004). Layers, widths, biases and the start of the kernels as in the authors' networks.py
(pytorch-CycleGAN-and-pix2pix, commit 000f298), which is for images; here every 4x4 kernel is 4x4x4. The start
of the norms is not verified there.
"""
import torch.nn as nn
from torch import Tensor

from model import Conv3d, GroupNorm, down
from utils import InputError, size_text

SLOPE = 0.2                                                # of LeakyReLU; paper
WIDEST = 8                                                 # times the first width; paper


class PatchGAN(nn.Module):
    """Says of every patch of a volume whether it looks real.

    x [B, in_channels, D, H, W] -> logits [B, 1, d - 2, h - 2, w - 2] with d = D / 2**n_layers, and so on. The
    first n_layers convolutions halve the grid. Two more have stride 1, and each takes a voxel off, because
    the kernel is even. All kernels are 4x4x4. Widths: width, 2 width, 4 width, then 8 width. A logit sees a
    cube of receptive_field voxels a side: 16, 34 or 70 for n_layers 1, 2 or 3 (paper: 3).

    volume_size: D, H, W of x. in_channels: 2 for MRI and PET side by side. norm: 'batch' (paper) or
    'instance', in all layers but the first and the last. Instance norm takes mean and spread of a volume's
    features away, so the discriminator sees little of the level of uptake. Raises InputError for a size that
    does not divide, or that leaves no patch.
    """

    def __init__(self, volume_size: tuple[int, ...], in_channels: int = 2, width: int = 64, n_layers: int = 3,
                 norm: str = "batch"):
        super().__init__()
        step = 2 ** n_layers
        if any(n % step or n < 3 * step for n in volume_size):
            raise InputError(f"the patch discriminator halves the grid {n_layers} times, so it needs sizes "
                             f"that are multiples of {step} and at least {3 * step}; found "
                             f"{size_text(volume_size)}: choose another volume_size, or fewer layers")
        widths = [width * min(2 ** i, WIDEST) for i in range(n_layers + 1)]
        layers: list[nn.Module] = [down(in_channels, widths[0]), nn.LeakyReLU(SLOPE)]
        for i in range(1, n_layers + 1):
            stride = 2 if i < n_layers else 1
            layers += [Conv3d(widths[i - 1], widths[i], 4, stride, padding=1, bias=False),
                       norm_of(norm, widths[i]), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, Conv3d(widths[-1], 1, 4, padding=1))

    @property
    def receptive_field(self) -> int:
        """Voxels a side of the cube that one logit depends on, beside what the norms bring in."""
        field = 1
        for layer in reversed(self.layers):
            if isinstance(layer, Conv3d):
                field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, D, H, W] -> logits, one a patch; large where the patch looks real."""
        return self.layers(x)


def norm_of(norm: str, channels: int) -> nn.Module:
    """The norm of that name, 'batch' or 'instance', with a learned scale and offset of every channel.

    Instance norm is a GroupNorm in which every channel is a group. Raises InputError for another name.
    """
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "instance":
        return GroupNorm(channels, channels)
    raise InputError(f"there is no norm {norm!r}: take 'batch' (published) or 'instance'")


def start_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw the weights a network starts with, as published: kernels from N(0, std), scales of norms from
    N(1, std); all biases and offsets are 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.BatchNorm3d | nn.GroupNorm):
            is_norm = isinstance(module, nn.BatchNorm3d | nn.GroupNorm)
            nn.init.normal_(module.weight, 1.0 if is_norm else 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
