"""Artist, genre, title and lyrics of every song, without editing source.

Sources, the first that knows a field wins, song by song:
1. `--metadata=FILE.jsonl`, `FILE.csv`, or `my.py:get_metadata`, a function of the file's path that returns a SongMeta,
   a dictionary of its fields, (artist, genre, lyrics) as for the first implementation, or None;
2. `metadata.jsonl` in the song's folder or one above it, up to the folder of the data set: one object per line,
   {"file": "sub/a.wav", "artist": ..., "genre": ..., "lyrics": ..., "title": ..., "times": [[start_sec, end_sec], ...]},
   `file` relative to where metadata.jsonl is;
3. `<song>.json`, one such object without `file`, or with timed `lines` or `words` in place of `lyrics` and `times`;
4. `<song>.lrc`, `<song>.vtt` (lyrics with times), `<song>.txt` (lyrics);
5. the tags in the sound file, as the scan read them.
Text is UTF-8, with or without a byte order mark, or UTF-16 with one.
"""

import csv
import importlib.util
import inspect
import io as textio
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jukebox.data.admission import Index
from jukebox.errors import DataError
from jukebox.files import printable
from jukebox.labels import timed
from jukebox.labels.song import SongMeta

_MOST_BYTES = 1 << 31  # of a table of songs
_TIMED = (
    "lines",
    "segments",
    "words",
    "characters",
)  # of a <song>.json: parts of lyrics with times, see labels/timed.py
Rows = dict[str, SongMeta]  # by path, absolute and in NFC: the same name is typed in two ways on different systems
Given = Callable[[str], SongMeta | None]

log = logging.getLogger(__name__)


def songs_of(index: Index, metadata: str = "") -> list[SongMeta]:
    """One SongMeta per usable file of an index, in its order; `metadata` is the value of --metadata.

    Raises DataError naming file and line for what cannot be understood, and for a `metadata` that is not there.
    """
    given = _given(metadata, index.root) if metadata else None
    beside = _Beside(index.root)
    songs = []
    for entry in index.usable:
        path = os.path.join(index.root, entry.file)
        song = SongMeta()
        for found in (given(path) if given else None, *beside.sources(path), _from_tags(entry.tags)):
            song = _completed(song, found) if found else song
        songs.append(song)
    unlabelled = sum(song.artist == song.genre == "unknown" and not song.lyrics for song in songs)
    if unlabelled < len(songs):
        log.info("metadata: %d of %d songs have an artist, a genre or lyrics", len(songs) - unlabelled, len(songs))
    return songs


def _completed(song: SongMeta, other: SongMeta) -> SongMeta:
    """The song with what it lacks taken from another source; lyrics and their times come together."""
    fields: dict[str, Any] = {"extra": {**other.extra, **song.extra}}
    for name, nothing in (("artist", "unknown"), ("genre", "unknown"), ("title", "")):
        fields[name] = getattr(other if getattr(song, name) == nothing else song, name)
    if not song.lyrics or (song.times is None and other.lyrics == song.lyrics):
        fields |= {"lyrics": other.lyrics, "times": other.times}
    return replace(song, **fields)


def _from_tags(tags: Mapping[str, str]) -> SongMeta | None:
    fields = {name: tags.get(name) for name in ("artist", "genre", "lyrics", "title")}
    return SongMeta.from_json(fields | {"artist": tags.get("artist") or tags.get("album_artist")}) if tags else None


# ---- what the user names ---------------------------------------------------------------------------------------------


def _given(metadata: str, root: Path) -> Given:
    """The source that --metadata names, as a function of a song's path."""
    path, colon, function = metadata.rpartition(":")
    if colon and path.endswith(".py"):
        return _hook(Path(path), function)
    source = Path(metadata).expanduser()
    if not source.is_file():
        raise DataError(
            f"--metadata={printable(metadata)}: no such file. Give FILE.jsonl, FILE.csv or my.py:get_metadata"
        )
    if source.suffix.lower() not in (".jsonl", ".csv"):
        raise DataError(f"--metadata={printable(metadata)}: the name must end with .jsonl, .csv or .py:FUNCTION")
    rows = _rows(source, [root, source.resolve().parent])
    unused = [name for name in rows if not os.path.exists(name)]
    if unused and len(unused) == len(rows):
        raise DataError(
            f"{printable(metadata)}: none of its {len(rows)} songs is below {printable(str(root))}; the first is "
            f"{printable(unused[0])}. `file` is relative to --audio_files_dir or to the metadata file."
        )
    if unused:
        log.warning("%s names %d files that are not there, the first: %s", metadata, len(unused), printable(unused[0]))
    return lambda song: rows.get(_same_name(song))


