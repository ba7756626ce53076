"""Convolution stacks of the VQ-VAE and of the conditioner (arXiv:2005.00341 sec. 3 and appendix)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jukebox.nn.tiles import Span


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
        """`[B, C, N]` -> `[B, C, N]`."""
        for block in self:
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Down(nn.Module):
    """Strided convolution C -> W (kernel 2s, stride s, padding s // 2), then a residual stack."""

    def __init__(self, channels: int, width: int, stride: int, stack: ResidualStack) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 2 * stride, stride, stride // 2)
        self.res = stack
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, N]` -> `[B, W, N // s]`."""
        return self.res(self.conv(x))  # type: ignore[no-any-return]

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
        return self.conv(self.res(x))  # type: ignore[no-any-return]

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
        for down in self.downs:
            x = down(x)
        return self.proj(x)  # type: ignore[no-any-return]

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
        x = self.proj(x)
        for up in self.ups:
            x = up(x)
        return x

    def span(self, outer: Span) -> Span:
        """Input positions that an output range needs."""
        for up in reversed(self.ups):
            outer = up.span(outer)  # type: ignore[operator]
        return outer.grow(1)
