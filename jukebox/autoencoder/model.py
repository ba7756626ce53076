"""The autoencoder a config describes: encode audio to latents or tokens, decode them, load published weights.

Tensor names are the published ones. Legend: B batch, C channels, T audio samples, N latent frames, D latent channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jukebox.autoencoder.bottlenecks import DiscreteBottleneck, Info, RVQMixin, build_bottleneck
from jukebox.autoencoder.config import AutoencoderConfig
from jukebox.autoencoder.dac import DACDecoder, DACEncoder
from jukebox.autoencoder.oobleck import OobleckDecoder, OobleckEncoder
from jukebox.autoencoder.parts import (
    DACDecoderArgs,
    DACEncoderArgs,
    Decoder,
    Encoder,
    OobleckDecoderArgs,
    OobleckEncoderArgs,
    SEANetDecoderArgs,
    SEANetEncoderArgs,
    TAAEDecoderArgs,
    TAAEEncoderArgs,
)
from jukebox.autoencoder.pretransforms import Patched, build_pretransform
from jukebox.autoencoder.quantisers import Draws
from jukebox.autoencoder.seanet import SEANetDecoder, SEANetEncoder
from jukebox.autoencoder.taae import TAAEDecoder, TAAEEncoder
from jukebox.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunks:
    """The published way through long audio: chunks of `frames` that overlap by `overlap` frames, of which half is cut from
    each inner side. What they give is near, not equal, to one pass; reach.py has the exact way."""

    frames: int = 128
    overlap: int = 32

    def run(self, net: Callable[[Tensor], Tensor], x: Tensor, out: Tensor, *, unit_in: int, unit_out: int) -> Tensor:
        """`net` over the chunks of x [B, C, T], pasted into `out`; elements of a frame: unit_in of x, unit_out of out."""
        size, hop, length = self.frames * unit_in, (self.frames - self.overlap) * unit_in, x.shape[-1]
        starts = list(range(0, length - size + 1, hop))
        if starts[-1] + size != length:
            starts.append(length - size)
        cut = self.overlap // 2 * unit_out
        for index, start in enumerate(starts):
            piece = net(x[..., start : start + size])
            last = index == len(starts) - 1
            place = out.shape[-1] - piece.shape[-1] if last else index * (self.frames - self.overlap) * unit_out
            left, right = (0 if index == 0 else cut), (0 if last else cut)
            kept = piece[..., left : piece.shape[-1] - right]
            out[..., place + left : place + left + kept.shape[-1]] = kept
        return out


class Autoencoder(nn.Module):
    """pretransform -> encoder -> bottleneck -> decoder -> pretransform; the parts may be absent but the two nets.

    Everything random comes from `draws`; without one, from torch's generator.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.hop = config.latent_dim, config.hop
        # In the order of published checkpoints.
        self.bottleneck = build_bottleneck(config.bottleneck) if config.bottleneck else None
        self.encoder = build_encoder(config.encoder).requires_grad_(config.encoder.requires_grad)
        self.decoder = build_decoder(config.decoder).requires_grad_(config.decoder.requires_grad)
        self.pretransform = build_pretransform(config.pretransform) if config.pretransform else None
        if self.bottleneck is not None and config.bottleneck is not None:
            self.bottleneck.requires_grad_(config.bottleneck.requires_grad)

    def train(self, mode: bool = True) -> Autoencoder:
        """As nn.Module's; a pretransform stays in eval mode."""
        super().train(mode)
        if self.pretransform is not None:
            self.pretransform.eval()
        return self

    @property
    def discrete(self) -> DiscreteBottleneck | None:
        """The bottleneck, when it has tokens."""
        return self.bottleneck if isinstance(self.bottleneck, DiscreteBottleneck) else None

    @property
    def averaged_codebooks(self) -> RVQMixin | None:
        """The bottleneck, when its codebooks are moved by statistics instead of gradients."""
        return self.bottleneck if isinstance(self.bottleneck, RVQMixin) else None

    def encode(
        self,
        audio: Tensor,
        *,
        draws: Draws | None = None,
        stages: int | None = None,
        skip_bottleneck: bool = False,
        skip_pretransform: bool = False,
        iterate_batch: bool = False,
    ) -> tuple[Tensor, Info]:
        """audio [B, C, T] -> latents [B, D, N], info.

        info has `pre_bottleneck_latents` and the bottleneck's own published keys. `stages` limits the codebooks of a
        residual quantiser. `iterate_batch` runs the nets item by item, to save memory.
        """
        draws = draws or Draws()
        transform = self.pretransform
        if transform is not None and not skip_pretransform:
            with nullcontext() if transform.enable_grad else torch.no_grad():
                audio = _each(lambda x: transform.encode(x, draws), audio, iterate_batch)
        latents = _each(self.encoder, audio, iterate_batch)
        info: Info = {"pre_bottleneck_latents": latents}
        if self.bottleneck is not None and not skip_bottleneck:
            latents, more = self.bottleneck.encode(latents, draws, stages)
            info |= more
        return latents, info

    def decode(
        self, latents: Tensor, *, draws: Draws | None = None, skip_bottleneck: bool = False, iterate_batch: bool = False
    ) -> Tensor:
        """latents [B, D, N] -> audio [B, C, T]."""
        draws = draws or Draws()
        if self.bottleneck is not None and not skip_bottleneck:
            latents = self.bottleneck.decode(latents, draws)
        audio = _each(self.decoder, latents, iterate_batch)
        transform = self.pretransform
        if transform is not None:
            audio = _each(lambda x: transform.decode(x, draws), audio, iterate_batch)
        return torch.tanh(audio) if self.config.decoder.soft_clip else audio

    def tokens(self, info: Info) -> Tensor:
        """The tokens in an info dictionary, one layout for all types: [B, N, Q] int64."""
        assert self.discrete is not None
        tokens = info[self.discrete.tokens_id].long()
        return tokens if self.discrete.time_first else tokens.mT

    def decode_tokens(self, tokens: Tensor, *, draws: Draws | None = None) -> Tensor:
        """tokens in the bottleneck's own layout ([B, N, Q] if `time_first`, else [B, Q, N]) -> audio [B, C, T]."""
        assert self.discrete is not None
        draws = draws or Draws()
        latents = self.discrete.decode_tokens(tokens, draws)  # of grids that learn nothing always float32
        latents = latents.to(next(self.decoder.parameters()).dtype)
        return self.decode(latents, draws=draws, skip_bottleneck=True)

    def encode_audio(
        self, audio: Tensor, chunks: Chunks | None = None, *, iterate_batch: bool = False, draws: Draws | None = None
    ) -> Tensor:
        """Latents [B, D, N] of audio of any length; `chunks` bound the memory and are near, not equal, to one pass."""

        def encode(x: Tensor) -> Tensor:
            return self.encode(x, draws=draws, iterate_batch=iterate_batch)[0]

        if chunks is None or audio.shape[-1] < chunks.frames * self.hop:
            return encode(audio)
        out = audio.new_zeros(audio.shape[0], self.latent_dim, audio.shape[-1] // self.hop)
        return chunks.run(encode, audio, out, unit_in=self.hop, unit_out=1)

    def decode_audio(
        self, latents: Tensor, chunks: Chunks | None = None, *, iterate_batch: bool = False, draws: Draws | None = None
    ) -> Tensor:
        """Audio [B, C, T] of latents of any length; `chunks` as in `encode_audio`."""

        def decode(x: Tensor) -> Tensor:
            return self.decode(x, draws=draws, iterate_batch=iterate_batch)

        if chunks is None or latents.shape[-1] < chunks.frames:
            return decode(latents)
        out = latents.new_zeros(latents.shape[0], self.config.channels_out, latents.shape[-1] * self.hop)
        return chunks.run(decode, latents, out, unit_in=1, unit_out=self.hop)


def _each(run: Callable[[Tensor], Tensor], x: Tensor, one_by_one: bool) -> Tensor:
    return torch.cat([run(item) for item in x.split(1)]) if one_by_one else run(x)


def build_encoder(part: Encoder) -> nn.Module:
    match part.config:
        case OobleckEncoderArgs() as args:
            return OobleckEncoder(args)
        case DACEncoderArgs() as args:
            return DACEncoder(args)
        case SEANetEncoderArgs() as args:
            return SEANetEncoder(args)
        case TAAEEncoderArgs() as args:
            return TAAEEncoder(args)


def build_decoder(part: Decoder) -> nn.Module:
    match part.config:
        case OobleckDecoderArgs() as args:
            return OobleckDecoder(args)
        case DACDecoderArgs() as args:
            return DACDecoder(args)
        case SEANetDecoderArgs() as args:
            return SEANetDecoder(args)
        case TAAEDecoderArgs() as args:
            return TAAEDecoder(args)


# --------------------------------------------------------------------------------------------------- published weights


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint; `misshapen` lists name, shape in the file, shape in the model."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lines = [
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.misshapen)} of another shape"
        ]
        lines += [f"  missing: {name}" for name in self.missing[:5]]
        lines += [f"  unexpected: {name}" for name in self.unexpected[:5]]
        lines += [f"  {name}: {theirs} in the file, {ours} in the model" for name, theirs, ours in self.misshapen[:5]]
        return "\n".join(lines)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's own tensors in a state dictionary, with the published unwrapped names.

    Recognises training checkpoints (`autoencoder_ema.ema_model.` is preferred to `autoencoder.`) and the pretransform
    of a latent-diffusion checkpoint (`pretransform.model.`).
    """
    for prefix in ("autoencoder_ema.ema_model.", "autoencoder.", "pretransform.model."):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        others = any(name.startswith(("encoder.", "decoder.")) for name in state)
        if own and not others:
            log.info("a wrapped checkpoint: taking the %d tensors under %s", len(own), prefix)
            return own
    return dict(state)


def _is_resampler(model: Autoencoder, name: str) -> bool:
    """Whether a tensor is a filter that a patched pretransform with oversampling stores, and that is made here."""
    oversampled = isinstance(model.pretransform, Patched) and model.pretransform.oversampling > 1
    return oversampled and name.startswith("pretransform.") and name.endswith("kernel")


def load_weights(model: Autoencoder, state: Mapping[str, Tensor], file: str, *, strict: bool = False) -> LoadReport:
    """Copy into `model` what fits by name and shape, and report. `state` may be wrapped; `file` names it in messages.

    Raises CheckpointError when nothing matches, or with `strict` when not everything does.
    """
    given, own = unwrapped(state), model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in own or not _is_resampler(model, name)}
    fits = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    report = LoadReport(
        matched=list(fits),
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        misshapen=[
            (name, tuple(tensor.shape), tuple(own[name].shape))
            for name, tensor in given.items()
            if name in own and name not in fits
        ],
    )
    if not fits:
        raise CheckpointError(f"{file}: not a checkpoint of this model config; {report}")
    if strict and not report.complete:
        raise CheckpointError(f"{file}: does not fit this model config; {report}")
    model.load_state_dict(fits, strict=False)
    (log.info if report.complete else log.warning)("%s: %s", file, report)
    return report
