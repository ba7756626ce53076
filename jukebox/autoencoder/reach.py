"""Long audio through an autoencoder in chunks that give what one pass gives, in bounded memory.

Each layer says which inputs a span of its outputs needs, so the halo of a chunk follows from the net itself. An LSTM
has no finite reach: the layers before and after it run in chunks, and its state is carried from chunk to chunk. What
looks at everything at once (normalisation over time, full attention) has no exact chunks: `Unbounded`.
Legend: B batch, C channels, T audio samples, N latent frames, D latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jukebox.autoencoder.bottlenecks import Info
from jukebox.autoencoder.layers import Unbounded, needed
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.pretransforms import PQMF, InnerAutoencoder, Pretransform
from jukebox.autoencoder.quantisers import Draws
from jukebox.autoencoder.seanet import LSTMState, SkipLSTM
from jukebox.nn.tiles import Chunk, Span, chunks, run_chunks

CHUNK_SAMPLES = 1 << 19
"""Samples of audio computed together, halo included: 12 s at 44.1 kHz."""

CHUNK_FRAMES = 4096
"""Frames that an LSTM reads at a time."""


@dataclass(frozen=True)
class Local:
    """Layers of finite reach. `down` input positions make `up` outputs; chunks begin at multiples of `unit` inputs."""

    run: Callable[[Tensor], Tensor]
    span: Callable[[Span], Span]
    down: int
    up: int
    unit: int

    @property
    def halo(self) -> tuple[int, int]:
        """Inputs needed before the first and after the last of those that make one group of outputs."""
        before, after = -self.span(Span(0, 0)).first, self.span(Span(self.up - 1, self.up - 1)).last - (self.down - 1)
        return max(0, before), max(0, after)

    def __call__(self, x: Tensor, size: int) -> Tensor:
        """x [B, C, T] -> [B, C', T'], computed in chunks of about `size` inputs, each on one thread."""
        before, after = self.halo

        def work(piece: Chunk) -> Tensor:
            y = self.run(x[..., piece.start : piece.stop])
            first = (piece.keep_start - piece.start) // self.down * self.up
            last = (piece.keep_stop - piece.start) // self.down * self.up
            return y[..., first:] if piece.keep_stop >= x.shape[-1] else y[..., first:last]

        rounded = -(-x.shape[-1] // self.unit) * self.unit
        size = max(size, 4 * (before + after) + self.unit) // self.unit * self.unit
        found = run_chunks(work, list(chunks(rounded, size, (before, after), self.unit)))
        return torch.cat([part for _, part in found], dim=-1)


class Recurrent:
    """An LSTM that carries its state from chunk to chunk."""

    def __init__(self, lstm: SkipLSTM) -> None:
        self.lstm = lstm

    def __call__(self, x: Tensor, size: int) -> Tensor:
        state: LSTMState | None = None
        parts = []
        for part in torch.split(x, CHUNK_FRAMES, dim=-1):
            y, state = self.lstm.continued(part, state)
            parts.append(y)
        return torch.cat(parts, dim=-1)


Stage = Local | Recurrent


def _split(net: nn.Module) -> list[nn.Module]:
    """A net as layers of finite reach with LSTMs between them."""
    layers = getattr(net, "model", None)
    if not isinstance(layers, nn.Sequential):
        return [net]
    at = [index for index, layer in enumerate(layers) if isinstance(layer, SkipLSTM)]
    if not at:
        return [layers]
    return [layers[: at[0]], layers[at[0]], layers[at[0] + 1 :]]


def encoder_stages(model: Autoencoder) -> list[Stage]:
    """From what the encoder gets to latents before the bottleneck. Raises Unbounded."""
    parts, transform = _split(model.encoder), model.pretransform
    stages: list[Stage] = []
    for part in parts:
        if isinstance(part, SkipLSTM):
            stages.append(Recurrent(part))
        elif stages:  # behind the LSTM: frames to frames
            stages.append(_local(part, 1, 1))
        elif transform is None or isinstance(transform, InnerAutoencoder):
            stages.append(_local(part, model.config.encoder.config.ratio, 1))
        else:
            stages.append(_encoding(transform, part, model.hop))
    return _checked(stages)


def decoder_stages(model: Autoencoder) -> list[Stage]:
    """From what the bottleneck's decode gives to what the decoder, or a signal pretransform, gives. Raises Unbounded."""
    parts, transform = _split(model.decoder), model.pretransform
    stages: list[Stage] = []
    for index, part in enumerate(parts):
        if isinstance(part, SkipLSTM):
            stages.append(Recurrent(part))
        elif index < len(parts) - 1:  # before the LSTM: frames to frames
            stages.append(_local(part, 1, 1))
        elif transform is None or isinstance(transform, InnerAutoencoder):
            stages.append(_local(part, 1, model.config.decoder.config.ratio))
        else:
            stages.append(_decoding(part, transform, model.hop))
    return _checked(stages)


