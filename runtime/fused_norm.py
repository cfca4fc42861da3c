"""GroupNorm with its activation in one pass over channels-last memory: kernels of Triton, for a GPU.

The voxels of x [B, C, D, H, W] lie in memory as [B, S, C], S = D H W. With the sums of x and x^2 over S of
every channel, GroupNorm is y = f(a x + k), with one a and k for each sample and channel; f is the activation.
Its gradient has the same form: with g = f'(a x + k) dy and the sums of g and g x, dx = a g + p x + q. So each
direction reads its tensors twice, writes once, and keeps nothing but x. Statistics are float32 sums of
blocks, added up in float64; there are no atomic additions, so the same input gives the same output.
"""
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}
ELEMENTS = 4096                                            # of a block, which a program has in registers
PROGRAMS = 1024                                            # enough to keep a GPU busy


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, activation: str) -> Tensor:
    """activation(group_norm(x)), of x's type and in channels-last memory.

    x: [B, C, D, H, W] float32 or bfloat16; weight, bias: [C] float32; activation: 'none', 'relu' or 'silu'.
    """
    return _GroupNorm.apply(x, groups, weight, bias, eps, ACTIVATIONS[activation])


class _GroupNorm(Function):
    """group_norm with its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, f: int) -> Tensor:
        """x [B, C, D, H, W] -> y of the same shape."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        grid = _Grid(x)
        sums, y = grid.sums(), torch.empty_like(x)
        a, k = x.new_empty(2, grid.batch, grid.channels, dtype=torch.float32)
        statistics = x.new_empty(2, grid.batch, groups, dtype=torch.float32)                # mean, 1 / std
        _forward_sums[grid.summed](x, sums, grid.rows, grid.channels, *grid.block, grid.rounds)
        _forward_factors[(grid.batch, groups)](sums, weight, bias, a, k, statistics, grid.rows, grid.channels,
                                               grid.summed[0], groups, eps, *grid.factor_block(groups))
        _forward_apply[grid.applied](x, a, k, y, grid.rows, grid.channels, *grid.block, f)
        ctx.save_for_backward(x, weight, a, k, statistics)
        ctx.groups, ctx.f = groups, f
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple:
        """dy [B, C, D, H, W] -> the gradients of x, weight and bias."""
        x, weight, a, k, statistics = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last_3d)
        grid = _Grid(x)
        sums, dx = grid.sums(), torch.empty_like(x)
        factors = x.new_empty(4, grid.batch, grid.channels, dtype=torch.float32)   # p, q; of weight, of bias
        _backward_sums[grid.summed](x, dy, a, k, sums, grid.rows, grid.channels, *grid.block, grid.rounds,
                                    ctx.f)
        _backward_factors[(grid.batch, ctx.groups)](sums, weight, statistics, *factors, grid.rows,
                                                    grid.channels, grid.summed[0], ctx.groups,
                                                    *grid.factor_block(ctx.groups))
        _backward_apply[grid.applied](x, dy, a, k, *factors[:2], dx, grid.rows, grid.channels, *grid.block,
                                      ctx.f)
        d_weight, d_bias = factors[2:].sum(dim=1)
        return dx, None, d_weight, d_bias, None, None


