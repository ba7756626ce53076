"""Keys of the priors: transformer, conditioner on upper codes, labels and timing, lyrics."""

from pydantic import field_validator, model_validator

from jukebox.hparams.resolve import key, section

_ATTN_ORDERS = (
    "how attention kinds follow each other over the layers, 0 to 12: 0 = dense, 2 = block, transposed block and"
    " previous block by turns, 8 and 10 = the same with layers that read a separate lyric encoder,"
    " 12 = the same with layers that read lyrics in the same sequence"
)


def _check_blocks(prefix: str, attn_order: int, blocks: int | None, spread: int | None) -> None:
    if attn_order and blocks is None:
        raise ValueError(f"--{prefix}attn_order={attn_order} cuts the sequence into blocks: give --{prefix}blocks.")
    if attn_order == 4 and spread is None:
        raise ValueError(f"--{prefix}attn_order=4 needs --{prefix}spread.")


def _check_heads(prefix: str, width: int, m_attn: float, heads: int) -> None:
    if int(m_attn * width) % heads:
        raise ValueError(
            f"--{prefix}heads={heads} must divide the attention width {int(m_attn * width)}"
            f" ({prefix}m_attn {m_attn:g} x width {width})."
        )


@section("prior", "Prior")
class PriorHps:
    restore_prior: str = key(
        "", "prior to start from: a run folder, a checkpoint file, or the address of a published one"
    )
    level: int = key(0, "level of codes this prior models; the top level is levels - 1", ge=0)
    n_ctx: int = key(1024, "window of the prior", unit="codes", gt=0)
    prior_width: int = key(128, "width of the transformer", unit="channels", gt=0)
    prior_depth: int = key(3, "layers of the transformer", gt=0)
    heads: int = key(1, "attention heads", gt=0)
    attn_order: int = key(0, _ATTN_ORDERS, ge=0, le=12)
    blocks: int | None = key(None, "blocks that the sequence is cut into; sparse attention needs them", gt=0)
    spread: int | None = key(
        None, "last codes of every block that attention kind 5 sees; only for attn_order 4", unit="codes", gt=0
    )
    m_attn: float = key(0.25, "width of attention, as a factor on prior_width", gt=0)
    m_mlp: float = key(1.0, "width inside the MLP, as a factor on prior_width", gt=0)
    attn_dropout: float = key(0.0, "dropout of attention weights", ge=0, lt=1)
    resid_dropout: float = key(0.0, "dropout before each residual sum", ge=0, lt=1)
    emb_dropout: float = key(0.0, "dropout of the embedded codes", ge=0, lt=1)
    init_scale: float = key(1.0, "factor on the spread of the first weights", gt=0)
    zero_out: bool = key(False, "output projections start at zero")
    res_scale: bool = key(False, "each residual branch is scaled by 1 / prior_depth")
    pos_init: bool = key(False, "never worked in the first implementation; only False is possible")
    c_res: int = key(0, "1 = recompute whole layers in the backward pass, to save memory", ge=0, le=1)
    c_attn: int = key(
        0, "recompute in the backward pass: 1 = attention, 2 = also its projections, 3 = also its norm", ge=0, le=3
    )
    c_mlp: int = key(0, "1 = recompute the MLP in the backward pass", ge=0, le=1)
    merged_decoder: bool = key(
        False, "conditioning is not added again after the transformer, and output weights are their own"
    )
    single_enc_dec: bool = key(False, "lyrics and codes stand in one sequence, lyrics first")
    copy_input: bool = key(False, "to test lyric layers: the lyric slot is fed with the first n_tokens codes")
    alignment_layer: int | None = key(None, "layer whose attention aligns lyrics with time; None = no alignment", ge=0)
    alignment_head: int | None = key(None, "head of that layer", ge=0)

    @model_validator(mode="after")
    def _shapes_fit(self) -> "PriorHps":
        _check_blocks("", self.attn_order, self.blocks, self.spread)
        _check_heads("", self.prior_width, self.m_attn, self.heads)
        if self.pos_init:
            raise ValueError("--pos_init: it never worked in the first implementation and is not offered here.")
        if self.alignment_layer is not None and self.alignment_layer >= self.prior_depth:
            raise ValueError(
                f"--alignment_layer={self.alignment_layer}: the layers of this prior are 0 to {self.prior_depth - 1}."
            )
        if self.alignment_head is not None and self.alignment_head >= self.heads:
            raise ValueError(f"--alignment_head={self.alignment_head}: the heads are 0 to {self.heads - 1}.")
        return self


@section("conditioner", "Conditioner of an upsampler on upper codes")
class ConditionerHps:
    cond_depth: int = key(3, "residual blocks in each stack", gt=0)
    cond_width: int = key(128, "width of the stacks", unit="channels", gt=0)
    cond_m_conv: float = key(1.0, "width inside a residual block, as a factor on cond_width", gt=0)
    cond_zero_out: bool = key(False, "residual blocks start at zero")
    cond_res_scale: bool = key(False, "each residual branch is scaled by 1 / sqrt(cond_depth)")
    cond_dilation_growth_rate: int = key(1, "block d of a stack has dilation rate ** d", ge=1)
    cond_dilation_cycle: int | None = key(None, "d starts again at 0 after so many blocks; None = never", ge=1)
    cond_c_res: int = key(
        0, "1 = recompute blocks in the backward pass; also changes parameter names in checkpoints", ge=0, le=1
    )


