"""WebDataset tars, local or in a bucket: samples are members of one name that differ in what follows the first dot.

A tar is listed once, by its headers; a sample is then read by its place, without unpacking. Buckets go through fsspec
(`pip install s3fs`); the first program called the `aws` tool through a shell.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from jukebox.audio import io
from jukebox.codestore.arrays import read_any
from jukebox.codestore.layout import parse_json
from jukebox.codestore.pre_encoded import valid_frames
from jukebox.data import admission
from jukebox.data.admission import Candidate, Index
from jukebox.data.dataset_config import Entry, WebDataset
from jukebox.errors import DataError
from jukebox.files import printable
from jukebox.parallel.comm import Comm

AUDIO = ("flac", "wav", "mp3", "m4a", "ogg", "opus")


@dataclass(frozen=True)
class Sample:
    """One sample: `members` gives place and size in bytes of each part by its extension."""

    entry: Entry
    tar: str
    name: str
    members: dict[str, tuple[int, int]]

    @property
    def relpath(self) -> str:
        """The tar and the name inside it."""
        return f"{_relative(self.entry, self.tar)}/{self.name}"

    @property
    def audio(self) -> str:
        """The extension of the sound; empty without one."""
        return next((extension for extension in AUDIO if extension in self.members), "")

    def read(self, extension: str) -> bytes:
        """One part, whole. Raises DataError when the tar ends before it."""
        place, size = self.members[extension]
        with _open(self.entry, self.tar) as file:
            file.seek(place)
            data = file.read(size)
        if len(data) < size:
            raise DataError(f"{printable(self.tar)}: ends inside {printable(self.name)}.{extension}")
        return data

    def info(self) -> dict[str, Any]:
        """Its `.json`; a `text` there is the `prompt` as well. Raises StoreError when it is no object."""
        data = parse_json(self.read("json"), f"{self.tar}: {self.name}.json")
        if not isinstance(data, dict):
            raise DataError(f"{printable(self.tar)}: {printable(self.name)}.json is not an object of metadata")
        return {**data, "prompt": data["text"]} if "text" in data else data

    @contextmanager
    def unpacked(self, extension: str) -> Iterator[str]:
        """One part as a file of its own, for as long as it is needed."""
        with tempfile.TemporaryDirectory(prefix="jukebox-") as folder:
            path = os.path.join(folder, f"sample.{extension}")
            with open(path, "wb") as file:
                file.write(self.read(extension))
            try:
                yield path
            except io.AudioError as error:
                raise io.AudioError(self.relpath, error.reason) from None


def samples(config: WebDataset, part: str) -> list[Sample]:
    """All samples that have a `.json` and a `part`: "audio", or an extension such as "npy"; tars and names sorted.

    Raises DataError naming the folder or bucket, and what is wrong with it.
    """
    found = []
    for entry in config.datasets:
        listed = [sample for tar in _tars(entry) for sample in _listing(entry, tar)]
        kept = [s for s in listed if "json" in s.members and (s.audio if part == "audio" else part in s.members)]
        if not kept:
            wanted = f"one of .{', .'.join(AUDIO)}" if part == "audio" else f".{part}"
            raise DataError(f"{entry.s3_path or entry.path}: none of {len(listed)} samples has a .json and {wanted}")
        found += kept
    return found


def admit(
    config: WebDataset,
    comm: Comm,
    *,
    on_bad_file: Any,
    max_bad: float,
    max_audio_sec: float,
    report: Path | None = None,
) -> list[tuple[Sample, admission.Entry]]:
    """The samples whose sound can be used, as `admission.admit` judges files. Collective."""
    everything = comm.run_first(lambda: samples(config, "audio"))
    mine = [_examined(sample, max_audio_sec) for sample in everything[comm.rank :: comm.size]]
    by_rank = comm.gather_objects(mine)
    entries = [by_rank[i % comm.size][i // comm.size] for i in range(len(everything))]
    index = Index(Path(config.datasets[0].s3_path or config.datasets[0].path), tuple(entries))
    admission.judge(index, comm, on_bad_file=on_bad_file, max_bad=max_bad, report=report)
    return [(sample, entry) for sample, entry in zip(everything, entries, strict=True) if not entry.reason]


def _examined(sample: Sample, max_audio_sec: float) -> admission.Entry:
    with sample.unpacked(sample.audio) as path:
        state = os.stat(path)
        candidate = Candidate(path, sample.relpath, state.st_size, 0, max_audio_sec)
        return admission.examine(candidate)


class TarLatents:
    """The latents of samples that have a `.npy`, read as those of a `PreEncoded` folder are."""

    def __init__(self, found: Sequence[Sample]) -> None:
        self._samples = found
        self.paths = [f"{sample.tar}/{sample.name}.npy" for sample in found]

    def array(self, i: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Time steps [start, stop) of item i, [D, N]."""
        with self._samples[i].unpacked("npy") as path:
            return read_any(Path(path), 1, start, stop)

    def frames(self, i: int) -> int:
        """Time steps of item i."""
        with self._samples[i].unpacked("npy") as path:
            return int(read_any(Path(path), 0, 0, 0).shape[1])  # no values, only the shape

    def info(self, i: int) -> dict[str, Any]:
        """Metadata of item i."""
        return {"relpath": self._samples[i].relpath, **self._samples[i].info()}

    def valid_frames(self, i: int) -> int:
        """Leading time steps of item i that hold real audio."""
        return valid_frames(self.info(i), self.frames(i))


# ---- tars ------------------------------------------------------------------------------------------------------------


def _tars(entry: Entry) -> list[str]:
    """The tars of a folder or a bucket, sorted."""
    if entry.s3_path:
        found = [f"s3://{name}" for name in _bucket(entry).find(entry.s3_path) if name.endswith(".tar")]
    else:
        if not os.path.isdir(entry.path):
            raise DataError(f"{printable(entry.path)}: is no folder of tars")
        found = [str(path) for path in Path(entry.path).rglob("*.tar") if not path.name.startswith(".")]
    if not found:
        raise DataError(f"{printable(entry.s3_path or entry.path)}: holds no .tar")
    return sorted(found)


def _listing(entry: Entry, tar: str) -> Iterator[Sample]:
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with _open(entry, tar) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                folder, _, base = member.name.rpartition("/")
                name, dot, extension = base.partition(".")
                if member.isreg() and dot and name:
                    key = f"{folder}/{name}" if folder else name
                    members.setdefault(key, {})[extension.lower()] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{printable(tar)}: cannot be read as a tar ({error})") from None
    for name in sorted(members):
        yield Sample(entry, tar, name, members[name])


def _open(entry: Entry, tar: str) -> IO[bytes]:
    if entry.s3_path:
        file: IO[bytes] = _bucket(entry).open(tar, "rb")
        return file
    return open(tar, "rb")


def _bucket(entry: Entry) -> Any:
    try:
        import fsspec

        return fsspec.filesystem("s3", **({"profile": entry.profile} if entry.profile else {}))
    except ImportError:
        raise DataError(f"{entry.s3_path}: data sets in a bucket need s3fs: pip install s3fs") from None


def _relative(entry: Entry, tar: str) -> str:
    root = "s3://" + entry.s3_path.removeprefix("s3://") if entry.s3_path else entry.path
    return tar.removeprefix(root).lstrip("/") or os.path.basename(tar)
