"""What a run says: messages on the terminal, one progress bar, and figures and clips for TensorBoard.

Rank 0 speaks for all; the others only warn. Nothing here may end a run: on a full disk one warning is given, and what
could not be written is missing.
"""

import json
import logging
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat, TypeVar

from numpy.typing import NDArray

from jukebox import __version__
from jukebox.errors import WriteFailed
from jukebox.event_file import EventFile
from jukebox.files import Appender, PathLike, printable, publish_json, publish_text
from jukebox.parallel.comm import Comm
from jukebox.parallel.world import world

log = logging.getLogger(__name__)
T = TypeVar("T")

# --- messages ---------------------------------------------------------------------------------------------------------


def setup(comm: Comm, quiet: bool = False) -> None:
    """Send log messages to the terminal: all of rank 0's (with `quiet`, warnings), of other ranks warnings."""
    handler = _BarFriendly()
    handler.setFormatter(_Words(comm))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _BarFriendly)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("jukebox").setLevel(logging.INFO if comm.is_first and not quiet else logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if comm.is_first else logging.ERROR)


class _Words(logging.Formatter):
    def __init__(self, comm: Comm) -> None:
        super().__init__("%(message)s")
        self._prefix = "" if comm.is_first else f"[rank {comm.rank}] "

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        lines = super().format(record).rstrip("\n").split("\n")
        return self._prefix + level + "\n".join(printable(line) for line in lines)


class _BarFriendly(logging.Handler):
    """Writes above the progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if "tqdm" in sys.modules and sys.stderr.isatty():
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                sys.stderr.write(text + "\n")
        except Exception:  # a message must not end a run; logging's own rule
            self.handleError(record)


# --- progress ---------------------------------------------------------------------------------------------------------

_LINE_EVERY_SEC = 10.0


def _three_digits(rate: float) -> str:
    """A rate as people write it: 0.0213, 7.49, 2,030."""
    return f"{rate:.3g}" if rate < 999.5 else f"{float(f'{rate:.3g}'):,.0f}"


class Progress:
    """How far a loop is: a bar on a terminal, else a line every 10 s. Of all ranks only the first one's shows.

    `total` None: no end is known. `start`: how much an earlier run has done.
    """

    def __init__(self, total: int | None, unit: str, label: str, *, start: int = 0) -> None:
        self._total, self._unit, self._label = total, unit, label
        self._start = self._done = self._rated = start  # the rate counts from `_rated` on
        self._notes = ""
        self._left_sec: float | None = None
        self._began = self._noted = self._spoke = time.monotonic()
        self._shows = world().rank == 0 and log.isEnabledFor(logging.INFO)
        self._bar: Any = None
        if self._shows and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, desc=label, initial=start, dynamic_ncols=True, mininterval=0.5)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shows and time.monotonic() - self._spoke > _LINE_EVERY_SEC:
            self._speak()

    def restart(self) -> None:
        """What was before is no part of the rate: it counts from now."""
        self._began = self._noted = self._spoke = time.monotonic()
        self._rated = self._done
        if self._bar is not None:
            self._bar.initial = self._bar.n
            self._bar.unpause()

    def note(
        self, text: str = "", *, audio_sec: float = 0.0, left_sec: float | None = None, **values: float
    ) -> None:  # fmt: skip
        """Figures to show beside; `audio_sec`: seconds of audio worked through since the last note; `left_sec`: time to
        the end, where that is known better than from the mean rate."""
        now = time.monotonic()
        self._left_sec = left_sec
        texts = [text] * bool(text) + [f"{name} {value:.4g}" for name, value in values.items()]
        if audio_sec:
            texts.append(f"{_three_digits(audio_sec / max(now - self._noted, 1e-9))} s of audio/s")
        self._noted = now
        self._notes = ", ".join(texts)
        if self._bar is not None:
            left = [] if left_sec is None else [f"all {duration_text(left_sec)} left"]
            self._bar.set_postfix_str(", ".join([self._notes] * bool(self._notes) + left), refresh=False)

    def line(self) -> str:
        """All of it in one line."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self._done - self._rated) / seconds
        texts = [f"{self._label}: {self._done}{f'/{self._total}' if self._total else ''} {self._unit}"]
        if self._notes:
            texts.append(self._notes)
        if rate:
            texts.append(f"{_three_digits(rate)} {self._unit}/s")
            if self._total and self._total > self._done:
                left_sec = (self._total - self._done) / rate if self._left_sec is None else self._left_sec
                texts.append(f"{duration_text(left_sec)} left")
        return ", ".join(texts)

    def close(self) -> None:
        """Show the last state."""
        if self._bar is not None:
            self._bar.close()
        elif self._shows and self._done > self._start:
            self._speak()
        self._shows = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _speak(self) -> None:
        self._spoke = time.monotonic()
        log.info("%s", self.line())


