"""Nets from hyperparameters: the one place where key names meet constructor arguments."""

from __future__ import annotations

from jukebox.audio.spectral import STFT
from jukebox.data.hps import AudioHps
from jukebox.errors import HparamsError
from jukebox.hparams.resolve import Resolved
from jukebox.interop.published import Entry, prior_table, vqvae_table
from jukebox.nn.patterns import ENCODER, layer_kind
from jukebox.nn.transformer import TransformerShape
from jukebox.prior.conditioners import ConditionerShape, LabelShape
from jukebox.prior.hps import ConditionerHps, LabelHps, LyricEncoderHps, PriorHps
from jukebox.prior.model import Prior, PriorShape
from jukebox.vqvae.encdec import level_shapes
from jukebox.vqvae.hps import SpectralHps, VQVAEHps
from jukebox.vqvae.losses import LossShape
from jukebox.vqvae.model import VQVAE


def build_vqvae(hps: Resolved) -> VQVAE:
    """A fresh VQ-VAE. Raises HparamsError when the keys do not fit together."""
    v = hps.section(VQVAEHps)
    try:
        shapes = level_shapes(
            levels=v.levels, downs_t=v.downs_t, strides_t=v.strides_t, emb_width=v.emb_width, width=v.width,
            depth=v.depth, m_conv=v.m_conv, growth_rate=v.dilation_growth_rate, cycle=v.dilation_cycle,
            reverse_decoder=v.vqvae_reverse_decoder_dilation, multipliers=v.hvqvae_multipliers,
        )  # fmt: skip
    except ValueError as error:
        raise HparamsError(f"--downs_t, --strides_t, --hvqvae_multipliers: {error}.") from None
    return VQVAE(shapes, v.l_bins, v.use_bottleneck)


def build_loss(hps: Resolved) -> LossShape:
    """Weights and settings of the VQ-VAE's loss."""
    v, s = hps.section(VQVAEHps), hps.section(SpectralHps)
    resolutions = zip(
        s.multispec_loss_n_fft, s.multispec_loss_hop_length, s.multispec_loss_window_size, strict=True
    )  # fmt: skip
    return LossShape(
        v.loss_fn, v.linf_k, v.lmix_l1, v.lmix_l2, v.lmix_linf, s.spectral, s.multispectral, v.commit,
        s.use_nonrelative_specloss, tuple(STFT(*numbers) for numbers in resolutions),
    )  # fmt: skip


def build_prior(hps: Resolved) -> Prior:
    """A fresh prior for level `level` of the VQ-VAE that the same keys describe.

    Raises HparamsError when the keys do not fit together.
    """
    try:
        return Prior(prior_shape(hps))
    except ValueError as error:
        raise HparamsError(f"These keys do not make a prior: {error}.") from None


def halve(net: Prior, table: list[Entry]) -> None:
    """Matrices of the transformers to float16, as `fp16_params` says; nothing else (spec 3.6)."""
    parameters = dict(net.named_parameters())
    for entry in table:
        if entry.half_ok and entry.ours in parameters:
            parameters[entry.ours].data = parameters[entry.ours].data.half()


