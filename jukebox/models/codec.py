"""What any codec offers: a sample rate, hops, bins, and audio to codes and back in exact pieces of bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox.codestore.arrays import ArraySpec
from jukebox.codestore.geometry import Geometry
from jukebox.codestore.layout import HALF
from jukebox.nn.tiles import Chunk, Span, even_chunks, run_chunks
from jukebox.vqvae.encdec import Decoder, Encoder
from jukebox.vqvae.model import VQVAE

CHUNK_SAMPLES = 1 << 19
"""Samples of audio computed together, halo included: 12 s at 44.1 kHz."""
_ROWS = 512  # vectors compared with a codebook at a time: always as many, so that near ties fall the same way


class Codec(Protocol):
    """Audio to codes and back. Level 0 is the finest.

    `channels` of the audio that it encodes. `window_samples`: the length of everything it encodes, 0 when it takes whole
    songs of any length. A song is encoded piece by piece: `pieces` says which ranges of it are computed together.
    """

    geometry: Geometry
    fingerprint: str
    channels: int
    window_samples: int

    def arrays(self, levels: Sequence[int], compat: bool) -> list[ArraySpec]:
        """What the arrays of these levels look like in a store."""

    def pieces(self, length_samples: int) -> list[Chunk]:
        """The ranges of a song of this length that are encoded together, in order; they cover all of it."""

    def encode_piece(self, audio: NDArray[np.float32], piece: Chunk, levels: Sequence[int]) -> dict[int, NDArray[Any]]:
        """Audio `[t, channels]` from piece.start on -> what is kept of each level; silence follows where it ends early.

        Runs on one thread, and may run on several at the same time.
        """

    def encode(self, audio: NDArray[np.float32], levels: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[T]` -> codes `[N]` of the levels, padded to whole top codes."""

    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """Codes `[N]` of one level -> audio of codes start ... stop - 1, `[(stop - start) * hop]`."""


class VQVAECodec:
    """A VQ-VAE as a codec. Pieces are computed alone, each on one thread, and their shape follows from the length of the
    song: codes do not depend on ranks, workers or batch. device: where the nets are. half: encode in float16."""

    channels = 1
    window_samples = 0

    def __init__(self, vqvae: VQVAE, sr_hz: int, chunk_samples: int = CHUNK_SAMPLES, *, half: bool = False) -> None:
        self.vqvae = vqvae.eval()
        self.geometry = Geometry(sr_hz, vqvae.hops, vqvae.bins)
        self.chunk_samples = chunk_samples
        self.fingerprint = fingerprint(vqvae) + (HALF if half else "")
        self.device = next(vqvae.parameters()).device
        self.dtype = torch.float16 if half else torch.float32
        if half:
            self.vqvae.encoders.half()
        self._encoders = [encoder for encoder in vqvae.encoders if isinstance(encoder, Encoder)]
        self._decoders = [decoder for decoder in vqvae.decoders if isinstance(decoder, Decoder)]
        halos = [encoder.halo() for encoder in self._encoders]
        self._halo = max(before for before, _ in halos), max(after for _, after in halos)

    def arrays(self, levels: Sequence[int], compat: bool) -> list[ArraySpec]:
        """One code per time step."""
        return [ArraySpec.for_codes(self.geometry.bins, compat=compat)] * len(levels)

    def pieces(self, length_samples: int) -> list[Chunk]:
        """Pieces of equal shape of the padded song, the same for all levels."""
        top = self.geometry.top_hop
        return even_chunks(self.geometry.padded_length(length_samples), self.chunk_samples, self._halo, top)

    @torch.inference_mode()
    def encode_piece(
        self, audio: NDArray[np.float32], piece: Chunk, levels: Sequence[int]
    ) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[t, 1]` from piece.start on -> codes `[n]` of the kept part of the piece."""
        x = torch.zeros(1, 1, piece.stop - piece.start)
        x[0, 0, : len(audio)] = torch.from_numpy(np.ascontiguousarray(audio[:, 0]))
        x = x.to(self.device, self.dtype)
        found = {}
        for level in levels:
            hop = self.geometry.hops[level]
            kept = Span((piece.keep_start - piece.start) // hop, (piece.keep_stop - piece.start) // hop - 1)
            embedded = self._encoders[level](x, kept)[0].t()  # (n, emb)
            found[level] = self._codes(embedded.float(), level).cpu().numpy()
        return found

    def _codes(self, rows: Tensor, level: int) -> Tensor:
        """The nearest codebook vectors of rows `[n, emb]`, a fixed number of rows at a time."""
        book = self.vqvae.codebook(level)
        if 2 * book.width == rows.shape[1]:
            rows = rows[:, : book.width] + rows[:, book.width :]
        codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        block = rows.new_zeros(_ROWS, book.width)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            block[: len(part)] = part
            codes[start : start + _ROWS] = book(block).codes[: len(part)]
        return codes

    def encode(self, audio: NDArray[np.float32], levels: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """Mono audio `[T]` -> codes `[N]` of the levels, padded with silence to whole top codes."""
        levels = range(self.vqvae.levels) if levels is None else levels
        found: dict[int, list[NDArray[np.int64]]] = {level: [] for level in levels}

        def work(piece: Chunk) -> dict[int, NDArray[np.int64]]:
            return self.encode_piece(audio[piece.start : piece.stop, None], piece, levels)

        for _, codes in run_chunks(work, self.pieces(len(audio)), _threads(self.device)):
            for level in levels:
                found[level].append(codes[level])
        return {level: np.concatenate([*parts, np.zeros(0, np.int64)]) for level, parts in found.items()}

    def decode(
        self, codes: NDArray[np.int64], level: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float32]:
        """Codes `[N]` of one level -> audio of the codes start ... stop - 1, unclipped, `[(stop - start) * hop]`.

        The codes outside the range are its context, so that ranges join without a seam.
        """
        decoder, hop = self._decoders[level], self.geometry.hops[level]
        halo = decoder.halo()
        stop = len(codes) if stop is None else stop
        first, last = max(0, start - halo[0]), min(len(codes), stop + halo[1])
        z = torch.from_numpy(np.ascontiguousarray(codes[first:last], dtype=np.int64))[None]
        audio = np.empty(z.shape[1] * hop, dtype=np.float32)

        @torch.inference_mode()
        def work(piece: Chunk) -> Tensor:
            vectors = self.vqvae.codebook(level).lookup(z[:, piece.start : piece.stop].to(self.device))
            kept = Span((piece.keep_start - piece.start) * hop, (piece.keep_stop - piece.start) * hop - 1)
            return decoder(vectors.transpose(1, 2), kept)[0, 0].cpu()  # type: ignore[no-any-return]

        pieces = even_chunks(z.shape[1], self.chunk_samples // hop, halo, 1)
        for piece, part in run_chunks(work, pieces, _threads(self.device)):
            audio[piece.keep_start * hop : piece.keep_stop * hop] = part.numpy()
        return audio[(start - first) * hop : (stop - first) * hop]


def _threads(device: torch.device) -> int | None:
    """Pieces at a time: as torch has threads, but one on a GPU, which has its own."""
    return None if device.type == "cpu" else 1


def fingerprint(vqvae: VQVAE) -> str:
    """SHA-256 of everything that encoding depends on: the encoders' weights and the codebooks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vqvae.state_dict().items()):
        if name.startswith("encoders.") or name.endswith(".vectors"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
