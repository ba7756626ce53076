"""What to sing: one request per item, from flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from jukebox.errors import DataError, UsageError
from jukebox.labels.song import SongMeta
from jukebox.models.model_set import ModelSet
from jukebox.sampling.hps import DrawHps, SongHps
from jukebox.sampling.logits import Knobs

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One item. item numbers it over the whole run; seed and item together give its noise."""

    item: int
    song: SongMeta
    seed: int


@dataclass(frozen=True)
class LevelSettings:
    """How one level is drawn. chunk_size: given codes read in one pass; max_batch_size: songs sampled together."""

    knobs: Knobs = field(default_factory=Knobs)
    chunk_size: int | None = None
    max_batch_size: int = 16


def requests_of(song: SongHps, seed: int, n_samples: int) -> list[Request]:
    """n_samples items of the song that --artist, --genre and --lyrics describe.

    Raises DataError when a lyrics file cannot be read.
    """
    meta = SongMeta(artist=song.artist or "unknown", genre=song.genre or "unknown", lyrics=_lyrics(song.lyrics))
    return [Request(item, meta, seed) for item in range(n_samples)]


def _lyrics(text: str) -> str:
    path = Path(text)
    if not text.endswith((".txt", ".lrc")) or "\n" in text:
        return text
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--lyrics={text}: cannot be read as UTF-8 text ({error}).") from None


def settings_of(draw: DrawHps, models: ModelSet, levels: int) -> dict[int, LevelSettings]:
    """Per level: what the command line says, else the model set, else the defaults.

    Raises UsageError when a flag has neither one value nor one per level.
    """
    found = {}
    for level in range(levels):
        part = models.priors[level] if level < len(models.priors) else None
        options = part.options if part else {}

        def pick(name: str, given: Sequence[T], default: T, level: int = level, options: dict[str, T] = options) -> T:
            if len(given) not in (0, 1, levels):
                raise UsageError(f"--{name} has {len(given)} values: give one, or one for each of {levels} levels.")
            return given[level if len(given) == levels else 0] if given else options.get(name, default)

        knobs = Knobs(
            pick("temp", draw.temp, 1.0), pick("top_k", draw.top_k, 0), pick("top_p", draw.top_p, 0.0),
            pick("min_p", draw.min_p, 0.0),
        )  # fmt: skip
        if knobs.top_k and knobs.top_p:
            raise UsageError(f"level {level} has both --top_k and --top_p; give one of them.")
        chunk = pick("chunk_size", draw.chunk_size, 0)
        found[level] = LevelSettings(knobs, chunk or None, pick("max_batch_size", draw.max_batch_size, 16))
    return found
