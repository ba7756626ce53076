"""Convolution stacks of the VQ-VAE and of the conditioner (arXiv:2005.00341 sec. 3 and appendix).

Without gradients on a CPU they run as rows, `[B, C, 1, N]` with the channels of a position side by side, residual stacks in
tiles that stay in the cache. Measured on one core (width 64, depth 8): 73 GFLOP/s in place of 32, and the same bits for
every size of tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.utils.checkpoint import checkpoint

from jukebox.nn.tiles import Span

TILE_VALUES = 1 << 18
"""Values of one tile of a residual stack: 1 MB, so that what is read and written stays in a core's cache."""


def as_rows(x: Tensor) -> Tensor:
    """`[B, C, N]` -> rows `[B, C, 1, N]`, channels last, where that is faster: without gradients, in float32, on a CPU."""
    if x.dim() == 4 or torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return x
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def as_before(x: Tensor, before: Tensor) -> Tensor:
    """Rows in the layout that `before`, the input, had."""
    return x.squeeze(2) if x.dim() > before.dim() else x


def conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of `[B, C, N]` or of rows."""
    if x.dim() == 3:
        return layer(x)  # type: ignore[no-any-return]
    assert not isinstance(layer.padding, str)
    geometry = (1, layer.stride[0]), (0, layer.padding[0]), (1, layer.dilation[0])
    return conv2d(x, layer.weight.unsqueeze(2), layer.bias, *geometry)


def conv_up(layer: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """A transposed convolution (stride s, kernel 2s) of `[B, C, N]` or of rows; of rows as a convolution of kernel 3
    that gives the s outputs of each position side by side."""
    if x.dim() == 3:
        return layer(x)  # type: ignore[no-any-return]
    assert not isinstance(layer.padding, str)
    s, p = layer.stride[0], layer.padding[0]
    c_in, c_out, _ = layer.weight.shape
    kernel = layer.weight.new_zeros(s, c_out, c_in, 1, 3)
    for r in range(s):  # output s n + r takes input n + j through tap r + p - s j
        for j in (-1, 0, 1):
            if 0 <= r + p - s * j < 2 * s:
                kernel[r, :, :, 0, j + 1] = layer.weight[:, :, r + p - s * j].t()
    bias = None if layer.bias is None else layer.bias.repeat(s)
    y = conv2d(x, kernel.flatten(0, 1), bias, padding=(0, 1))  # (B, s C, 1, N)
    B, _, _, N = y.shape
    return y.permute(0, 2, 3, 1).reshape(B, 1, N * s, c_out).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + scale * conv1(relu(conv3 dilated(relu(x)))), channels C -> int(m_conv C) -> C."""

    def __init__(self, channels: int, hidden: int, dilation: int, scale: float = 1.0, zero_out: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, hidden, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(hidden, channels, 1)
        self.dilation, self.scale = dilation, scale
        if zero_out:
            nn.init.zeros_(self.conv2.weight)
            assert self.conv2.bias is not None
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, C, N]`."""
        h: Tensor = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return x + h if self.scale == 1.0 else x + self.scale * h

    def inside(self, x: Tensor, left: int, right: int) -> Tensor:
        """Rows `[B, C, 1, N]` -> the positions whose context is in x, or beyond the ends of the song: `left` and `right`
        say how many of the `dilation` positions to each side lie beyond."""
        inner = x[..., self.dilation - left : x.shape[-1] - self.dilation + right]
        h = torch.relu(x)
        if left or right:
            h = pad(h, (left, right)).contiguous(memory_format=torch.channels_last)
        weight = self.conv1.weight.unsqueeze(2)
        h = conv2d(h, weight, self.conv1.bias, dilation=(1, self.dilation)).relu_()
        h = conv(self.conv2, h)
        return h.add_(inner) if self.scale == 1.0 else h.mul_(self.scale).add_(inner)


class ResidualStack(nn.ModuleList):
    """Residual blocks with growing dilation rate^d (d modulo cycle); reversed, the largest comes first.

    A list of blocks, so that its tensors are named by the number of the block.
    """

    def __init__(
        self, channels: int, depth: int, *, m_conv: float = 1.0, growth_rate: int = 1, cycle: int | None = None,
        reverse: bool = False, zero_out: bool = False, res_scale: bool = False, recompute: bool = False,
    ) -> None:  # fmt: skip
        dilations = [growth_rate ** (d % cycle if cycle else d) for d in range(depth)]
        scale = depth**-0.5 if res_scale else 1.0
        blocks = [ResidualBlock(channels, int(m_conv * channels), d, scale, zero_out) for d in dilations]
        super().__init__(reversed(blocks) if reverse else blocks)
        self.recompute = recompute
        self.reach = sum(dilations)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, C, N]`, or rows to rows."""
        if x.dim() == 4:
            return self._in_tiles(x)
        for block in self:
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def _in_tiles(self, x: Tensor) -> Tensor:
        """Rows tile by tile, as many blocks at once as have a context that is small beside the tile."""
        B, C, _, N = x.shape
        tile = max(1, TILE_VALUES // (B * C))
        for blocks in self._groups(tile // 32):
            y = torch.empty_like(x)
            for start in range(0, N, tile):
                stop, reach = min(N, start + tile), sum(block.dilation for block in blocks)
                low, high = max(0, start - reach), min(N, stop + reach)
                h = x[..., low:high]
                for block in blocks:
                    reach -= block.dilation
                    next_low, next_high = max(0, start - reach), min(N, stop + reach)
                    h = block.inside(h, low - next_low + block.dilation, next_high - high + block.dilation)
                    low, high = next_low, next_high
                y[..., start:stop] = h
            x = y
        return x

    def _groups(self, budget: int) -> Iterator[list[ResidualBlock]]:
        """The blocks in order, together as long as their reaches add up to at most `budget`."""
        group: list[ResidualBlock] = []
        for block in self:
            assert isinstance(block, ResidualBlock)
            if group and sum(other.dilation for other in group) + block.dilation > budget:
                yield group
                group = []
            group.append(block)
        yield group


class Down(nn.Module):
    """Strided convolution C -> W (kernel 2s, stride s, padding s // 2), then a residual stack."""

    def __init__(self, channels: int, width: int, stride: int, stack: ResidualStack) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 2 * stride, stride, stride // 2)
        self.res = stack
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, W, N // s]`."""
        return self.res(conv(self.conv, x))  # type: ignore[no-any-return]

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        return outer.grow(self.res.reach).down(self.stride, 2 * self.stride, self.stride // 2)


class Up(nn.Module):
    """A residual stack, then a transposed convolution W -> C (kernel 2s, stride s, padding s // 2)."""

    def __init__(self, width: int, channels: int, stride: int, stack: ResidualStack) -> None:
        super().__init__()
        self.res = stack
        self.conv = nn.ConvTranspose1d(width, channels, 2 * stride, stride, stride // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, W, N]` -> `[B, C, s N]`."""
        return conv_up(self.conv, self.res(x))

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        return outer.up(self.stride, 2 * self.stride, self.stride // 2).grow(self.res.reach)


class EncoderBlock(nn.Module):
    """One level down: n strided steps, then a projection to the embedding width."""

    def __init__(self, channels: int, width: int, emb_width: int, stride: int, stacks: Sequence[ResidualStack]) -> None:
        super().__init__()
        self.downs = nn.ModuleList(
            Down(channels if i == 0 else width, width, stride, stack) for i, stack in enumerate(stacks)
        )
        self.proj = nn.Conv1d(width, emb_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, emb, N / s^n]`."""
        h = as_rows(x)
        for down in self.downs:
            h = down(h)
        return as_before(conv(self.proj, h), x)

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        outer = outer.grow(1)
        for down in reversed(self.downs):
            outer = down.span(outer)  # type: ignore[operator]
        return outer


class DecoderBlock(nn.Module):
    """One level up: a projection from the embedding width, then n transposed steps."""

    def __init__(self, emb_width: int, width: int, channels: int, stride: int, stacks: Sequence[ResidualStack]) -> None:
        super().__init__()
        self.proj = nn.Conv1d(emb_width, width, 3, padding=1)
        last = len(stacks) - 1
        self.ups = nn.ModuleList(
            Up(width, channels if i == last else width, stride, stack) for i, stack in enumerate(stacks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, emb, N]` -> `[B, C, s^n N]`."""
        h = conv(self.proj, as_rows(x))
        for up in self.ups:
            h = up(h)
        return as_before(h, x)

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        for up in reversed(self.ups):
            outer = up.span(outer)  # type: ignore[operator]
        return outer.grow(1)
