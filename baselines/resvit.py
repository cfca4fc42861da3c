"""ResViT (2D): residual vision transformers, trained against a patch discriminator, from MRI to PET slices.

Source: Dalmaz, Yurt, Cukur, IEEE TMI 41(10):2598, 2022 (arXiv 2106.16031). Networks, losses, schedule and
default options are those of the authors' code, icon-lab/ResViT. Not verified there: the start of the
discriminator's norms and the last steps of the linear decay, which are those of Pix2Pix. Published for MRI
contrasts and for MRI to CT, on slices of 256x256, one at a time; what the authors of IL-CLDM ran for PET is
unknown.

Departures, and why:
- The transformer starts from random weights: none that were trained on ImageNet-21k are loaded. So the
  learning rate of the second phase, 1e-3 as published, is warmed up (`warmup_epochs`); published: at once.
- A step sees `slices_per_volume` axial slices of each volume of the batch; published: one slice a step. All
  compared methods read whole volumes. With this many slices BatchNorm stays as published.
- Slices keep the project's grid, filled up with zeros to the next multiple of what the network divides by
  (160x192 needs none: 10x12 tokens, not the 16x16 of 256x256). The losses see the slices without the filling.
- Volumes come scaled to [0, 1] as for all methods, and are mapped to [-1, 1] as published.
- 100 + 50 epochs are shares of the epochs of the run, so that all methods get an equal budget.
- No random flips: the crops are shifted for all methods alike. The authors' loader flips by default.
- Each phase has optimizers of its own, as two runs of the authors' program have. The discriminator goes on in
  the second phase; whether theirs starts afresh is unknown.
- The best epoch is chosen as for all methods. It may be one of the first phase, without transformers.

Exposure is counted in volumes: an epoch passes every training volume once, as for the other methods. Of its
W slices it draws slices_per_volume, one from each of as many equal runs of neighbours. So every slice has the
same chance, slices_per_volume / W a pass (by default one in five), and an epoch shows volumes *
slices_per_volume slices. The published training showed 375,000.

Several processes: batch norms see the slices of their own process, and dropout draws the same places in all.
On a GPU torch adds up the backward pass of a mirrored border in no fixed order: two runs differ by rounding.

Dimension key beside model.py's: S slices of each volume, N slices of a batch, [D, H] an axial slice.
"""
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from baselines.baseline import Baseline
from config import ResvitSettings
from model import RecomputedBlock
from runtime.fit import draw_rows, linear_decay, set_rate, update
from utils import InputError, fused_on

ENCODER_STRIDE = 4                                         # E2 and E3 halve the slice once each
LAYER_NORM_EPS, LEAKY_SLOPE, INIT_STD = 1e-6, 0.2, 0.02    # published


# ---------------------------------------------------------------- generator