def _hook(path: Path, name: str) -> Given:
    """The user's own function; it is code that the user asked us to run."""
    if not path.is_file():
        raise DataError(f"--metadata={printable(f'{path}:{name}')}: there is no file {printable(str(path))}")
    spec = importlib.util.spec_from_file_location("metadata_of_the_user", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{printable(str(path))} has no function {printable(name)}")
    arguments = (False,) if len(inspect.signature(function).parameters) > 1 else ()  # once: (file name, is it a test)

    def answer(song: str) -> SongMeta | None:
        found = function(song, *arguments)
        if found is None or isinstance(found, SongMeta):
            return found
        where = f"{printable(str(path))}:{name}({printable(song)})"
        if isinstance(found, Mapping):
            return SongMeta.from_json(found, where)
        if isinstance(found, (tuple, list)) and len(found) == 3:
            return SongMeta.from_json(dict(zip(("artist", "genre", "lyrics"), found, strict=True)), where)
        raise DataError(
            f"{where} returned {type(found).__name__}; it must be a SongMeta, a dict, or (artist, genre, lyrics)"
        )

    return answer


def _rows(source: Path, folders: list[Path]) -> Rows:
    """The songs of a .jsonl or .csv file; a relative `file` belongs to the first of the folders where it exists."""
    rows: Rows = {}
    lines: dict[str, int] = {}
    for number, fields in _csv_rows(source) if source.suffix.lower() == ".csv" else _json_rows(source):
        where = f"{printable(str(source))}, line {number}"
        name = fields.pop("file", None) or fields.pop("path", None)
        if not isinstance(name, str) or not name:
            raise DataError(f'{where}: no "file" that says which song this is')
        choices = [os.path.normpath(os.path.join(folder, name)) for folder in folders]
        key = _same_name(next((choice for choice in choices if os.path.exists(choice)), choices[0]))
        if key in rows:
            raise DataError(f"{where}: {printable(name)} was described in line {lines[key]} already")
        rows[key], lines[key] = SongMeta.from_json(fields, where), number
    return rows


def _json_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(timed.read_text(source, _MOST_BYTES).split("\n"), 1):
        if line.strip():
            yield number, _json_object(line, f"{printable(str(source))}, line {number}")


def _csv_rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(textio.StringIO(timed.read_text(source, _MOST_BYTES), newline=""))
    if reader.fieldnames is None or not {"file", "path"} & set(reader.fieldnames):
        raise DataError(
            f"{printable(str(source))}, line 1: the header must name the column `file`, beside artist, genre ..."
        )
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{printable(str(source))}, line {reader.line_num}: more cells than the header has columns"
                )
            yield reader.line_num, {name: cell for name, cell in row.items() if cell}
    except csv.Error as error:
        raise DataError(f"{printable(str(source))}, line {reader.line_num}: {error}") from None


# ---- what stands beside the song -------------------------------------------------------------------------------------


class _Beside:
    """Side files of songs below a folder; each folder is listed, and each metadata.jsonl read, once."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._names: dict[str, frozenset[str]] = {}
        self._tables: dict[str, Rows] = {}

    def sources(self, song: str) -> Iterator[SongMeta | None]:
        """What each table and side file says of a song, from the table nearest to it up, then its own files; None = nothing."""
        folder = os.path.dirname(song)
        while True:
            if "metadata.jsonl" in self._listed(folder):
                yield self._table(folder).get(_same_name(song))
            if folder == self._root or len(folder) <= len(self._root):
                break
            folder = os.path.dirname(folder)
        stem = os.path.splitext(song)[0]
        there = self._listed(os.path.dirname(song))
        for suffix, read in ((".json", _song_json), (".lrc", _song_timed), (".vtt", _song_timed), (".txt", _song_text)):
            if os.path.basename(stem) + suffix in there:
                yield read(Path(stem + suffix))

    def _listed(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder))
        return self._names[folder]

    def _table(self, folder: str) -> Rows:
        if folder not in self._tables:
            self._tables[folder] = _rows(Path(folder, "metadata.jsonl"), [Path(folder)])
        return self._tables[folder]


def _song_json(path: Path) -> SongMeta:
    fields = _json_object(timed.read_text(path), printable(str(path)))
    timed_parts = [name for name in _TIMED if isinstance(fields.pop(name, None), list)]
    song = SongMeta.from_json(fields, printable(str(path)))
    return _completed(_song_timed(path), song) if timed_parts and song.times is None else song


def _song_text(path: Path) -> SongMeta:
    return SongMeta(lyrics=timed.read_text(path).strip())


def _song_timed(path: Path) -> SongMeta:
    lyrics, times = timed.read(path)
    return SongMeta(lyrics=lyrics, times=times)


# ---- text ------------------------------------------------------------------------------------------------------------


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) and "line" not in where else ""
        raise DataError(f"{where}{at}: not JSON ({getattr(error, 'msg', 'nested too deeply')})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object {{...}}, not {type(value).__name__}")
    return value


def _same_name(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.normpath(path))
