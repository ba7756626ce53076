"""Files written whole or not at all, folders held by one run, and names taken from strangers.

Everything this project writes goes through `publish` or `publish_path`: a reader finds the old file or the new one,
never a part. Measured (2 cores, ext4): 10 kB take 10 ms with both fsyncs, 100 MB 0.3 s; SHA-256 runs at 1.8 GB/s,
CRC-32 at 6.4 GB/s.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from jukebox.errors import DataError, LockedError, OutOfSpace, UserError, WriteFailed
from jukebox.resources import disk_free_bytes, size_text

PathLike = str | os.PathLike[str]

# --- fault points ----------------------------------------------------------------------------------------------------

_passages: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """A place where a test may strike; does nothing unless the environment says so.

    JUKEBOX_FAULT="name:count[:action][:rank=R]" strikes at the count-th passage (from 1) of the named point in each
    process, or in the one of rank R. Actions: kill (default, SIGKILL to this process), raise, exit (sys.exit(3)),
    stop (SIGSTOP), full (a full disk).
    """
    fault = os.environ.get("JUKEBOX_FAULT")
    if not fault:
        return
    wanted, count, *options = fault.split(":")
    if wanted != name:
        return
    rank = next((option.removeprefix("rank=") for option in options if option.startswith("rank=")), None)
    if rank is not None and rank != _rank_text():
        return
    _passages[name] += 1
    if _passages[name] != int(count):
        return
    actions = [option for option in options if not option.startswith("rank=")] or ["kill"]
    match actions[0]:
        case "raise":
            raise RuntimeError(f"fault injected at {name}")
        case "exit":
            sys.exit(3)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


def _rank_text() -> str:
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0")


# --- whole-or-nothing writes -----------------------------------------------------------------------------------------

_live_temps: set[Path] = set()  # those of this process, so that a reused pid does not protect an old one
_TEMP_NAME = re.compile(r"\.tmp-(\d+)-[0-9a-f]+")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SAME_AS_FULL_BYTES = 1 << 20  # soundfile, numpy and torch hide ENOSPC behind texts of their own


@contextmanager
def publish_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; at the end of the block it stands at `path`, whole and on disk.

    For writers that open files themselves. The temporary name keeps the suffix. On any error it is removed and what
    stood at `path` before is untouched. Raises OutOfSpace or WriteFailed for faults of the disk, other errors as
    they are.
    """
    final = Path(path)
    temp = final.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}{final.suffix}")
    _live_temps.add(temp)
    try:
        fault_point("publish.before_write")
        yield temp
        fault_point("publish.before_fsync")
        _sync(temp)
        fault_point("publish.before_replace")
        os.replace(temp, final)
        fault_point("publish.after_replace")
        _sync_folder(final.parent)
    except BaseException as error:
        with suppress(OSError):
            written_bytes = temp.stat().st_size if temp.exists() else 0
            temp.unlink(missing_ok=True)
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        cause = _disk_fault(final, error, written_bytes)
        if cause is None:
            raise
        raise cause from error
    finally:
        _live_temps.discard(temp)


def publish(path: PathLike, write: Callable[[BinaryIO], object], *, digest: bool = False) -> str | None:
    """Write a file whole: `write` fills a binary stream, which then takes the place of `path`.

    With `digest`, the SHA-256 of what was written, read back before it was published. Raises as `publish_path`.
    """
    with publish_path(path) as temp:
        with open(temp, "xb") as stream:
            write(stream)
            size_bytes = stream.seek(0, os.SEEK_END)
        if temp.stat().st_size != size_bytes:
            raise WriteFailed(f"{printable(str(path))} came out shorter than written; the disk is not to be trusted.")
        return digest_file(temp) if digest else None


def publish_bytes(path: PathLike, data: bytes) -> None:
    """Write bytes whole (see `publish`)."""
    publish(path, lambda stream: stream.write(data))


