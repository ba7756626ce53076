"""Batches of audio in an order that is a function of (seed, epoch, position), whatever number of ranks and workers.

An epoch is as many whole global batches (bs * ranks items) as the set holds, at least one. Global batch `step` takes the
next positions of its epoch's shuffled order; rank r takes those whose number in the batch is r modulo the ranks. So a run
goes on at any step, and two ranks with bs b see, step by step, what one rank with bs 2b sees.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from jukebox.audio import io
from jukebox.data.audio_dataset import AudioDataset, AudioItem, ChunkRequest, read_chunk
from jukebox.data.split import random_numbers
from jukebox.data.workers import Workers
from jukebox.errors import DataError, UserError
from jukebox.files import printable
from jukebox.labels.song import SongMeta

_ORDER = 0  # the stream of random numbers of the order, beside those of shifts and blends

log = logging.getLogger(__name__)


class Order:
    """Which item stands where: epochs of shuffled items, cut into global batches."""

    def __init__(self, n_items: int, global_batch: int, seed: int = 0, *, shuffle: bool = True) -> None:
        self.n_items, self.global_batch, self.seed, self.shuffle = n_items, global_batch, seed, shuffle
        self.steps_per_epoch = max(1, n_items // global_batch)
        self._laps = max(1, -(-global_batch // n_items))  # how often a set smaller than a batch is gone through
        self._shuffled: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def positions(self, step: int, rank: int = 0, size: int = 1) -> list[tuple[int, int]]:
        """(epoch, position) of each item that a rank takes in a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return [(epoch, within * self.global_batch + place) for place in range(rank, self.global_batch, size)]

    def item(self, epoch: int, position: int) -> tuple[int, int]:
        """(index, draw) of a position; a draw is an epoch, or a lap in it where a batch holds items twice."""
        lap, place = divmod(position, self.n_items)
        return int(self._permutation(epoch, lap)[place]), epoch * self._laps + lap

    def from_position(self, epoch: int, position: int) -> Iterator[tuple[int, int]]:
        """(index, draw) of a position and of all that could take its place, in turn."""
        for skip in range(self.n_items):
            yield self.item(epoch, position + skip)

    def _permutation(self, epoch: int, lap: int) -> npt.NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.n_items)
        if (epoch, lap) not in self._shuffled:
            for old in list(self._shuffled)[:-2]:  # epochs overlap while items are read ahead
                del self._shuffled[old]
            self._shuffled[epoch, lap] = random_numbers(self.seed, epoch, lap, _ORDER).permutation(self.n_items)
        return self._shuffled[epoch, lap]


@dataclass(frozen=True)
class Batch:
    """Items of one rank and step: audio [B, T, 2] float32, mix [B] (share of the left channel), the rest [B] or B long.

    offsets and totals are in samples of the songs; `bad_reads` counts the items refused so far while reading.
    """

    audio: torch.Tensor
    mix: torch.Tensor
    songs: list[SongMeta]
    offsets: torch.Tensor
    totals: torch.Tensor
    indices: torch.Tensor
    files: list[str]
    step: int
    epoch: int
    bad_reads: int

    def to_mono(self) -> torch.Tensor:
        return to_mono(self.audio, self.mix)


