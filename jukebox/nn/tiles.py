"""Long inputs through convolution stacks: chunks of fixed shape with a halo, equal to one pass.

A chunk is computed alone, in a fixed shape, on one thread, and chunks run in parallel threads: then results do not
depend on the number of ranks, workers or threads. A chunk at the edge of the song sees the zero padding of one pass,
because it is shifted inwards instead of padded; elsewhere a halo as wide as the receptive field is cut away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


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

    A `length` of at most `size` is one chunk. Raises ValueError when the halo leaves nothing to keep.
    """
    if length <= size:
        yield Chunk(0, length, 0, length)
        return
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


def run_chunks(
    work: Callable[[Chunk], Tensor], pieces: list[Chunk], threads: int | None = None
) -> Iterator[tuple[Chunk, Tensor]]:
    """Compute chunks in order, each on one thread, `threads` of them at a time (default: the threads torch has).

    At most 2 x threads results wait in memory.
    """
    threads = threads or torch.get_num_threads()
    if len(pieces) == 1 or threads == 1:
        with one_thread():
            for piece in pieces:
                yield piece, work(piece)
        return
    before = torch.get_num_threads()

    def alone(piece: Chunk) -> Tensor:
        with torch.inference_mode(not torch.is_grad_enabled()):
            return work(piece)

    pool = ThreadPoolExecutor(min(threads, len(pieces)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = [pool.submit(alone, piece) for piece in pieces[: 2 * threads]]
        for index, piece in enumerate(pieces):
            result = waiting.pop(0).result()
            if index + 2 * threads < len(pieces):
                waiting.append(pool.submit(alone, pieces[index + 2 * threads]))
            yield piece, result
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


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