def publish_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text whole; bytes that were never text (odd file names) come back as they were."""
    publish_bytes(path, text.encode("utf-8", "surrogateescape"))


def publish_json(path: PathLike, value: Any, indent: int | None = None) -> None:
    """Write JSON whole, in UTF-8, readable in every language. Refuses NaN and infinity, which are not JSON."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, from an odd file name: \udc.. survives a round trip
        data = json.dumps(value, indent=indent, allow_nan=False).encode("ascii")
    publish_bytes(path, data + b"\n")


class Appender:
    """A file that grows by whole records: one that does not fit on the disk leaves no trace, and later ones may fit."""

    def __init__(self, path: PathLike) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)

    def append(self, record: bytes) -> None:
        """Add a record at once, unbuffered; raises OSError, with the file as before."""
        try:
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], self._size_bytes + written)
        except OSError:
            os.ftruncate(self._descriptor, self._size_bytes)
            raise
        self._size_bytes += len(record)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def link_or_copy(source: PathLike, target: PathLike) -> None:
    """Make `target` another name of `source`, at one stroke: a hard link, or a copy where there are none (exFAT, SMB).

    There is no moment at which `target` is missing. Raises as `publish_path`.
    """
    with publish_path(target) as temp:
        try:
            os.link(source, temp)
        except OSError:
            shutil.copyfile(source, temp)
    with suppress(OSError):  # rename does nothing when both are already names of one file
        temp.unlink(missing_ok=True)


def make_folder(folder: PathLike, *, name: str = "the folder", cure: str = "Choose another place.") -> Path:
    """A folder that a user named, and those above it, made where they are missing. Raises WriteFailed with the cure."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"Cannot make {name} {printable(str(path))}: {error.strerror}. {cure}") from error
    return path


def check_space(folder: PathLike, need_bytes: int, *, name: str = "", cure: str = "Free some space.") -> None:
    """Refuse early what will not fit on the disk of `folder`: raises OutOfSpace with both sizes."""
    free_bytes = disk_free_bytes(folder)
    if need_bytes * 1.05 > free_bytes:
        where = printable(str(Path(folder).absolute()))
        raise OutOfSpace(
            f"No space for {printable(name) or 'the next file'}: needs {size_text(need_bytes)}, "
            f"{size_text(free_bytes)} free on {where}. {cure}"
        )


def remove_stale_temps(folder: PathLike) -> list[Path]:
    """Remove what killed processes left half written in `folder`; returns it.

    For the holder of the folder's RunLock: pids of other machines mean nothing here.
    """
    removed = []
    for path in Path(folder).glob(".tmp-*"):
        match = _TEMP_NAME.match(path.name)
        if match and path not in _live_temps and not _alive_elsewhere(int(match[1])):
            with suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def _alive_elsewhere(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sync(path: Path) -> None:
    # A fresh descriptor: it sees errors that no one was told of, and after a failed fsync the pages count as clean,
    # so the file must be written anew (Rebello et al., USENIX ATC 2020).
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _disk_fault(path: Path, error: Exception, written_bytes: int) -> WriteFailed | None:
    """The user's view of a failed write, or None when the fault is the writer's and not the disk's."""
    name, folder = printable(path.name), printable(str(path.parent.absolute()))
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    faults = [fault for fault in chain if isinstance(fault, OSError)]
    try:
        free_bytes = disk_free_bytes(path.parent)
    except OSError:
        free_bytes = sys.maxsize
    if any(fault.errno in _NO_ROOM for fault in faults) or free_bytes < _SAME_AS_FULL_BYTES:
        return OutOfSpace(
            f"No space for {name}: {size_text(free_bytes)} free on {folder}, more than {size_text(written_bytes)} "
            "needed. Nothing written before is lost: free some space and run the same command again."
        )
    if faults:
        reason = faults[0].strerror or str(faults[0]) or type(faults[0]).__name__
        return WriteFailed(f"Cannot write {name} in {folder}: {reason}. Nothing half written stands under that name.")
    return None


# --- one run per folder ----------------------------------------------------------------------------------------------

_held_descriptors: set[int] = set()


def _drop_locks_in_child() -> None:
    """A forked loader worker may outlive us by seconds; it must not hold our lock."""
    for descriptor in _held_descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _held_descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks_in_child)


