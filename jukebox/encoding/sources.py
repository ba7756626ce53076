"""What is to be encoded: which ranges of which songs, with their labels, and how to read them in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.audio import io
from jukebox.codestore.layout import OWN_KEYS, Source
from jukebox.data import admission, wds
from jukebox.data.admission import Entry, Index
from jukebox.data.dataset_config import AudioDir, CustomMetadata, WebDataset, load_custom_metadata, read_config
from jukebox.data.metadata import songs_of
from jukebox.data.split import random_numbers
from jukebox.encoding.hps import EncodeHps
from jukebox.errors import UsageError
from jukebox.files import digest_bytes
from jukebox.labels.song import SongMeta
from jukebox.models.codec import Codec
from jukebox.parallel.comm import Comm
from jukebox.resources import cores

_BLOCK = 1 << 17  # samples decoded at a time
_CROP, _ORDER = 5, 6  # streams of random numbers


@dataclass(frozen=True)
class Recording:
    """A sound file as it was when it was admitted. `opened` gives, while it lasts, a name to read it by."""

    path: str
    entry: Entry
    song: SongMeta
    opened: Callable[[], AbstractContextManager[str]]
    extra: dict[str, Any] = field(default_factory=dict)
    custom: CustomMetadata | None = None

    def length_at(self, sr_hz: int) -> int:
        """Samples at another rate."""
        return io.resampled_length(self.entry.length_samples, self.entry.sr_hz, sr_hz)

    def blocks(self, sr_hz: int, channels: int) -> Iterator[NDArray[np.float32]]:
        """All of it, decoded once from the beginning. Raises AudioError when it is not what it was."""
        with self.opened() as path:
            yield from io.stream(path, sr_hz, channels, _BLOCK)


@contextmanager
def as_admitted(path: str, entry: Entry) -> Iterator[str]:
    """The file itself, if it did not change since the scan; raises AudioError."""
    admission.check_unchanged(path, entry.size_bytes, entry.mtime_ns)
    yield path


@dataclass(frozen=True)
class Job:
    """One item of the store: `length_samples` from `offset_samples` of a recording, at the codec's rate."""

    recording: Recording
    offset_samples: int
    length_samples: int
    total_samples: int

    def source(self) -> Source:
        """As the store records it."""
        r = self.recording
        return Source(r.entry.file, r.path, r.entry.size_bytes, r.entry.digest, self.offset_samples)

    def audio(self, sr_hz: int, channels: int) -> Iterator[NDArray[np.float32]]:
        """Blocks `[t, channels]` of exactly this range. Raises AudioError when the recording ends early or late."""
        position, stop = 0, self.offset_samples + self.length_samples
        for block in self.recording.blocks(sr_hz, 2 if channels == 1 else channels):
            begin, end = max(0, self.offset_samples - position), min(len(block), stop - position)
            position += len(block)
            if begin < end:
                part = block[begin:end]
                yield part.mean(axis=1, keepdims=True) if channels == 1 else part
            if position >= stop and stop < self.total_samples:
                return
        if position != self.total_samples:
            raise io.AudioError(
                self.recording.path, f"decoded {position} of the {self.total_samples} samples that the scan found"
            )


def find(encode: EncodeHps, codec: Codec, comm: Comm) -> list[Job]:
    """All items, in the order of their numbers; every rank calls it and gets the same.

    Raises DataError when nothing can be used, or too much cannot.
    """
    recordings = _of_config(encode, comm) if encode.dataset_config else _of_folder(encode, comm)
    jobs = []
    for place, recording in enumerate(recordings):
        total = recording.length_at(codec.geometry.sr_hz)
        for offset, length in ranges(total, encode, codec, place):
            jobs.append(Job(recording, offset, length, total))
    if encode.shuffle:
        jobs = [jobs[i] for i in random_numbers(encode.encode_seed, 0, 0, _ORDER).permutation(len(jobs))]
    return jobs[: encode.limit_batches * encode.batch_size] if encode.limit_batches else jobs


