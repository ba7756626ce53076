"""One file over the network, whole or not at all: resumed, checked, fetched once however many ask."""

import contextlib
import fcntl
import logging
import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from jukebox import files
from jukebox.errors import UserError
from jukebox.files import printable
from jukebox.resources import size_text

log = logging.getLogger(__name__)

ATTEMPTS = 3  # without a byte of progress
BLOCK_BYTES = 1 << 20
OVERLAP_BYTES = 1 << 16  # compared before a part is taken up whose server has no name for versions
TIMEOUT_SEC = 30.0
PAUSE_SEC = 2.0
WEIGHTS = (".tar", ".bin", ".safetensors")  # endings of files that are never text

Report = Callable[[int, int | None], None]  # bytes here, bytes in all where known


class FetchError(UserError):
    """A file could not be fetched; nothing half fetched stands under its name."""


class _Dropped(Exception):
    """The connection ended early or the server is busy: worth another attempt."""


def size_of(url: str) -> int | None:
    """Bytes of a remote file as its server says, None where it does not. Raises FetchError."""
    try:
        with _open(url, {}, method="HEAD") as answer:
            return _length(answer)
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in (405, 501):
            return None  # it sends files, and says nothing about them
        raise FetchError(f"{url}: {_reason(error)}") from None


def fetch(url: str, path: Path, *, report: Report = lambda done, total: None) -> Path:
    """Fetch `url` to `path` unless it is there, intact; returns `path`.

    The SHA-256 of the first complete file is kept beside it and checked whenever it is asked for again; a damaged file
    is fetched anew. A partial file (`.part`) is taken up where it ended. Of several processes on a machine one fetches,
    the others wait. Raises FetchError, OutOfSpace, WriteFailed.
    """
    by_hand = f"Or put the file at {path} by hand (from {url})."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path):
            if _intact(path):
                return path
            part = path.with_name(path.name + ".part")
            _fetch_part(url, part, report)
            _refuse_impostor(part, path.name)
            _keep(part, path)
    except FetchError as error:
        raise FetchError(f"{url}: {error} {by_hand}") from None
    except OSError as error:
        raise FetchError(f"{path}: cannot be written ({error.strerror}). Choose another folder with --cache.") from None
    return path


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process fetches %s; waiting for it", path.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _intact(path: Path) -> bool:
    """Whether the file is here and as it was when it was complete for the first time."""
    if not path.is_file():
        return False
    if not _manifest(path).is_file():  # put here by hand, or by an older program
        _refuse_impostor(path, path.name)
        _record(path)
        return True
    expected, found = _manifest(path).read_text(encoding="ascii", errors="replace")[:64], files.digest_file(path)
    if expected != found:
        log.warning("%s is damaged (SHA-256 %s..., expected %s...): fetching it anew", path, found[:12], expected[:12])
    return expected == found


def _record(path: Path) -> None:
    files.publish_text(_manifest(path), f"{files.digest_file(path)}  {path.name}\n")


def _keep(part: Path, path: Path) -> None:
    """Give a complete file its name, once its digest is the one known."""
    known = _manifest(path).read_text(encoding="ascii", errors="replace")[:64] if _manifest(path).is_file() else ""
    if known and (found := files.digest_file(part)) != known:
        part.unlink()
        raise FetchError(
            f"got SHA-256 {found[:12]}..., expected {known[:12]}... as fetched before; removed. Run again, or, if the file "
            f"was replaced on purpose, delete {_manifest(path)}."
        )
    with files.publish_path(path) as temp:
        part.replace(temp)
    if not known:
        _record(path)


def _fetch_part(url: str, part: Path, report: Report) -> None:
    """Fill `part` to the length the server promises, over as many connections as it takes."""
    failures, best = 0, part.stat().st_size if part.exists() else 0
    while True:
        try:
            return _one_connection(url, part, report)
        except _Dropped as error:
            now = part.stat().st_size if _stamp(part).is_file() else 0  # without a stamp it begins anew
            failures = 1 if now > best else failures + 1
            best = max(best, now)
            if failures >= ATTEMPTS:
                raise FetchError(f"{error} after {ATTEMPTS} attempts; what came is kept, run again to go on.") from None
            log.info("%s: %s; trying again", url, error)
            time.sleep(PAUSE_SEC * 2 ** (failures - 1))


def _stamp(part: Path) -> Path:
    """Holds the server's name for the version of the file that a part belongs to; else `length N`, the whole's bytes.

    Without one a part is not resumed.
    """
    return part.with_name(part.name + ".stamp")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _stamp(part).unlink(missing_ok=True)