def _local(layer: nn.Module, down: int, up: int) -> Local:
    return Local(layer, lambda span: needed(layer, span), down, up, down)


def _encoding(transform: Pretransform, encoder: nn.Module, hop: int) -> Local:
    draws = Draws()  # signal pretransforms draw nothing
    return Local(
        lambda x: _of(encoder, transform.encode(x, draws)),
        lambda span: transform.encode_span(needed(encoder, span)),
        hop,
        1,
        _even(transform, hop),
    )


def _decoding(decoder: nn.Module, transform: Pretransform, hop: int) -> Local:
    draws = Draws()
    return Local(
        lambda x: transform.decode(_of(decoder, x), draws),
        lambda span: needed(decoder, transform.decode_span(span)),
        1,
        hop,
        _even(transform, 1),
    )


def _of(net: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = net(x)
    return y


def _even(transform: Pretransform, unit: int) -> int:
    """A PQMF bank turns every second frame round, so chunks begin at even ones."""
    return 2 * unit if isinstance(transform, PQMF) else unit


def _checked(stages: list[Stage]) -> list[Stage]:
    for stage in stages:
        if isinstance(stage, Local):
            _ = stage.halo
    return stages


def why_unbounded(model: Autoencoder) -> str | None:
    """What keeps a model from exact chunks, None where nothing does."""
    try:
        encoder_stages(model)
        decoder_stages(model)
    except Unbounded as error:
        return str(error)
    if isinstance(model.pretransform, InnerAutoencoder):
        return why_unbounded(model.pretransform.model)
    return None


@torch.inference_mode()
def encode_long(
    model: Autoencoder, audio: Tensor, *, draws: Draws | None = None, chunk_samples: int = CHUNK_SAMPLES
) -> tuple[Tensor, Info]:
    """`model.encode` of audio [B, C, T] in eval mode, equal to one pass up to rounding. Raises Unbounded."""
    draws = draws or Draws()
    stages, inner = encoder_stages(model), model.pretransform
    x, size = audio, chunk_samples
    if isinstance(inner, InnerAutoencoder):
        dtype = audio.dtype
        latents, _ = encode_long(inner.model, inner.narrow(audio), draws=draws, chunk_samples=chunk_samples)
        x, size = latents.to(dtype) / inner.args.scale, chunk_samples // inner.model.hop
    for stage in stages:
        x = stage(x, size)
        size = max(1, chunk_samples // model.hop)
    info: Info = {"pre_bottleneck_latents": x}
    if model.bottleneck is not None:
        x, more = model.bottleneck.encode(x, draws)
        info |= more
    return x, info


@torch.inference_mode()
def decode_long(
    model: Autoencoder, latents: Tensor, *, draws: Draws | None = None, chunk_samples: int = CHUNK_SAMPLES,
    skip_bottleneck: bool = False,
) -> Tensor:  # fmt: skip
    """`model.decode` of latents [B, D, N] in eval mode, equal to one pass up to rounding. Raises Unbounded."""
    draws = draws or Draws()
    stages, inner = decoder_stages(model), model.pretransform
    x = latents if model.bottleneck is None or skip_bottleneck else model.bottleneck.decode(latents, draws)
    for stage in stages:
        x = stage(x, max(1, chunk_samples // model.hop))
    if isinstance(inner, InnerAutoencoder):
        dtype = x.dtype
        x = decode_long(inner.model, inner.narrow(x * inner.args.scale), draws=draws, chunk_samples=chunk_samples).to(
            dtype
        )
    return torch.tanh(x) if model.config.decoder.soft_clip else x
