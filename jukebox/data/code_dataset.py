"""Windows of codes for training a prior: read from a store, without audio and without the VQ-VAE.

The face is that of the audio data set: `len`, and `item(index, epoch)`, a function of its arguments and the seed alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jukebox.codestore.store import CodeStore
from jukebox.data.split import is_held_out
from jukebox.errors import DataError
from jukebox.labels.song import SongMeta

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodeItem:
    """One window: `codes` int64 [N] of the prior's level, `upper` those of the level above it, None at the top.

    `offset_samples` is where it starts in the song, `total_samples` the true length of the song.
    """

    codes: NDArray[np.int64]
    upper: NDArray[np.int64] | None
    song: SongMeta
    offset_samples: int
    total_samples: int
    file: str


class CodeDataset:
    """All windows of `n_ctx` codes of one level, song by song; they start at top-code positions.

    A song of T samples gives floor(T / window) windows, spread evenly over it. With `shift` each is drawn uniformly
    from its own share of the possible starts, anew in every epoch. Songs shorter than a window, or outside
    [min_samples, max_samples), are listed in `left_out` with the reason and give none.
    Raises DataError when nothing is left, or when `n_ctx` is not a whole number of codes of the level above.
    """

    def __init__(
        self,
        store: CodeStore,
        level: int,
        n_ctx: int,
        *,
        part: Literal["train", "test", "all"] = "all",
        train_share: float = 0.9,
        seed: int = 0,
        shift: bool = False,
        min_samples: int = 0,
        max_samples: int | None = None,
    ) -> None:
        geometry = store.geometry
        upper = level + 1 if level + 1 < geometry.levels else None
        for needed in (level,) if upper is None else (level, upper):
            store.plan.array(needed)
        if upper is not None and n_ctx % geometry.ratio(level, upper):
            raise DataError(
                f"--n_ctx={n_ctx} is not a multiple of the {geometry.ratio(level, upper)} codes that level {level} has "
                f"for one of level {upper}"
            )
        self.store, self.level, self.upper, self.n_ctx = store, level, upper, n_ctx
        self.seed, self.shift = seed, shift
        self.window_samples = geometry.samples_for(level, n_ctx)
        self.left_out: list[tuple[str, str]] = []
        wanted = self._wanted_songs(part, train_share, min_samples, max_samples)
        counts = np.where(wanted, store.lengths // self.window_samples, 0)
        self._ends = np.cumsum(counts, dtype=np.int64)  # window numbers at which each song ends
        if not len(self):
            raise DataError(self._why_empty(part))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def n_songs(self) -> int:
        """Songs that give at least one window."""
        return int(np.count_nonzero(np.diff(self._ends, prepend=0)))

    def item(self, index: int, epoch: int = 0) -> CodeItem:
        """Window `index`; raises StoreError when its file is damaged."""
        i = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[i - 1]) if i else 0
        geometry, found = self.store.geometry, self.store.item(i)
        start = self._start(found.length_samples, index - first, int(self._ends[i]) - first, index, epoch)
        offset_samples = start * geometry.top_hop
        upper = None if self.upper is None else self._codes(self.upper, i, offset_samples)
        song = found.meta.get("song")
        return CodeItem(
            codes=self._codes(self.level, i, offset_samples),
            upper=upper,
            song=SongMeta.from_json(song if isinstance(song, dict) else {}, found.relpath),
            offset_samples=found.offset_samples + offset_samples,
            total_samples=found.total_samples,
            file=found.relpath,
        )

    def _codes(self, level: int, i: int, offset_samples: int) -> NDArray[np.int64]:
        hop = self.store.geometry.hops[level]
        start = offset_samples // hop
        return self.store.codes(level, i, start, start + self.window_samples // hop)

    def _start(self, length_samples: int, place: int, count: int, index: int, epoch: int) -> int:
        """Top code at which window `place` of the `count` in a song begins."""
        last = (length_samples - self.window_samples) // self.store.geometry.top_hop
        if not self.shift:
            return place * last // (count - 1) if count > 1 else 0
        low, high = place * (last + 1) // count, (place + 1) * (last + 1) // count
        draw = np.random.Philox(key=self.seed, counter=[index, epoch + 1, 0, 0])  # epochs may begin at -1
        return low + int(draw.random_raw()) * max(1, high - low) // 2**64

    def _wanted_songs(
        self, part: str, train_share: float, min_samples: int, max_samples: int | None
    ) -> NDArray[np.bool_]:
        store, rate = self.store, self.store.geometry.sr_hz
        held_out = is_held_out(store.relpaths, train_share, self.seed)
        wanted = np.ones(len(store), dtype=bool) if part == "all" else (held_out == (part == "test"))
        shortest = max(min_samples, self.window_samples)
        for i in np.flatnonzero(wanted):
            length = int(store.lengths[i])
            if length < shortest:
                reason = f"{length / rate:.2f} s is shorter than {shortest / rate:.2f} s"
            elif max_samples is not None and length >= max_samples:
                reason = f"{length / rate:.2f} s is not below max_duration {max_samples / rate:.2f} s"
            else:
                continue
            wanted[i] = False
            self.left_out.append((store.relpaths[i], reason))
        if self.left_out:
            name, reason = self.left_out[0]
            log.info("%d of %d songs give no window: %s (%s) ...", len(self.left_out), len(store), name, reason)
        return wanted

    def _why_empty(self, part: str) -> str:
        window_sec = self.window_samples / self.store.geometry.sr_hz
        if self.left_out:
            name, reason = self.left_out[0]
            return (
                f"{self.store.root}: no song of the {part} part fits a window of {self.n_ctx} codes ({window_sec:.2f} s): "
                f"{name}: {reason}. Lower --n_ctx or --min_duration, or encode longer songs."
            )
        return f"{self.store.root}: the {part} part has no songs. Encode more songs or change --train_test_split."
