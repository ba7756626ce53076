"""A prior over the codes of one level (arXiv:2005.00341 sec. 4). It sees codes and labels, never audio."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.nn.cache import DecodeState
from jukebox.nn.patterns import DENSE, ENCODER, LYRICS, layer_kind
from jukebox.nn.transformer import TransformerShape, bits
from jukebox.prior.conditioners import ConditionerShape, Labels, LabelShape, UpperCodes
from jukebox.prior.lyric_encoder import LyricEncoder
from jukebox.prior.net import AutoregressiveNet


@dataclass(frozen=True)
class PriorShape:
    """Everything that shapes a prior.

    level; hops: audio samples per code of all levels; bins: codes per level; n_ctx: codes in a window. conditioner is
    None at the top level, labels None for an unlabelled prior. n_tokens lyric characters of n_vocab kinds stand in
    front of the codes (single) or in an encoder of their own (lyric_encoder), or are absent (0).
    """

    level: int
    hops: tuple[int, ...]
    bins: int
    n_ctx: int
    transformer: TransformerShape
    conditioner: ConditionerShape | None = None
    labels: LabelShape | None = None
    n_tokens: int = 0
    n_vocab: int = 0
    single: bool = False
    lyric_encoder: TransformerShape | None = None
    lyric_emb_dropout: float = 0.0
    merged: bool = False
    prime_loss_fraction: float = 0.1
    emb_dropout: float = 0.0
    alignment_layer: int | None = None
    alignment_head: int | None = None

    @property
    def sample_length(self) -> int:
        """Audio samples of a window."""
        return self.n_ctx * self.hops[self.level]

    def reads_lyrics(self, layer: int) -> bool:
        """Whether every code sees every character in a layer: one that reads the lyric encoder, lyrics in the same
        sequence, or all of it."""
        kind = layer_kind(self.transformer.attn_order, layer)
        return kind == LYRICS or (kind == ENCODER and not self.single) or (kind == DENSE and self.single)


@dataclass
class Conditioning:
    """What a window is told. x_cond `[B, positions or 1, W]`, start `[B, 1, W]`, encoded `[B, S, W]`, lyrics `[B, S]`."""

    x_cond: Tensor | None
    start: Tensor | None
    encoded: Tensor | None
    lyrics: Tensor | None

    def rows(self, index: Tensor | slice) -> Conditioning:
        """The same for some items of the batch."""
        return Conditioning(*(None if t is None else t[index] for t in self._parts()))

    def copy_(self, other: Conditioning) -> None:
        """Take over the values of another window of the same batch size, in the same memory."""
        for own, value in zip(self._parts(), other._parts(), strict=True):
            if own is not None and value is not None:
                own.copy_(value)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.x_cond, self.start, self.encoded, self.lyrics


@dataclass
class PriorOutput:
    """loss: the training loss. gen_loss, prime_loss: bits per code and per lyric character. logits `[B, positions, K]`."""

    loss: Tensor
    gen_loss: Tensor
    prime_loss: Tensor
    logits: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """The published metric names."""
        gen, prime = self.gen_loss.detach(), self.prime_loss.detach()
        return {"loss": self.loss.detach(), "bpd": gen, "gen_loss": gen, "prime_loss": prime}


class Prior(nn.Module):
    """A transformer over the codes of one level, conditioned on upper codes, labels and lyrics.

    Attributes: level; hop, audio samples per code; n_ctx, codes per window; sample_length, samples per window; ratio,
    codes per code of the level above (None at the top).
    """

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        self.shape = shape
        self.level, self.n_ctx, self.hop = shape.level, shape.n_ctx, shape.hops[shape.level]
        self.sample_length = shape.sample_length
        self.ratio = shape.hops[shape.level + 1] // self.hop if shape.conditioner else None
        self.n_tokens = shape.n_tokens
        self.prefix = shape.n_tokens if shape.single else 0  # lyric positions in front of the codes
        self.shift = shape.n_vocab if shape.single else 0  # codes come behind the lyric vocabulary
        if shape.conditioner:
            self.conditioner = UpperCodes(shape.conditioner)
        if shape.labels:
            self.labels = Labels(shape.labels)
        if shape.lyric_encoder:
            self.lyric_encoder = LyricEncoder(
                shape.lyric_encoder, shape.n_vocab, shape.transformer.width, shape.transformer.init_scale,
                shape.lyric_emb_dropout,
            )  # fmt: skip
        self.net = AutoregressiveNet(
            shape.transformer, shape.bins + self.shift, start=shape.labels is None, merged=shape.merged,
            emb_dropout=shape.emb_dropout,
        )  # fmt: skip

    @property
    def labelled(self) -> bool:
        """Whether windows must come with labels y."""
        return self.shape.labels is not None

    def condition(self, upper: Tensor | None, y: Tensor | None, dtype: torch.dtype = torch.float32) -> Conditioning:
        """What a window is told: upper `[B, n_ctx / ratio]` int64 codes of the level above, y `[B, 4 + G + S]` int64.

        Raises ValueError when upper codes or labels are missing or of the wrong length.
        """
        if (upper is None) == (self.ratio is not None):
            raise ValueError(f"level {self.level} needs codes of the level above exactly when it is not the top level")
        x_cond: Tensor | None = None
        start: Tensor | None = None
        lyrics: Tensor | None = None
        if upper is not None:
            assert self.ratio is not None
            if upper.shape[1] != self.n_ctx // self.ratio:
                raise ValueError(f"{upper.shape[1]} upper codes given, a window needs {self.n_ctx // self.ratio}")
            x_cond = self.conditioner(upper)
        if self.shape.labels is not None:
            columns = 4 + self.shape.labels.genre_slots + self.n_tokens
            if y is None or y.shape[1] != columns:
                raise ValueError(
                    f"this prior needs labels of {columns} columns, got {None if y is None else y.shape[1]}"
                )
            start, timing = self.labels(y)
            x_cond = timing if x_cond is None else x_cond if timing is None else x_cond + timing
            lyrics = y[:, columns - self.n_tokens :] if self.n_tokens else None
        encoded = self.lyric_encoder(lyrics, dtype) if self.shape.lyric_encoder else None
        if self.prefix and x_cond is not None:
            zeros = x_cond.new_zeros(len(x_cond), self.prefix, x_cond.shape[2])
            x_cond = torch.cat([zeros, x_cond], 1)
        return Conditioning(x_cond, start, encoded, lyrics)

    def forward(
        self, codes: Tensor, upper: Tensor | None = None, y: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> PriorOutput:
        """The loss of full windows: codes `[B, n_ctx]` int64, upper and y as in `condition` (sec. 4.4, eq. 7-8)."""
        cond = self.condition(upper, y, dtype)
        tokens = self.tokens(codes, cond)
        logits = self.net.out(self.net(tokens, cond.x_cond, cond.start, cond.encoded, dtype=dtype))
        gen = bits(logits[:, self.prefix :], tokens[:, self.prefix :])
        prime = gen.new_zeros(())
        if self.prefix:
            prime = bits(logits[:, : self.prefix], tokens[:, : self.prefix])
        elif cond.encoded is not None:
            assert cond.lyrics is not None
            prime = self.lyric_encoder.loss(cond.encoded, cond.lyrics)
        total = self.n_tokens + self.n_ctx
        loss = self.shape.prime_loss_fraction * prime * self.n_tokens / total + gen * self.n_ctx / total
        return PriorOutput(loss, gen, prime, logits)

    def tokens(self, codes: Tensor, cond: Conditioning) -> Tensor:
        """Codes `[B, m]` -> the sequence the net sees, lyrics in front where they share it: `[B, prefix + m]`."""
        if not self.prefix:
            return codes
        assert cond.lyrics is not None
        return torch.cat([cond.lyrics, codes + self.shift], 1)

    def codes(self, tokens: Tensor) -> Tensor:
        """The reverse of `tokens`. A lyric character drawn among the codes counts as code 0."""
        return (tokens[:, self.prefix :] - self.shift).clamp_min(0)

    @torch.no_grad()
    def attention_weights(
        self, layers: set[int], codes: Tensor, upper: Tensor | None, y: Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Softmax weights of some layers over full windows; shapes as in `Attention.forward`."""
        cond = self.condition(upper, y, dtype)
        kept: Mapping[int, list[Tensor]] = {layer: [] for layer in layers}
        self.net(self.tokens(codes, cond), cond.x_cond, cond.start, cond.encoded, dtype=dtype, weights=kept)
        return {layer: weights[0] for layer, weights in kept.items()}

    @torch.no_grad()
    def states(
        self, layers: Collection[int], codes: Tensor, upper: Tensor | None = None, y: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> dict[int, Tensor]:  # fmt: skip
        """What the transformer holds behind the first d layers, for every d of `layers`: `[B, m, W]` float32.

        codes `[B, m]`, m <= n_ctx; upper and y as in `condition`. The state of a code is made of the codes before it, and
        predicts it; behind all layers it is what the output matrix reads. Nothing behind the last layer is computed.
        """
        cond, m = self.condition(upper, y, dtype), codes.shape[1]
        tokens = self.tokens(codes, cond)
        tokens = F.pad(tokens, (0, self.shape.transformer.whole_rows(tokens.shape[1]) - tokens.shape[1]))
        found = self.net.states(tokens, layers, cond.x_cond, cond.start, cond.encoded, dtype)
        return {layer: h[:, self.prefix : self.prefix + m] for layer, h in found.items()}

    def lyric_attention(
        self, layers: set[int], codes: Tensor, y: Tensor, upper: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> dict[int, Tensor]:  # fmt: skip
        """What codes attend to among the lyrics: `[B, H, n_ctx, S]` of layers that read them (`reads_lyrics`). Row i is
        the query that predicts code i, column c the key that carries character c - 1."""
        found = self.attention_weights(layers, codes, upper, y, dtype)
        kind = {layer: layer_kind(self.shape.transformer.attn_order, layer) for layer in layers}
        return {l: w[:, :, self.prefix :, : self.prefix] if kind[l] == DENSE else w for l, w in found.items()}

    def new_state(self, batch: int, dtype: torch.dtype = torch.float32) -> DecodeState:
        """Empty caches for `batch` items."""
        return self.net.transformer.new_state(batch, dtype)