def ranges(total: int, encode: EncodeHps, codec: Codec, place: int) -> Iterator[tuple[int, int]]:
    """(offset, length) in samples of the items that a recording of `total` samples becomes."""
    size = codec.window_samples or encode.sample_size
    if encode.crop != "all":
        room = max(0, total - size)
        drawn = encode.crop == "random" and room > 0
        offset = int(random_numbers(encode.encode_seed, 0, place, _CROP).integers(0, room + 1)) if drawn else 0
        yield offset, min(size, total)
    elif codec.window_samples:
        yield from ((offset, min(size, total - offset)) for offset in range(0, total, size))
    else:
        shifts = [codec.geometry.top_hop * k // encode.shifts for k in range(encode.shifts)]
        yield from ((shift, total - shift) for shift in dict.fromkeys(shifts) if shift < total)


def _of_folder(encode: EncodeHps, comm: Comm) -> list[Recording]:
    return _recordings(_admitted(encode, encode.audio_files_dir, _report(encode), comm), encode.metadata)


def _of_config(encode: EncodeHps, comm: Comm) -> list[Recording]:
    config = read_config(encode.dataset_config)
    found: list[Recording] = []
    if isinstance(config, AudioDir):
        for number, entry in enumerate(config.datasets, 1):
            custom = load_custom_metadata(entry.custom_metadata_module) if entry.custom_metadata_module else None
            report = _report(encode, number if len(config.datasets) > 1 else 0)
            found += _recordings(_admitted(encode, entry.path, report, comm), encode.metadata, custom)
        return found
    if isinstance(config, WebDataset) and not config.pre_encoded:
        return _of_tars(encode, config, comm)
    raise UsageError(
        f"--dataset-config={encode.dataset_config}: a data set of this type is what pre_encode writes, not what it reads."
    )


def _of_tars(encode: EncodeHps, config: WebDataset, comm: Comm) -> list[Recording]:
    for name in ("remove_silence", "volume_norm"):
        if getattr(config, name):
            raise UsageError(f"--dataset-config={encode.dataset_config}: {name} changes the sound; encode it as it is.")
    customs = {
        entry.id: load_custom_metadata(entry.custom_metadata_module)
        for entry in config.datasets
        if entry.custom_metadata_module
    }
    admitted = wds.admit(
        config, comm, on_bad_file=encode.on_bad_file, max_bad=encode.max_bad, max_audio_sec=encode.max_audio_sec, silence=True,
        report=_report(encode), cache=_known(encode, " ".join(entry.s3_path or entry.path for entry in config.datasets)),
        workers=max(1, cores() // comm.local_size),
    )  # fmt: skip
    found = []
    for sample, entry in admitted:
        info = {key: value for key, value in sample.info().items() if key not in OWN_KEYS and not key.startswith("__")}
        opened, custom = partial(sample.unpacked, sample.audio), customs.get(sample.entry.id)
        found.append(Recording(f"{sample.tar}/{sample.name}", entry, sample.song(), opened, info, custom))
    return found


def _recordings(index: Index, metadata: str, custom: CustomMetadata | None = None) -> list[Recording]:
    found = []
    for entry, song in zip(index.usable, songs_of(index, metadata), strict=True):
        path = str(index.root / entry.file)
        found.append(Recording(path, entry, song, partial(as_admitted, path, entry), custom=custom))
    return found


def _report(encode: EncodeHps, number: int = 0) -> Path:
    """Where the files left out are listed with their reasons: beside the store, one list for each folder of audio."""
    store = Path(encode.output_path)
    return store.with_name(f"{store.name}_bad_files{f'_{number}' if number else ''}.tsv")


def _known(encode: EncodeHps, place: str) -> Path:
    """Where it is kept what was found in a folder: beside the store, which holds nothing foreign; others there share it."""
    mark = digest_bytes(os.fsencode(place))[:8]
    return Path(encode.output_path).parent / f".audio_index-{mark}.json"


def _admitted(encode: EncodeHps, folder: str, report: Path, comm: Comm) -> Index:
    return admission.admit(
        folder, _known(encode, os.path.abspath(folder)), comm, on_bad_file=encode.on_bad_file,
        max_bad=encode.max_bad, max_audio_sec=encode.max_audio_sec, silence=True,
        workers=max(1, cores() // comm.local_size), report=report,
    )  # fmt: skip