def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU; stride 2 halves the grid."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def up_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 transposed convolution that doubles the grid, BatchNorm, ReLU."""
    conv = nn.ConvTranspose2d(in_channels, out_channels, 3, 2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class ResidualConvs(nn.Module):
    """The residual block of an ART block: two convolutions with reflected borders, plus the input, no ReLU
    after the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels))

    def forward(self, h: Tensor) -> Tensor:
        """h [N, channels, d, h] -> the same shape."""
        return h + self.convs(h)


class TransformerLayer(RecomputedBlock):
    """A pre-norm layer of a vision transformer (Dosovitskiy et al. 2021); no dropout on the attention."""

    def __init__(self, hidden: int, heads: int, mlp: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden, LAYER_NORM_EPS), nn.LayerNorm(hidden, LAYER_NORM_EPS)
        self.query_key_value, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, mlp), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(mlp, hidden), nn.Dropout(dropout))

    def compute(self, tokens: Tensor) -> Tensor:
        """tokens [N, n, hidden] -> the same shape."""
        tokens = tokens + self.out(self.attend(self.norm1(tokens)))
        return tokens + self.mlp(self.norm2(tokens))

    def attend(self, tokens: Tensor) -> Tensor:
        """Each token's mean of all values, by head; [N, n, hidden] -> the same shape."""
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1))    # [N, n, 3, heads, c]
        query, key, value = heads.permute(2, 0, 3, 1, 4)                           # each [N, heads, n, c]
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TransformerPath(nn.Module):
    """What an ART block with a transformer has before its residual block: a way down to tokens, the shared
    transformer, a way up, and the compression of its result and the block's input to the input's channels.

    size: d, h of the grid that comes in. downs: halvings of it, each of which doubles the channels.
    """

    def __init__(self, size: tuple[int, int], channels: int = 256, downs: int = 2, hidden: int = 768,
                 dropout: float = 0.1):
        super().__init__()
        widths = [channels * 2 ** level for level in range(downs + 1)]
        self.down = nn.Sequential(*[conv_norm_relu(width, 2 * width, stride=2) for width in widths[:-1]])
        self.embedding = nn.Conv2d(widths[-1], hidden, 1)
        self.grid = size[0] // 2 ** downs, size[1] // 2 ** downs
        tokens = self.grid[0] * self.grid[1]
        self.positions = nn.Parameter(self.embedding.weight.new_zeros(1, tokens, hidden))
        self.dropout = nn.Dropout(dropout)
        ups = [hidden, *widths[-2::-1]]
        self.up = nn.Sequential(*[up_norm_relu(*pair) for pair in zip(ups, ups[1:], strict=False)])
        self.shortcut = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False),
                                      nn.BatchNorm2d(channels))
        self.compression = nn.Sequential(
            conv_norm_relu(2 * channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, h: Tensor, transformer: nn.Module) -> Tensor:
        """h [N, channels, d, h] -> the same shape."""
        tokens = self.embedding(self.down(h)).flatten(2).transpose(1, 2)      # [N, n, hidden]
        tokens = transformer(self.dropout(tokens + self.positions))
        context = self.up(tokens.transpose(1, 2).unflatten(2, self.grid))      # [N, channels, d, h]
        both = torch.cat([context, h], dim=1)      # [N, 2 * channels, d, h]
        return F.relu(self.shortcut(both) + self.compression(both))


class Generator(nn.Module):
    """Source slices -> target slices, [N, 1, D, H] in [-1, 1]: encoder E1 to E3, ART blocks A1 to A9, decoder
    D1 to D3.

    size: D, H of a slice; the learned positions depend on it. One transformer serves all transformer_blocks.
    uses_transformers: whether they take part; without them these blocks are like the others. It is saved with
    the weights, which are made for one or the other. Raises InputError for a size that does not divide.
    """

    def __init__(self, size: tuple[int, int] = (256, 256), width: int = 64, art_blocks: int = 9,
                 transformer_blocks: tuple[int, ...] = (1, 6), downs: int = 2, hidden: int = 768,
                 layers: int = 12, heads: int = 12, mlp: int = 3072, dropout: float = 0.1):
        super().__init__()
        check_divides(size, ENCODER_STRIDE * 2 ** downs)
        channels, grid = 4 * width, (size[0] // ENCODER_STRIDE, size[1] // ENCODER_STRIDE)
        self.uses_transformers = False
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(1, width, 7, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            conv_norm_relu(width, 2 * width, stride=2), conv_norm_relu(2 * width, channels, stride=2))
        self.blocks = nn.ModuleDict({f"A{i}": ResidualConvs(channels) for i in range(1, art_blocks + 1)})
        self.decoder = nn.Sequential(
            up_norm_relu(channels, 2 * width), up_norm_relu(2 * width, width),
            nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7))
        self.paths = nn.ModuleDict({f"A{i}": TransformerPath(grid, channels, downs, hidden, dropout)
                                    for i in transformer_blocks})
        stack = [TransformerLayer(hidden, heads, mlp, dropout) for _ in range(layers)]
        self.transformer = nn.Sequential(*stack, nn.LayerNorm(hidden, LAYER_NORM_EPS))

    def forward(self, source: Tensor) -> Tensor:
        """source [N, 1, D, H] in [-1, 1] -> the estimate of the target, of that shape and range."""
        h = self.encoder(source)      # [N, 4 width, D / 4, H / 4]
        for name, block in self.blocks.items():
            if self.uses_transformers and name in self.paths:
                h = self.paths[name](h, self.transformer)
            h = block(h)
        # [N, 1, D, H]; bfloat16 would be coarse near -1, the background
        return torch.tanh(self.decoder(h).float())

    def convolution_weights(self) -> list[nn.Parameter]:
        """The weights that the first phase trains: all but the transformer and the paths to and from it."""
        return [*self.encoder.parameters(), *self.blocks.parameters(), *self.decoder.parameters()]

    def get_extra_state(self) -> Tensor:
        """Whether the weights are used with transformers, for the state dict."""
        return torch.tensor(self.uses_transformers, device=next(self.parameters()).device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what get_extra_state gave."""
        self.uses_transformers = bool(state)


def check_divides(size: tuple[int, int], multiple: int) -> None:
    """Raise InputError unless both sides of a slice are multiples of what the generator divides them by."""
    if any(n < multiple or n % multiple for n in size):
        raise InputError(f"slices of {size[0]}x{size[1]} pixels do not fit the generator of ResViT, which "
                         f"divides each side by {multiple}; fill them up to multiples of {multiple}, or take "
                         "fewer downs")


# ---------------------------------------------------------------- discriminator

class PatchDiscriminator(nn.Module):
    """Source and target slices -> one score a patch, near 1 where the pair looks real (Isola et al. 2017).

    size: D, H of a slice. layers: convolutions of stride 2; 3 makes patches of 70x70. Weights start from
    N(0, 0.02), those of norms from N(1, 0.02). Raises InputError for a slice that is too small for a score.
    """

    def __init__(self, size: tuple[int, int] = (256, 256), width: int = 64, layers: int = 3):
        super().__init__()
        least = 3 * 2 ** layers                            # two convolutions of kernel 4 need 3 pixels
        if min(size) < least:
            raise InputError(f"slices of {size[0]}x{size[1]} pixels are too small for a patch discriminator "
                             f"of {layers} layers of stride 2, which needs {least} on each side; take fewer "
                             "layers")
        convs: list[nn.Module] = [nn.Conv2d(2, width, 4, 2, padding=1), nn.LeakyReLU(LEAKY_SLOPE)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            conv = nn.Conv2d(width, 2 * width, 4, stride, padding=1, bias=False)
            convs += [conv, nn.BatchNorm2d(2 * width), nn.LeakyReLU(LEAKY_SLOPE)]
            width *= 2
        self.convs = nn.Sequential(*convs, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.convs:
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
                nn.init.normal_(module.weight, mean, INIT_STD)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source, target [N, 1, D, H] -> scores [N, 1, ...], one a patch, without limits."""
        return self.convs(torch.cat([source, target], dim=1))


# ---------------------------------------------------------------- losses and schedule

def squared_distance(scores: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of the scores from the wanted one (least squares GAN)."""
    return (scores.float() - wanted).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the squared distances of real scores from 1 and of fake ones from 0."""
    return 0.5 * (squared_distance(real, 1.0) + squared_distance(fake, 0.0))


def first_phase(epochs: int, settings: ResvitSettings) -> int:
    """How many of so many epochs are without transformers; never all of them."""
    return epochs * settings.epochs_1 // (settings.epochs_1 + settings.epochs_2)


def rate_factor(epoch: int, epochs: int, warmup: int = 0) -> float:
    """Share of the learning rate in an epoch of a phase, counted from 1: 1 in the first half, then linear
    decay; rising in equal steps in the epochs of a warm-up."""
    return min(epoch / (warmup + 1), linear_decay(epoch, epochs, constant_share=0.5))


# ---------------------------------------------------------------- slices

def draw_slices(volumes: int, depth: int, slices: int) -> Tensor:
    """Random numbers of slices [volumes, slices], 0 to depth - 1: one from each of as many equal runs of
    neighbours, so that all slices have the same chance. By torch's global generator on the CPU, alike for any
    number of ranks."""
    run = torch.arange(slices, device="cpu")
    place = run + draw_rows(torch.rand, volumes, slices, device="cpu")                   # [volumes, slices]
    return (place * depth / slices).long().clamp(max=depth - 1)                # rounding may reach depth


def take_slices(volumes: Tensor, chosen: Tensor) -> Tensor:
    """Axial slices of [B, 1, D, H, W] with the numbers chosen [B, S] -> [B * S, 1, D, H]."""
    rows = torch.arange(len(volumes), device=volumes.device)[:, None]
    return volumes.movedim(-1, 1)[rows, chosen].flatten(0, 1)


# ---------------------------------------------------------------- the baseline

class Resvit(Baseline):
    """ResViT on axial slices [D, H], the slices of a volume stacked along its last axis.

    parts: generator and disc, and an optimizer of each for each phase. volume_size: D, H, W.
    """

    name, shifts_crop = "resvit", True

    def __init__(self, settings: ResvitSettings, volume_size: tuple[int, int, int], device: torch.device):
        self.settings = s = settings
        self.size, self.depth, self.device = tuple(volume_size[:2]), volume_size[2], device
        if not 1 <= s.slices_per_volume <= self.depth:
            raise InputError(f"slices_per_volume is {s.slices_per_volume}, but a volume has {self.depth} "
                             f"axial slices; give 1 to {self.depth}")
        multiple = ENCODER_STRIDE * 2 ** s.downs
        self.fill = tuple(-n % multiple for n in self.size)                        # pixels added to D and H
        filled = self.size[0] + self.fill[0], self.size[1] + self.fill[1]
        generator = Generator(filled, s.width, s.art_blocks, s.transformer_blocks, s.downs, s.hidden,
                              s.layers, s.heads, s.mlp, s.dropout)
        disc = PatchDiscriminator(self.size, s.disc_width, s.disc_layers)
        # for prediction, until a training says otherwise
        self.generator, self.disc = (network.to(device, memory_format=torch.channels_last).eval()
                                     for network in (generator, disc))
        weights = {"g_1": self.generator.convolution_weights(), "g_2": self.generator.parameters(),
                   "d_1": self.disc.parameters(), "d_2": self.disc.parameters()}
        rates = {"g_1": s.lr_1, "g_2": s.lr_2, "d_1": s.lr_1, "d_2": s.lr_2}
        optimizers = {}
        for which, own in weights.items():
            optimizers[f"opt_{which}"] = Adam(own, rates[which], betas=s.betas, fused=fused_on(device))
        super().__init__({"generator": self.generator, "disc": self.disc, **optimizers})

    @property
    def phase(self) -> int:
        """1: convolutions alone; 2: everything, with transformers."""
        return 2 if self.generator.uses_transformers else 1

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) of one scan: the generator sees each of its slices once."""
        return self.depth

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set phase and learning rates: 2e-4, then with transformers 1e-3 after a warm-up; each phase falls
        linearly in its second half."""
        s, first = self.settings, first_phase(epochs, self.settings)
        self.generator.uses_transformers = epoch > first
        if self.phase == 1:
            rate = s.lr_1 * rate_factor(epoch, first)
        else:
            second = epochs - first
            warmup = -(-s.warmup_epochs * second // s.epochs_2)                    # rounded up
            rate = s.lr_2 * rate_factor(epoch - first, second, warmup)
        set_rate([self.parts[f"opt_{network}_{self.phase}"] for network in ("g", "d")], rate)

    def step(self, batch: dict, number: int, cast: Callable = nullcontext) -> dict[str, float]:
        """Update the discriminator, then the generator, on random slices of the batch's volumes."""
        chosen = draw_slices(len(batch["mri"]), self.depth, self.settings.slices_per_volume)
        source, target = (2 * take_slices(batch[which], chosen).to(self.device, non_blocking=True) - 1
                          for which in ("mri", "pet"))      # [N, 1, D, H] in [-1, 1]
        with cast():
            fake = self.generate(source)
            loss_disc = discriminator_loss(self.disc(source, target), self.disc(source, fake.detach()))
        losses = update(self.parts[f"opt_d_{self.phase}"], loss_disc, {"disc": loss_disc})

        with cast():
            loss_adv = squared_distance(self.disc(source, fake), 1.0)              # by the updated one
        loss_l1 = F.l1_loss(fake, target)
        loss = self.settings.lambda_l1 * loss_l1 + self.settings.lambda_adv * loss_adv
        return losses | update(self.parts[f"opt_g_{self.phase}"], loss, {"l1": loss_l1, "adv": loss_adv})

    def generate(self, source: Tensor) -> Tensor:
        """source [N, 1, D, H] -> fake targets of that shape, float32, both in [-1, 1]."""
        filled = F.pad(source, (0, self.fill[1], 0, self.fill[0]), value=-1.0)     # the volumes' 0
        return self.generator(filled)[..., :self.size[0], :self.size[1]].float()

    @torch.no_grad()
    def predict(self, mri: Tensor, cast: Callable = nullcontext, ids: list[str] | None = None) -> Tensor:
        """mri [B, 1, D, H, W] -> PET of that shape, float32 in [0, 1], slice by slice; ids change nothing."""
        slices = mri.to(self.device).movedim(-1, 1).flatten(0, 1)                  # [B * W, 1, D, H]
        with cast():
            fakes = [self.generate(2 * some - 1) for some in slices.split(self.settings.predict_slices)]
        pet = (torch.cat(fakes) + 1) / 2
        return pet.unflatten(0, (len(mri), self.depth)).movedim(1, -1).clamp(0, 1).contiguous()
