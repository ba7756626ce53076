"""Memory that runs out while songs are sampled: the batch is halved, and the songs come out the same."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from jukebox.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
"""How torch, CUDA and oneDNN say so where they raise a plain RuntimeError."""


class OutOfMemory(UserError):
    """Not even one song fits into memory."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, by itself or by what it came from (a failed recording of a
    CUDA graph covers it with another)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and ran_out(before)


@dataclass
class Room:
    """How many songs of a level fit into memory together: as many as are asked for, until an allocation fails."""

    level: int
    most: int = sys.maxsize

    def share_out(self, songs: Sequence[T], work: Callable[[list[T]], None]) -> None:
        """Work on all songs in batches that fit. `work` changes nothing when it raises; it is then called again with
        half as many. An item does not depend on its batch, so that the result is the same.

        Raises OutOfMemory when one song alone does not fit.
        """
        waiting = list(songs)
        while waiting:
            batch = waiting[: self.most]
            try:
                work(batch)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                self._halve(len(batch), str(error) or type(error).__name__)
            else:
                del waiting[: len(batch)]
                continue
            if torch.accelerator.is_available():  # outside of `except`: the failed batch is free only there
                torch.accelerator.empty_cache()

    def _halve(self, songs: int, reason: str) -> None:
        if songs == 1:
            raise OutOfMemory(
                f"level {self.level}: there is no memory for even one song ({reason.splitlines()[0]}). `--plan` shows what "
                "is needed; --dtype=int8 and a smaller --chunk_size need less. What is sampled so far is kept."
            )
        self.most = songs // 2
        log.warning(
            "level %d: memory does not hold %d songs at once; going on with %d (--max_batch_size=%d starts so)",
            self.level, songs, self.most, self.most,
        )  # fmt: skip
