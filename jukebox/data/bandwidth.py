"""How loud and how busy a data set is: the numbers that the VQ-VAE's losses are divided by (spec 2.8).

They are measured on a fixed list of items, summed in a fixed order in float64, so any number of ranks gets the same.
Priors do not use them and need not call this.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jukebox import files
from jukebox.audio import io
from jukebox.data.audio_dataset import AudioDataset
from jukebox.errors import DataError
from jukebox.files import printable
from jukebox.parallel.comm import Comm
from jukebox.vqvae.losses import Bandwidth

_STRIDE = 16  # items between those that are read; the first implementation's, for up to 16 ranks
_FLOOR = 1e-8  # nothing is divided by less
_N_FFT, _HOP, _WINDOW = 2048, 256, 1536

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sums:
    """Of one item, over all its channels; `spec` is the Frobenius norm of the STFT of their mean."""

    magnitude: float
    value: float
    square: float
    count: int
    spec: float


def bandwidth_of(items: Iterable[npt.ArrayLike]) -> Bandwidth:
    """The normalisers of items [T, C]. Raises DataError without items; silence gives tiny numbers, never 0."""
    return _combined([_sums(np.asarray(item, np.float32)) for item in items])


def bandwidth_items(n_items: int, channel_samples: int, wanted: float) -> list[int]:
    """Which items to read until `wanted` channel samples are there, each item giving `channel_samples`: 0, 16, 32 ...

    At the end of a small set the list goes on with 1, 17 ...; it never names an item twice.
    """
    order = (index for first in range(_STRIDE) for index in range(first, n_items, _STRIDE))
    count = max(1, -(-int(wanted) // channel_samples))
    return [index for index, _ in zip(order, range(count), strict=False)]


def measure_bandwidth(
    dataset: AudioDataset, comm: Comm, *, cache: str | Path | None = None, duration_sec: float = 600.0
) -> Bandwidth:
    """The normalisers of a training set, from a saved file if one fits. Collective: ranks share the reading.

    `cache` is a folder. Items come with their random shift of draw 0; what cannot be read is left out. Raises DataError
    if nothing can be read.
    """
    wanted = bandwidth_items(len(dataset), 2 * dataset.sample_length, dataset.sr_hz * duration_sec)
    key = hashlib.sha256(f"{dataset.fingerprint()} {wanted[-1]} {len(wanted)}".encode()).hexdigest()[:16]
    saved = Path(cache) / f"bandwidth-{key}.json" if cache else None
    found = comm.run_first(lambda: _load(saved) if saved else None)
    if found:
        return found
    mine = [(place, _read(dataset, index)) for place, index in enumerate(wanted) if place % comm.size == comm.rank]
    by_place = dict(pair for pairs in comm.gather_objects(mine) for pair in pairs)
    found = _combined([sums for place in range(len(wanted)) if (sums := by_place[place]) is not None])
    if min(astuple(found)) <= _FLOOR:
        log.warning("the %d items that set the scale of the losses are (almost) silent", len(wanted))
    if saved and comm.rank == 0:
        saved.parent.mkdir(parents=True, exist_ok=True)
        files.publish_json(saved, asdict(found))
    return found


def _read(dataset: AudioDataset, index: int) -> _Sums | None:
    try:
        return _sums(dataset.item(index).audio)
    except io.AudioError as error:
        log.warning("left out of the loss normalisers: %s", error)
        return None


def _sums(audio: npt.NDArray[np.float32]) -> _Sums:
    wide = audio.astype(np.float64)
    return _Sums(
        float(np.abs(wide).sum()),
        float(wide.sum()),
        float(np.square(wide).sum()),
        wide.size,
        _stft_norm(audio.mean(axis=1)),
    )


def _combined(sums: Sequence[_Sums]) -> Bandwidth:
    if not sums:
        raise DataError(
            "no item could be read to set the scale of the losses; run again with --on_bad_file=error to see why"
        )
    count = sum(item.count for item in sums)
    mean = sum(item.value for item in sums) / count
    l2 = sum(item.square for item in sums) / count - mean**2
    l1 = sum(item.magnitude for item in sums) / count
    spec = sum(item.spec for item in sums) / len(sums)
    return Bandwidth(*(max(float(value), _FLOOR) for value in (l1, l2, spec)))


def _stft_norm(mono: npt.NDArray[np.float32]) -> float:
    """Frobenius norm of the STFT of [T]: 2048 points, hop 256, periodic Hann of 1536, centred, reflected at both ends."""
    padded = np.pad(mono, _N_FFT // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    window = np.pad(hann, (_N_FFT - _WINDOW) // 2).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    square = 0.0
    for begin in range(0, len(frames), 512):  # in blocks, for chunks of minutes
        spectrum = np.fft.rfft(frames[begin : begin + 512] * window, axis=1)
        square += float(np.square(np.abs(spectrum).astype(np.float64)).sum())
    return float(np.sqrt(square))


def _load(path: Path) -> Bandwidth | None:
    try:
        return Bandwidth(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s) and is made anew", printable(str(path)), error)
        return None
