"""How loud a sound is to an ear (ITU-R BS.1770), and sound brought to a loudness. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SILENT_POWER = 1e-6  # mean square below which nothing is made louder


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


def at_loudness(audio: NDArray[np.float32], sr_hz: int, target_db: float) -> NDArray[np.float32]:
    """Audio [T, C] made as loud as `target_db` LUFS; one that would go beyond full scale then is brought to 0.95 of it.

    Silence stays as it is (spec/autoencoders.md 2.3).
    """
    loudness_db = find_loudness(audio, sr_hz) if float(np.square(audio).mean()) >= _SILENT_POWER else None
    if loudness_db is None:
        return audio
    louder = audio * np.float32(10 ** ((target_db - loudness_db) / 20))
    peak = float(np.abs(louder).max())
    return louder if peak <= 1 else louder * np.float32(0.95 / peak)


def without_long_silence(
    mono: NDArray[np.float32], sr_hz: int, below: float, keep_sec: float, longest_sec: float, draw: np.random.Generator
) -> NDArray[np.float32]:
    """Audio [T] whose stretches of |x| < `below` longer than `longest_sec` are cut to `keep_sec`, taken anywhere in them.

    Shorter stretches stay, and so does one that is no longer than `keep_sec` (spec/autoencoders.md 2.3).
    """
    quiet = np.abs(mono) < below
    edges = np.flatnonzero(np.diff(quiet, prepend=False, append=False))
    keep, longest = int(keep_sec * sr_hz), longest_sec * sr_hz
    parts, position = [], 0
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if stop - start > max(longest, keep):
            begin = start + int(draw.integers(0, stop - start - keep + 1))
            parts += [mono[position:start], mono[begin : begin + keep]]
            position = stop
    return np.concatenate([*parts, mono[position:]])
