"""What an item's metadata says besides its song: what the user's own function adds, and whether it takes the item at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.encoding.sources import Job
from jukebox.errors import DataError
from jukebox.labels.song import SongMeta
from jukebox.models.codec import Codec

SONG = ("artist", "genre", "lyrics", "title", "times")


class Rejected(DataError):
    """The user's function does not want this item."""


def described(
    job: Job, blocks: Iterator[NDArray[np.float32]], codec: Codec
) -> tuple[dict[str, Any], Iterator[NDArray[np.float32]]]:
    """The caller's part of an item's metadata, and its audio.

    A `get_custom_metadata(info, audio)` is given the audio `[C, T]` as a whole; without one nothing is read ahead. What
    it says of artist, genre, title and lyrics labels the song.
    Raises Rejected when it answers `__reject__`.
    """
    found: dict[str, Any] = {**job.recording.extra, "song": job.recording.song.to_json()}
    custom = job.recording.custom
    if custom is None:
        return found, blocks
    held = list(blocks)
    audio = np.concatenate(held) if held else np.zeros((0, codec.channels), np.float32)
    rate = codec.geometry.sr_hz
    info = {
        "path": job.recording.path,
        "relpath": job.recording.entry.file,
        "timestamps": (job.offset_samples / job.total_samples, (job.offset_samples + len(audio)) / job.total_samples),
        "seconds_start": job.offset_samples // rate,
        "seconds_total": -(-job.total_samples // rate),
        "padding_mask": np.ones(len(audio), np.float32),
        "sample_rate": rate,
        **found,
    }
    added = dict(custom(info, audio.T))
    if added.pop("__reject__", False):
        raise Rejected(f"{job.recording.path}: rejected by its custom_metadata_module")
    if "__audio__" in added:
        raise DataError(f"{job.recording.path}: __audio__ of a custom_metadata_module cannot be pre-encoded")
    labels = {name: added[name] for name in SONG if name in added}  # what priors learn it by
    if labels:
        song = SongMeta.from_json(labels, f"custom_metadata_module, for {job.recording.path}")
        found["song"] |= {name: value for name, value in song.to_json().items() if name in labels}
    return found | added, iter([audio])