def _one_connection(url: str, part: Path, report: Report) -> None:
    have = part.stat().st_size if part.exists() else 0
    stamp = _stamp(part)
    version = stamp.read_text() if have and stamp.is_file() else ""
    by_length = version.startswith("length ")
    start = max(0, have - OVERLAP_BYTES) if by_length else have
    headers = {"Range": f"bytes={start}-"} if version else {}
    headers |= {"If-Range": version} if version and not by_length else {}
    try:
        with _open(url, headers) as answer:
            if _status(answer) != 206:
                have = start = 0  # the server sends it whole, or another version of it
            length = _length(answer)
            total = start + length if length is not None else None
            if version and _status(answer) == 206:
                total = _resumed(answer, part, start, have, total, version)
            if _is_page(answer) and part.name.removesuffix(".part").endswith(WEIGHTS):
                raise FetchError(
                    "the server answers with a web page instead of the file (a portal that wants a login?)."
                )
            if total is not None:
                files.check_space(part.parent, total - have, name=part.name, cure="Choose another folder with --cache.")
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            tag = tag or (f"length {total}" if total is not None else "")
            stamp.write_text(tag) if tag else stamp.unlink(missing_ok=True)
            with open(part, "ab") as out:
                out.truncate(have)
                done = _copy(answer, out, have, total, report)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is no beginning of the file
            _discard(part)
            raise _Dropped("the partial file did not fit") from None
        if error.code >= 500 or error.code == 429:
            raise _Dropped(f"the server answers {error.code}") from None
        raise FetchError(f"the server answers {error.code} {printable(str(error.reason))[:60]}.") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _Dropped(_reason(error)) from None
    if total is not None and done != total:
        raise _Dropped(f"the connection ended at {size_text(done)} of {size_text(total)}")
    stamp.unlink(missing_ok=True)


def _resumed(answer: Any, part: Path, start: int, have: int, total: int | None, version: str) -> int | None:
    """The bytes of the whole file, once what comes is known to follow what is here.

    The overlap up to `have` is read. Raises _Dropped when this is another place or version; the part is then gone.
    """
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", str(answer.headers.get("Content-Range", "")).strip())
    fits = said is None or int(said[1]) == start
    if said and said[2] != "*":
        fits = fits and int(said[2]) >= (total or 0)
        total = int(said[2])  # more than comes now, where servers send large files in pieces
    if fits and have > start:
        with part.open("rb") as held:
            held.seek(start)
            fits = version == f"length {total}" and answer.read(have - start) == held.read()
    if not fits:
        _discard(part)
        raise _Dropped("it sent another piece than the one asked for")
    return total


def _copy(answer: Any, out: Any, done: int, total: int | None, report: Report) -> int:
    if getattr(answer, "length", None) is not None and total is not None:
        answer.length += 1  # so that one byte more than was promised is seen
    report(done, total)
    while block := _read(answer, whole=done == total):
        out.write(block)
        done += len(block)
        report(done, total)
        if total is not None and done > total:
            _discard(Path(out.name))
            raise FetchError(f"the server sent more than the {size_text(total)} it promised.")
    return done


def _read(answer: Any, *, whole: bool) -> bytes:
    """The next block; nothing at the end. whole: all that was promised is here."""
    try:
        return bytes(answer.read(BLOCK_BYTES))
    except (OSError, HTTPException) as error:  # of the connection: the disk is not touched here
        if whole:
            return b""  # a server that leaves the connection open
        raise _Dropped(f"the connection broke ({printable(str(error))[:60]})") from None


def _refuse_impostor(file: Path, name: str) -> None:
    """A page with status 200, or a zip file whose end is missing, is no weight file, whatever the server called it; nor
    is a page a table of names."""
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    weights = name.endswith(WEIGHTS)
    page = head.lower().startswith((b"<!doctype", b"<html")) or (weights and head[:1] == b"<")
    cut = weights and head.startswith(b"PK") and not zipfile.is_zipfile(file)
    if page or cut or not head:
        what = "cut short" if cut else "a web page" if head else "empty"
        if file.suffix == ".part":
            file.unlink()
        raise FetchError(f"what came as {name} is {what}; removed." if file.suffix == ".part" else f"{file} is {what}.")


def _open(url: str, headers: dict[str, str], method: str = "GET") -> Any:
    """Through the proxies of the environment; redirections are followed."""
    request = urllib.request.Request(url, headers={"User-Agent": "jukebox-toolkit", **headers}, method=method)
    return urllib.request.urlopen(request, timeout=TIMEOUT_SEC)


def _status(answer: Any) -> int:
    return int(getattr(answer, "status", None) or 200)


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text and text.isdecimal() and not answer.headers.get("Content-Encoding") else None


def _is_page(answer: Any) -> bool:
    return str(answer.headers.get("Content-Type", "")).startswith("text/html")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = printable(str(getattr(cause, "strerror", None) or cause) or type(cause).__name__)
    return f"cannot be reached ({text[:100]})"
