"""What to sing: one request per item, from flags, or from a file with a table per song.

    [[songs]]                                     # songs.toml; in songs.jsonl one such object per line
    artist = "Mira Vale"                          # or a blend: artist = { "Mira Vale" = 0.7, "Otto Fern" = 0.3 }
    genre = "chamber pop"
    lyrics_file = "first.lrc"                     # or lyrics = "..."; .lrc, .vtt and .json files bring their times
    audio_file = "beginning.wav"                  # a prompt, of which the first seconds are kept
    prompt_length_in_seconds = 5.0
    sample_length_in_seconds = 30.0
    total_sample_length_in_seconds = 180.0
    seed = 1
    temp = [0.99, 0.99, 0.95]                     # one value or one per level; so top_k, top_p, min_p
    n_samples = 2

Whatever a song does not say is as the flags say. Names of files are relative to the file they stand in.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from jukebox.errors import DataError, UsageError
from jukebox.files import printable
from jukebox.labels import timed
from jukebox.labels.song import SongMeta
from jukebox.models.model_set import ModelSet
from jukebox.pages.page import Parent
from jukebox.sampling.hps import MOST_SONGS, DrawHps, SongHps
from jukebox.sampling.logits import Knobs

T = TypeVar("T")

_TIMED = (".lrc", ".vtt", ".json")
_DRAWN = ("temp", "top_k", "top_p", "min_p")
_LENGTHS = ("sample_length_in_seconds", "total_sample_length_in_seconds", "prompt_length_in_seconds")
_SONG = ("artist", "genre", "lyrics", "title", "times")
_KEYS = (*_SONG, "lyrics_file", "audio_file", *_LENGTHS, "seed", *_DRAWN, "n_samples")


@dataclass(frozen=True)
class Blend:
    """An artist or genre made of several: names with weights that sum to 1. name: what it is called in the song."""

    kind: str  # "artist" or "genre"
    name: str
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Request:
    """One item. item numbers it over the whole run; seed and item together give its noise.

    None and empty: as the flags say. draw: temp, top_k, top_p, min_p, one value or one per level. parent: what it begins
    with, known once its codes are given.
    """

    item: int
    song: SongMeta
    seed: int
    blends: tuple[Blend, ...] = ()
    length_sec: float | None = None
    total_sec: float | None = None
    prompt: str = ""
    prompt_sec: float | None = None
    draw: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    parent: Parent | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them back."""
        found = {**asdict(self), "song": self.song.to_json()}
        if self.parent is None:
            del found["parent"]
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        """What `to_json` gave, after a way through JSON."""
        blends = tuple(
            Blend(blend["kind"], blend["name"], tuple((name, weight) for name, weight in blend["parts"]))
            for blend in value["blends"]
        )
        draw = {name: tuple(values) for name, values in value["draw"].items()}
        parent = Parent(**value["parent"]) if value.get("parent") else None
        song = SongMeta.from_json(value["song"])
        return cls(**{**value, "song": song, "blends": blends, "draw": draw, "parent": parent})


@dataclass(frozen=True)
class LevelSettings:
    """How one level is drawn. chunk_size: given codes read in one pass; max_batch_size: songs sampled together."""

    knobs: Knobs = field(default_factory=Knobs)
    chunk_size: int | None = None
    max_batch_size: int = 16


def requests_of(song: SongHps, seed: int, n_samples: int | None) -> list[Request]:
    """All items of a run, numbered: n_samples of them, by turns as --requests or --artist and its kin describe them.

    None: each as often as it says itself. Raises DataError for a file that cannot be understood, naming it and the song.
    """
    lyrics, times = _lyrics(song)
    meta = SongMeta(artist=song.artist or "unknown", genre=song.genre or "unknown", lyrics=lyrics, times=times)
    asked = _from_file(Path(song.requests).expanduser(), seed, meta) if song.requests else [(Request(0, meta, seed), 1)]
    each = [request for request, count in asked for _ in range(count)]
    if not each:
        raise DataError(f"--requests={song.requests}: every song of it has n_samples = 0.")
    return by_turns(each, len(each) if n_samples is None else n_samples)


