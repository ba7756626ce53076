"""The three kinds of prior, small."""

from jukebox.nn.transformer import TransformerShape
from jukebox.prior.conditioners import ConditionerShape, LabelShape
from jukebox.prior.model import PriorShape

B, N, BINS = 2, 24, 32
SMALL = {"n_ctx": N, "hops": (4, 16), "bins": BINS}


def stack(order: int, n: int = N, **changes) -> TransformerShape:
    return TransformerShape(
        n=n, width=32, depth=16 if order == 12 else 6, heads=2, attn_order=order, blocks=4, m_attn=0.5,
        init_scale=4.0, **changes,
    )  # fmt: skip


def labels(timing: bool) -> LabelShape:
    return LabelShape(32, genres=3, artists=4, genre_slots=2, n_ctx=N, timing=timing, init_scale=8.0)


def upsampler() -> PriorShape:
    return PriorShape(
        0, transformer=stack(2), labels=labels(False), conditioner=ConditionerShape(BINS, 32, 1, 4, cond_width=8), **SMALL
    )  # fmt: skip


def single() -> PriorShape:
    return PriorShape(
        1, transformer=stack(12, N + 8, lyric_len=8), labels=labels(True), n_tokens=8, n_vocab=9, single=True, **SMALL
    )  # fmt: skip


def separate() -> PriorShape:
    encoder = TransformerShape(n=8, width=16, depth=2, heads=1, attn_order=0)
    return PriorShape(
        1, transformer=stack(6, encoder_len=8), labels=labels(True), n_tokens=8, n_vocab=9, lyric_encoder=encoder, **SMALL
    )  # fmt: skip


SHAPES = {"upsampler": upsampler, "lyrics in front": single, "lyrics beside": separate}
