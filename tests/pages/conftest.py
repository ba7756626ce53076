"""Small pages with sound, and a server as simple-minded as `python -m http.server`."""

import functools
import threading
import wave
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jukebox.pages.render import Group, Item, Page, Parent, WordTime, take, write_run
from jukebox.pages.server import make_server

SR_HZ, LENGTH_SEC = 8000, 20
LYRICS = "\n".join(
    ["The river runs beneath the hill,", "and carries what we knew.", ""] + [f"Line number {n}." for n in range(4, 18)]
)
HOSTILE = (
    "</script><script>window.PWN=1</script><img src=x onerror=window.PWN=1>\"'><b onmouseover=window.PWN=1>"
    "{{{data}}} {{title}} javascript:window.PWN=1 \u2028\u2029 \x00\x1b[31m \ud800 & &amp; "
)


def sound(seed: int, level: int) -> np.ndarray:
    time = np.arange(SR_HZ * LENGTH_SEC) / SR_HZ
    pitch = 220 * 2 ** (seed / 12)
    return 0.3 * np.sin(2 * np.pi * pitch * time) * (1 - (2 * time) % 1) * (1 - 0.2 * level)


def write_wav(path: Path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SR_HZ)
        out.writeframes((audio * 32767).astype("<i2").tobytes())


def word_times() -> tuple[WordTime, ...]:
    """Word k of the lyrics from second 1 + k/4 on; every fifth is uncertain."""
    words = [(word.strip(",."), number) for number, line in enumerate(LYRICS.split("\n")) for word in line.split()]
    return tuple(
        WordTime(word, 1 + k / 4, 1 + k / 4 + 0.2, 0.2 if k % 5 == 4 else 0.9, number)
        for k, (word, number) in enumerate(words)
    )


def make_page(folder: Path, *, text=lambda usual: usual, levels=(2, 1, 0)) -> Page:
    """Three songs in two groups; `text` may replace every text that comes from users."""
    items = []
    for number in range(3):
        takes = []
        for level in levels:
            href = f"level_{level}/item_{number}.wav"
            audio = sound(number, level)
            write_wav(folder / href, audio)
            takes.append(take(level, audio, SR_HZ, href))
        weights = np.eye(200, len(LYRICS))
        items.append(
            Item(
                number,
                text(f"Song of {number}"),
                text("Ada Vale"),
                text("folk"),
                lyrics=(LYRICS, "", LYRICS)[number] and text(LYRICS),
                lang="en",
                seed=40 + number,
                settings={"temperature": 0.98, text("prompt"): text("none")},
                takes=tuple(takes),
                words=tuple(
                    WordTime(text(w.text)[:300], w.start_sec, w.end_sec, w.confidence, w.line) for w in word_times()
                )
                if number == 0
                else None,
                alignment=weights if number == 0 else None,
                key=f"run:{number}",
                codes=text(f"songs:{number}"),
                parent=Parent(text("songs:0"), 0.0, 12.0, "run:0") if number == 2 else None,
                partial=text("12 of 33 windows") if number == 1 else "",
                command=text("python jukebox/sample.py --name=evening --seed=40") if number == 0 else "",
                note=text("") or "",
            )
        )
    return Page(
        text("An evening"),
        command=text("python jukebox/sample.py --name=evening --seed=40"),
        created="20 November 2026",
        continue_command=text("python jukebox/sample.py --codes_file={codes} --prompt_length_in_seconds={seconds}"),
        keep_command=text("python jukebox/codes.py keep {codes} --out=best"),
        settings={"mode": text("ancestral")},
        groups=(Group(text("From scratch"), tuple(items[:2])), Group(text("Continued"), tuple(items[2:]))),
        licence=text("No rights reserved."),
        note=text("A note."),
    )


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What above is plain Python, for the tests: modules of a test folder cannot import each other."""
    return SimpleNamespace(
        SR_HZ=SR_HZ,
        LENGTH_SEC=LENGTH_SEC,
        LYRICS=LYRICS,
        HOSTILE=HOSTILE,
        sound=sound,
        write_wav=write_wav,
        word_times=word_times,
        make_page=make_page,
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run with a space & #")
    write_run(folder, make_page(folder))
    return folder


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_run(
        folder, make_page(folder, text=lambda usual: usual + HOSTILE + "A" * (10_000 if usual == "Ada Vale" else 0))
    )
    return folder


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Plain(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve_plainly():
    """serve_plainly(folder): as `python -m http.server`, which knows no ranges."""
    return lambda folder: running(
        ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Plain, directory=str(folder)))
    )


@pytest.fixture
def serve_ours():
    return lambda folder: running(make_server(folder))
