"""What a page tells about a sound: peaks for the waveform, loudness, spectrogram. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.audio.loudness import find_loudness
from jukebox.pages.png import heat_map

PEAKS = 1000
SPECTROGRAM_COLUMNS, SPECTROGRAM_ROWS = 800, 160
LOWEST_HZ, RANGE_DB = 50.0, 80.0


@dataclass(frozen=True, eq=False)
class Sound:
    """Facts of one sound. peaks [P, 2] lowest and highest sample; loudness_db in LUFS, None for silence."""

    length_samples: int
    peaks: NDArray[np.float32]
    loudness_db: float | None
    spectrogram: bytes  # PNG


def describe_audio(audio: NDArray[Any], sr_hz: int) -> Sound:
    """Everything above, from audio [T] or [T, C]."""
    channels = np.asarray(audio, dtype=np.float32)
    channels = np.nan_to_num(channels[:, None] if channels.ndim == 1 else channels)  # [T, C]
    mono = channels.mean(axis=1)
    return Sound(
        length_samples=len(mono),
        peaks=find_peaks(mono),
        loudness_db=find_loudness(channels, sr_hz),
        spectrogram=heat_map(spectrogram(mono, sr_hz)),
    )


def find_peaks(mono: NDArray[Any], count: int = PEAKS) -> NDArray[np.float32]:
    """[P, 2] lowest and highest sample of P equal parts of [T], clipped to -1..1; P = min(count, T)."""
    count = min(count, len(mono))
    if not count:
        return np.zeros((0, 2), np.float32)
    starts = np.arange(count) * len(mono) // count
    pairs = np.stack([np.minimum.reduceat(mono, starts), np.maximum.reduceat(mono, starts)], axis=1)
    return np.asarray(np.clip(pairs, -1.0, 1.0), np.float32)


def spectrogram(mono: NDArray[Any], sr_hz: int) -> NDArray[np.float64]:
    """[rows, columns] in 0..1: logarithmic frequency, highest on top, over the upper 80 dB; time left to right."""
    size = 1 << int(np.ceil(np.log2(max(0.04 * sr_hz, 16))))
    columns = max(1, min(SPECTROGRAM_COLUMNS, len(mono) * 4 // size))
    padded = np.pad(mono, (size // 2, size))
    starts = ((np.arange(columns) + 0.5) * len(mono) / columns).astype(int)
    frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # [columns, bins]
    edges = np.geomspace(min(LOWEST_HZ, sr_hz / 8), sr_hz / 2, SPECTROGRAM_ROWS + 1) * size / sr_hz  # in bins
    total = np.concatenate([np.zeros((columns, 1)), np.cumsum(power, axis=1)], axis=1)
    below = np.stack([np.interp(edges, np.arange(total.shape[1]) - 0.5, row) for row in total])
    rows = np.diff(below, axis=1) / np.diff(edges)  # mean power of each band, [columns, rows]
    level_db = 10 * np.log10(np.maximum(rows.T[::-1], 1e-20))
    return np.asarray(np.clip((level_db - max(level_db.max(), -60.0)) / RANGE_DB + 1.0, 0.0, 1.0))
