"""Convolution stacks of the VQ-VAE and of the conditioner (arXiv:2005.00341 sec. 3 and appendix).

Without gradients on a CPU they run as rows, `[B, C, 1, N]` with the channels of a position side by side, residual stacks in
tiles that stay in the cache. Measured on one core (width 64, depth 8): 80 GFLOP/s in place of 32, and the same bits for
every size of tile. Memory never touched before is dear (1.6 us for 4 kB), so a stack writes where it has read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.utils.checkpoint import checkpoint

from jukebox.nn.tiles import Span

_plus = None  # a convolution and the sum behind it in one, where oneDNN is
if torch.backends.mkldnn.is_available():
    _plus = torch.ops.mkldnn._convolution_pointwise.binary

TILE_VALUES = 1 << 19
"""Values of one tile of a residual stack: 2 MB, so that what is read and written stays in a core's cache."""


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
    """A transposed convolution (stride s, kernel 2s) of `[B, C, N]` or of rows.

    Of rows as a convolution of kernel 2: an output depends on two inputs next to each other, so that each pair of inputs
    (n - 1, n), the zeros beyond both ends included, gives the s outputs between them, side by side.
    """
    if x.dim() == 3:
        return layer(x)  # type: ignore[no-any-return]
    assert not isinstance(layer.padding, str)
    s, p = layer.stride[0], layer.padding[0]
    c_in, c_out, _ = layer.weight.shape
    taps = torch.stack((layer.weight[..., s:], layer.weight[..., :s]), -1)  # (c_in, c_out, s, 2)
    kernel = taps.permute(2, 1, 0, 3).reshape(s * c_out, c_in, 1, 2)
    bias = None if layer.bias is None else layer.bias.repeat(s)
    y = conv2d(x, kernel, bias, padding=(0, 1))  # (B, s C, 1, N + 1)
    B, _, _, N = y.shape
    return y.permute(0, 2, 3, 1).reshape(B, 1, N * s, c_out).permute(0, 3, 1, 2)[..., p : p + (N - 1) * s]


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
        h = conv2d(h, self.conv1.weight.unsqueeze(2), self.conv1.bias, dilation=(1, self.dilation)).relu_()
        weight, one = self.conv2.weight.unsqueeze(2), (1, 1)
        if self.scale == 1.0 and _plus is not None:
            return _plus(h, inner, weight, self.conv2.bias, (0, 0), one, one, 1, "add", 1.0, None, [], None)  # type: ignore[no-any-return]
        return conv2d(h, weight, self.conv2.bias).mul_(self.scale).add_(inner)


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
        """Rows tile by tile, as many blocks at once as have a context that is small beside the tile.

        The first blocks write to new memory, the others over what they have read: as far in front of it as they reach
        back, so that the next tile still finds its context.
        """
        B, C, _, N = x.shape
        tile = max(1, TILE_VALUES // (B * C))
        groups = list(self._groups(tile // 32))
        contexts = [sum(block.dilation for block in blocks) for blocks in groups]
        first = sum(contexts[1:])
        memory = x.new_empty(B, 1, first + N, C).permute(0, 3, 1, 2)
        source, target = x, memory[..., first:]
        for number, (blocks, context) in enumerate(zip(groups, contexts, strict=True)):
            if number:
                first -= context
                source, target = target, memory[..., first : first + N]
            for start in range(0, N, tile):
                stop, reach = min(N, start + tile), context
                low, high = max(0, start - reach), min(N, stop + reach)
                h = source[..., low:high]
                for block in blocks:
                    reach -= block.dilation
                    next_low, next_high = max(0, start - reach), min(N, stop + reach)
                    h = block.inside(h, low - next_low + block.dilation, next_high - high + block.dilation)
                    low, high = next_low, next_high
                target[..., start:stop] = h
        return target

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


class Layer(Protocol):
    """One step of a chain: it computes inputs from `unit` times a whole number on, and knows where outputs lie."""

    unit: int

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of all positions of x."""

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""

    def place(self, start: int) -> int:
        """The output position that belongs to an input position."""


class Down(nn.Module):
    """Strided convolution C -> W (kernel 2s, stride s, padding s // 2), then a residual stack."""

    def __init__(self, channels: int, width: int, stride: int, stack: ResidualStack) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 2 * stride, stride, stride // 2)
        self.res = stack
        self.unit = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, W, N // s]`."""
        return self.res(conv(self.conv, x))  # type: ignore[no-any-return]

    def span(self, outer: Span) -> Span:
        return outer.grow(self.res.reach).down(self.unit, 2 * self.unit, self.unit // 2)

    def place(self, start: int) -> int:
        return start // self.unit


class Up(nn.Module):
    """A residual stack, then a transposed convolution W -> C (kernel 2s, stride s, padding s // 2)."""

    unit = 1

    def __init__(self, width: int, channels: int, stride: int, stack: ResidualStack) -> None:
        super().__init__()
        self.res = stack
        self.conv = nn.ConvTranspose1d(width, channels, 2 * stride, stride, stride // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, W, N]` -> `[B, C, s N]`."""
        return conv_up(self.conv, self.res(x))

    def span(self, outer: Span) -> Span:
        return outer.up(self.stride, 2 * self.stride, self.stride // 2).grow(self.res.reach)

    def place(self, start: int) -> int:
        return start * self.stride


class Proj(nn.Conv1d):
    """A convolution of kernel 3."""

    unit = 1

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, W, N]`, or rows to rows."""
        return super().forward(x) if x.dim() == 3 else conv(self, x)

    def span(self, outer: Span) -> Span:
        return outer.grow(1)

    def place(self, start: int) -> int:
        return start


class Chain(nn.Module):
    """Layers one after the other."""

    def layers(self) -> list[Layer]:
        """In order."""
        raise NotImplementedError

    def forward(self, x: Tensor, want: Span | None = None) -> Tensor:
        """`[B, C, N]` -> `[B, C', N']`, or of the outputs only those of `want`.

        Then each layer computes only what the next ones need of it, so that context costs little. Where `want` reaches
        less far from an end of x than the net does, x is taken to end in silence there.
        """
        h, start = as_rows(x), 0
        layers = self.layers()
        if want is None:
            for layer in layers:
                h = layer(h)
            return as_before(h, x)
        wants = [want]
        for layer in reversed(layers):
            needed = layer.span(wants[-1])
            wants.append(Span(needed.first - needed.first % layer.unit, needed.last))
        for layer, needed in zip(layers, reversed(wants), strict=False):
            h, start = _only(h, start, needed)
            h, start = layer(h), layer.place(start)
        return as_before(_only(h, start, want)[0], x)

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        for layer in reversed(self.layers()):
            outer = layer.span(outer)
        return outer


def _only(x: Tensor, start: int, needed: Span) -> tuple[Tensor, int]:
    """Of x, which begins at position `start`, what is needed of it, and where that begins."""
    first = max(start, needed.first)
    return x[..., first - start : needed.last + 1 - start], first


class EncoderBlock(Chain):
    """One level down: n strided steps, then a projection to the embedding width: `[B, C, N]` -> `[B, emb, N / s^n]`."""

    def __init__(self, channels: int, width: int, emb_width: int, stride: int, stacks: Sequence[ResidualStack]) -> None:
        super().__init__()
        self.downs = nn.ModuleList(
            Down(channels if i == 0 else width, width, stride, stack) for i, stack in enumerate(stacks)
        )
        self.proj = Proj(width, emb_width)

    def layers(self) -> list[Layer]:
        return [*self.downs, self.proj]  # type: ignore[list-item]


class DecoderBlock(Chain):
    """One level up: a projection from the embedding width, then n transposed steps: `[B, emb, N]` -> `[B, C, s^n N]`."""

    def __init__(self, emb_width: int, width: int, channels: int, stride: int, stacks: Sequence[ResidualStack]) -> None:
        super().__init__()
        self.proj = Proj(emb_width, width)
        last = len(stacks) - 1
        self.ups = nn.ModuleList(
            Up(width, channels if i == last else width, stride, stack) for i, stack in enumerate(stacks)
        )

    def layers(self) -> list[Layer]:
        return [self.proj, *self.ups]  # type: ignore[list-item]
