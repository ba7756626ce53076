"""The tensor names of the published checkpoints, in file order, beside the names of our nets; from hyperparameters.

The arguments are the sections of hyperparameters (`vqvae/hps.py`, `prior/hps.py`) or anything with the same attributes.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BOTH = ("weight", "bias")
MATRIX = (("w", "weight"), ("b", "bias"))  # published ending, ours; the orientation [n_in, n_out] is the same


@dataclass(frozen=True)
class Entry:
    """One tensor of a published file."""

    published: str
    ours: str
    shape: tuple[int, ...]
    parameter: bool = (
        True  # counted in the optimiser state: False for buffers, and for the second name of a tied tensor
    )
    half_ok: bool = False  # stored as float16 with fp16_params
    tied_to: str = ""  # our name of the tensor it is the same as
    aliases: tuple[str, ...] = ()  # other published names of the same tensor


Shape = tuple[int, ...]


def vqvae_table(vqvae: Any) -> list[Entry]:
    """Every tensor of a VQ-VAE: all encoders, all decoders, the codebooks."""
    levels, emb = range(vqvae.levels), vqvae.emb_width
    multipliers = vqvae.hvqvae_multipliers or (1,) * vqvae.levels
    table: list[Entry] = []
    for level in levels:
        width, depth = vqvae.width * multipliers[level], vqvae.depth * multipliers[level]
        for block in range(level + 1):
            table += _encoder_block(vqvae, f"encoders.{level}", block, width, depth)
    for level in levels:
        width, depth = vqvae.width * multipliers[level], vqvae.depth * multipliers[level]
        for block in range(level + 1):
            published, ours = f"decoders.{level}.level_blocks.{block}", f"decoders.{level}.blocks.{block}"
            table += _decoder_block(
                published, ours, ("model",), emb, width, int(vqvae.m_conv * width), depth,
                vqvae.downs_t[block], vqvae.strides_t[block],
            )  # fmt: skip
        table += _pair(f"decoders.{level}.out", f"decoders.{level}.out", (1, emb, 3), (1,))
    if vqvae.use_bottleneck:
        for level in levels:
            shape = (vqvae.l_bins, emb)
            table.append(
                Entry(f"bottleneck.level_blocks.{level}.k", f"codebooks.{level}.vectors", shape, parameter=False)
            )
    return table


def prior_table(
    vqvae: Any, prior: Any, conditioner: Any, lyric_encoder: Any, labels: Any, *, encoder_layers: Collection[int] = ()
) -> list[Entry]:
    """Every tensor of a prior: conditioner, labels, lyric encoder, the autoregressive net, each where it has one.

    encoder_layers: the layers of the net that look at the lyric encoder's states (attention kind 6).
    """
    width, top = prior.prior_width, prior.level == vqvae.levels - 1
    table: list[Entry] = []
    if not top:
        table += _conditioner(vqvae, prior, conditioner)
    if labels.labelled:
        genres, artists = labels.y_bins
        table.append(Entry("y_emb.bow_genre_emb.emb.weight", "labels.genre.weight", (genres, width)))
        table.append(Entry("y_emb.artist_emb.emb.weight", "labels.artist.weight", (artists, width)))
        for name in ("total_length", "absolute_pos", "relative_pos") if top else ():
            table.append(Entry(f"y_emb.{name}_emb.emb.weight", f"labels.{name}.weight", (labels.t_bins, width)))
    lyrics = labels.n_tokens if labels.lyrics else 0
    joint = lyrics if prior.single_enc_dec else 0
    if lyrics and not joint:
        table += _lyric_encoder(lyric_encoder, labels, width)
    bins = vqvae.l_bins + (labels.n_vocab if joint else 0)
    if not labels.labelled:
        table.append(Entry("prior.start_token", "net.start", (1, width)))
    table.append(Entry("prior.x_emb.weight", "net.emb.weight", (bins, width)))
    table.append(Entry("prior.pos_emb.pos_emb", "net.pos", (prior.n_ctx + joint, width)))
    table += _transformer("prior", "net", prior.prior_depth, width, prior.m_attn, prior.m_mlp, encoder_layers)
    tied = "" if prior.merged_decoder else "net.emb.weight"
    table.append(Entry("prior.x_out.weight", "net.out.weight", (bins, width), parameter=not tied, tied_to=tied))
    return table


def _pair(published: str, ours: str, weight: Shape, bias: Shape, aliases: tuple[str, ...] = ()) -> Iterator[Entry]:
    """A weight and a bias under the same ending in both."""
    for end, shape in zip(BOTH, (weight, bias), strict=True):
        others = tuple(f"{alias}.{end}" for alias in aliases)
        yield Entry(f"{published}.{end}", f"{ours}.{end}", shape, aliases=others)


def _matrix(published: str, ours: str, n_in: int, n_out: int) -> Iterator[Entry]:
    for (old, new), shape in zip(MATRIX, ((n_in, n_out), (n_out,)), strict=True):
        yield Entry(f"{published}.{old}", f"{ours}.{new}", shape, half_ok=old == "w")


def _residual(published: Sequence[str], ours: str, width: int, hidden: int) -> Iterator[Entry]:
    """A residual block; `published`: its name and the other names it was published under."""
    for n, name, weight in (1, "conv1", (hidden, width, 3)), (3, "conv2", (width, hidden, 1)):
        first, *others = (f"{block}.model.{n}" for block in published)
        yield from _pair(first, f"{ours}.{name}", weight, weight[:1], tuple(others))


def _encoder_block(vqvae: Any, encoder: str, block: int, width: int, depth: int) -> Iterator[Entry]:
    """Level block `block`: strided convolutions with residual stacks, then one to emb_width (spec 2.2)."""
    published, ours = f"{encoder}.level_blocks.{block}", f"{encoder}.blocks.{block}"
    n_in = 1 if block == 0 else vqvae.emb_width
    downs, stride = vqvae.downs_t[block], vqvae.strides_t[block]
    for i in range(downs):
        yield from _pair(
            f"{published}.model.{i}.0", f"{ours}.downs.{i}.conv", (width, width if i else n_in, 2 * stride), (width,)
        )
        for d in range(depth):
            names = (f"{published}.model.{i}.1.model.{d}",)
            yield from _residual(names, f"{ours}.downs.{i}.res.{d}", width, int(vqvae.m_conv * width))
    yield from _pair(f"{published}.model.{downs}", f"{ours}.proj", (vqvae.emb_width, width, 3), (vqvae.emb_width,))


def _decoder_block(
    published: str,
    ours: str,
    stacks: Sequence[str],
    emb: int,
    width: int,
    hidden: int,
    depth: int,
    ups: int,
    stride: int,
) -> Iterator[Entry]:
    """From emb channels to `width`, then residual stacks with transposed convolutions back to emb.

    stacks: what the list of residual blocks is called in files, the name to write first.
    """
    yield from _pair(f"{published}.model.0", f"{ours}.proj", (width, emb, 3), (width,))
    for i in range(1, ups + 1):
        for d in range(depth):
            names = [f"{published}.model.{i}.0.{stack}.{d}" for stack in stacks]
            yield from _residual(names, f"{ours}.ups.{i - 1}.res.{d}", width, hidden)
        n_out = emb if i == ups else width
        yield from _pair(f"{published}.model.{i}.1", f"{ours}.ups.{i - 1}.conv", (width, n_out, 2 * stride), (n_out,))


def _conditioner(vqvae: Any, prior: Any, conditioner: Any) -> Iterator[Entry]:
    """Upper codes -> conditioning. Gradient checkpointing (cond_c_res) once changed the names; both are read."""
    published, ours, width = "conditioner_blocks.0", "conditioner", prior.prior_width
    upper, cond_width = prior.level + 1, conditioner.cond_width
    stacks = ("blocks", "model") if conditioner.cond_c_res else ("model", "blocks")
    yield Entry(f"{published}.x_emb.weight", f"{ours}.emb.weight", (vqvae.l_bins, width))
    yield from _decoder_block(
        f"{published}.cond", f"{ours}.up", stacks, width, cond_width, int(conditioner.cond_m_conv * cond_width),
        conditioner.cond_depth, vqvae.downs_t[upper], vqvae.strides_t[upper],
    )  # fmt: skip
    yield from _pair(f"{published}.ln", f"{ours}.norm", (width,), (width,))


def _lyric_encoder(lyric_encoder: Any, labels: Any, width: int) -> Iterator[Entry]:
    own = lyric_encoder.prime_width
    yield Entry("prime_prior.start_token", "lyric_encoder.net.start", (1, own))
    yield Entry("prime_prior.x_emb.weight", "lyric_encoder.net.emb.weight", (labels.n_vocab, own))
    yield Entry("prime_prior.pos_emb.pos_emb", "lyric_encoder.net.pos", (labels.n_tokens, own))
    yield from _transformer(
        "prime_prior", "lyric_encoder.net", lyric_encoder.prime_depth, own,
        lyric_encoder.prime_m_attn, lyric_encoder.prime_m_mlp, (),
    )  # fmt: skip
    yield from _matrix("prime_state_proj", "lyric_encoder.proj", own, width)
    yield from _pair("prime_state_ln", "lyric_encoder.norm", (width,), (width,))
    yield Entry("prime_x_out.weight", "lyric_encoder.out.weight", (labels.n_vocab, width))


def _transformer(
    published: str, ours: str, depth: int, width: int, m_attn: float, m_mlp: float, encoder_layers: Collection[int]
) -> Iterator[Entry]:
    state, hidden = int(m_attn * width), int(m_mlp * width)
    for d in range(depth):
        old, new = f"{published}.transformer._attn_mods.{d}", f"{ours}.transformer.layers.{d}"
        if d in encoder_layers:
            yield from _matrix(f"{old}.attn.c_attn", f"{new}.attn.q", width, state)
            yield from _matrix(f"{old}.attn.c_enc_kv", f"{new}.attn.kv", width, 2 * state)
        else:
            yield from _matrix(f"{old}.attn.c_attn", f"{new}.attn.qkv", width, 3 * state)
        yield from _matrix(f"{old}.attn.c_proj", f"{new}.attn.out", state, width)
        yield from _pair(f"{old}.ln_0", f"{new}.norm1", (width,), (width,))
        yield from _matrix(f"{old}.mlp.c_fc", f"{new}.mlp.fc", width, hidden)
        yield from _matrix(f"{old}.mlp.c_proj", f"{new}.mlp.out", hidden, width)
        yield from _pair(f"{old}.ln_1", f"{new}.norm2", (width,), (width,))