def by_turns(asked: Sequence[Request], n_samples: int) -> list[Request]:
    """So many items, numbered, each like one of those asked for, in turn."""
    return [replace(asked[item % len(asked)], item=item) for item in range(n_samples)]


def _lyrics(song: SongHps) -> timed.Lyrics | tuple[str, None]:
    if song.lyric_times:
        if song.lyrics:
            raise UsageError("--lyric_times brings the lyrics with their times; leave out --lyrics.")
        return timed.read(song.lyric_times)
    named = song.lyrics.endswith((".txt", *_TIMED)) and "\n" not in song.lyrics
    return _read_lyrics(Path(song.lyrics).expanduser()) if named else (song.lyrics, None)


def _read_lyrics(path: Path) -> timed.Lyrics | tuple[str, None]:
    return timed.read(path) if path.suffix.lower() in _TIMED else (timed.read_text(path), None)


# ---------------------------------------------------------------------------------------------------------------- files


def _from_file(path: Path, seed: int, usual: SongMeta) -> list[tuple[Request, int]]:
    """The songs of a requests file, and how often each is asked for. usual: what a song is that does not say."""
    entries = _toml(path) if path.suffix.lower() == ".toml" else _jsonl(path)
    if not entries:
        raise DataError(f"--requests={path}: no songs in it; a song is a table [[songs]], or a line of a .jsonl file.")
    found = []
    for where, entry in entries:
        request, count = request_from(entry, where, path.parent, seed)
        found.append((replace(request, song=_filled(request.song, entry, usual)), count))
    return found


def _filled(song: SongMeta, entry: Mapping[str, Any], usual: SongMeta) -> SongMeta:
    """A song with the artist, genre and lyrics of the flags where its table has none."""
    unsaid = {name: getattr(usual, name) for name in ("artist", "genre") if name not in entry}
    if not {"lyrics", "lyrics_file"} & set(entry):
        unsaid |= {"lyrics": usual.lyrics, "times": usual.times}
    return replace(song, **unsaid)


def _toml(path: Path) -> list[tuple[str, Any]]:
    try:
        table = tomllib.loads(timed.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"--requests={path}: {error}") from None
    songs = table.get("songs", [])
    if set(table) - {"songs"} or not isinstance(songs, list):
        raise DataError(f"--requests={path}: nothing but tables [[songs]] belongs into it.")
    return [(f"{path}, song {number}", entry) for number, entry in enumerate(songs, 1)]


