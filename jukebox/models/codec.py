"""What any codec offers: a sample rate, hops, bins, and audio to codes and back in exact chunks of bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox.codestore.geometry import Geometry
from jukebox.nn.tiles import Chunk, chunks, run_chunks
from jukebox.vqvae.encdec import Decoder, Encoder
from jukebox.vqvae.model import VQVAE

CHUNK_SAMPLES = 1 << 19
"""Samples of audio computed together, halo included: 12 s at 44.1 kHz."""


class Codec(Protocol):
    """Audio to codes and back. Level 0 is the finest."""

    geometry: Geometry
    fingerprint: str

    def encode(self, audio: NDArray[np.float32], levels: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[T]` -> codes `[N]` of the levels, padded to whole top codes."""

    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """Codes `[N]` of one level -> audio of codes start ... stop - 1, `[(stop - start) * hop]`."""


class VQVAECodec:
    """A VQ-VAE as a codec. Chunks are computed alone, in fixed shapes, each on one thread: codes do not depend on
    ranks, workers or batch. device: where the nets are."""

    def __init__(self, vqvae: VQVAE, sr_hz: int, chunk_samples: int = CHUNK_SAMPLES) -> None:
        self.vqvae = vqvae.eval()
        self.geometry = Geometry(sr_hz, vqvae.hops, vqvae.bins)
        self.chunk_samples = chunk_samples
        self.fingerprint = fingerprint(vqvae)
        self.device = next(vqvae.parameters()).device

    @torch.inference_mode()
    def encode(self, audio: NDArray[np.float32], levels: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[T]` -> codes `[N]` of the levels, padded with silence to whole top codes."""
        length = self.geometry.padded_length(len(audio))
        x = torch.zeros(1, length, 1)
        x[0, : len(audio), 0] = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
        levels = range(self.vqvae.levels) if levels is None else levels
        return {level: self._encode_level(x, level) for level in levels}

    def _encode_level(self, x: Tensor, level: int) -> NDArray[np.int64]:
        encoder = self.vqvae.encoders[level]
        assert isinstance(encoder, Encoder)
        hop, (before, after) = encoder.hop, encoder.halo()
        size = max(self.chunk_samples, 4 * (before + after) + hop)
        codes = np.empty(x.shape[1] // hop, dtype=np.int64)

        def work(piece: Chunk) -> Tensor:
            part = x[:, piece.start : piece.stop].to(self.device)
            found = self.vqvae.encode(part, level, level + 1)[0][0]
            return found[(piece.keep_start - piece.start) // hop : (piece.keep_stop - piece.start) // hop].cpu()

        for piece, found in run_chunks(work, list(chunks(x.shape[1], size, (before, after), hop))):
            codes[piece.keep_start // hop : piece.keep_stop // hop] = found.numpy()
        return codes

    @torch.inference_mode()
    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """Codes `[N]` of one level -> audio of the codes start ... stop - 1, unclipped, `[(stop - start) * hop]`.

        The codes outside the range are its context, so that ranges join without a seam.
        """
        decoder = self.vqvae.decoders[level]
        assert isinstance(decoder, Decoder)
        hop, halo = decoder.hop, decoder.halo()
        stop = len(codes) if stop is None else stop
        first, last = max(0, start - halo[0]), min(len(codes), stop + halo[1])
        z = torch.from_numpy(np.ascontiguousarray(codes[first:last], dtype=np.int64))[None]
        size = max(self.chunk_samples // hop, 4 * sum(halo) + 1)
        audio = np.empty(z.shape[1] * hop, dtype=np.float32)

        def work(piece: Chunk) -> Tensor:
            part = self.vqvae.decode([z[:, piece.start : piece.stop].to(self.device)], level, level + 1)[0, :, 0]
            kept = part[(piece.keep_start - piece.start) * hop : (piece.keep_stop - piece.start) * hop]
            return kept.cpu()

        for piece, part in run_chunks(work, list(chunks(z.shape[1], size, halo, 1))):
            audio[piece.keep_start * hop : piece.keep_stop * hop] = part.numpy()
        return audio[(start - first) * hop : (stop - first) * hop]


def fingerprint(vqvae: VQVAE) -> str:
    """SHA-256 of everything that encoding depends on: the encoders' weights and the codebooks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vqvae.state_dict().items()):
        if name.startswith("encoders.") or name.endswith(".vectors"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