@section("labels", "Labels, timing and lyrics of a prior")
class LabelHps:
    labels: bool = key(True, "condition on artist, genre and timing; has no effect unless y_bins is a pair")
    labels_v3: bool = key(False, "id tables of the third kind: one genre per song, lyric alphabet of 79 characters")
    y_bins: tuple[int, ...] = key((), "numbers of genres and artists; () or 0 = no labels", example="604,7898")
    max_bow_genre_size: int | None = key(None, "genre words kept per song", unit="words", gt=0)
    t_bins: int = key(64, "steps of each timing embedding", gt=0)
    min_duration: float | None = key(
        None, "shorter songs are left out; lower end of the timing embeddings; None = one chunk", unit="s", ge=0
    )
    max_duration: float | None = key(
        None,
        "songs of this length or longer are left out; upper end of the timing embeddings; None = no limit",
        unit="s",
        gt=0,
    )
    use_tokens: bool = key(False, "condition on lyrics")
    n_tokens: int = key(0, "lyrics seen by one window", unit="characters", ge=0)
    n_vocab: int = key(0, "size of the lyric alphabet; 0 = as its file says", unit="characters", ge=0)

    @field_validator("y_bins")
    @classmethod
    def _none_or_a_pair(cls, y_bins: tuple[int, ...]) -> tuple[int, ...]:
        if y_bins in ((), (0,)):
            return ()
        if len(y_bins) != 2 or min(y_bins) < 1:
            raise ValueError("should be a pair, genres and artists, as in --y_bins=10,100")
        return y_bins

    @model_validator(mode="after")
    def _complete(self) -> "LabelHps":
        if self.use_tokens and not self.n_tokens:
            raise ValueError("--use_tokens needs --n_tokens, the characters that a window sees.")
        if None not in (self.min_duration, self.max_duration) and self.min_duration >= self.max_duration:  # type: ignore[operator]
            raise ValueError(
                f"--min_duration={self.min_duration:g} must be less than --max_duration={self.max_duration:g}."
            )
        return self

    @property
    def labelled(self) -> bool:
        """Whether this prior is conditioned on artist, genre and timing.

        `labels` is True by default although most priors have no tables to look names up in: only a pair in `y_bins`
        makes a prior labelled (the first implementation died there).
        """
        return self.labels and bool(self.y_bins)

    @property
    def lyrics(self) -> bool:
        """Whether this prior is conditioned on lyrics."""
        return self.use_tokens and self.n_tokens > 0


@section("lyric_encoder", "Lyric encoder")
class LyricEncoderHps:
    prime_loss_fraction: float = key(0.1, "weight of the loss on lyrics, also with single_enc_dec", ge=0)
    prime_width: int = key(128, "width of the encoder", unit="channels", gt=0)
    prime_depth: int = key(3, "layers of the encoder", gt=0)
    prime_heads: int = key(1, "attention heads", gt=0)
    prime_attn_order: int = key(0, "as attn_order", ge=0, le=12)
    prime_blocks: int | None = key(None, "blocks that the lyrics are cut into", gt=0)
    prime_spread: int | None = key(None, "as spread", gt=0)
    prime_m_attn: float = key(0.25, "width of attention, as a factor on prime_width", gt=0)
    prime_m_mlp: float = key(1.0, "width inside the MLP, as a factor on prime_width", gt=0)
    prime_attn_dropout: float = key(0.0, "dropout of attention weights", ge=0, lt=1)
    prime_resid_dropout: float = key(0.0, "dropout before each residual sum", ge=0, lt=1)
    prime_emb_dropout: float = key(0.0, "dropout of the embedded characters", ge=0, lt=1)
    prime_init_scale: float = key(1.0, "factor on the spread of the first weights", gt=0)
    prime_zero_out: bool = key(False, "output projections start at zero")
    prime_res_scale: bool = key(False, "each residual branch is scaled by 1 / prime_depth")
    prime_pos_init: bool = key(False, "never worked in the first implementation; only False is possible")
    prime_c_res: int = key(0, "1 = recompute whole layers in the backward pass, to save memory", ge=0, le=1)
    prime_c_attn: int = key(0, "as c_attn", ge=0, le=3)
    prime_c_mlp: int = key(0, "1 = recompute the MLP in the backward pass", ge=0, le=1)

    @model_validator(mode="after")
    def _shapes_fit(self) -> "LyricEncoderHps":
        _check_blocks("prime_", self.prime_attn_order, self.prime_blocks, self.prime_spread)
        _check_heads("prime_", self.prime_width, self.prime_m_attn, self.prime_heads)
        if self.prime_pos_init:
            raise ValueError("--prime_pos_init: it never worked in the first implementation and is not offered here.")
        return self
