"""Windows of codes for training a prior: read from a store, without audio and without the VQ-VAE.

The face is that of the audio data set: `len`, `left_out`, `fingerprint()` and `item(index, draw)`, a function of its
arguments and the seed alone. The same songs are held out, and unshifted windows lie where chunks of audio lie.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jukebox.codestore.layout import PLAN
from jukebox.codestore.store import CodeStore
from jukebox.data.dataset_config import PreEncodedDirs, read_config
from jukebox.data.split import held_out, random_numbers
from jukebox.errors import DataError, StoreError
from jukebox.files import printable
from jukebox.labels.song import SongMeta

log = logging.getLogger(__name__)
_SHIFT = 1  # a stream of random numbers


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


def open_codes(where: str) -> CodeStore:
    """The store that `--codes` names: its folder, one of its levels, or a data-set file of type `pre_encoded`.

    Raises DataError when the file names several folders or asks for crops, which a prior makes by itself, and StoreError
    when what it names is no store of ours, or holds no codes.
    """
    folder = Path(where)
    if folder.suffix == ".json" or folder.is_file():
        config = read_config(where)
        if not isinstance(config, PreEncodedDirs) or len(config.datasets) != 1:
            raise DataError(f"{where}: a prior trains on one data set of type pre_encoded (codes.py join adds stores)")
        for name in ("latent_crop_length", "min_length_sec", "max_length_sec"):
            if getattr(config, name) is not None:
                raise DataError(
                    f"{where}: {name} has no effect on a prior; use --n_ctx, --min_duration, --max_duration"
                )
        if config.datasets[0].custom_metadata_module:
            raise DataError(f"{where}: labels stand in the store; give custom_metadata_module to pre_encode.py")
        folder = Path(config.datasets[0].path)
    if not (folder / PLAN).exists() and (folder.parent / PLAN).exists():
        folder = folder.parent
    store = CodeStore.open(folder)
    if not store.geometry.bins:
        raise StoreError(
            f"{folder}: holds continuous latents, which no prior of ours trains on; encode with --is-discrete."
        )
    return store


class CodeDataset:
    """The windows of `n_ctx` codes of one level in one part ("train", "test" or "all") of a store.

    They start at top-code positions: a song gives floor(length / window) of them, one after the other. With `aug_shift`
    (never in the test part) each begins anywhere in its own equal share of the song, anew in every draw. Variants of a song
    (`pre_encode.py --shifts`) count as songs of their own in training, and not at all in the test part. Songs outside the
    range of durations (in seconds; a window at least) are listed in `left_out` with the reason.
    Raises DataError when nothing is left, or when `n_ctx` is not a whole number of codes of the level above.
    """

    def __init__(
        self,
        store: CodeStore,
        level: int,
        n_ctx: int,
        *,
        part: Literal["train", "test", "all"] = "train",
        train_test_split: float = 0.9,
        aug_shift: bool = False,
        min_duration: float | None = None,
        max_duration: float | None = None,
        seed: int = 0,
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
        self.part, self.seed, self.aug_shift = part, seed, aug_shift and part != "test"
        self.sample_length = geometry.samples_for(level, n_ctx)
        self.left_out: list[tuple[str, str]] = []
        kept = self._kept(min_duration, max_duration)
        if not kept:
            raise DataError(self._nothing_left())
        windows = {i: int(store.lengths[i]) // self.sample_length for i in kept}
        if part != "all":
            per_file: Counter[str] = Counter()
            for i, count in windows.items():
                per_file[store.relpaths[i]] += count
            test = held_out(per_file, train_test_split, seed)
            kept = [i for i in kept if (store.relpaths[i] in test) == (part == "test")]
        if part == "test":
            kept = self._without_variants(kept)
        self.songs = kept  # positions in the store
        self._ends = list(accumulate(windows[i] for i in kept))
        if not self._ends:
            raise DataError(
                f"{printable(str(store.root))}: {len(windows)} songs leave nothing for the {part} part. Encode more "
                f"songs or give another --train_test_split (now {train_test_split:g})."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int, draw: int = 0) -> tuple[int, int]:
        """(position of the song in the store, offset in samples) of a window, the shift of this draw included."""
        song = bisect_right(self._ends, index)
        first = self._ends[song - 1] if song else 0
        window, windows = index - first, self._ends[song] - first
        i, hop = self.songs[song], self.store.geometry.top_hop
        if not self.aug_shift:
            return i, window * self.sample_length // hop * hop
        begins = (int(self.store.lengths[i]) - self.sample_length) // hop + 1  # in top codes
        low, high = begins * window // windows, begins * (window + 1) // windows
        return i, hop * int(random_numbers(self.seed, draw, index, _SHIFT).integers(low, max(high, low + 1)))

    def item(self, index: int, draw: int = 0) -> CodeItem:
        """Reads a window; raises StoreError when its file is damaged."""
        i, offset_samples = self.place(index, draw)
        found = self.store.item(i)
        return CodeItem(
            codes=self._codes(self.level, i, offset_samples),
            upper=None if self.upper is None else self._codes(self.upper, i, offset_samples),
            song=_song(found.meta, found.relpath),
            offset_samples=found.offset_samples + offset_samples,
            total_samples=found.total_samples,
            file=found.relpath,
        )

    def described(self) -> Iterator[SongMeta]:
        """What is known of every song, one after the other; raises StoreError when a file of the store is damaged."""
        for i in self.songs:
            yield _song(self.store.meta(i), self.store.relpaths[i])

    def fingerprint(self) -> str:
        """Changes when the windows do: other codes, another level, length, part or seed."""
        digests = [self.store.details[level]["digests"]["items"] for level in self.store.levels]
        parts = [digests, self.level, self.n_ctx, self.part, self.seed, self.aug_shift, self.songs]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _codes(self, level: int, i: int, offset_samples: int) -> NDArray[np.int64]:
        hop = self.store.geometry.hops[level]
        start = offset_samples // hop
        return self.store.codes(level, i, start, start + self.sample_length // hop)

    def _kept(self, min_duration: float | None, max_duration: float | None) -> list[int]:
        rate = self.store.geometry.sr_hz
        shortest_sec = max(min_duration or 0.0, self.sample_length / rate)
        longest_sec = float("inf") if max_duration is None else max_duration
        kept = []
        for i, length_samples in enumerate(self.store.lengths.tolist()):
            length_sec = length_samples / rate
            if length_samples < self.sample_length or length_sec < shortest_sec:
                self.left_out.append((self.store.relpaths[i], f"{length_sec:.2f} s, shorter than {shortest_sec:.2f} s"))
            elif length_sec >= longest_sec:
                self.left_out.append((self.store.relpaths[i], f"{length_sec:.2f} s, not below {longest_sec:.2f} s"))
            else:
                kept.append(i)
        return kept

    def _without_variants(self, kept: list[int]) -> list[int]:
        """Of the shifted variants that `--shifts` made of a song only the first, so that a song counts once."""
        arguments = self.store.details[self.store.levels[0]].get("args")
        if not isinstance(arguments, dict) or arguments.get("shifts", 1) == 1:
            return kept
        first: dict[str, int] = {}
        for i in kept:
            best = first.setdefault(self.store.relpaths[i], i)
            if self.store.lengths[i] > self.store.lengths[best]:
                first[self.store.relpaths[i]] = i
        return sorted(first.values())

    def _nothing_left(self) -> str:
        shown = "".join(f"\n  {printable(file)}: {why}" for file, why in self.left_out[:10])
        return (
            f"{printable(str(self.store.root))}: none of {len(self.store)} songs has a length that fits. Lower --n_ctx (now "
            f"{self.n_ctx} codes = {self.sample_length / self.store.geometry.sr_hz:.2f} s) or --min_duration, or raise "
            f"--max_duration.{shown}"
        )


def _song(meta: Mapping[str, Any], relpath: str) -> SongMeta:
    song = meta.get("song")
    return SongMeta.from_json(song if isinstance(song, dict) else {}, relpath)
