"""WebDataset tars, local or in a bucket: samples are members of one name that differ in what follows the first dot.

A tar is listed once, by its headers; a sample is then read by its place, without unpacking. Buckets go through fsspec
(`pip install s3fs`); the first program called the `aws` tool through a shell.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal

from numpy.typing import NDArray

from jukebox.audio import io
from jukebox.codestore.arrays import read_any
from jukebox.codestore.layout import parse_json
from jukebox.codestore.pre_encoded import valid_frames
from jukebox.data import admission
from jukebox.data.admission import Candidate, Index
from jukebox.data.dataset_config import Entry, WebDataset
from jukebox.errors import DataError, UserError
from jukebox.files import printable
from jukebox.labels.song import SongMeta
from jukebox.parallel.comm import Comm

AUDIO = ("flac", "wav", "mp3", "m4a", "ogg", "opus")
_SONG = ("artist", "genre", "lyrics", "title", "times")


@dataclass(frozen=True)
class Sample:
    """One sample: `members` gives place and size in bytes of each part by its extension.

    `changed_ns` is when its tar was written; of one in a bucket a number that changes with it.
    """

    entry: Entry
    tar: str
    name: str
    members: dict[str, tuple[int, int]]
    changed_ns: int = 0

    @property
    def relpath(self) -> str:
        """The tar and the name inside it."""
        return f"{_relative(self.entry, self.tar)}/{self.name}"

    def is_still(self, known: admission.Entry) -> bool:
        """Whether this is the sample that an entry was made of."""
        return (known.size_bytes, known.mtime_ns) == (self.members[self.audio][1], self.changed_ns)

    @property
    def audio(self) -> str:
        """The extension of the sound; empty without one."""
        return next((extension for extension in AUDIO if extension in self.members), "")

    def read(self, extension: str) -> bytes:
        """One part, whole. Raises AudioError when the tar was changed since it was listed, or ends before it."""
        place, size = self.members[extension]
        try:
            if not self.entry.s3_path and os.stat(self.tar).st_mtime_ns != self.changed_ns:
                raise io.AudioError(self.tar, "changed since it was listed (written anew)")
            with _bucket_errors(self.entry), _open(self.entry, self.tar) as file:
                file.seek(place)
                data = file.read(size)
        except OSError as error:
            raise io.AudioError(self.tar, f"cannot be read ({error.strerror or error})") from None
        if len(data) < size:
            raise io.AudioError(self.tar, f"ends inside {printable(self.name)}.{extension}")
        return data

    def info(self) -> dict[str, Any]:
        """Its `.json`; a `text` there is the `prompt` as well. Raises StoreError when it is no object."""
        data = parse_json(self.read("json"), f"{self.tar}: {self.name}.json")
        if not isinstance(data, dict):
            raise DataError(f"{printable(self.tar)}: {printable(self.name)}.json is not an object of metadata")
        return {**data, "prompt": data["text"]} if "text" in data else data

    def song(self) -> SongMeta:
        """What its `.json` says of artist, genre and lyrics."""
        info = self.info()
        return SongMeta.from_json({key: info[key] for key in _SONG if key in info}, self.relpath)

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
    on_bad_file: Literal["error", "skip"],
    max_bad: float,
    max_audio_sec: float,
    silence: bool = False,
    cache: Path | None = None,
    report: Path | None = None,
    workers: int = 0,
    timeout_sec: float = 300.0,
) -> list[tuple[Sample, admission.Entry]]:
    """The samples whose sound can be used, as `admission.admit` judges files. Collective.

    What is known of tars that did not change since is kept in `cache`.
    """
    root = Path(config.datasets[0].s3_path or config.datasets[0].path)

    def compared() -> tuple[list[Sample], dict[str, admission.Entry]]:
        found, before = samples(config, "audio"), admission.load_index(cache, root) if cache else {}
        same = ((s, before.get(s.relpath)) for s in found)
        return found, {s.relpath: e for s, e in same if e and s.is_still(e) and admission.settled(e, max_audio_sec)}

    def save(fresh: dict[str, admission.Entry]) -> None:
        if cache:
            admission.save_index(cache, root, {**known, **fresh})

    everything, known = comm.run_first(compared)
    todo = [_Candidate.of(sample, max_audio_sec) for sample in everything if sample.relpath not in known]
    known |= admission.examine_all(todo, comm, save, workers=workers, timeout_sec=timeout_sec, examine=_examined)
    index = Index(root, tuple(known[sample.relpath] for sample in everything))
    index = index.with_silence(comm) if silence else index
    admission.judge(index, comm, on_bad_file=on_bad_file, max_bad=max_bad, report=report)
    return [(sample, entry) for sample, entry in zip(everything, index.entries, strict=True) if not entry.reason]


@dataclass(frozen=True)
class _Candidate(Candidate):
    """A sample to decode."""

    sample: Sample

    @classmethod
    def of(cls, sample: Sample, max_audio_sec: float) -> _Candidate:
        size = sample.members[sample.audio][1]
        return cls(f"{sample.tar}/{sample.name}", sample.relpath, size, sample.changed_ns, max_audio_sec, sample)


def _examined(candidate: _Candidate) -> admission.Entry:
    """Runs in a worker process."""
    with candidate.sample.unpacked(candidate.sample.audio) as path:
        plain = {field.name: getattr(candidate, field.name) for field in fields(Candidate)}
        return admission.examine(Candidate(**{**plain, "path": path}))


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
        with _bucket_errors(entry):
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
        with _bucket_errors(entry):
            changed_ns = _changed_ns(entry, tar)
        with _bucket_errors(entry), _open(entry, tar) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                folder, _, base = member.name.rpartition("/")
                name, dot, extension = base.partition(".")
                if member.isreg() and dot and name:
                    key = f"{folder}/{name}" if folder else name
                    members.setdefault(key, {})[extension.lower()] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{printable(tar)}: cannot be read as a tar ({error})") from None
    for name in sorted(members):
        yield Sample(entry, tar, name, members[name], changed_ns)


def _changed_ns(entry: Entry, tar: str) -> int:
    if not entry.s3_path:
        return os.stat(tar).st_mtime_ns
    told = _bucket(entry).info(tar)
    text = repr([told.get(name) for name in ("size", "ETag", "LastModified")])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _open(entry: Entry, tar: str) -> IO[bytes]:
    if entry.s3_path:
        file: IO[bytes] = _bucket(entry).open(tar, "rb")
        return file
    return open(tar, "rb")


@contextmanager
def _bucket_errors(entry: Entry) -> Iterator[None]:
    """What goes wrong with a bucket, in one line: errors of its client have no ancestor in common."""
    try:
        yield
    except (UserError, tarfile.TarError):
        raise
    except Exception as error:
        if not entry.s3_path:
            raise
        raise DataError(
            f"{entry.s3_path}: {type(error).__name__}: {printable(str(error))[:200]}. Credentials and address are found "
            "as the aws tool finds them: profile, AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL."
        ) from None


def _bucket(entry: Entry) -> Any:
    try:
        import fsspec

        return fsspec.filesystem("s3", **({"profile": entry.profile} if entry.profile else {}))
    except ImportError:
        raise DataError(f"{entry.s3_path}: data sets in a bucket need s3fs: pip install s3fs") from None


def _relative(entry: Entry, tar: str) -> str:
    root = "s3://" + entry.s3_path.removeprefix("s3://") if entry.s3_path else entry.path
    return tar.removeprefix(root).lstrip("/") or os.path.basename(tar)
