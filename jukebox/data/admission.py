"""Admission of audio, once: every file of a folder is decoded whole, and what would spoil a batch is refused with a reason.

Decoders claim lengths that are not there and turn damage into silence without a word, so only decoding tells. The result
is an index outside the music folder, which is never written to; a file whose size and time (or size and content at both
ends) did not change is not decoded again. Ranks share the work; a scan that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from jukebox import files
from jukebox.audio import io, tags
from jukebox.data.workers import Workers
from jukebox.errors import DataError, UserError
from jukebox.files import printable
from jukebox.parallel.comm import Comm
from jukebox.runlog import Progress

MAX_PEAK = 4.0  # beyond, a float file holds no sound but rubbish
SILENT_PEAK = 2.0**-15  # the last bit of 16
_END_BYTES = 1 << 16
_ROUND_SEC = 30.0  # ranks meet and the index is saved this often
_FORMAT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)  # a million of them may be in memory
class Entry:
    """One file as the scan found it; `reason` is empty if it may be used, length and peak are what decoding gave."""

    file: str  # relative to the folder
    size_bytes: int
    mtime_ns: int
    digest: str = ""  # of the first and last 64 KiB
    sr_hz: int = 0
    channels: int = 0
    length_samples: int = 0  # at its own rate
    peak: float = 0.0
    format: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def length_sec(self) -> float:
        return self.length_samples / self.sr_hz if self.sr_hz else 0.0

    @property
    def silent(self) -> bool:
        return self.reason.startswith("silent")


@dataclass(frozen=True)
class Index:
    """All sound files of a folder, sorted by name."""

    root: Path
    entries: tuple[Entry, ...]

    @cached_property
    def usable(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if not entry.reason)

    @cached_property
    def refused(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.reason)

    def with_silence(self, comm: Comm) -> "Index":
        """The index in which silent files may be used like others; says which they are."""
        silent = [entry for entry in self.entries if entry.silent]
        if silent and comm.rank == 0:
            log.warning(
                "%d of %d files are silent, and taken as they are.%s", len(silent), len(self.entries), _listed(silent)
            )
        return replace(self, entries=tuple(replace(e, reason="") if e.silent else e for e in self.entries))

    def fingerprint(self) -> str:
        """Changes when a usable file comes, goes or changes."""
        parts = [(entry.file, entry.size_bytes, entry.digest, entry.length_samples) for entry in self.usable]
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to decode; worker processes get these."""

    path: str
    file: str
    size_bytes: int
    mtime_ns: int
    max_audio_sec: float

    def __str__(self) -> str:
        return printable(self.path)


_Candidate = TypeVar("_Candidate", bound=Candidate)


def examine(candidate: Candidate) -> Entry:
    """Decodes one file from end to end and judges it; runs in a worker process."""
    found: dict[str, Any] = {"file": candidate.file, "size_bytes": candidate.size_bytes, "mtime_ns": candidate.mtime_ns}
    try:
        survey = io.survey(candidate.path, max_sec=candidate.max_audio_sec)
        info = survey.info
        found |= {"sr_hz": info.sr_hz, "channels": info.channels, "format": info.format, "peak": survey.peak}
        found |= {"length_samples": survey.length_samples, "tags": tags.read(candidate.path)}
        if survey.peak > MAX_PEAK:
            found["reason"] = f"peak {survey.peak:.3g} (full scale is 1)"
        elif survey.peak < SILENT_PEAK:
            found["reason"] = f"silent (peak {survey.peak:.1g})"
    except io.AudioError as error:
        found["reason"] = error.reason
    try:
        found["digest"] = _digest(candidate.path, candidate.size_bytes)
    except OSError:
        found["digest"] = ""
    return Entry(**found)


def admit(
    folder: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    comm: Comm,
    *,
    on_bad_file: Literal["error", "skip"] = "skip",
    max_bad: float = 0.01,
    max_audio_sec: float = 0.0,
    silence: bool = False,
    workers: int = 1,
    timeout_sec: float = 300.0,
    report: str | os.PathLike[str] | None = None,
    examine: Callable[[Candidate], Entry] = examine,
) -> Index:
    """Scans a folder and refuses to go on with too many bad files. Collective: every rank calls it and gets all of it.

    `cache` is the index file, `report` a bad_files.tsv to write. Silent files are left out and listed, or with `silence`
    taken and listed; only files that cannot be read count as bad. `workers` processes per rank decode (0: this one, for tests); a crash in a decoder
    refuses one file. Raises DataError if nothing is usable, if more than the share `max_bad` is bad, or with
    on_bad_file="error" if any is.
    """
    index = scan(
        folder,
        cache,
        comm,
        max_audio_sec=max_audio_sec,
        workers=workers,
        timeout_sec=timeout_sec,
        examine=examine,
    )
    index = index.with_silence(comm) if silence else index
    judge(index, comm, on_bad_file=on_bad_file, max_bad=max_bad, report=report)
    return index


