"""A song as files to take along: LRC for players that show lyrics, JSON for programs with all that is known of it.

`labels/timed.py` reads the lyrics of both back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox.pages import escape
from jukebox.pages.page import Item, WordTime
from jukebox.pages.png import shrink

ALIGNMENT_ROWS = 512


@dataclass(frozen=True)
class Line:
    """A line that is not blank. One without timed words stands at the end of the line before."""

    text: str
    start_sec: float
    end_sec: float
    words: tuple[WordTime, ...]


def timed_lines(item: Item) -> list[Line]:
    lines: list[Line] = []
    for number, text in enumerate(escape.plain(item.lyrics).split("\n")):
        words = tuple(word for word in item.words or () if word.line == number)
        before = lines[-1].end_sec if lines else 0.0
        start, end = (words[0].start_sec, max(word.end_sec for word in words)) if words else (before, before)
        if text.strip():
            lines.append(Line(text.strip(), start, end, words))
    return lines


def lrc(item: Item) -> str:
    """Enhanced LRC: a time before each line, and one before each word."""
    tags = (("ti", item.title), ("ar", item.artist))
    round_brackets = str.maketrans("[]", "()")
    out = [f"[{tag}:{' '.join(escape.plain(value).translate(round_brackets).split())}]" for tag, value in tags if value]
    for line in timed_lines(item):
        words = " ".join(f"<{_stamp(word.start_sec)}>{escape.plain(word.text)}" for word in line.words)
        out.append(f"[{_stamp(line.start_sec)}]{words or line.text}")
    return "\n".join(out) + "\n"


def song_json(item: Item) -> str:
    """All that is known of a song: what was asked for, what it grew from, its sounds, its lyrics in lines and words.

    Times are in seconds; the confidence of a word says how sure its time is, 0 to 1.
    """
    lines = [
        {
            "text": line.text,
            "start": round(line.start_sec, 3),
            "end": round(line.end_sec, 3),
            "words": [
                {"word": word.text, "start": round(word.start_sec, 3), "end": round(word.end_sec, 3),
                 "confidence": round(word.confidence, 3)}
                for word in line.words
            ],
        }
        for line in timed_lines(item)
    ]  # fmt: skip
    sounds = [
        {"level": take.level, "label": take.label, "sr_hz": take.sr_hz, "length_samples": take.length_samples,
         "loudness_lufs": None if take.loudness_db is None else round(take.loudness_db, 2)}
        for take in item.takes
    ]  # fmt: skip
    found = {
        "title": item.title, "artist": item.artist, "genre": item.genre, "item": item.id, "seed": item.seed,
        "settings": {str(name): value for name, value in item.settings.items()}, "command": item.command,
        "codes": item.codes, "parent": asdict(item.parent) if item.parent else None, "sounds": sounds,
        "text": item.lyrics,
    } | ({"lines": lines} if item.words else {})  # fmt: skip
    return json.dumps(
        {name: value for name, value in found.items() if value not in ("", None, {})}, indent=1, default=str
    )


def read_words(text: str, lyrics: str) -> tuple[WordTime, ...]:
    """The words that `song_json` wrote for these lyrics. Raises ValueError, KeyError or TypeError for anything else."""
    numbers = [number for number, line in enumerate(escape.plain(lyrics).split("\n")) if line.strip()]
    return tuple(
        WordTime(str(word["word"]), float(word["start"]), float(word["end"]), float(word["confidence"]), number)
        for number, line in zip(numbers, json.loads(text)["lines"], strict=True)
        for word in line["words"]
    )


def alignment_json(weights: NDArray[Any]) -> str:
    """Attention [time, characters] as rows of 0..255, at most 512 rows over the whole song."""
    steps = (np.clip(np.nan_to_num(shrink(weights, ALIGNMENT_ROWS)), 0.0, 1.0) * 255).round().astype(int)
    return json.dumps(steps.tolist(), separators=(",", ":"))


def _stamp(sec: float) -> str:
    hundredths = round(max(sec, 0.0) * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