def _jsonl(path: Path) -> list[tuple[str, Any]]:
    found = []
    for number, line in enumerate(timed.read_text(path).split("\n"), 1):
        if line.strip():
            try:
                found.append((f"{path}, line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({getattr(error, 'msg', 'nested too deeply')})"
                ) from None
    return found


def request_from(entry: Any, where: str, folder: Path, seed: int) -> tuple[Request, int]:
    """A request from a table as it stands in a file of requests, and how often it is asked for.

    where: begins error messages; folder: what names of files are relative to. Raises DataError.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be a table of {', '.join(_KEYS)}")
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise DataError(f"{where}: unknown key {printable(unknown[0])!r}; known: {', '.join(_KEYS)}")
    fields = {name: entry[name] for name in _SONG if name in entry}
    blends = []
    for kind in ("artist", "genre"):
        if isinstance(fields.get(kind), dict):
            blends.append(_blend(kind, fields[kind], where))
            fields[kind] = blends[-1].name
    song = SongMeta.from_json(fields, where)
    if "lyrics_file" in entry:
        if song.lyrics:
            raise DataError(f"{where}: lyrics or lyrics_file, not both")
        lyrics, times = _read_lyrics(folder / _text(entry, "lyrics_file", where))
        song = replace(song, lyrics=lyrics, times=times)
    prompt = str(folder / _text(entry, "audio_file", where)) if "audio_file" in entry else ""
    lengths = [_number(entry, name, where) for name in _LENGTHS]
    if prompt and lengths[2] is None:
        raise DataError(f"{where}: audio_file needs prompt_length_in_seconds, how much of it is kept")
    own_seed, count = (_whole(entry, name, where) for name in ("seed", "n_samples"))
    draw = {name: _per_level(entry[name], name, where) for name in _DRAWN if name in entry}
    request = Request(
        0, song, seed if own_seed is None else own_seed, tuple(blends), lengths[0], lengths[1], prompt, lengths[2], draw
    )
    if count is not None and count > MOST_SONGS:
        raise DataError(f"{where}: n_samples = {count} is more than the {MOST_SONGS} songs that one run sings")
    return request, 1 if count is None else count


def _blend(kind: str, parts: Mapping[str, Any], where: str) -> Blend:
    """Weights of any sum above 0; {"A": 2, "B": 1} is two thirds of A."""
    weights = {name: _number(parts, name, f"{where}, {kind}") or 0.0 for name in parts}
    total = sum(weights.values())
    if not total:
        raise DataError(f"{where}: {kind} is a blend of nothing; write {{ name = weight, other = weight }}")
    shares = tuple((name, weight / total) for name, weight in weights.items() if weight)
    return Blend(kind, " + ".join(f"{share:.0%} {name}" for name, share in shares), shares)


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(entry[name], str) or not entry[name]:
        raise DataError(f"{where}: {name} must be the name of a file")
    return str(entry[name])


def _number(entry: Mapping[str, Any], name: str, where: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise DataError(f"{where}: {printable(name)} must be a number from 0 up, not {printable(str(value))[:40]}")
    return float(value)


def _whole(entry: Mapping[str, Any], name: str, where: str) -> int | None:
    value = entry.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63):
        raise DataError(f"{where}: {name} must be a whole number from 0 up, not {printable(str(value))[:40]}")
    return value


def _per_level(value: Any, name: str, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    numbers = [_number({name: v}, name, where) for v in values]
    if not numbers or not all(number is not None and _allowed(number, name) for number in numbers):
        need = {"temp": "above 0", "top_k": "whole"}.get(name, "from 0 to 1")
        raise DataError(f"{where}: {name} must be {need}, one value or one per level, not {printable(str(value))[:40]}")
    return tuple(number for number in numbers if number is not None)


def _allowed(number: float, name: str) -> bool:
    return number > 0 if name == "temp" else number == int(number) if name == "top_k" else number <= 1


# ------------------------------------------------------------------------------------------------------------- settings


def settings_of(
    draw: DrawHps, models: ModelSet, levels: int, request: Request | None = None
) -> dict[int, LevelSettings]:
    """Per level: what the request says, else the command line, else the model set, else the defaults.

    Raises UsageError when there is neither one value nor one per level, or both top_k and top_p.
    """
    own = request.draw if request else {}
    flags: dict[str, Sequence[Any]] = {
        "temp": draw.temp, "top_k": draw.top_k, "top_p": draw.top_p, "min_p": draw.min_p,
        "chunk_size": draw.chunk_size, "max_batch_size": draw.max_batch_size,
    }  # fmt: skip
    found = {}
    for level in range(levels):
        part = models.priors[level] if level < len(models.priors) else None
        options = part.options if part else {}

        def pick(name: str, default: T, level: int = level, options: Mapping[str, Any] = options) -> T:
            given: Sequence[Any] = own.get(name) or flags[name]
            if len(given) not in (0, 1, levels):
                raise UsageError(f"--{name} has {len(given)} values: give one, or one for each of {levels} levels.")
            value = given[level if len(given) == levels else 0] if given else options.get(name, default)
            return type(default)(value)  # type: ignore[call-arg, no-any-return]

        knobs = Knobs(pick("temp", 1.0), pick("top_k", 0), pick("top_p", 0.0), pick("min_p", 0.0))
        if knobs.top_k and knobs.top_p:
            raise UsageError(f"level {level} has both --top_k and --top_p; give one of them.")
        found[level] = LevelSettings(knobs, pick("chunk_size", 1024), pick("max_batch_size", 16))
    return found
