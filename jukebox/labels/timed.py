"""Timed lyrics: LRC, WebVTT and JSON files of lines, words or characters, read as one time per character; and written.

Characters share the time of their line or word evenly. A line without an end lasts to the next one, but never longer
than `SLOWEST_SEC` per character: what follows then is taken for a break.
"""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jukebox.errors import DataError
from jukebox.files import printable
from jukebox.labels.song import CharTime

SLOWEST_SEC = 1.0
MOST_BYTES = 16 * 2**20

Lyrics = tuple[str, tuple[CharTime, ...]]

_LRC_TIME = re.compile(r"\[(\d+):(\d+(?:[.:]\d+)?)\]")
_LRC_WORD = re.compile(r"<(\d+):(\d+(?:[.:]\d+)?)>")
_LRC_TAG = re.compile(r"\[([A-Za-z#][^:\]]*):([^\]]*)\]")
_VTT_TIME = r"(?:(\d+):)?(\d+):(\d+[.,]\d+)"
_VTT_CUE = re.compile(rf"\s*{_VTT_TIME}\s*-->\s*{_VTT_TIME}")
_VTT_INNER = re.compile(rf"<{_VTT_TIME}>")


@dataclass(frozen=True)
class Piece:
    """A line, word or character with its start, and its end where that is known."""

    text: str
    start_sec: float
    end_sec: float | None = None
    glue: str = "\n"  # between it and the piece before


