"""The lyrics of an item as files to take along: LRC for players that show lyrics, JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.pages import escape
from jukebox.pages.page import Item
from jukebox.pages.png import shrink

ALIGNMENT_ROWS = 512


def lrc(item: Item) -> str:
    """Enhanced LRC: a time before each line and before each word; lines without times stand as they are."""
    lines = escape.plain(item.lyrics).split("\n")
    out = [f"[{tag}:{' '.join(escape.plain(value).split())}]" for tag, value in _tags(item) if value]
    for number, line in enumerate(lines):
        words = [word for word in item.words or () if word.line == number]
        timed = " ".join(f"<{_stamp(word.start_sec)}> {escape.plain(word.text)}" for word in words)
        out.append(f"[{_stamp(words[0].start_sec)}] {timed}" if words else line)
    return "\n".join(out) + "\n"


def words_json(item: Item) -> str:
    """Lyrics, words with their times in seconds, and how sure each time is."""
    words = [
        {"text": word.text, "start": round(word.start_sec, 3), "end": round(word.end_sec, 3),
         "confidence": round(word.confidence, 3), "line": word.line}
        for word in item.words or ()
    ]  # fmt: skip
    return json.dumps(
        {"title": item.title, "artist": item.artist, "genre": item.genre, "lyrics": item.lyrics, "words": words},
        indent=1,
    )


def alignment_json(weights: NDArray[Any]) -> str:
    """Attention [time, characters] as rows of 0..255, at most 512 rows over the whole song."""
    steps = (np.clip(np.nan_to_num(shrink(weights, ALIGNMENT_ROWS)), 0.0, 1.0) * 255).round().astype(int)
    return json.dumps(steps.tolist(), separators=(",", ":"))


def _tags(item: Item) -> tuple[tuple[str, str], ...]:
    return ("ti", item.title), ("ar", item.artist)


def _stamp(sec: float) -> str:
    hundredths = round(max(sec, 0.0) * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