def prior_shape(hps: Resolved) -> PriorShape:
    """The shape of a prior, checked as far as it can be without building it.

    Raises HparamsError when the level does not exist or labels and lyrics contradict each other.
    """
    v, p, label = hps.section(VQVAEHps), hps.section(PriorHps), hps.section(LabelHps)
    if not 0 <= p.level < v.levels:
        raise HparamsError(f"--level={p.level}: the levels are 0 to {v.levels - 1} (--levels={v.levels}).")
    if p.copy_input:
        raise HparamsError("--copy_input is a debugging switch that nothing could sample from; leave it out.")
    top = p.level == v.levels - 1
    n_tokens = label.n_tokens if label.lyrics else 0
    if n_tokens and not label.labelled:
        raise HparamsError("--use_tokens needs labels: give --labels=True and --y_bins=GENRES,ARTISTS.")
    if p.single_enc_dec and not n_tokens:
        raise HparamsError("--single_enc_dec needs lyrics: give --use_tokens --n_tokens=N.")
    separate = bool(n_tokens) and not p.single_enc_dec
    reads = ENCODER in {layer_kind(p.attn_order, layer) for layer in range(p.prior_depth)}
    if reads and not separate:
        raise HparamsError(
            f"--attn_order={p.attn_order} has layers that read lyrics from an encoder of their own: give --use_tokens "
            "--n_tokens=N without --single_enc_dec, or another order."
        )
    if not top and p.n_ctx % (v.hops[p.level + 1] // v.hops[p.level]):
        raise HparamsError(
            f"--n_ctx={p.n_ctx} of level {p.level} is no whole number of codes of the level above, of "
            f"{v.hops[p.level + 1] // v.hops[p.level]} each."
        )
    return PriorShape(
        level=p.level, hops=v.hops, bins=v.l_bins, n_ctx=p.n_ctx,
        transformer=_transformer(p, n_tokens, separate),
        conditioner=None if top else _conditioner(hps, p),
        labels=_labels(hps, p, timing=top) if label.labelled else None,
        n_tokens=n_tokens, n_vocab=label.n_vocab, single=p.single_enc_dec,
        lyric_encoder=_lyric_encoder(hps, n_tokens) if separate else None,
        lyric_emb_dropout=hps.section(LyricEncoderHps).prime_emb_dropout,
        merged=p.merged_decoder, prime_loss_fraction=hps.section(LyricEncoderHps).prime_loss_fraction,
        emb_dropout=p.emb_dropout, alignment_layer=p.alignment_layer, alignment_head=p.alignment_head,
    )  # fmt: skip


def _transformer(p: PriorHps, n_tokens: int, separate: bool) -> TransformerShape:
    return TransformerShape(
        n=p.n_ctx + (n_tokens if p.single_enc_dec else 0), width=p.prior_width, depth=p.prior_depth, heads=p.heads,
        attn_order=p.attn_order, blocks=p.blocks or 1, spread=p.spread or 0,
        lyric_len=n_tokens if p.single_enc_dec else 0, encoder_len=n_tokens if separate else 0, m_attn=p.m_attn,
        m_mlp=p.m_mlp, init_scale=p.init_scale, zero_out=p.zero_out, res_scale=p.res_scale,
        attn_dropout=p.attn_dropout, resid_dropout=p.resid_dropout, recompute_block=p.c_res == 1,
        recompute_attn=p.c_attn == 1, recompute_mlp=p.c_mlp == 1,
    )  # fmt: skip


def _lyric_encoder(hps: Resolved, n_tokens: int) -> TransformerShape:
    e = hps.section(LyricEncoderHps)
    return TransformerShape(
        n=n_tokens, width=e.prime_width, depth=e.prime_depth, heads=e.prime_heads, attn_order=e.prime_attn_order,
        blocks=e.prime_blocks or 1, spread=e.prime_spread or 0, m_attn=e.prime_m_attn, m_mlp=e.prime_m_mlp,
        init_scale=e.prime_init_scale, zero_out=e.prime_zero_out, res_scale=e.prime_res_scale,
        attn_dropout=e.prime_attn_dropout, resid_dropout=e.prime_resid_dropout, recompute_block=e.prime_c_res == 1,
        recompute_attn=e.prime_c_attn == 1, recompute_mlp=e.prime_c_mlp == 1,
    )  # fmt: skip


def _conditioner(hps: Resolved, p: PriorHps) -> ConditionerShape:
    v, c = hps.section(VQVAEHps), hps.section(ConditionerHps)
    return ConditionerShape(
        bins=v.l_bins, width=p.prior_width, down=v.downs_t[p.level + 1], stride=v.strides_t[p.level + 1],
        cond_width=c.cond_width, cond_depth=c.cond_depth, m_conv=c.cond_m_conv,
        growth_rate=c.cond_dilation_growth_rate, cycle=c.cond_dilation_cycle, zero_out=c.cond_zero_out,
        res_scale=c.cond_res_scale, init_scale=p.init_scale, recompute=c.cond_c_res == 1,
    )  # fmt: skip


def _labels(hps: Resolved, p: PriorHps, timing: bool) -> LabelShape:
    label = hps.section(LabelHps)
    genres, artists = label.y_bins
    if timing and label.max_duration is None:
        raise HparamsError("A labelled top prior needs --max_duration (s), the end of its timing embeddings.")
    return LabelShape(
        width=p.prior_width, genres=genres, artists=artists, genre_slots=label.max_bow_genre_size or 1, n_ctx=p.n_ctx,
        t_bins=label.t_bins, sr_hz=hps.section(AudioHps).sr, min_duration=label.min_duration or 0.0,
        max_duration=label.max_duration or 600.0, timing=timing, init_scale=p.init_scale,
    )  # fmt: skip


def vqvae_names(hps: Resolved) -> list[Entry]:
    """Published and own name of every tensor of `build_vqvae(hps)`."""
    return vqvae_table(hps.section(VQVAEHps))


def prior_names(hps: Resolved) -> list[Entry]:
    """Published and own name of every tensor of `build_prior(hps)`."""
    p, label = hps.section(PriorHps), hps.section(LabelHps)
    encoder_layers = [d for d in range(p.prior_depth) if layer_kind(p.attn_order, d) == ENCODER]
    return prior_table(
        hps.section(VQVAEHps), p, hps.section(ConditionerHps), hps.section(LyricEncoderHps), label,
        encoder_layers=encoder_layers,
    )  # fmt: skip
