"""Encoders and decoders: one independent pair for each level (arXiv:2005.00341 sec. 3.1 and appendix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from jukebox.nn.conv import Chain, DecoderBlock, EncoderBlock, Layer, Proj, ResidualStack
from jukebox.nn.tiles import Span


@dataclass(frozen=True)
class LevelShape:
    """What shapes the nets of one level. width, depth: of its residual stacks, multiplier included.

    downs_t, strides_t: strided steps and their stride of the sub-stacks 0 ... level.
    """

    emb_width: int
    width: int
    depth: int
    downs_t: tuple[int, ...]
    strides_t: tuple[int, ...]
    m_conv: float = 1.0
    growth_rate: int = 1
    cycle: int | None = None
    reverse_decoder: bool = True

    @property
    def hop(self) -> int:
        """Audio samples per code."""
        product = 1
        for down, stride in zip(self.downs_t, self.strides_t, strict=True):
            product *= stride**down
        return product

    def stacks(self, n: int, reverse: bool) -> list[ResidualStack]:
        """The residual stacks of one level block."""
        return [
            ResidualStack(
                self.width, self.depth, m_conv=self.m_conv, growth_rate=self.growth_rate, cycle=self.cycle,
                reverse=reverse,
            )
            for _ in range(n)
        ]  # fmt: skip


class Encoder(Chain):
    """Audio `[B, 1, T]` to the embeddings of one level `[B, emb, T // hop]`, through the level blocks 0 ... level."""

    def __init__(self, shape: LevelShape) -> None:
        super().__init__()
        self.hop = shape.hop
        self.blocks = nn.ModuleList(
            EncoderBlock(1 if j == 0 else shape.emb_width, shape.width, shape.emb_width, stride, shape.stacks(n, False))
            for j, (n, stride) in enumerate(zip(shape.downs_t, shape.strides_t, strict=True))
        )

    def layers(self) -> list[Layer]:
        return [layer for block in self.blocks for layer in block.layers()]  # type: ignore[operator]

    def halo(self) -> tuple[int, int]:
        """Samples that code 0 needs before its first and after its last own sample."""
        span = self.span(Span(0, 0))
        return -span.first, span.last - (self.hop - 1)


class Decoder(Chain):
    """Embeddings of one level `[B, emb, N]` to audio `[B, 1, N hop]`, unclipped, through the level blocks level ... 0."""

    def __init__(self, shape: LevelShape) -> None:
        super().__init__()
        self.hop = shape.hop
        self.blocks = nn.ModuleList(
            DecoderBlock(
                shape.emb_width, shape.width, shape.emb_width, stride, shape.stacks(n, shape.reverse_decoder)
            )
            for n, stride in zip(shape.downs_t, shape.strides_t, strict=True)
        )  # fmt: skip
        self.out = Proj(shape.emb_width, 1)

    def layers(self) -> list[Layer]:
        blocks = [layer for block in reversed(self.blocks) for layer in block.layers()]  # type: ignore[operator]
        return [*blocks, self.out]

    def halo(self) -> tuple[int, int]:
        """Codes that the samples of one code need before and after it."""
        return -self.span(Span(0, 0)).first, self.span(Span(self.hop - 1, self.hop - 1)).last


def level_shapes(
    *, levels: int, downs_t: Sequence[int], strides_t: Sequence[int], emb_width: int, width: int, depth: int,
    m_conv: float, growth_rate: int, cycle: int | None, reverse_decoder: bool, multipliers: Sequence[int] | None,
) -> list[LevelShape]:  # fmt: skip
    """The shapes of all levels, level 0 first. Raises ValueError when the numbers of entries differ from `levels`."""
    multipliers = tuple(multipliers) if multipliers else (1,) * levels
    for name, value in (("downs_t", downs_t), ("strides_t", strides_t), ("hvqvae_multipliers", multipliers)):
        if len(value) != levels:
            raise ValueError(f"{name} has {len(value)} entries, but there are {levels} levels")
    if any(stride % 2 for stride in strides_t):
        raise ValueError(f"strides_t must be even (got {tuple(strides_t)}): odd strides do not give whole codes back")
    return [
        LevelShape(
            emb_width, width * m, depth * m, tuple(downs_t[: level + 1]), tuple(strides_t[: level + 1]), m_conv,
            growth_rate, cycle, reverse_decoder,
        )
        for level, m in enumerate(multipliers)
    ]  # fmt: skip
