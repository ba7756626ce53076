"""Another rate, fewer channels: soxr and the mix-down.

soxr "HQ", always through its streaming form; n samples become ceil(n * to / from). Sample k of the result lies at second
k / to, wherever reading began. Codes depend on this choice: `RESAMPLER` belongs into fingerprints.
"""

import functools
import logging
import os
from collections.abc import Iterator
from math import gcd

import numpy as np
import numpy.typing as npt
import soxr

from jukebox.audio.decoders import Source
from jukebox.audio.kinds import Audio, AudioError

RESAMPLER = "soxr HQ"
_SOXR_REACH = (
    256  # samples, of the slower of both rates, that one output sample depends on to each side (measured: < 90)
)

log = logging.getLogger(__name__)


def resampled_length(length_samples: int, from_hz: int, to_hz: int) -> int:
    """The number of samples that `length_samples` at one rate become at another."""
    return -(-length_samples * to_hz // from_hz)


def resample(audio: Audio, from_hz: int, to_hz: int) -> Audio:
    """[T, C] (or [T]) at another rate: ceil(T * to / from) samples, the first one in place."""
    if from_hz == to_hz:
        return audio
    resampler = _Resampler(from_hz, to_hz, 1 if audio.ndim == 1 else audio.shape[1])
    columns = audio.reshape(len(audio), -1)
    result = np.concatenate([resampler.push(columns), resampler.finish()])
    return result.reshape(len(result), *audio.shape[1:])


class _Resampler:
    """soxr in its streaming form, ending at exactly ceil(pushed * to / from) samples."""

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._from, self._to, self._channels = from_hz, to_hz, channels
        self._soxr = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
        self._pushed = self._given = 0

    def push(self, block: Audio, last: bool = False) -> Audio:
        result: Audio = self._soxr.resample_chunk(np.ascontiguousarray(block, np.float32), last=last)
        result = result.reshape(-1, self._channels)
        self._pushed, self._given = self._pushed + len(block), self._given + len(result)
        return result

    def finish(self) -> Audio:
        wanted = resampled_length(self._pushed, self._from, self._to) - self._given
        silence = np.zeros((self._from // self._to + 2, self._channels), np.float32)  # so that none is missing
        return self.push(silence, last=True)[:wanted]


def converted(source: Source, sr_hz: int, channels: int | None, start: int) -> Iterator[Audio]:
    """Blocks [t, channels] at `sr_hz`, the first beginning at sample `start` of that rate, until the file ends."""
    if sr_hz == source.sr_hz:
        for block in source.blocks(start):
            yield _mixed(source, block, channels)
        return
    # Begin where both rates have a sample at the same moment, early enough that the filter has settled at `start`.
    step = source.sr_hz // gcd(source.sr_hz, sr_hz)
    reach = _SOXR_REACH * max(1, -(-source.sr_hz // sr_hz))
    begin = max(0, start * source.sr_hz // sr_hz - reach) // step * step
    skip = start - begin * sr_hz // source.sr_hz
    resampler = _Resampler(source.sr_hz, sr_hz, channels or min(source.channels, 2))

    def resampled() -> Iterator[Audio]:
        for block in source.blocks(begin):
            yield resampler.push(_mixed(source, block, channels))
        yield resampler.finish()

    for block in resampled():
        if len(block) > skip:
            yield block[skip:]
        skip = max(0, skip - len(block))


# Weights of FFmpeg's channel names in a left and right mix (ITU-R BS.775: centre and surrounds at -3 dB, no LFE)
_SIDE = {
    "FL": (1, 0), "FR": (0, 1), "DL": (1, 0), "DR": (0, 1), "FC": (0.7071, 0.7071), "BC": (0.5, 0.5), "LFE": (0, 0),
    "BL": (0.7071, 0), "BR": (0, 0.7071), "SL": (0.7071, 0), "SR": (0, 0.7071), "FLC": (1, 0), "FRC": (0, 1),
}  # fmt: skip
_USUAL = {  # what wav and aiff mean when they do not say
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR", 7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip


def _mixed(source: Source, block: Audio, channels: int | None) -> Audio:
    """[t, C] -> [t, channels]; None keeps one or two channels and mixes more down to two. Raises on NaN and infinity."""
    if not np.isfinite(block).all():
        raise AudioError(source.path, f"{int((~np.isfinite(block)).sum())} samples are not finite numbers")
    if source.channels > 2:
        block = block @ _downmix(os.fspath(source.path), source.layout)
    if channels is None or channels == block.shape[1]:
        return block
    if channels == 1:
        mono: Audio = block.mean(axis=1, keepdims=True, dtype=np.float32)
        return mono
    if channels == 2:
        return np.repeat(block, 2, axis=1)
    raise ValueError(f"{channels} channels were asked for, there are only 1 and 2")


@functools.lru_cache(maxsize=64)
def _downmix(path: str, layout: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """Matrix [C, 2] whose columns sum to at most 1, so that no mix exceeds full scale, in every chunk the same."""
    names = tuple(_USUAL[len(layout)].split()) if set(layout) <= {"NONE", "UNK"} else layout
    unknown = [name for name in names if name not in _SIDE]
    if unknown:
        raise AudioError(path, f"unsupported channel layout ({' '.join(names)})")
    matrix: npt.NDArray[np.float32] = np.array([_SIDE[name] for name in names], np.float32)
    matrix /= matrix.sum(axis=0).max()
    _say_mixed(names)
    return matrix


@functools.cache
def _say_mixed(names: tuple[str, ...]) -> None:
    log.info(
        "files of %d channels (%s) are mixed down to two, scaled so that none can clip", len(names), " ".join(names)
    )
