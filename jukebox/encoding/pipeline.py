"""The encoding of many songs in bounded memory: decoding ahead, pieces on all threads, results in order.

A song is decoded once, from its beginning, in blocks; blocks become the pieces its codec asks for; pieces of this song and
the next ones are encoded side by side, each on one thread. No song is ever in memory as a whole, and what comes out is
the same for any number of threads, workers or pieces in flight.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jukebox.audio.io import AudioError
from jukebox.codestore.layout import ItemFacts
from jukebox.encoding.custom import Rejected, described
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.sources import Job
from jukebox.errors import UserError
from jukebox.files import fault_point
from jukebox.models.codec import Codec
from jukebox.nn.tiles import Chunk

log = logging.getLogger(__name__)

Codes = dict[int, NDArray[Any]]
Audio = NDArray[np.float32]  # [t, channels]
_WAITING_BLOCKS = 8  # per song decoded ahead


@dataclass(frozen=True)
class Done:
    """An item that was encoded: its codes and facts, or the error that says why it could not be."""

    item: int
    result: tuple[Codes, ItemFacts] | UserError


@dataclass
class _Song:
    """An item on its way."""

    item: int
    job: Job
    parts: dict[int, list[NDArray[Any]]]
    begun_sec: float
    open_pieces: int = 0
    decoded_sec: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)
    failed: UserError | None = None


def encode_jobs(
    jobs: Sequence[tuple[int, Job]], codec: Codec, levels: Sequence[int], encode: EncodeHps
) -> Generator[Done, None, None]:
    """Encode items, in order. Raises UserError when memory is too small for a single piece."""
    threads = torch.get_num_threads() if codec_on_cpu(codec) else 1
    line = _Line(codec, levels, threads, max(2 * threads, encode.batch_size))
    channels, rate = codec.channels, codec.geometry.sr_hz
    with line:
        audio = _ahead((job.audio(rate, channels) for _, job in jobs), encode.num_workers)
        for (item, job), blocks in zip(jobs, audio, strict=True):
            song = _Song(item, job, {level: [] for level in levels}, time.perf_counter())
            yield from line.feed(song, blocks)
        yield from line.finish()


def codec_on_cpu(codec: Codec) -> bool:
    """Whether pieces run on several threads; a GPU has its own parallelism."""
    return getattr(codec, "device", torch.device("cpu")).type == "cpu"


class _Line:
    """Pieces in flight, and what they belong to; halves how many there may be when memory runs out."""

    def __init__(self, codec: Codec, levels: Sequence[int], threads: int, most: int) -> None:
        self._codec, self._levels, self._most = codec, levels, most
        self._before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._flying: deque[tuple[_Song, Audio, Chunk, Future[Codes]]] = deque()
        self._waiting: deque[_Song] = deque()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)

    def feed(self, song: _Song, blocks: Iterator[Audio]) -> Iterator[Done]:
        """Cut a song into pieces and have them encoded; gives what is finished meanwhile."""
        self._waiting.append(song)
        song.open_pieces += 1  # the song itself, until all of it is cut
        try:
            song.extra, blocks = described(song.job, blocks, self._codec)
            for piece, audio in _cut(blocks, self._codec.pieces(song.job.length_samples)):
                song.open_pieces += 1
                self._flying.append((song, audio, piece, self._submit(audio, piece)))
                while len(self._flying) >= self._most:
                    self._land()
                yield from self._finished()
        except (AudioError, Rejected) as error:
            song.failed = error
        song.decoded_sec = time.perf_counter() - song.begun_sec
        song.open_pieces -= 1
        yield from self._finished()

    def finish(self) -> Iterator[Done]:
        """What is still on its way."""
        while self._flying:
            self._land()
            yield from self._finished()

    def _submit(self, audio: Audio, piece: Chunk) -> Future[Codes]:
        return self._pool.submit(self._codec.encode_piece, audio, piece, self._levels)

    def _land(self) -> None:
        song, audio, piece, future = self._flying.popleft()
        try:
            codes = future.result()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            codes = self._alone(audio, piece)
        for level in self._levels:
            song.parts[level].append(codes[level])
        song.open_pieces -= 1

    def _alone(self, audio: Audio, piece: Chunk) -> Codes:
        """A piece for which memory did not suffice, with nothing else in flight; from now on half as many fly."""
        for *_, other in self._flying:
            other.exception()  # waits
        self._most = max(1, self._most // 2)
        log.warning("out of memory: from here on at most %d pieces are encoded at a time", self._most)
        try:
            return self._submit(audio, piece).result()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"Memory does not suffice for one piece of {piece.stop - piece.start} samples. Free some, or take a "
                "machine with more; fewer processes or --threads=1 need less."
            ) from error

    def _finished(self) -> Iterator[Done]:
        while self._waiting and not self._waiting[0].open_pieces:
            song = self._waiting.popleft()
            if song.failed:
                yield Done(song.item, song.failed)
                continue
            codes = {level: self._joined(level, parts) for level, parts in song.parts.items()}
            song.parts.clear()
            fault_point("encode.after_song")
            facts = ItemFacts(
                song.job.length_samples, song.job.total_samples, audio_channels=2, load_time_sec=song.decoded_sec,
                extra=song.extra,
            )  # fmt: skip
            yield Done(song.item, (codes, facts))

    def _joined(self, level: int, parts: list[NDArray[Any]]) -> NDArray[Any]:
        axes = self._codec.arrays([level], compat=False)[0].axes
        return np.concatenate(parts, axis=0 if parts[0].ndim == 1 else axes.index("N"))


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text


def _cut(blocks: Iterable[Audio], pieces: Sequence[Chunk]) -> Iterator[tuple[Chunk, Audio]]:
    """The audio of each piece as soon as it is there; keeps no more than one piece and one block in memory."""
    waiting = iter(blocks)
    held, start, ended = np.zeros((0, 0), np.float32), 0, False
    for piece in pieces:
        parts, have = [held[piece.start - start :]], max(0, start + len(held) - piece.start)
        while have < piece.stop - piece.start and not ended:
            block = next(waiting, None)
            ended = block is None
            if block is not None:
                parts.append(block)
                have += len(block)
        held = np.concatenate([part for part in parts if len(part)] or [np.zeros((0, 1), np.float32)])
        start = piece.start
        yield piece, held[: piece.stop - piece.start]
    for _ in waiting:  # so that the decoder sees the end of the file, and whether it is the right one
        pass


def _ahead(songs: Iterable[Iterator[Audio]], count: int) -> Iterator[Iterator[Audio]]:
    """The same songs, `count` of them decoded by threads of their own before they are asked for."""
    if not count:
        yield from songs
        return
    waiting: deque[_Decoder] = deque()
    try:
        for song in songs:
            waiting.append(_Decoder(song))
            if len(waiting) > count:
                yield from _taken(waiting)
        while waiting:
            yield from _taken(waiting)
    finally:
        for decoder in waiting:
            decoder.stop()


def _taken(waiting: deque[_Decoder]) -> Iterator[Iterator[Audio]]:
    decoder = waiting.popleft()
    try:
        yield iter(decoder)
    finally:
        decoder.stop()


class _Decoder:
    """A thread that decodes one song into a short queue."""

    def __init__(self, blocks: Iterator[Audio]) -> None:
        self._blocks, self._stopped = blocks, False
        self._queue: queue.Queue[Audio | Exception | None] = queue.Queue(_WAITING_BLOCKS)
        threading.Thread(target=self._run, daemon=True).start()

    def __iter__(self) -> Iterator[Audio]:
        while (block := self._queue.get()) is not None:
            if isinstance(block, Exception):
                raise block
            yield block

    def stop(self) -> None:
        """Let the thread end; what it has decoded is dropped."""
        self._stopped = True
        while not self._queue.empty():
            self._queue.get_nowait()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            for block in self._blocks:
                self._put(block)
                if self._stopped:
                    return
        except Exception as error:  # raised again in the thread that asks for the next block
            last = error
        if last is not None:
            self._put(last)
        self._put(None)

    def _put(self, block: Audio | Exception | None) -> None:
        while not self._stopped:
            try:
                return self._queue.put(block, timeout=0.2)
            except queue.Full:
                continue
