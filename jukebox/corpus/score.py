"""Figures made from what was heard: does it sing what was asked, keep the rhythm, and resemble the original?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jukebox.corpus import listen
from jukebox.corpus.synth import GENRES

Samples = NDArray[np.floating]  # (T,) or (T, C)


# ---- singing ----


@dataclass(frozen=True)
class SungScore:
    """How one recording compares with what it should sing.

    `errors` counts characters put in, left out or exchanged; `starts` gives for each character asked for the second at
    which it was heard, or None if it was not.
    """

    errors: int
    asked: int
    artist_right: bool
    genre_right: bool
    starts: tuple[float | None, ...]

    @property
    def error_rate(self) -> float:
        return self.errors / max(1, self.asked)


def sung(heard: listen.Heard, lyrics: str, artist: str, genre: str) -> SungScore:
    """Compares what was heard with what was asked for."""
    errors, where = match(lyrics, heard.lyrics)
    starts = tuple(None if i is None else heard.characters[i].start_sec for i in where)
    return SungScore(errors, len(lyrics), heard.artist == artist, heard.genre == genre, starts)


def error_rate(scores: Sequence[SungScore]) -> float:
    """Character errors over all recordings, per character asked for."""
    return sum(s.errors for s in scores) / max(1, sum(s.asked for s in scores))


def match(asked: str, heard: str) -> tuple[int, list[int | None]]:
    """Edit distance, and for each character asked for the place in `heard` where the cheapest edit finds it unchanged."""
    cost = np.zeros((len(asked) + 1, len(heard) + 1), dtype=int)
    cost[:, 0], cost[0] = np.arange(len(asked) + 1), np.arange(len(heard) + 1)
    for i, a in enumerate(asked, start=1):
        for j, h in enumerate(heard, start=1):
            cost[i, j] = min(cost[i - 1, j] + 1, cost[i, j - 1] + 1, cost[i - 1, j - 1] + (a != h))
    where: list[int | None] = [None] * len(asked)
    i, j = len(asked), len(heard)
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + (asked[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            where[i] = j if asked[i] == heard[j] else None
        elif cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return int(cost[-1, -1]), where


# ---- rhythm ----

_PHASE_STEP_SEC = 0.01
_ONSETS_PER_SEC = 1.0  # the sparsest song of the corpus has about two; less is no rhythm, whatever grid it stands on


@dataclass(frozen=True)
class GridScore:
    """How many of the onsets stand on a rhythm grid of the corpus.

    Tempo and first tick are searched where they are not given, and whoever searches finds: even random onsets reach
    `chance` then. So `share` is the plain share, `on_grid`, stretched so that all on the grid stays 1 while chance falls
    to `blind`, which random onsets reach on one fixed grid (0.26 to 0.39). With nothing to search the two are equal.
    """

    onsets: int
    length_sec: float
    on_grid: float
    chance: float
    blind: float

    @property
    def share(self) -> float:
        if not self.onsets or self.chance >= 1:
            return 0.0
        return max(0.0, self.blind + (self.on_grid - self.chance) * (1 - self.blind) / (1 - self.chance))


def onsets_on_grid(
    audio: Samples, sr_hz: int, *, genre: str | None = None, first_sec: float | None = None, tolerance_sec: float = 0.05
) -> GridScore:
    """Listens for onsets and measures them against the grid of `genre`, or of the genre that fits best.

    `first_sec` is the time of any tick, `synth.LEAD_SEC` in a song that is heard from its start; None searches for it.
    """
    beats = np.array(listen.onsets(audio, sr_hz))
    length_sec = len(audio) / sr_hz
    ticks = [GENRES[name].tick_sec for name in ([genre] if genre else GENRES)]
    blind = float(np.mean([2 * tolerance_sec / tick for tick in ticks]))
    if len(beats) < max(2, _ONSETS_PER_SEC * length_sec):
        return GridScore(len(beats), length_sec, 0.0, blind, blind)
    on_grid = max(_on_grid(beats[None], tick, first_sec, tolerance_sec)[0] for tick in ticks)
    chance = _chance(len(beats), round(length_sec, 1), tuple(ticks), first_sec, tolerance_sec)
    return GridScore(len(beats), length_sec, float(on_grid), chance, blind)


def pool(scores: Sequence[GridScore]) -> GridScore:
    """One figure for several recordings, each on its own grid; every onset counts once, and silence as onsets missed."""
    weights = [max(s.onsets, _ONSETS_PER_SEC * s.length_sec) for s in scores]
    on_grid, chance, blind = (
        float(np.average([getattr(s, figure) for s in scores], weights=weights))
        for figure in ("on_grid", "chance", "blind")
    )
    return GridScore(sum(s.onsets for s in scores), sum(s.length_sec for s in scores), on_grid, chance, blind)


def _on_grid(beats: listen.Floats, tick_sec: float, first_sec: float | None, tolerance_sec: float) -> listen.Floats:
    """(R, N) onsets of R recordings -> (R,) shares on the grid, whose first tick is the best for each, or given."""
    firsts = np.arange(0, tick_sec, _PHASE_STEP_SEC) if first_sec is None else np.array([first_sec])
    away = (beats[:, None, :] - firsts[:, None] + tick_sec / 2) % tick_sec - tick_sec / 2
    shares: listen.Floats = (np.abs(away) <= tolerance_sec).mean(axis=2).max(axis=1)
    return shares


@lru_cache(maxsize=256)
def _chance(
    onsets: int, length_sec: float, ticks: tuple[float, ...], first_sec: float | None, tolerance_sec: float
) -> float:
    """The mean share that as many random onsets reach in the same search, from 200 draws."""
    beats = np.random.default_rng(0).uniform(0, length_sec, size=(200, onsets))
    return float(np.max([_on_grid(beats, tick, first_sec, tolerance_sec) for tick in ticks], axis=0).mean())


# ---- sound ----


@dataclass(frozen=True)
class Levels:
    """Loudness of a recording: RMS in dB of full scale, highest sample, share of samples at full scale."""

    rms_db: float
    peak: float
    clipped_share: float

    @property
    def silent(self) -> bool:
        return self.rms_db < -60

    @property
    def clipped(self) -> bool:
        return self.clipped_share > 1e-3


def levels(audio: Samples) -> Levels:
    """Raises ValueError if a sample is not a number."""
    samples = np.abs(np.asarray(audio, dtype=np.float64))
    if not np.isfinite(samples).all():
        raise ValueError("audio holds values that are not numbers")
    if not samples.size:
        return Levels(-200.0, 0.0, 0.0)
    rms_db = 10 * np.log10(np.mean(samples**2) + 1e-20)
    return Levels(float(rms_db), float(samples.max()), float(np.mean(samples >= 0.999)))


def spectral_convergence_db(reference: Samples, made: Samples) -> float:
    """Error of the magnitude spectrum against the reference's, in dB, mean of three resolutions; lower is better.

    20 log10(| |S| - |S'| | / | |S| |), Frobenius norms (arXiv:1808.06719 eq. 1). Silence against music gives 0 dB.
    """
    a, b = _pair(reference, made)
    found = []
    for window in (512, 1024, 2048):
        spectra = [np.abs(_stft(x, window)) for x in (a, b)]
        ratio = np.linalg.norm(spectra[0] - spectra[1]) / (np.linalg.norm(spectra[0]) + 1e-12)
        found.append(20 * np.log10(ratio + 1e-10))
    return float(np.mean(found))


def si_sdr_db(reference: Samples, made: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv:1811.02508); higher is better, phase counts."""
    a, b = (x - x.mean() for x in _pair(reference, made))
    target = (a @ b) / (a @ a + 1e-12) * a
    return float(10 * np.log10((target @ target + 1e-12) / ((b - target) @ (b - target) + 1e-12)))


def _pair(reference: Samples, made: Samples) -> tuple[listen.Floats, listen.Floats]:
    if np.shape(reference) != np.shape(made):
        raise ValueError(f"audio of shape {np.shape(made)} cannot be compared with {np.shape(reference)}")
    a, b = (np.asarray(x, dtype=np.float64) for x in (reference, made))
    return (a, b) if a.ndim == 1 else (a.mean(axis=1), b.mean(axis=1))


def _stft(x: listen.Floats, window: int) -> NDArray[np.complex128]:
    padded = np.pad(x, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(padded, (0, window)), window)[: len(padded) : window // 4]
    return np.fft.rfft(frames * np.hanning(window + 1)[:-1])