class RunLock:
    """Holds a folder for one run, through `flock` on its file LOCK, which says who holds it.

    The lock ends with the process, however that ends; a dead run on this machine is taken over in silence. A folder
    left by a run on another machine needs `force`, because not every network file system shares locks.
    Raises LockedError naming host, pid, start and command, and the ways out.
    """

    def __init__(self, folder: PathLike, *, force: bool = False) -> None:
        self.path = Path(folder) / "LOCK"
        self._force = force
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        import fcntl  # not on Windows

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WriteFailed(
                f"Cannot write in {printable(str(self.path.parent))}: {error.strerror}. Choose another folder."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_other_host(_read_owner(descriptor))
        except OSError as error:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise LockedError(self._refusal(owner)) from error
        except LockedError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held_descriptors.add(descriptor)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": time.strftime("%Y-%m-%d %H:%M:%S"),
            "argv": " ".join(sys.argv),
        }
        # In place, not through `publish`: the lock lives on this very inode.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)  # left in order: no one need ask about another host
            _held_descriptors.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _refuse_other_host(self, owner: dict[str, Any]) -> None:
        if owner and owner.get("host") != socket.gethostname() and not self._force:
            raise LockedError(self._refusal(owner) + " If that run is dead, say --force_unlock.")

    def _refusal(self, owner: dict[str, Any]) -> str:
        who = ", ".join(f"{key} {printable(str(value))}" for key, value in owner.items()) or "an unnamed process"
        return (
            f"{printable(str(self.path.parent))} is in use ({who}). "
            "Give this run another --name, wait for that one to end, or stop it and run this command again."
        )


def _read_owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 1 << 16, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


# --- names and text from strangers -----------------------------------------------------------------------------------

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
_MOST_BYTES = 120
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _harmful(character: str) -> bool:
    """Whether a character steers a terminal or reorders text instead of showing something."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI_CONTROLS


def printable(text: str) -> str:
    r"""Text that is safe to show on a terminal: what would steer it is spelled out (`\x1b`, `\u202e`)."""
    return "".join(c.encode("unicode_escape").decode() if _harmful(c) else c for c in text)


def safe_component(text: str, taken: Collection[str] = ()) -> str:
    """A name for one file or folder, on any system, made from any text.

    NFC; no separators, control characters, leading dot or dash, nor a name Windows reserves; at most 120 bytes; never
    empty. Names in `taken` are avoided, whatever their case, by `-2`, `-3`, ...
    """
    text = "".join("_" if c in '/\\:*?"<>|' or _harmful(c) else c for c in unicodedata.normalize("NFC", text))
    text = _cut(text.strip().lstrip(".-").strip(), _MOST_BYTES).rstrip(". ") or "unnamed"
    if text.split(".")[0].strip().casefold() in _RESERVED:
        text = _cut("_" + text, _MOST_BYTES)
    used = {name.casefold() for name in taken}
    name, number = text, 2
    while name.casefold() in used:
        ending = f"-{number}"
        name = _cut(text, _MOST_BYTES - len(ending)) + ending
        number += 1
    return name


def _cut(text: str, most_bytes: int) -> str:
    return text.encode("utf-8")[:most_bytes].decode("utf-8", "ignore")


def inside(root: PathLike, path: PathLike, error: type[UserError] = DataError) -> Path:
    """`root / path`, resolved, for a relative `path` that stays below `root`, links followed; raises `error` if not."""
    text = os.fspath(path)
    plain = text and "\0" not in text and not text.startswith("~") and not os.path.isabs(text)
    if plain and ".." not in re.split(r"[/\\]", text):
        base = Path(root).resolve()
        target = (base / text).resolve()
        if target.is_relative_to(base):
            return target
    raise error(
        f"{printable(text)!r} is not a plain path below {printable(str(root))}. Give a relative one without '..'."
    )


# --- digests ---------------------------------------------------------------------------------------------------------


def digest_bytes(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def crc32_file(path: PathLike) -> int:
    """CRC-32 of a file: finds flipped bits three times as fast as a digest; no defence against intent."""
    crc = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
