"""Long inputs through convolution stacks: chunks of fixed shape with a halo, equal to one pass.

A chunk is computed alone, in a fixed shape, on one thread, and chunks run in parallel threads: then results do not
depend on the number of ranks, workers or threads. A chunk at the edge of the song sees the zero padding of one pass,
because it is shifted inwards instead of padded; elsewhere a halo as wide as the receptive field is cut away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """A range of positions, first ... last inclusive, followed backwards through layers to what it needs."""

    first: int
    last: int

    def grow(self, reach: int) -> Span:
        """Through convolutions of stride 1 that reach `reach` positions to either side."""
        return Span(self.first - reach, self.last + reach)

    def down(self, stride: int, kernel: int, padding: int) -> Span:
        """Through a strided convolution."""
        return Span(self.first * stride - padding, self.last * stride - padding + kernel - 1)

    def up(self, stride: int, kernel: int, padding: int) -> Span:
        """Through a transposed convolution."""
        return Span(-((kernel - 1 - padding - self.first) // stride), (self.last + padding) // stride)


@dataclass(frozen=True)
class Chunk:
    """Input positions [start, stop) that are computed together; of the output, [keep_start, keep_stop) is kept
    (positions in output units, absolute)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def chunks(length: int, size: int, halo: tuple[int, int], unit: int) -> Iterator[Chunk]:
    """Cut `length` input positions into chunks of equal shape.

    size: input positions of one chunk, halo included. halo: input positions needed before and after what is kept.
    unit: chunk borders are multiples of it (the total stride of the stack). Positions are kept in input units.

    A `length` of at most `size` is one chunk. Raises ValueError when the halo leaves nothing to keep, or a longer
    `length` is not a multiple of `unit`.
    """
    if length <= size:
        yield Chunk(0, length, 0, length)
        return
    if length % unit:
        raise ValueError(f"{length} positions are not whole units of {unit}")
    before, after = (-(-h // unit) * unit for h in halo)
    size -= size % unit
    if size - before - after < unit:
        raise ValueError(f"a chunk of {size} samples leaves nothing beside a halo of {before} + {after}")
    kept = 0
    while kept < length:
        start = max(0, min(kept - before, length - size) // unit * unit)
        stop = min(length, start + size) if start + size < length else length
        keep_stop = length if stop >= length else stop - after
        yield Chunk(start, stop, kept, keep_stop)
        kept = keep_stop


def even_chunks(length: int, size: int, halo: tuple[int, int], unit: int) -> list[Chunk]:
    """As few chunks as `chunks` of `size` positions would make, or of four halos where that is more, but as short as so
    many can be: a chunk at the end then computes little twice. Their shape is a function of `length` alone."""
    before, after = (-(-h // unit) * unit for h in halo)
    both = before + after
    size = max(size, 4 * both + unit)
    if length > size:
        count = -(-(length - both) // (size - both))
        size = min(size, -(-(length - both) // (count * unit)) * unit + both)
    return list(chunks(length, size, halo, unit))


def run_chunks(
    work: Callable[[Task], Result], pieces: Iterable[Task], threads: int | None = None
) -> Iterator[tuple[Task, Result]]:
    """Work on pieces, each on one thread, `threads` of them at a time (default: the threads torch has); results in order.

    Pieces are asked for as they are needed; at most 2 x threads of them, or of their results, wait in memory.
    """
    threads = threads or torch.get_num_threads()
    if threads == 1 or (isinstance(pieces, Sized) and len(pieces) == 1):
        with one_thread():
            for piece in pieces:
                yield piece, work(piece)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[tuple[Task, Future[Result]]] = deque()
        for piece in pieces:
            waiting.append((piece, pool.submit(work, piece)))
            if len(waiting) == 2 * threads:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


class one_thread:  # noqa: N801 - reads as a statement
    """`with one_thread():` computes on one intra-op thread and gives the others back."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)
