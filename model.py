"""The networks of IL-CLDM (Ou et al., IEEE JBHI 29(2):1221-1231, 2025).

Dimension key: B batch, C latent channels, K labels, D H W volume voxels, d h w latent voxels, T diffusion steps.
Symbols: x PET, x_hat reconstruction, m MRI, y label, z_0 latent, z_t latent noised to step t, eps noise.
The defaults of the classes are the published networks.
"""
import math
import re

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FEW_VOXELS = 2 ** 17                                       # so few that synthetic volumes of both memory layouts agree within 1e-5


def conv3(a: int, b: int) -> nn.Conv3d:
    """3x3x3 convolution that keeps the grid."""
    return nn.Conv3d(a, b, 3, padding=1)


def down(a: int, b: int, bias: bool = True) -> nn.Conv3d:
    """4x4x4 convolution that halves the grid."""
    return nn.Conv3d(a, b, 4, stride=2, padding=1, bias=bias)


def up(channels: int) -> nn.ConvTranspose3d:
    """4x4x4 transposed convolution that doubles the grid."""
    return nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that stays exact on large volumes, whatever their memory layout.

    torch's CPU kernel for channels_last adds up in plain float32: on 160x192x160 voxels it is off by 1e-2, on 40x48x40 by 1e-4.
    """

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.contiguous() if h[0, 0].numel() > FEW_VOXELS else h)


class RecomputedBlock(nn.Module):
    """A block whose activations can be recomputed in the backward pass instead of kept; see recompute_activations."""

    recomputed = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)


def recompute_activations(network: nn.Module) -> None:
    """Trade time for memory in training: every residual block keeps its inputs alone (Chen et al. 2016, arXiv 1604.06174)."""
    for block in network.modules():
        if isinstance(block, RecomputedBlock):
            block.recomputed = True


# ---------------------------------------------------------------- stage 1: the adversarial autoencoder (AAE)

class ResBlock(RecomputedBlock):
    """Residual block of the AAE and the Extractor: [B, a, D, H, W] -> [B, b, D, H, W]. norm_groups 0: without GroupNorms."""

    def __init__(self, a: int, b: int, norm_groups: int = 16):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, a, eps=1e-6) if norm_groups else nn.Identity()
        self.conv1 = conv3(a, b)
        self.norm2 = GroupNorm(norm_groups, b, eps=1e-6) if norm_groups else nn.Identity()
        self.conv2 = conv3(b, b)
        self.skip = nn.Conv3d(a, b, 1) if a != b else nn.Identity()

    def compute(self, h: Tensor) -> Tensor:
        """h [B, a, D, H, W] -> [B, b, D, H, W]."""
        residual = self.conv1(F.relu(self.norm1(h)))
        return self.skip(h) + self.conv2(F.relu(self.norm2(residual)))


class AAE(nn.Module):
    """3D autoencoder of PET volumes, trained against a Discriminator; one entry of channels a resolution level.

    aae(x) reconstructs x: [B, 1, D, H, W] in [0, 1] -> the same shape, not clamped. aae.encoder(x) is the latent
    [B, C, d, h, w] with d = D / 2**(len(channels) - 1); aae.decoder turns it back.
    output_norm: the GroupNorm before the last convolution of encoder and decoder (published: True). It removes the
    absolute level of the features and with it the level of uptake, so the project's default leaves it out.
    block_norm: the GroupNorms of the residual blocks (published: True), which leave the level to the paths beside them.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64), latent_channels: int = 1,
                 output_norm: bool = True, norm_groups: int = 16, block_norm: bool = True):
        super().__init__()

        def block(a: int, b: int) -> ResBlock:
            return ResBlock(a, b, norm_groups if block_norm else 0)

        def norm(a: int) -> nn.Module:
            return GroupNorm(norm_groups, a, eps=1e-6) if output_norm else nn.Identity()

        first, last = channels[0], channels[-1]
        encoder: list[nn.Module] = [conv3(1, first)]
        for a, b in zip(channels, channels[1:], strict=False):
            encoder += [block(a, b), down(b, b)]
        encoder += [block(last, last), norm(last), nn.ReLU(), conv3(last, latent_channels)]

        decoder: list[nn.Module] = [conv3(latent_channels, last), block(last, last), block(last, last)]
        for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True):
            decoder += [block(a, b), up(b)]
        decoder += [norm(first), nn.ReLU(), conv3(first, 1)]

        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Discriminator(nn.Module):
    """Patch discriminator: [B, 1, D, H, W] -> one logit a patch [B, 1, D / 2**n, ...], n = len(channels) + 1."""

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = [down(1, channels[0]), nn.LeakyReLU(0.2)]
        for a, b in zip(channels, channels[1:], strict=False):
            layers += [down(a, b, bias=False), nn.BatchNorm3d(b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, down(channels[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# ---------------------------------------------------------------- stage 2: the conditioned denoiser

class Extractor(nn.Module):
    """Image conditioning: the MRI [B, 1, D, H, W] as one channel on the latent grid, [B, 1, d, h, w].

    downscale = D / d, a power of two. The published network halves the grid in its first and last convolution.
    """

    def __init__(self, downscale: int = 4, channels: int = 16):
        super().__init__()
        halvings = int(math.log2(downscale))
        layers: list[nn.Module] = [(down if halvings >= 1 else conv3)(1, channels), ResBlock(channels, channels)]
        for _ in range(halvings - 2):
            layers += [down(channels, channels), ResBlock(channels, channels)]
        layers += [GroupNorm(16, channels, eps=1e-6), nn.SiLU(), (down if halvings >= 2 else conv3)(channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, mri: Tensor) -> Tensor:
        return self.layers(mri)


class NoExtractor(nn.Module):
    """In the place of the Extractor: the ablation without the MRI, a condition of no channels, [B, 0, d, h, w]."""

    def __init__(self, downscale: int):
        super().__init__()
        self.downscale = downscale

    def forward(self, mri: Tensor) -> Tensor:
        step = self.downscale
        return mri[:, :0, ::step, ::step, ::step]


class Pyramid(nn.Module):
    """Multi-scale image conditioning: features of the MRI at every level of the UNet.

    mri [B, 1, D, H, W] -> a list of [B, channels, d, h, w], the first on the latent grid, each further one at half the one before.
    """

    def __init__(self, downscale: int, levels: int, channels: int = 16):
        super().__init__()
        halvings = int(math.log2(downscale))
        first = [conv3(1, channels), *(down(channels, channels) for _ in range(halvings)), ResBlock(channels, channels)]
        further = [nn.Sequential(down(channels, channels), ResBlock(channels, channels)) for _ in range(levels - 1)]
        self.levels = nn.ModuleList([nn.Sequential(*first), *further])

    def forward(self, mri: Tensor) -> list[Tensor]:
        features, h = [], mri
        for level in self.levels:
            features.append(h := level(h))
        return features


class Projector(nn.Module):
    """Label conditioning: the time step and, if given, the label as one embedding [B, time_dim].

    t: [B] int64. label: None (no label), [B] int64 in [0, K), or [B, K] float weights of the K label embeddings:
    a one-hot row is a label, a row of probabilities mixes the embeddings, a row of zeros is no label.
    """

    def __init__(self, time_dim: int = 128, num_classes: int = 2):
        super().__init__()
        k = torch.arange(time_dim // 2, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * 2 * k / time_dim))
        self.time = nn.Sequential(nn.Linear(time_dim, 4 * time_dim), nn.SiLU(), nn.Linear(4 * time_dim, time_dim))
        self.label = nn.Embedding(num_classes, time_dim)

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
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
        q, k, v = self.qkv(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=2)          # each [B, d*h*w, channels]
        attended = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(attended.transpose(1, 2).reshape(h.shape))                       # [B, channels, d, h, w]


class UNetBlock(RecomputedBlock):
    """Residual block a -> b that adds the time-and-label embedding to every channel; attention behind it if asked."""

    def __init__(self, a: int, b: int, time_dim: int, norm_groups: int, attention: bool = False):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, a)
        self.conv1 = conv3(a, b)
        self.embed = nn.Linear(time_dim, b)
        self.norm2 = GroupNorm(norm_groups, b)
        self.conv2 = conv3(b, b)
        self.skip = nn.Conv3d(a, b, 1) if a != b else nn.Identity()
        self.attention = Attention(b, norm_groups) if attention else nn.Identity()

    def compute(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, a, d, h, w], embedding [B, time_dim] -> [B, b, d, h, w]."""
        residual = self.conv1(F.silu(self.norm1(h)))
        residual = residual + self.embed(F.silu(embedding))[:, :, None, None, None]
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.attention(self.skip(h) + residual)


class UNet(nn.Module):
    """The denoiser: the network that predicts noise or v from z_t, the MRI, the time step and the label.

    unet(z_t, mri, t, label): z_t [B, C, d, h, w], mri [B, 1, D, H, W] in [0, 1], t [B] int64 in [0, T), label as in
    Projector; returns [B, C, d, h, w]. What it sees of the MRI is the same at every step of a sampling run, so
    samplers call unet.condition(mri) once and then unet.denoise(z_t, condition, t, label).
    downscale = D / d. attention_levels: levels of channel_mults with attention in every block (the middle always has it).
    image_conditioning False leaves the MRI out. multiscale: features of the MRI are added at every level (not published).
    regression: a network from MRI to PET, whose input is the MRI itself; then z_t has no channels and C is 1.
    """

    def __init__(self, latent_channels: int = 1, base_channels: int = 128, channel_mults: tuple[int, ...] = (1, 2, 2, 4),
                 res_blocks: int = 2, time_dim: int = 128, num_classes: int = 2, norm_groups: int = 32,
                 attention_levels: tuple[int, ...] = (), downscale: int = 4, image_conditioning: bool = True,
                 multiscale: bool = False, regression: bool = False):
        super().__init__()
        if regression:
            self.extractor, inputs = nn.Identity(), 1
        elif image_conditioning:
            self.extractor, inputs = Extractor(downscale), latent_channels + 1
        else:
            self.extractor, inputs = NoExtractor(downscale), latent_channels
        self.projector = Projector(time_dim, num_classes)

        def block(a: int, b: int, attention: bool) -> UNetBlock:
            return UNetBlock(a, b, time_dim, norm_groups, attention)

        widths, last = [base_channels * mult for mult in channel_mults], len(channel_mults) - 1
        if multiscale := multiscale and image_conditioning:
            self.pyramid = Pyramid(downscale, len(widths))
            self.inject = nn.ModuleList(nn.Conv3d(16, a, 1) for a in (base_channels, *widths[:-1]))  # what each level begins with
        self.multiscale = multiscale

        layers: list[nn.Module] = [conv3(inputs, base_channels)]
        skips = [width := base_channels]
        for level, b in enumerate(widths):
            for _ in range(res_blocks):
                layers.append(block(width, b, level in attention_levels))
                skips.append(width := b)
            if level < last:
                layers.append(down(b, b))
                skips.append(b)
        self.down = nn.ModuleList(layers)
        self.mid = nn.ModuleList([block(width, width, True), block(width, width, False)])

        layers = []
        for level, b in reversed(list(enumerate(widths))):
            for _ in range(res_blocks + 1):
                layers.append(block(width + skips.pop(), b, level in attention_levels))
                width = b
            if level > 0:
                layers.append(up(b))
        self.up = nn.ModuleList(layers)
        self.out = nn.Sequential(GroupNorm(norm_groups, width), nn.SiLU(), conv3(width, latent_channels))

    def forward(self, z_t: Tensor, mri: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoise(z_t, self.condition(mri), t, label)

    def condition(self, mri: Tensor) -> list[Tensor]:
        """What the denoiser sees of the MRI: the Extractor's channel [B, 1, d, h, w], and with multiscale the features of all levels."""
        return [self.extractor(mri), *(self.pyramid(mri) if self.multiscale else [])]

    def denoise(self, z_t: Tensor, condition: list[Tensor], t: Tensor, label: Tensor | None = None) -> Tensor:
        """As forward, with condition(mri) in place of the MRI."""
        embedding = self.projector(t, label)                                                 # [B, time_dim]
        h, skips = torch.cat([z_t, condition[0]], dim=1), []                                 # [B, C + 1, d, h, w]
        features = [inject(one) for inject, one in zip(self.inject, condition[1:], strict=True)] if self.multiscale else []
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, UNetBlock) else layer(h)
            if features and not isinstance(layer, UNetBlock):                                # a new level begins
                h = h + features.pop(0)
            skips.append(h)
        for layer in self.mid:
            h = layer(h, embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, UNetBlock) else layer(h)
        return self.out(h)                                                                   # [B, C, d, h, w]


# ---------------------------------------------------------------- weights of the published code

_PUBLISHED_NAMES = [                                       # (pattern in the published name, ours), applied in order
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

    state_dict: name -> tensor, or a whole published checkpoint {"state_dict", "optimizer"}; names may carry the prefix
    `module.`. Running statistics of batch norms may be absent: the published code does not save the discriminator.
    Raises ValueError that lists every missing, unknown or misshapen weight; the module is then unchanged.
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
            problems.append(f"misshapen: {published} is {tuple(tensor.shape)}, the network has {tuple(own[name].shape)}")
    if problems:
        raise ValueError(f"these weights do not fit this {type(module).__name__}; check its channels, levels and norms:\n  "
                         + "\n  ".join(problems))
    module.load_state_dict({name: tensor for name, (_, tensor) in weights.items()}, strict=False)