def read(path: Path | str) -> Lyrics:
    """The lyrics of a .lrc, .vtt or .json file and (start_sec, end_sec) of each of their characters.

    Raises DataError naming the file and, where there is one, the line.
    """
    path = Path(path)
    readers: dict[str, Callable[[str, str], list[Piece]]] = {".lrc": _lrc, ".vtt": _vtt, ".json": _json}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: times of lyrics are read from .lrc, .vtt and .json files")
    pieces = readers[path.suffix.lower()](read_text(path), str(path))
    if not pieces:
        raise DataError(f"{path}: no timed text found")
    return _spread(pieces, str(path))


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """A text file in UTF-8 (with or without a BOM) or UTF-16 with one, with plain line ends. Raises DataError."""
    try:
        if path.stat().st_size > (most_bytes or MOST_BYTES):
            raise DataError(
                f"{path}: {path.stat().st_size / 2**20:.0f} MB are too much for lyrics; is this the right file?"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file in that encoding") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lrc(text: str, where: str) -> list[Piece]:
    """`[mm:ss.xx] text`, several times for a repeated line, `<mm:ss.xx>` before words, `[offset:ms]`."""
    lines: list[list[Piece]] = []
    shift_sec = 0.0
    for number, line in enumerate(text.split("\n"), 1):
        starts, rest = [], line.strip()
        while match := _LRC_TIME.match(rest):
            starts.append(_seconds(match[1], match[2].replace(":", ".")))
            rest = rest[match.end() :].strip()
        if not starts:
            tag = _LRC_TAG.fullmatch(rest)
            if tag is None and rest:
                raise DataError(f"{where}, line {number}: {printable(rest)[:60]!r} has no [mm:ss.xx] in front")
            if tag is not None and tag[1].lower() == "offset":
                shift_sec = _offset_sec(tag[2], f"{where}, line {number}")
            continue
        words = _marked(rest, _LRC_WORD, lambda m: _seconds(m[1], m[2].replace(":", ".")), starts[0])
        for start in starts:
            moved = start - starts[0]
            lines.append([replace(word, start_sec=max(word.start_sec + moved - shift_sec, 0.0)) for word in words])
    lines.sort(key=lambda line: line[0].start_sec)
    return [piece for line in lines for piece in line]


def _offset_sec(value: str, where: str) -> float:
    try:
        return int(value) / 1000  # positive: the lyrics come sooner
    except ValueError:
        raise DataError(f"{where}: [offset:{printable(value)}] is not a number of milliseconds") from None


def _vtt(text: str, where: str) -> list[Piece]:
    """Cues `start --> end` with lines of text, times inside them, tags and entities; notes and styles are passed over."""
    if not text.startswith("WEBVTT"):
        raise DataError(f"{where}, line 1: a WebVTT file begins with WEBVTT")
    pieces: list[Piece] = []
    for block in re.split(r"\n{2,}", text):
        head, found, body = "", None, ""
        for line in block.split("\n"):
            if found is None:
                found = _VTT_CUE.match(line)
                head = head or line
            else:
                body += "\n" * bool(body) + line
        if found is None:
            if "-->" in block:
                raise DataError(f"{where}: {printable(head)[:60]!r} is not a cue `00:00:01.000 --> 00:00:02.000`")
            continue
        start, end = _vtt_sec(found.groups()[:3]), _vtt_sec(found.groups()[3:])
        if end < start:
            raise DataError(f"{where}: the cue at {start:g} s ends before it starts")
        plain = re.sub(r"<(?!\d)[^>]*>", "", body.strip())
        words = _marked(plain, _VTT_INNER, lambda m: _vtt_sec(m.groups()), start)
        words = [replace(word, text=html.unescape(word.text)) for word in words]
        pieces += [*words[:-1], replace(words[-1], end_sec=end)]
    return sorted(pieces, key=lambda piece: piece.start_sec)


def _marked(text: str, mark: re.Pattern[str], seconds: Callable[[re.Match[str]], float], start: float) -> list[Piece]:
    """A line cut at its inner times; the first part begins a line, the others go on with it."""
    cuts = list(mark.finditer(text))
    before = text[: cuts[0].start()] if cuts else text
    pieces = [Piece(before, start)] if before or not cuts else []
    ends = [*(cut.start() for cut in cuts[1:]), len(text)]
    pieces += [Piece(text[cut.end() : end], seconds(cut), glue="") for cut, end in zip(cuts, ends, strict=False)]
    return [replace(pieces[0], text=pieces[0].text.lstrip(), glue="\n"), *pieces[1:]]


def _json(text: str, where: str) -> list[Piece]:
    """`{"lyrics": ..., "times": [[start, end], ...]}`, or a list of lines, words or characters with text, start, end.

    The list may stand alone or under `lines`, `segments`, `words` or `characters`; lines may hold `words` of their own.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("lyrics"), str) and isinstance(value.get("times"), list):
        characters, times = value["lyrics"], value["times"]
        if len(characters) != len(times):
            raise DataError(f"{where}: {len(times)} times for {len(characters)} characters of lyrics")
        items = [{"char": c, "start": t[0], "end": t[1]} for c, t in zip(characters, times, strict=True) if _is_pair(t)]
        if len(items) != len(times):
            raise DataError(f"{where}: times must be a list of [start_sec, end_sec]")
        return _items(items, where)
    if isinstance(value, dict):
        value = next(
            (value[k] for k in ("lines", "segments", "words", "characters") if isinstance(value.get(k), list)), None
        )
    if not isinstance(value, list):
        raise DataError(f"{where}: neither a list of timed lines, words or characters, nor an object with one")
    return _items(value, where)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _items(items: Sequence[Any], where: str, glue: str | None = None) -> list[Piece]:
    pieces: list[Piece] = []
    for number, item in enumerate(items, 1):
        place = f"{where}, entry {number}"
        if not isinstance(item, dict):
            raise DataError(f"{place}: must be an object with text, start and end")
        kind = next((k for k in ("line", "text", "word", "char", "character") if isinstance(item.get(k), str)), None)
        between = glue or {"word": " ", "char": "", "character": ""}.get(kind or "", "\n")
        if isinstance(item.get("words"), list) and item["words"]:
            words = _items(item["words"], place, " ")
            pieces += [replace(words[0], text=words[0].text.lstrip(), glue="\n"), *words[1:]]
            continue
        if kind is None:
            raise DataError(f"{place}: has no text")
        start, end = _number(item.get("start"), place, "start"), item.get("end")
        text: str = item[kind]
        if between == " " and text.startswith(" "):
            between = ""  # some tools keep the blank with the word
        pieces.append(Piece(text, start, None if end is None else _number(end, place, "end"), between))
    return pieces


def _number(value: Any, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise DataError(f"{where}: {name} must be a time in seconds, not {printable(str(value))[:40]}")
    return float(value)


def _spread(pieces: Sequence[Piece], where: str) -> Lyrics:
    """One time per character; what glues two pieces lies between them."""
    lyrics, times = "", []
    reached = 0.0
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        start = max(piece.start_sec, reached)  # overlapping cues follow one another
        if not piece.text:  # ends what came before
            reached = start
            continue
        slowest = start + SLOWEST_SEC * len(piece.text)
        ends = (
            piece.end_sec if piece.end_sec is not None else min(following.start_sec, slowest) if following else slowest
        )
        end = max(ends, start)
        if lyrics:
            times += [(reached, start)] * len(piece.glue)
            lyrics += piece.glue
        step = (end - start) / len(piece.text)
        times += [(start + step * i, start + step * (i + 1)) for i in range(len(piece.text))]
        lyrics += piece.text
        reached = end
    if not lyrics.strip():
        raise DataError(f"{where}: no timed text found")
    return lyrics, tuple(times)


def _seconds(minutes: str, seconds: str) -> float:
    return 60 * int(minutes) + float(seconds)


def _vtt_sec(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds = groups
    return 3600 * int(hours or 0) + _seconds(minutes or "0", (seconds or "0").replace(",", "."))


def lines_of(lyrics: str, times: Sequence[CharTime]) -> list[Piece]:
    """The non-empty lines of timed lyrics with their first start and last end."""
    pieces, position = [], 0
    for line in lyrics.split("\n"):
        spoken = [times[position + i] for i, c in enumerate(line) if not c.isspace()]
        if spoken:
            pieces.append(Piece(line.strip(), spoken[0][0], max(end for _, end in spoken)))
        position += len(line) + 1
    return pieces


def lrc_text(lyrics: str, times: Sequence[CharTime]) -> str:
    """Timed lyrics as an LRC file; an empty timed line ends a line that is followed by a break."""
    lines, shown = lines_of(lyrics, times), []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        assert line.end_sec is not None
        shown.append(f"[{_lrc_clock(line.start_sec)}]{line.text}")
        if following is None or following.start_sec - line.end_sec > SLOWEST_SEC:
            shown.append(f"[{_lrc_clock(line.end_sec)}]")
    return "\n".join(shown) + "\n"


def vtt_text(lyrics: str, times: Sequence[CharTime]) -> str:
    """Timed lyrics as a WebVTT file, a cue per line."""
    blocks = ["WEBVTT"]
    for line in lines_of(lyrics, times):
        assert line.end_sec is not None
        text = html.escape(line.text, quote=False)
        blocks.append(f"{_vtt_clock(line.start_sec)} --> {_vtt_clock(line.end_sec)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def _lrc_clock(seconds: float) -> str:
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"


def _vtt_clock(seconds: float) -> str:
    minutes, thousandths = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{thousandths // 1000:02d}.{thousandths % 1000:03d}"