def judge(
    index: Index,
    comm: Comm,
    *,
    on_bad_file: Literal["error", "skip"],
    max_bad: float,
    report: str | os.PathLike[str] | None = None,
) -> None:
    """Says what is left out, in `report` all of it. Raises DataError when nothing is usable, or more is bad than may be."""
    if report and index.refused and comm.rank == 0:
        write_report(index, report)
    bad = [entry for entry in index.refused if not entry.silent]
    listed = _listed(bad)
    where = f" All of them are in {printable(os.fspath(report))}." if report and len(index.refused) > 10 else ""
    if not index.usable:
        raise DataError(_nothing_usable(index))
    if bad and on_bad_file == "error":
        raise DataError(
            f"{len(bad)} of {len(index.entries)} files cannot be used (--on_bad_file=error).{where}{listed}"
        )
    if len(bad) > max_bad * len(index.entries):
        raise DataError(
            f"{len(bad)} of {len(index.entries)} files cannot be used, more than --max_bad={max_bad:g} allows. "
            f"Remove or mend them, or raise --max_bad.{where}{listed}"
        )
    if comm.rank == 0 and index.refused:
        log.warning(
            "%d of %d files are left out.%s%s", len(index.refused), len(index.entries), where, _listed(index.refused)
        )


def scan(
    folder: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    comm: Comm,
    *,
    max_audio_sec: float = 0.0,
    workers: int = 1,
    timeout_sec: float = 300.0,
    examine: Callable[[Candidate], Entry] = examine,
) -> Index:
    """The index of a folder, decoding only what changed since `cache` was written. Collective."""
    root = Path(os.path.abspath(os.fspath(folder)))
    known, todo = comm.run_first(lambda: _compared(root, Path(cache), max_audio_sec))
    known |= examine_all(
        todo, comm, lambda found: save_index(Path(cache), root, {**known, **found}), workers=workers,
        timeout_sec=timeout_sec, examine=examine,
    )  # fmt: skip
    return Index(root, tuple(known[name] for name in sorted(known)))


def examine_all(
    todo: Sequence[_Candidate],
    comm: Comm,
    save: Callable[[dict[str, Entry]], None],
    *,
    workers: int,
    timeout_sec: float,
    examine: Callable[[_Candidate], Entry],
) -> dict[str, Entry]:
    """The entries of files to decode, by name, `save`d again and again by the first rank. Collective."""
    known: dict[str, Entry] = {}
    progress = Progress(len(todo), "files", "scan") if todo and comm.rank == 0 else None
    mine = todo[comm.rank :: comm.size]
    with Workers(examine, workers, timeout_sec=timeout_sec) as pool:
        left = _Answers(pool, mine)
        while True:
            rounds = comm.gather_objects((left.until(time.monotonic() + _ROUND_SEC), left.remaining))
            fresh = [entry for entries, _ in rounds for entry in entries]
            known |= {entry.file: entry for entry in fresh}
            if comm.rank == 0 and fresh:
                save(known)
            if progress:
                progress.update(len(fresh))
            if not any(remaining for _, remaining in rounds):
                break
    if progress:
        progress.close()
    return known


class _Answers(Generic[_Candidate]):
    """The entries of this rank's files, as they come."""

    def __init__(self, pool: Workers[_Candidate, Entry], candidates: Sequence[_Candidate]) -> None:
        self._pool, self._candidates = pool, candidates
        self._submitted = 0
        self.remaining = len(candidates)

    def until(self, deadline_sec: float) -> list[Entry]:
        """What is answered before a moment of the monotonic clock; at least one entry while any is left."""
        found: list[Entry] = []
        while self.remaining and (not found or time.monotonic() < deadline_sec):
            while (
                self._submitted < len(self._candidates)
                and self._submitted < len(self._candidates) - self.remaining + 64
            ):
                self._pool.submit(self._submitted, self._candidates[self._submitted])
                self._submitted += 1
            ticket, answer = self._pool.take()
            self.remaining -= 1
            if isinstance(answer, UserError):  # the decoder took its process along
                candidate = self._candidates[ticket]
                answer = Entry(candidate.file, candidate.size_bytes, candidate.mtime_ns, reason=str(answer))
            found.append(answer)
        return found


