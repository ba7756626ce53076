"""Autoencoders as codecs: latents, tokens as published, or tokens as one stream of codes for priors.

The stream has the codes of a frame one after the other, codebook 0 first, then those of the next frame. Time per code is
then hop / codebooks, and everything that begins or ends (windows, songs) does so at whole frames (`Geometry.frame`).
Legend: C channels, T audio samples, N frames, D latent channels, Q codebooks, K codes of each.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox import settings
from jukebox.autoencoder import reach
from jukebox.autoencoder.bottlenecks import DACRVQ, FSQBottleneck
from jukebox.autoencoder.config import ModelConfig, read_config
from jukebox.autoencoder.layers import Unbounded
from jukebox.autoencoder.model import Autoencoder, load_weights
from jukebox.autoencoder.parts import noise_channels
from jukebox.autoencoder.pretransforms import InnerAutoencoder
from jukebox.autoencoder.quantisers import Draws
from jukebox.codestore.arrays import ArraySpec
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import HALF
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models import checkpoint, model_set
from jukebox.models.autoencoder_files import carried_config, read_weights
from jukebox.models.codec import CHUNK_SAMPLES, Codec
from jukebox.models.port import is_port
from jukebox.nn.tiles import Chunk, even_chunks

Kind = Literal["latents", "tokens", "stream"]


class AutoencoderCodec:
    """An autoencoder as a codec of one level.

    kind: "latents" `[D, n]`; "tokens" `[Q, n]` or `[n, Q]`, as published for the bottleneck; "stream" `[n Q]`.
    window_samples: 0 for songs of any length, in exact chunks where the nets have a finite reach, with the LSTM's state
    carried along; otherwise songs are cut into windows of so many samples, each encoded by itself, silence behind its
    end. Random numbers of a bottleneck are drawn from the digest of the audio, so that a store can be made again.
    Raises UsageError when the model has no tokens, or no exact chunks and no window.
    """

    def __init__(
        self, model: Autoencoder, config: ModelConfig, kind: Kind, *, window_samples: int = 0, half: bool = False,
        chunk_samples: int = CHUNK_SAMPLES,
    ) -> None:  # fmt: skip
        self.fingerprint = f"{fingerprint(model, config)}-{kind}{HALF if half else ''}"
        self.model, self.config, self.kind = model.eval().requires_grad_(False), config, kind
        self.model = self.model.half() if half else self.model
        self.device = next(model.parameters()).device
        self.dtype = torch.float16 if half else torch.float32
        self.channels, self.window_samples, self.chunk_samples = config.model.channels_in, window_samples, chunk_samples
        self.bounded = reach.why_unbounded(model)
        if self.bounded and not window_samples:
            raise UsageError(f"{self.bounded} looks at a whole window at once: give its length with --sample-size.")
        self.books = 1
        if kind != "latents":
            if model.discrete is None:
                raise UsageError(
                    "this autoencoder has no tokens: its bottleneck is continuous. Leave --is-discrete out."
                )
            self.books = model.discrete.num_quantizers
        self.geometry = self._geometry()
        self._alone = None if window_samples else _only_stage(model)

    def _geometry(self) -> Geometry:
        hop, rate = self.model.hop, self.config.sample_rate
        if self.kind == "latents":
            return Geometry(rate, (hop,), 0)
        assert self.model.discrete is not None
        bins = self.model.discrete.codebook_size
        if self.kind == "tokens":
            return Geometry(rate, (hop,), bins)
        if hop % self.books:
            raise UsageError(
                f"a frame of {hop} samples cannot be dealt to {self.books} codebooks in whole samples, which priors need: "
                "train with a number of codebooks that divides downsampling_ratio, or leave --stream out and keep them as published."
            )
        return Geometry(rate, (hop // self.books,), bins, frame=self.books)

    # ------------------------------------------------------------------------------------------------- encoding

    def arrays(self, levels: Sequence[int], compat: bool) -> list[ArraySpec]:
        """Floats `[D, N]`, codes `[Q, N]` or `[N, Q]`, or one row of codes."""
        if self.kind == "latents":
            return [ArraySpec("<f2" if self.dtype == torch.float16 else "<f4", "DN", self.model.latent_dim)]
        if self.kind == "stream":
            return [ArraySpec.for_codes(self.geometry.bins, compat=compat)]
        assert self.model.discrete is not None
        dtype = "<i4" if isinstance(self.model.discrete, FSQBottleneck) else "<i8"  # as published, whoever reads them
        return [ArraySpec(dtype, "NQ" if self.model.discrete.time_first else "QN", self.books)]

    def pieces(self, length_samples: int) -> list[Chunk]:
        """Exact chunks of the padded song, all of it where an LSTM carries its state, or the window."""
        if self.window_samples:
            return [Chunk(0, self.window_samples, 0, self.window_samples)]
        length = self.geometry.padded_length(length_samples)
        if self._alone is None:
            return [Chunk(0, length, 0, length)]
        unit = self._alone.unit
        found = even_chunks(-(-length // unit) * unit, self.chunk_samples, self._alone.halo, unit)
        return [replace(piece, keep_stop=min(piece.keep_stop, length)) for piece in found]

    def encode_piece(self, audio: NDArray[np.float32], piece: Chunk, levels: Sequence[int]) -> dict[int, NDArray[Any]]:
        """Audio `[t, channels]` from piece.start on -> what is kept of the piece, in the layout of `arrays`."""
        x = torch.zeros(1, self.channels, piece.stop - piece.start)
        x[0, :, : len(audio)] = torch.from_numpy(np.ascontiguousarray(audio.T))
        first, last = ((at - piece.start) // self.model.hop for at in (piece.keep_start, piece.keep_stop))
        frames = self._frames(x)[first:last]  # (N, D or Q)
        if not levels:
            return {}
        if self.kind == "stream":
            return {0: frames.flatten().numpy()}
        time_first = self.arrays(levels, compat=False)[0].axes == "NQ"
        return {0: np.ascontiguousarray((frames if time_first else frames.t()).numpy())}

    @torch.inference_mode()
    def _frames(self, x: Tensor) -> Tensor:
        """Audio `[1, C, T]` -> latents `[N, D]` or tokens `[N, Q]`, on the CPU."""
        model = self.model
        seed = zlib.crc32(x.numpy().tobytes())
        draws = Draws(torch.Generator(self.device).manual_seed(seed))
        x = x.to(self.device, self.dtype)
        if self._alone is not None or self.window_samples:
            latents, info = model.encode(x, draws=draws)
        else:
            latents, info = reach.encode_long(model, x, draws=draws, chunk_samples=self.chunk_samples)
        if self.kind == "latents":
            return latents[0].t().cpu()
        if isinstance(model.bottleneck, DACRVQ) and model.bottleneck.args.quantize_on_decode:
            info = {model.bottleneck.tokens_id: model.bottleneck.tokenize(latents, draws)}
        return model.tokens(info)[0].cpu()

    def encode(self, audio: NDArray[np.float32], levels: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[T]` -> the stream of codes, padded to whole frames; every channel gets the same."""
        assert self.kind == "stream"
        stereo = np.repeat(audio[:, None], self.channels, axis=1)
        found = [
            self.encode_piece(stereo[piece.start : piece.stop], piece, [0])[0]
            for piece in self._whole_pieces(len(audio))
        ]
        return {0: np.concatenate([*found, np.zeros(0, np.int64)])}

    def _whole_pieces(self, length: int) -> list[Chunk]:
        """As `pieces`; windows one after the other."""
        if not self.window_samples:
            return self.pieces(length)
        size, padded = self.window_samples, self.geometry.padded_length(length)
        return [
            Chunk(start, start + size, start, min(start + size, padded)) for start in range(0, padded, size)
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------------- decoding

    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """The stream `[N Q]` -> audio of codes start ... stop - 1, `[(stop - start) * hop]`, stereo `[T, 2]`."""
        assert self.kind == "stream" and self.model.discrete is not None
        Q, hop = self.books, self.geometry.hops[0]
        stop = len(codes) if stop is None else stop
        frames = np.ascontiguousarray(codes[: len(codes) // Q * Q], np.int64).reshape(-1, Q)  # (N, Q)
        first, last = self._context(start // Q, -(-stop // Q), len(frames))
        tokens = torch.from_numpy(frames[first:last])[None].to(self.device)
        with torch.inference_mode():
            draws = Draws(torch.Generator(self.device).manual_seed(0))
            tokens = tokens if self.model.discrete.time_first else tokens.mT
            latents = self.model.discrete.decode_tokens(tokens, draws)
            audio = self._sound(latents, skip_bottleneck=True)
        begin = start * hop - first * Q * hop
        return audio[begin : begin + (stop - start) * hop]

    def decode_latents(self, latents: Tensor) -> NDArray[np.float32]:
        """Latents `[D, N]` -> audio `[N hop]`, stereo `[N hop, 2]`."""
        with torch.inference_mode():
            return self._sound(latents[None].to(self.device, self.dtype), skip_bottleneck=False)

    def _sound(self, latents: Tensor, *, skip_bottleneck: bool) -> NDArray[np.float32]:
        """Latents `[1, D, N]` -> audio, exactly N hops long: nets of odd strides give a little less."""
        model, draws = self.model, Draws(torch.Generator(self.device).manual_seed(0))
        if not skip_bottleneck and model.bottleneck is not None:
            latents = model.bottleneck.decode(latents, draws)
        latents = latents.to(self.dtype)
        window = self.window_samples // model.hop if self.bounded else 0
        if window:
            audio = torch.cat(
                [model.decode(part, draws=draws, skip_bottleneck=True) for part in latents.split(window, -1)], -1
            )
        else:
            audio = reach.decode_long(
                model, latents, draws=draws, chunk_samples=self.chunk_samples, skip_bottleneck=True
            )
        length = latents.shape[-1] * model.hop
        found = audio[0, :, :length].float().cpu()
        found = torch.nn.functional.pad(found, (0, length - found.shape[-1]))
        return found[0].numpy() if len(found) == 1 else np.ascontiguousarray(found.t().numpy())

    def _context(self, first: int, last: int, N: int) -> tuple[int, int]:
        """Frames to decode for frames first ... last - 1 to sound as in the whole song."""
        if (
            self.bounded
            or noise_channels(self.config.model.bottleneck)
            or isinstance(self.model.pretransform, InnerAutoencoder)
        ):
            return 0, N
        stages = reach.decoder_stages(self.model)
        stage = stages[0]
        if len(stages) > 1 or not isinstance(stage, reach.Local):
            return 0, N
        before, after = stage.halo
        return max(0, first - before) // stage.unit * stage.unit, min(N, last + after)


def _only_stage(model: Autoencoder) -> reach.Local | None:
    """The encoder as one stack of finite reach; None where it is more than that."""
    try:
        stages = reach.encoder_stages(model)
    except Unbounded:
        return None
    only = stages[0] if len(stages) == 1 else None
    return only if isinstance(only, reach.Local) and not isinstance(model.pretransform, InnerAutoencoder) else None


def fingerprint(model: Autoencoder, config: ModelConfig) -> str:
    """SHA-256 of everything that encoding depends on: the config and the weights before the decoder."""
    digest = hashlib.sha256(json.dumps(config.model.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(str(config.sample_rate).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- loading


def load_autoencoder(weights: str, config: str = "", device: str = "cpu") -> tuple[Autoencoder, ModelConfig]:
    """The autoencoder of a run of ours, or of weights and a model config. Raises HparamsError, CheckpointError."""
    if config:
        described, state = read_config(config), read_weights(weights)
    else:
        found = checkpoint.read(model_set.locate(model_set.Part(weights)))
        carried = carried_config(found)
        if carried is None:
            raise CheckpointError(f"{found.path}: carries no model config; name it with --model-config")
        described, state = carried, found.model
    model = Autoencoder(described.model)
    load_weights(model, state, weights, strict=True)
    return model.to(device), described


def is_autoencoder(part: model_set.Part) -> bool:
    """Whether a part is a configurable autoencoder: described by a JSON file, or a run of ours that carries its config."""
    if part.hps.endswith(".json"):
        return True
    path = Path(part.checkpoint)
    if part.hps or not path.exists() or is_port(path):
        return False
    return carried_config(checkpoint.read(path)) is not None


def load_codec(part: model_set.Part, device: str = "cpu") -> tuple[Codec, Resolved]:
    """What priors stand on: a VQ-VAE, or an autoencoder with tokens; with it the keys that priors share with it.

    Raises CheckpointError, HparamsError, UsageError.
    """
    if not is_autoencoder(part):
        return model_set.load_vqvae(part, device)
    model, config = load_autoencoder(part.checkpoint, part.hps, device)
    window = config.sample_size if reach.why_unbounded(model) else 0
    codec = AutoencoderCodec(model, config, "stream", window_samples=window)
    return codec, shared_keys(codec, part.checkpoint)


def shared_keys(codec: AutoencoderCodec, origin: str) -> Resolved:
    """An autoencoder's stream of codes in the keys of a VQ-VAE of one level, which is all that a prior sees of it."""
    geometry = codec.geometry
    values = {
        "sr": geometry.sr_hz, "levels": 1, "downs_t": (1,), "strides_t": geometry.hops, "l_bins": geometry.bins,
        "hvqvae_multipliers": (1,),
    }  # fmt: skip
    return settings.from_values(values, f"autoencoder {origin}")
