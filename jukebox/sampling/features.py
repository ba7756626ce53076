"""What a prior hears in music: the states of its transformer, pooled over time (arXiv:2107.05677).

A song is read in windows as songs are sampled: each code counts in the first window that holds it, where it has the most
past. Songs share batches; those in a batch are as long as the longest needs, not as long as a window can be.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox.audio import io
from jukebox.errors import DataError, UsageError
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller
from jukebox.models.codec import Codec
from jukebox.models.model_set import ModelSet
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan, Window, next_window
from jukebox.sampling.requests import Request

Audio = str | os.PathLike[str] | NDArray[Any] | Tensor
"""A sound file, or floats `[T]` or `[T, C]`."""
Pool = Literal["mean", "all"] | float
"""mean: one vector per song. A number: so many vectors per second. all: one per code."""
States = dict[int, NDArray[np.float32]]
"""By layer: `[W]` of a song, or `[F, W]` of its F frames."""


def level_of(models: ModelSet, level: int | None) -> int:
    """The level asked for; None is the highest that has a prior. Raises UsageError when it has none."""
    there = [l for l, part in enumerate(models.priors) if part is not None]
    if not there or level not in (None, *there):
        names = ", ".join(map(str, there)) or "none"
        raise UsageError(f"--level: {models.name} has no prior of level {level}; it has those of levels {names}.")
    return there[-1] if level is None else level


def middle(shape: PriorShape) -> tuple[int, ...]:
    """The layer in the middle, as far as is known the most telling one (arXiv:2107.05677)."""
    return (shape.transformer.depth // 2,)


def pool_of(text: str) -> Pool:
    """What --pool says. Raises UsageError."""
    if text in ("mean", "all"):
        return "mean" if text == "mean" else "all"
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--pool={text}: say mean, all, or a number of vectors per second.") from None


def check(layers: Sequence[int], pool: Pool, shape: PriorShape, sr_hz: int) -> None:
    """Raises UsageError for layers that the prior does not have, or more vectors per second than it has codes."""
    depth, codes_hz = shape.transformer.depth, sr_hz / shape.hops[shape.level]
    wrong = [layer for layer in layers if not 0 <= layer <= depth]
    if wrong or not layers:
        raise UsageError(
            f"--layers={','.join(map(str, layers))}: give the number of layers behind which states are taken, 0 (what "
            f"goes in) to {depth} (what the logits are made of)."
        )
    if not isinstance(pool, str) and not 0 < pool <= codes_hz:
        raise UsageError(
            f"--pool={pool:g}: level {shape.level} has {codes_hz:g} codes per second; give at most as many."
        )


def mono(audio: Audio, sr_hz: int, own_hz: int | None = None) -> NDArray[np.float32]:
    """A sound file, or floats `[T]` or `[T, C]` of their own rate (None = sr_hz), as a codec takes it: mono `[T]`.

    Raises AudioError for a file, DataError for numbers that are no sound.
    """
    if isinstance(audio, str | os.PathLike):
        if own_hz is not None:
            raise UsageError("sr_hz is for arrays; a sound file says its rate itself.")
        samples = io.read(audio, sr_hz=sr_hz, channels=2)
    else:
        samples = np.asarray(audio.detach().cpu() if isinstance(audio, Tensor) else audio)
        if (
            samples.dtype.kind != "f"
            or samples.ndim not in (1, 2)
            or not samples.size
            or not np.isfinite(samples).all()
        ):
            shape = list(samples.shape)
            raise DataError(f"audio is finite floats in -1 ... 1, [T] or [T, C], not {samples.dtype} of shape {shape}.")
        samples = samples.astype(np.float32).reshape(len(samples), -1)
        samples = samples if own_hz in (None, sr_hz) else io.resample(samples, own_hz, sr_hz)
    mixed: NDArray[np.float32] = samples.mean(axis=1)
    return mixed


def encoded(audio: NDArray[np.float32], codec: Codec, shape: PriorShape, meta: SongMeta) -> Song:
    """Mono audio `[T]` as a song with the codes that this prior reads.

    The whole song is said to be as long as it is, or of the nearest length that the prior knows. Raises DataError when
    there is no sound.
    """
    if not len(audio):
        raise DataError("there is no sound to hear: the audio has no samples.")
    levels = [shape.level, shape.level + 1] if shape.conditioner else [shape.level]
    total = len(audio)
    if shape.labels is not None and shape.labels.timing:
        least, most = (sec * codec.geometry.sr_hz for sec in (shape.labels.min_duration, shape.labels.max_duration))
        total = min(max(total, math.ceil(least)), math.ceil(most) - 1)
    return Song(Request(0, meta, seed=0), len(audio), total, codec.encode(audio, levels))


@dataclass
class _Heard:
    """A song of which some windows are read: the frame of each of its N codes, `[N]`; per layer sums of each frame."""

    song: Song
    frames: NDArray[np.int64]
    sums: dict[int, NDArray[np.float64]]
    open_windows: int = 0

    def add(self, layer: int, start: int, states: NDArray[np.float32]) -> None:
        """Count the states of the codes from `start` on; those behind the sound are left out."""
        frames = self.frames[start : start + len(states)]
        if len(frames):
            first = np.flatnonzero(np.diff(frames, prepend=-1))
            self.sums[layer][frames[first]] += np.add.reduceat(states[: len(frames)], first, axis=0, dtype=np.float64)

    def means(self, flat: bool) -> States:
        """The mean of each frame; flat: of the only one."""
        counts = np.bincount(self.frames)[:, None]
        found = {layer: (sums / counts).astype(np.float32) for layer, sums in self.sums.items()}
        return {layer: values[0] for layer, values in found.items()} if flat else found


@dataclass(frozen=True)
class Extractor:
    """Reads songs with one prior. plan: that of its level, whose hop is the step between windows.

    labeller None for an unlabelled prior; dtype of activations. batch_size: windows computed together, which changes
    nothing but the last digits.
    """

    prior: Prior
    plan: LevelPlan
    sr_hz: int
    layers: tuple[int, ...]
    pool: Pool = "mean"
    labeller: Labeller | None = None
    batch_size: int = 4
    dtype: torch.dtype = torch.float32

    def hear(self, songs: Iterable[Song]) -> Iterator[States]:
        """The states of every song, in order. Songs come with their codes at this level and, below the top, the next."""
        waiting: deque[_Heard] = deque()
        batch: list[tuple[_Heard, Window]] = []
        for song in songs:
            heard = self._begin(song)
            waiting.append(heard)
            for window in self._windows(song):
                heard.open_windows += 1
                batch.append((heard, window))
                if len(batch) == self.batch_size:
                    self._read(batch)
                    batch = []
            yield from self._finished(waiting)
        if batch:
            self._read(batch)
        yield from self._finished(waiting)

    def _finished(self, waiting: deque[_Heard]) -> Iterator[States]:
        while waiting and not waiting[0].open_windows:
            yield waiting.popleft().means(flat=self.pool == "mean")

    def _begin(self, song: Song) -> _Heard:
        hop, width = self.plan.samples_per_code, self.prior.net.transformer.shape.width
        at = np.arange(-(-song.length_samples // hop))  # codes that hold sound
        if self.pool == "mean":
            frames = np.zeros_like(at)
        else:
            frames = at if self.pool == "all" else (at * (hop * float(self.pool) / self.sr_hz)).astype(np.int64)
        count = int(frames[-1]) + 1
        return _Heard(song, frames, {layer: np.zeros((count, width)) for layer in self.layers})

    def _windows(self, song: Song) -> Iterator[Window]:
        """`given` codes of a window belong to earlier ones."""
        total, have = len(song.codes[self.plan.level]), 0
        while window := next_window(total, self.plan.n_ctx, self.plan.hop, have):
            yield window
            have = window.start + window.length

    def _read(self, batch: Sequence[tuple[_Heard, Window]]) -> None:
        level, longest = self.plan.level, max(window.length for _, window in batch)
        device = self.prior.net.pos.device
        codes = np.stack([_cut(heard.song.codes[level], window.start, longest) for heard, window in batch])
        upper = y = None
        if self.plan.ratio:
            r = self.plan.ratio
            rows = [_cut(heard.song.codes[level + 1], w.start // r, self.plan.n_ctx // r) for heard, w in batch]
            upper = torch.from_numpy(np.stack(rows)).to(device)
        if self.labeller is not None:
            y = torch.from_numpy(np.stack([self._label(heard.song, window) for heard, window in batch])).to(device)
        found = self.prior.states(self.layers, torch.from_numpy(codes).to(device), upper, y, self.dtype)
        for layer, states in found.items():
            self._count(batch, layer, states.cpu())
        for heard, _ in batch:
            heard.open_windows -= 1

    def _count(self, batch: Sequence[tuple[_Heard, Window]], layer: int, states: Tensor) -> None:
        for row, (heard, window) in zip(states.numpy(), batch, strict=True):
            heard.add(layer, window.start + window.given, row[window.given : window.length])

    def _label(self, song: Song, window: Window) -> NDArray[np.int64]:
        """Beyond the longest song that the prior knows, windows are told that they are its end."""
        assert self.labeller is not None
        label = self.labeller.full(song.request.song, song.total_samples, 0)
        last = max(0, song.total_samples - self.prior.sample_length)
        start_samples = min(window.start * self.plan.samples_per_code, last)
        return self.labeller.at(label, start_samples, self.prior.sample_length)[0]


def _cut(codes: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """`count` codes from `start` on, the last one repeated behind the end."""
    found = np.asarray(codes[start : start + count], np.int64)
    return np.pad(found, (0, count - len(found)), mode="edge")
