"""What a page tells about a sound: peaks for the waveform, loudness, spectrogram. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def find_loudness(channels: NDArray[Any], sr_hz: int) -> float | None:
    """Integrated loudness in LUFS of [T, C] (ITU-R BS.1770-4: K weighting, blocks of 0.4 s, two gates).

    The weighting is applied to each block's spectrum instead of by a running filter; a sound under 0.4 s is one block.
    """
    block, hop = int(0.4 * sr_hz), int(0.1 * sr_hz)
    if not len(channels):
        return None
    if len(channels) < block:
        block = hop = len(channels)
    weight = _k_weighting(np.fft.rfftfreq(block, 1 / sr_hz), sr_hz)
    weight[1 : (block + 1) // 2] *= 2  # one-sided spectrum
    starts = range(0, len(channels) - block + 1, hop)
    spectra = (np.abs(np.fft.rfft(channels[start : start + block], axis=0)) ** 2 for start in starts)
    powers = np.array([float((weight @ spectrum).sum()) for spectrum in spectra]) / block**2
    powers = powers[_lufs(powers) > -70.0]
    if not len(powers):
        return None
    powers = powers[_lufs(powers) > _lufs(powers.mean()) - 10.0]
    return float(_lufs(powers.mean()))


def _lufs(power: Any) -> Any:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def _k_weighting(freqs_hz: NDArray[Any], sr_hz: int) -> NDArray[Any]:
    """Power response of the two K filters (a high shelf and a high pass) at any sample rate, by bilinear transform."""
    z = np.exp(-2j * np.pi * freqs_hz / sr_hz)
    k = np.tan(np.pi * 1681.974450955533 / sr_hz)
    q, high, band = (
        0.7071752369554196,
        10 ** (3.999843853973347 / 20),
        10 ** (3.999843853973347 * 0.4996667741545416 / 20),
    )
    shelf_over = (high + band * k / q + k * k) + 2 * (k * k - high) * z + (high - band * k / q + k * k) * z * z
    shelf_under = (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z * z
    k = np.tan(np.pi * 38.13547087602444 / sr_hz)
    q = 0.5003270373238773
    pass_over = (1 - z) ** 2 * (1 + k / q + k * k)  # unit gain numerator 1, -2, 1 as the standard has it
    pass_under = (1 + k / q + k * k) + 2 * (k * k - 1) * z + (1 - k / q + k * k) * z * z
    return np.asarray(np.abs(shelf_over / shelf_under * pass_over / pass_under) ** 2)


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