def _compared(root: Path, cache: Path, max_audio_sec: float) -> tuple[dict[str, Entry], list[Candidate]]:
    """Entries of the saved index that still hold, and the files to decode."""
    before = load_index(cache, root)
    known: dict[str, Entry] = {}
    todo = []
    for path in io.find_audio(root):
        name = os.fspath(path).removeprefix(os.fspath(root)).lstrip(os.sep)
        try:
            state = path.stat()
        except OSError as error:
            known[name] = Entry(name, 0, 0, reason=f"cannot be opened ({error.strerror})")
            continue
        entry = before.get(name)
        if entry and entry.size_bytes == state.st_size and _holds(entry, path, state.st_mtime_ns, max_audio_sec):
            known[name] = entry if entry.mtime_ns == state.st_mtime_ns else replace(entry, mtime_ns=state.st_mtime_ns)
        else:
            todo.append(Candidate(os.fspath(path), name, state.st_size, state.st_mtime_ns, max_audio_sec))
    return known, todo


def settled(entry: Entry, max_audio_sec: float) -> bool:
    """Whether nothing else can be found out about a file that did not change."""
    if not entry.digest:
        return False  # it could not be opened, or its decoder crashed: try again
    # the limit may have changed
    return not entry.reason.startswith(io.TOO_LONG) and entry.length_sec <= (max_audio_sec or float("inf"))


def _holds(entry: Entry, path: Path, mtime_ns: int, max_audio_sec: float) -> bool:
    """Whether what was found out about a file of this size is still true."""
    if not settled(entry, max_audio_sec):
        return False
    if entry.mtime_ns == mtime_ns:
        return True
    try:
        return entry.digest == _digest(path, entry.size_bytes)
    except OSError:
        return False


def _digest(path: str | os.PathLike[str], size_bytes: int) -> str:
    with open(path, "rb") as file:
        ends = file.read(_END_BYTES)
        file.seek(max(0, size_bytes - _END_BYTES))
        ends += file.read(_END_BYTES)
    return hashlib.sha256(ends).hexdigest()[:16]


def check_unchanged(path: str, size_bytes: int, mtime_ns: int) -> None:
    """Raises AudioError unless the file is the one that the scan saw."""
    try:
        now = os.stat(path)
    except OSError as error:
        raise io.AudioError(path, f"gone since the scan ({error.strerror})") from None
    if now.st_size != size_bytes:
        raise io.AudioError(path, f"changed since the scan (size {size_bytes} -> {now.st_size} bytes)")
    if now.st_mtime_ns != mtime_ns:
        raise io.AudioError(path, "changed since the scan (written anew)")


def write_report(index: Index, path: str | os.PathLike[str]) -> None:
    """bad_files.tsv: one refused file per line, a tab, the reason."""
    lines = [f"{printable(entry.file)}\t{printable(entry.reason)}\n" for entry in index.refused]
    files.publish_text(Path(path), "".join(lines))


def _listed(entries: Sequence[Entry]) -> str:
    more = f"\n  ... and {len(entries) - 10} more" if len(entries) > 10 else ""
    return "".join(f"\n  {printable(entry.file)}: {printable(entry.reason)}" for entry in entries[:10]) + more


def _nothing_usable(index: Index) -> str:
    accepted = " ".join(sorted(suffix[1:] for suffix in io.EXTENSIONS))
    root = printable(os.fspath(index.root))
    if index.refused:
        return f"{root}: none of {len(index.entries)} sound files can be used.{_listed(index.refused)}"
    seen = Counter(
        os.path.splitext(name)[1].lower() or "no extension" for _, _, names in os.walk(index.root) for name in names
    )
    there = ", ".join(f"{count} {printable(suffix)}" for suffix, count in seen.most_common(8)) or "it is empty"
    return f"{root} holds no sound file ({there}). Give --audio_files_dir a folder with any of: {accepted}"


def save_index(cache: Path, root: Path, entries: dict[str, Entry]) -> None:
    """Keep what is known of the files below `root`."""
    files.make_folder(cache.parent)
    columns = [column.name for column in fields(Entry)]
    rows = [[getattr(entries[name], column) for column in columns] for name in sorted(entries)]
    files.publish_json(cache, {"format": _FORMAT, "root": os.fspath(root), "columns": columns, "entries": rows})


def load_index(cache: Path, root: Path) -> dict[str, Entry]:
    """The saved entries, or none if there is no index of this folder; a damaged one is made anew."""
    try:
        saved = json.loads(cache.read_text(encoding="utf-8"))
        if saved["format"] != _FORMAT or saved["root"] != os.fspath(root):
            return {}
        columns = saved["columns"]
        return {row[0]: Entry(**dict(zip(columns, row, strict=True))) for row in saved["entries"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the index %s cannot be read (%s) and is made anew", printable(os.fspath(cache)), error)
        return {}