class _Grid:
    """How the programs share out a tensor [B, S, C]: blocks of rows of channels."""

    def __init__(self, x: Tensor):
        self.x, (self.batch, self.channels) = x, x.shape[:2]
        self.rows = x[0, 0].numel()                                                        # S
        width = min(triton.next_power_of_2(self.channels), 128)
        self.block = (ELEMENTS // width, width)
        across = triton.cdiv(self.channels, width)
        self.applied = (triton.cdiv(self.rows, self.block[0]), across, self.batch)
        # blocks that a program adds up
        self.rounds = min(16, triton.next_power_of_2(max(1, math.prod(self.applied) // PROGRAMS)))
        self.summed = (triton.cdiv(self.rows, self.block[0] * self.rounds), across, self.batch)

    def sums(self) -> Tensor:
        """Room for two sums of each block and channel, [2, B, blocks, C]."""
        return self.x.new_empty(2, self.batch, self.summed[0], self.channels, dtype=torch.float32)

    def factor_block(self, groups: int) -> tuple[int, int]:
        """Blocks whose sums are added at once, and the channels of a group, both up to a power of two."""
        width = triton.next_power_of_2(self.channels // groups)
        return max(1, min(triton.next_power_of_2(self.summed[0]), 1024 // width)), width


# ---------------------------------------------------------------- the kernels
# program_id: block of rows, block of channels, sample; of the factors: sample, group

@triton.jit
def _place(rows, channels, row_block, row_width: tl.constexpr, channel_width: tl.constexpr):
    """Offsets and mask of a block in [B, S, C], and those of its channels in [B, C]."""
    row = row_block * row_width + tl.arange(0, row_width)
    channel = tl.program_id(1) * channel_width + tl.arange(0, channel_width)
    sample = tl.program_id(2).to(tl.int64)
    offsets = (sample * rows + row[:, None]) * channels + channel[None, :]
    inside = (row[:, None] < rows) & (channel[None, :] < channels)
    return offsets, inside, sample * channels + channel, channel < channels


@triton.jit
def _activated(u, f: tl.constexpr):
    """f(u)."""
    if f == 1:
        u = tl.maximum(u, 0.0)
    if f == 2:
        u = u / (1 + tl.exp(-u))
    return u


@triton.jit
def _through_activation(dy, u, f: tl.constexpr):
    """f'(u) dy."""
    if f == 1:
        dy = tl.where(u > 0, dy, 0.0)
    if f == 2:
        gate = 1 / (1 + tl.exp(-u))
        dy = dy * gate * (1 + u * (1 - gate))
    return dy


@triton.jit
def _forward_sums(x, sums, rows, channels, row_width: tl.constexpr, channel_width: tl.constexpr,
                  rounds: tl.constexpr):
    """Sums of x and x^2 over the rows of a program."""
    first, second = tl.zeros([channel_width], tl.float32), tl.zeros([channel_width], tl.float32)
    for i in range(rounds):
        offsets, inside, _, _ = _place(rows, channels, tl.program_id(0) * rounds + i, row_width,
                                       channel_width)
        v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        first += tl.sum(v, axis=0)
        second += tl.sum(v * v, axis=0)
    _store_sums(sums, first, second, channels, channel_width)


@triton.jit
def _backward_sums(x, dy, a, k, sums, rows, channels, row_width: tl.constexpr, channel_width: tl.constexpr,
                   rounds: tl.constexpr, f: tl.constexpr):
    """Sums of g and g x over the rows of a program."""
    first, second = tl.zeros([channel_width], tl.float32), tl.zeros([channel_width], tl.float32)
    for i in range(rounds):
        offsets, inside, of_channel, is_channel = _place(rows, channels, tl.program_id(0) * rounds + i,
                                                         row_width, channel_width)
        v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(a + of_channel, mask=is_channel, other=0.0)[None, :]
        shift = tl.load(k + of_channel, mask=is_channel, other=0.0)[None, :]
        g = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
        g = _through_activation(g, v * factor + shift, f)
        first += tl.sum(g, axis=0)
        second += tl.sum(g * v, axis=0)
    _store_sums(sums, first, second, channels, channel_width)


@triton.jit
def _store_sums(sums, first, second, channels, channel_width: tl.constexpr):
    """Write two sums of a program to sums [2, B, blocks, C]."""
    channel = tl.program_id(1) * channel_width + tl.arange(0, channel_width)
    blocks, batch = tl.num_programs(0), tl.num_programs(2)
    to = (tl.program_id(2) * blocks + tl.program_id(0)) * channels + channel
    tl.store(sums + to, first, mask=channel < channels)
    tl.store(sums + batch * blocks * channels + to, second, mask=channel < channels)


@triton.jit
def _added(sums, channel, is_channel, blocks, channels, block_width: tl.constexpr,
           channel_width: tl.constexpr):
    """The two sums of the channels of a group over all blocks, in float64."""
    sample, batch = tl.program_id(0), tl.num_programs(0)
    first, second = tl.zeros([channel_width], tl.float64), tl.zeros([channel_width], tl.float64)
    for start in range(0, blocks, block_width):
        block = start + tl.arange(0, block_width)
        offsets = (sample * blocks + block[:, None]) * channels + channel[None, :]
        inside = (block[:, None] < blocks) & is_channel[None, :]
        first += tl.sum(tl.load(sums + offsets, mask=inside, other=0.0).to(tl.float64), axis=0)
        offsets += batch * blocks * channels
        second += tl.sum(tl.load(sums + offsets, mask=inside, other=0.0).to(tl.float64), axis=0)
    return first, second


@triton.jit
def _forward_factors(sums, weight, bias, a, k, statistics, rows, channels, blocks, groups, eps,
                     block_width: tl.constexpr, channel_width: tl.constexpr):
    """a and k of the channels of a group, and its mean and 1 / std."""
    sample, group, batch = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    width = channels // groups
    channel = group * width + tl.arange(0, channel_width)
    is_channel = tl.arange(0, channel_width) < width
    first, second = _added(sums, channel, is_channel, blocks, channels, block_width, channel_width)
    n = rows.to(tl.float64) * width
    mean = tl.sum(first, axis=0) / n
    variance = tl.maximum(tl.sum(second, axis=0) / n - mean * mean, 0.0)
    mean, rstd = mean.to(tl.float32), (1 / tl.sqrt(variance + eps)).to(tl.float32)
    factor = tl.load(weight + channel, mask=is_channel, other=0.0) * rstd
    shift = tl.load(bias + channel, mask=is_channel, other=0.0) - mean * factor
    tl.store(a + sample * channels + channel, factor, mask=is_channel)
    tl.store(k + sample * channels + channel, shift, mask=is_channel)
    tl.store(statistics + sample * groups + group, mean)
    tl.store(statistics + (batch + sample) * groups + group, rstd)


@triton.jit
def _backward_factors(sums, weight, statistics, p, q, d_weight, d_bias, rows, channels, blocks, groups,
                      block_width: tl.constexpr, channel_width: tl.constexpr):
    """p and q of the channels of a group, and what a sample adds to the gradients of weight and bias."""
    sample, group, batch = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    width = channels // groups
    channel = group * width + tl.arange(0, channel_width)
    is_channel = tl.arange(0, channel_width) < width
    sum_g, sum_gx = _added(sums, channel, is_channel, blocks, channels, block_width, channel_width)
    mean = tl.load(statistics + sample * groups + group).to(tl.float64)
    rstd = tl.load(statistics + (batch + sample) * groups + group).to(tl.float64)
    gamma = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float64)
    sum_g_normed = (sum_gx - mean * sum_g) * rstd
    n = rows.to(tl.float64) * width
    slope = -rstd * rstd * tl.sum(gamma * sum_g_normed, axis=0) / n
    level = -rstd * tl.sum(gamma * sum_g, axis=0) / n - slope * mean
    to, same = sample * channels + channel, tl.zeros([channel_width], tl.float64)
    tl.store(p + to, (same + slope).to(tl.float32), mask=is_channel)
    tl.store(q + to, (same + level).to(tl.float32), mask=is_channel)
    tl.store(d_weight + to, sum_g_normed.to(tl.float32), mask=is_channel)
    tl.store(d_bias + to, sum_g.to(tl.float32), mask=is_channel)


@triton.jit
def _forward_apply(x, a, k, y, rows, channels, row_width: tl.constexpr, channel_width: tl.constexpr,
                   f: tl.constexpr):
    """y = f(a x + k)."""
    offsets, inside, of_channel, is_channel = _place(rows, channels, tl.program_id(0), row_width,
                                                     channel_width)
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(a + of_channel, mask=is_channel, other=0.0)[None, :]
    shift = tl.load(k + of_channel, mask=is_channel, other=0.0)[None, :]
    tl.store(y + offsets, _activated(v * factor + shift, f).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_apply(x, dy, a, k, p, q, dx, rows, channels, row_width: tl.constexpr,
                    channel_width: tl.constexpr, f: tl.constexpr):
    """dx = a g + p x + q."""
    offsets, inside, of_channel, is_channel = _place(rows, channels, tl.program_id(0), row_width,
                                                     channel_width)
    v = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(a + of_channel, mask=is_channel, other=0.0)[None, :]
    shift = tl.load(k + of_channel, mask=is_channel, other=0.0)[None, :]
    slope = tl.load(p + of_channel, mask=is_channel, other=0.0)[None, :]
    level = tl.load(q + of_channel, mask=is_channel, other=0.0)[None, :]
    g = _through_activation(g, v * factor + shift, f)
    tl.store(dx + offsets, (factor * g + slope * v + level).to(dx.dtype.element_ty), mask=inside)