def duration_text(seconds: float) -> str:
    """A duration as a person reads it: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


# --- figures and clips ------------------------------------------------------------------------------------------------


class RunLog:
    """The figures of a run: `metrics.jsonl` in its folder, TensorBoard's events in `logs` below.

    Only rank 0 writes; on the others every method does nothing. `purge_step`: a run that goes on drops what was
    logged at this step or later, which it will log again.
    """

    def __init__(self, folder: PathLike, comm: Comm, purge_step: int | None = None) -> None:
        self._warned = False
        self._events: EventFile | None = None
        self._metrics: Appender | None = None
        if comm.is_first:
            folder = Path(folder)
            self._events = self._try(lambda: EventFile(folder / "logs", purge_step))
            self._metrics = self._try(lambda: _open_metrics(folder / "metrics.jsonl", purge_step))

    def scalars(self, values: Mapping[str, SupportsFloat], step: int) -> None:
        """One number per tag."""
        numbers = {tag: float(value) for tag, value in values.items()}
        if events := self._events:
            self._try(lambda: events.scalars(numbers, step))
        if metrics := self._metrics:
            finite = {tag: value if math.isfinite(value) else None for tag, value in numbers.items()}
            line = json.dumps({"step": step, "time": round(time.time(), 3), **finite})
            self._try(lambda: metrics.append(line.encode() + b"\n"))

    def audio(self, tag: str, audio: NDArray[Any], sr_hz: int, step: int) -> None:
        """A clip `[T]` or `[T, C]` in [-1, 1]."""
        if events := self._events:
            self._try(lambda: events.audio(tag, audio, sr_hz, step))

    def image(self, tag: str, image: NDArray[Any], step: int) -> None:
        """A picture `[height, width]` or `[height, width, 3]`, uint8 or floats in [0, 1]."""
        if events := self._events:
            self._try(lambda: events.image(tag, image, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Text, shown as markdown, under the tag `<tag>/text_summary`."""
        if events := self._events:
            self._try(lambda: events.text(tag, text, step))

    def close(self) -> None:
        """Close the files."""
        for file in (self._events, self._metrics):
            if file is not None:
                self._try(file.close)
        self._events = self._metrics = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, write: Callable[[], T]) -> T | None:
        try:
            return write()
        except (OSError, WriteFailed) as error:
            if not self._warned:
                log.warning("Figures cannot be written (%s); the run goes on without them.", error)
            self._warned = True
            return None


def _open_metrics(path: Path, purge_step: int | None) -> Appender:
    """The file of figures, without a line torn by a kill and without those of `purge_step` and later."""
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in before.splitlines() if _is_kept(line, purge_step))
        if kept != before:
            publish_text(path, kept)
    return Appender(path)


def _is_kept(line: str, purge_step: int | None) -> bool:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return False
    return purge_step is None or step < purge_step


# --- where a run comes from -------------------------------------------------------------------------------------------

_PACKAGES = ("torch", "numpy", "av", "soundfile", "librosa", "mpi4py", "tensorboardX", "pydantic", "safetensors")


def write_provenance(folder: PathLike, argv: Sequence[str]) -> None:
    """Write `argv.txt`, one command per start of this run, and `env.json`, what this start ran on."""
    path = Path(folder) / "argv.txt"
    earlier = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    publish_text(path, earlier + shlex.join(argv) + "\n")
    here = world()
    variables = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
    publish_json(
        Path(folder) / "env.json",
        {
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "jukebox": __version__,
            "commit": _commit(),
            "packages": {name: version for name in _PACKAGES if (version := _version(name))},
            "processes": here.size,
            "launcher": here.launcher,
            "environment": {name: os.environ[name] for name in variables if name in os.environ},
        },
        indent=1,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of this clone, `-dirty` where files differ from it; empty away from one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