def to_mono(audio: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """(B, T, 2), (B,) -> (B, T, 1): m * left + (1 - m) * right (spec 2.7)."""
    share = mix.to(audio)[:, None, None]
    return share * audio[..., :1] + (1 - share) * audio[..., 1:]


@dataclass
class BadReads:
    """Files that could not be read after they were admitted, and how many are too many (at least one may fail)."""

    n_files: int
    on_bad_file: str = "skip"
    max_bad: float = 0.01
    reads: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def note(self, file: str, error: UserError) -> None:
        """Counts a failure. Raises DataError when the run must stop."""
        reason = error.reason if isinstance(error, io.AudioError) else str(error)
        self.reads += 1
        if file not in self.reasons:
            self.reasons[file] = reason
            log.warning("bad file left out: %s: %s", printable(file), printable(reason))
        if self.on_bad_file == "error":
            raise DataError(f"{printable(file)}: {printable(reason)} (--on_bad_file=skip leaves such files out)")
        if len(self.reasons) > max(1, self.max_bad * self.n_files):
            shown = "".join(f"\n  {printable(name)}: {printable(why)}" for name, why in list(self.reasons.items())[:10])
            raise DataError(
                f"{len(self.reasons)} of {self.n_files} files failed while they were read, more than --max_bad={self.max_bad:g} "
                f"allows:{shown}"
            )


Read = Callable[[ChunkRequest], io.Audio]


def batches(
    dataset: AudioDataset,
    *,
    bs: int,
    comm_rank: int = 0,
    comm_size: int = 1,
    seed: int = 0,
    start_step: int = 0,
    workers: int = 0,
    shuffle: bool = True,
    on_bad_file: str = "skip",
    max_bad: float = 0.01,
    timeout_sec: float = 300.0,
    read: Read = read_chunk,
) -> Iterator[Batch]:
    """Training batches without end, from global step `start_step` on.

    An item that cannot be read, or that kills the worker process that reads it, is counted and the next readable one of
    the order takes its place. Raises DataError above the share `max_bad` of the files, or at once with
    on_bad_file="error", and when a read takes longer than `timeout_sec`.
    """
    order = Order(len(dataset), bs * comm_size, seed, shuffle=shuffle)
    bad = BadReads(len(dataset.files), on_bad_file, max_bad)

    def slots() -> Iterator[Iterator[tuple[int, int]]]:
        step = start_step
        while True:
            for epoch, position in order.positions(step, comm_rank, comm_size):
                yield order.from_position(epoch, position)
            step += 1

    items = _read_in_order(dataset, slots(), bad, workers, max(bs, 2 * workers), timeout_sec, read)
    step = start_step
    while True:
        taken = [item for _, item in zip(range(bs), items, strict=False) if item is not None]
        if len(taken) < bs:
            raise DataError("no readable item is left in the data set")
        yield _batch(taken, step, order.epoch(step), bad)
        step += 1


def evaluation_batches(
    dataset: AudioDataset,
    *,
    bs: int,
    comm_rank: int = 0,
    comm_size: int = 1,
    workers: int = 0,
    on_bad_file: str = "skip",
    max_bad: float = 0.01,
    timeout_sec: float = 300.0,
    read: Read = read_chunk,
) -> Iterator[Batch]:
    """Every item once, in order, draw 0; the last batch may be smaller, and ranks may get one batch more or less.

    What cannot be read is counted and left out, never replaced. Raises as `batches` does.
    """
    bad = BadReads(len(dataset.files), on_bad_file, max_bad)
    slots = (iter([(index, 0)]) for index in range(comm_rank, len(dataset), comm_size))
    items = _read_in_order(dataset, slots, bad, workers, max(bs, 2 * workers), timeout_sec, read)
    taken: list[tuple[int, AudioItem]] = []
    step = 0
    for item in items:
        taken += [item] if item is not None else []
        if len(taken) == bs:
            yield _batch(taken, step, 0, bad)
            taken, step = [], step + 1
    if taken:
        yield _batch(taken, step, 0, bad)


def _read_in_order(
    dataset: AudioDataset,
    slots: Iterable[Iterator[tuple[int, int]]],
    bad: BadReads,
    workers: int,
    ahead: int,
    timeout_sec: float,
    read: Read,
) -> Iterator[tuple[int, AudioItem] | None]:
    """One item per slot, in the order of slots: the first of its candidates (index, draw) that can be read, or None."""
    waiting = iter(slots)
    asked: dict[int, tuple[Iterator[tuple[int, int]], tuple[int, int]]] = {}  # ticket: candidates left, candidate tried
    done: dict[int, tuple[int, AudioItem] | None] = {}
    issued = delivered = 0

    with Workers(read, workers, timeout_sec=timeout_sec) as pool:

        def ask(ticket: int, candidates: Iterator[tuple[int, int]], *, first: bool) -> None:
            for index, draw in candidates:
                if dataset.files[dataset.place(index, draw)[0]].entry.file not in bad.reasons:
                    asked[ticket] = candidates, (index, draw)
                    pool.submit(ticket, dataset.request(index, draw), first=first)
                    return
            done[ticket] = None

        while True:
            while issued - delivered < max(1, ahead if workers else 1):
                candidates = next(waiting, None)
                if candidates is None:
                    break
                ask(issued, candidates, first=False)
                issued += 1
            if delivered == issued:
                return
            while delivered not in done:
                ticket, answer = pool.take()
                candidates, (index, draw) = asked.pop(ticket)
                if isinstance(answer, UserError):
                    bad.note(dataset.files[dataset.place(index, draw)[0]].entry.file, answer)
                    ask(ticket, candidates, first=True)
                else:
                    done[ticket] = index, dataset.describe(index, draw, answer)
            yield done.pop(delivered)
            delivered += 1


def _batch(taken: list[tuple[int, AudioItem]], step: int, epoch: int, bad: BadReads) -> Batch:
    items = [item for _, item in taken]
    return Batch(
        audio=torch.from_numpy(np.stack([item.audio for item in items])),
        mix=torch.tensor([item.mix for item in items], dtype=torch.float32),
        songs=[item.song for item in items],
        offsets=torch.tensor([item.offset_samples for item in items]),
        totals=torch.tensor([item.total_samples for item in items]),
        indices=torch.tensor([index for index, _ in taken]),
        files=[item.file for item in items],
        step=step,
        epoch=epoch,
        bad_reads=bad.reads,
    )
