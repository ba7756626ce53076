"""Writes a page: plain data in, one folder of HTML and pictures out, whole or not at all, the same bytes every time.

    page = Page("My songs", items=(Item(0, "First", takes=(take(0, audio, sr_hz, "item_0.wav"),)),))
    write_page("logs/my_songs", page)

The look is in page.html, page.css and page.js beside this file; nothing of it is here.
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox import files
from jukebox.errors import DataError
from jukebox.pages import escape, lyric_files, png, template
from jukebox.pages.mime import TYPES
from jukebox.pages.page import Group, Item, Page, Take, WordTime
from jukebox.pages.sound import Sound, describe_audio

__all__ = ["Group", "Item", "Page", "Sound", "Take", "WordTime", "describe_audio", "take", "write_page", "write_run"]

PEAK_BUDGET = 130_000  # characters of the page that all waveforms together may take, so that 200 songs stay light
FEWEST_PEAKS = 120
EAGER_TAKES = 24  # up to here a browser without scripts reads the length of every sound at once
EMBED_FORMATS = ("mp3", "ogg", "opus", "m4a", "flac")  # a single file takes the smaller of what there is
EMBED_DOWNLOAD_BYTES = 64 * 1024
SURE = 0.5  # words timed with less confidence are drawn faint


def take(
    level: int,
    audio: NDArray[Any],
    sr_hz: int,
    audio_href: str,
    *,
    label: str = "",
    downloads: Mapping[str, str] | None = None,
) -> Take:
    """A take with its waveform, loudness and spectrogram, from the audio [T] or [T, C] that stands at `audio_href`."""
    sound = describe_audio(audio, sr_hz)
    if downloads is None:
        downloads = {Path(audio_href).suffix[1:] or "audio": audio_href}
    return Take(
        level,
        label,
        audio_href,
        sr_hz,
        sound.length_samples,
        sound.peaks,
        sound.loudness_db,
        downloads,
        sound.spectrogram,
    )


def write_run(folder: str | os.PathLike[str], page: Page) -> Path:
    """`index.html` with all levels, and `level_<l>/index.html` for each level by itself.

    Links in `page` are relative to `folder`, and a take's sound stands in its own level's folder, so that each of them
    can be copied alone. Returns the path of the upper page. Raises as `write_page`.
    """
    root = Path(folder)
    levels = sorted({take.level for item in page.all_items for take in item.takes}, reverse=True)
    for level in levels:
        write_page(root / f"level_{level}", _only_level(page, level))
    return write_page(root, _above_levels(page, levels))


def write_page(folder: str | os.PathLike[str], page: Page, *, embed: bool = False, name: str = "index.html") -> Path:
    """Writes `name` into `folder`, and beside it, in `item_<id>/`, the pictures, `align.json` and `lyrics.json`.

    Every link is relative to `folder`. With `embed` the page is a single file: sounds and pictures are inside it, and
    nothing is written beside it. Returns the path of the page.
    Raises DataError for a link that leaves the folder, WriteFailed or OutOfSpace when a file cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    page = _with_files(root, page, embed=embed)
    text = render_page(page, root if embed else None)
    path = root / name
    files.publish_bytes(path, text.encode("utf-8"))
    return path


def render_page(page: Page, embed_from: Path | None = None) -> str:
    """The HTML of a page whose pictures are files already; with `embed_from`, files of that folder are put inside."""
    style, script, shell = (_asset(name) for name in ("page.css", "page.js", "page.html"))
    takes = sum(len(item.takes) for item in page.all_items)
    view = _PageView(page, embed_from, preload="metadata" if takes <= EAGER_TAKES else "none")
    own, fetched = ("", "'none'") if embed_from else ("'self' ", "'self'")
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src {own}data:; "
        f"media-src {own}blob: data:; connect-src {fetched}; base-uri 'none'; form-action 'none'"
    )
    return template.fill(
        shell,
        {
            **view.page(),
            "policy": policy,
            "style": style,
            "script": script,
            "data": escape.json_script(_player_data(page)),
        },
    )


class _PageView:
    """Turns a page into the nested names that page.html asks for."""

    def __init__(self, page: Page, embed_from: Path | None, preload: str) -> None:
        self.source = page
        self.embed_from = embed_from
        self.preload = preload
        self.number = 0
        self.anchors: dict[int, str] = {}  # item id -> anchor of the first item that bears it
        for number, item in enumerate(page.all_items, start=1):
            self.anchors.setdefault(item.id, f"song-{number}")

    def page(self) -> dict[str, Any]:
        page = self.source
        items = page.all_items
        groups = [self.group(number, group) for number, group in enumerate(page.all_groups, start=1)]
        named = [group for group in groups if group["heading"]]
        levels = {take.level for item in items for take in item.takes}
        length_sec = sum(item.takes[-1].length_sec for item in items if item.takes)
        counts = [_count(len(items), "song"), _clock(length_sec), _count(len(levels), "level"), page.created]
        return {
            "title": page.title,
            "summary": " · ".join(filter(None, counts)),
            "ai": page.ai_generated,
            "note": page.note,
            "licence": page.licence,
            "up": page.is_level and not self.embed_from,
            "levels": [{"label": label, "href": escape.href(href)} for label, href in page.levels],
            "contents": named if len(named) > 1 else [],
            "groups": groups,
            "command": page.command,
            "facts": _facts(page.settings),
            "has_levels": bool(page.levels) and not self.embed_from,
            "made": bool(page.command or page.settings),
        }

    def group(self, number: int, group: Group) -> dict[str, Any]:
        return {
            "anchor": f"group-{number}",
            "heading": group.title,
            "group_note": group.note,
            "songs": [self.song(item) for item in group.items],
        }

    def song(self, item: Item) -> dict[str, Any]:
        self.number += 1
        page = self.source
        facts = dict(item.settings) | ({} if item.seed is None else {"seed": item.seed})
        sounds = {label_of(take): self.exact(take) for take in item.takes}
        ai = {"origin": "AI-generated"} if page.ai_generated else {}
        words = item.words or ()
        unsure = sum(word.confidence < SURE for word in words)
        parent = self.anchors.get(item.parent) if item.parent is not None else None
        return {
            "number": self.number,
            "song_anchor": f"song-{self.number}",
            "song_title": title_of(item),
            "byline": " · ".join(filter(None, [item.artist, item.genre])),
            "length": _clock(item.takes[0].length_sec) if item.takes else "",
            "song_note": item.note,
            "silent": not item.takes,
            "takes": [self.take(item, take) for take in item.takes],
            "has_lyrics": bool(item.lyrics.strip()),
            "lines": [{"line": line} for line in escape.plain(item.lyrics).split("\n")],
            "lang": item.lang,
            "has_song_links": bool(item.downloads),
            "song_links": self.downloads(item.downloads, title_of(item)),
            "timing": f"{unsure} of {len(words)} words are faint: the attention was spread, their times are guesses."
            if unsure
            else "",
            "pictures": self.pictures(item),
            "has_pictures": bool(self.pictures(item)),
            "has_alignment": isinstance(item.alignment, str),
            "song_facts": _facts(facts | sounds | {"made": page.created, "licence": page.licence} | ai),
            "parent": {"parent_href": f"#{parent}", "parent_number": parent[len("song-") :]} if parent else None,
            "song_command": item.command or page.command,
        }

    def take(self, item: Item, take: Take) -> dict[str, Any]:
        return {
            "take_label": label_of(take),
            "src": self.sound(take),
            "preload": self.preload,
            "listen": f"{title_of(item)}, {label_of(take)}",
            "loudness": loudness_of(take),
            "links": self.downloads(take.downloads, f"{title_of(item)}, {label_of(take)}"),
        }

    def exact(self, take: Take) -> str:
        return f"{take.length_sec:.3f} s, {take.length_samples:,} samples at {take.sr_hz:,} Hz, {loudness_of(take)}"

    def sound(self, take: Take) -> str:
        if self.embed_from is None:
            return self.link(take.audio_href)
        smaller = [take.downloads[kind] for kind in EMBED_FORMATS if kind in take.downloads]
        return self.link(smaller[0] if smaller else take.audio_href)

    def downloads(self, links: Mapping[str, str], what: str) -> list[dict[str, str]]:
        found = []
        for kind, path in links.items():
            if self.embed_from is not None and not isinstance(path, _Inside):
                file = files.inside(self.embed_from, path)
                if not file.is_file() or file.stat().st_size > EMBED_DOWNLOAD_BYTES:
                    continue
            found.append({"kind": kind, "target": self.link(path), "what": f"{what}, {kind}"})
        return found

    def pictures(self, item: Item) -> list[dict[str, str]]:
        found = []
        for number, take in enumerate(item.takes):
            if isinstance(take.spectrogram, str):
                caption = f"Spectrogram, {label_of(take)}: 50 Hz to {take.sr_hz / 2000:g} kHz, logarithmic"
                found.append({"picture": self.link(take.spectrogram), "caption": caption, "of_take": str(number)})
        if isinstance(item.alignment, str):
            caption = "Alignment: which character (bottom to top) the model attends to at which time (left to right)"
            found.append({"picture": self.link(item.alignment), "caption": caption, "of_take": ""})
        return found

    def link(self, path: str) -> str:
        """What stands in the HTML for a file: its relative address, or in a single file the bytes themselves."""
        if isinstance(path, _Inside):
            return path
        address = escape.href(path)
        if self.embed_from is None:
            return address
        file = files.inside(self.embed_from, path)
        try:
            return _data_uri(file.read_bytes(), file.name)
        except OSError as error:
            raise DataError(f"{files.printable(str(file))}: cannot be put into the page ({error.strerror}).") from error


class _Inside(str):
    """A data: address that this module has made; anything else that looks like one is taken for a file name."""


def title_of(item: Item) -> str:
    """The item's title, else the first line of its lyrics, else its number."""
    first_line = next((line.strip() for line in item.lyrics.splitlines() if line.strip()), "")
    if len(first_line) > 48:
        first_line = first_line[:48].rsplit(" ", 1)[0] + " …"
    return item.title.strip() or first_line or f"Song {item.id}"


def label_of(take: Take) -> str:
    return take.label or f"Level {take.level}"


def loudness_of(take: Take) -> str:
    return "silent" if take.loudness_db is None else f"{take.loudness_db:.1f} LUFS".replace("-", "\u2212")


def _player_data(page: Page) -> dict[str, Any]:
    """What the script needs and the HTML does not say."""
    takes = sum(len(item.takes) for item in page.all_items)
    points = max(FEWEST_PEAKS, PEAK_BUDGET * 3 // (8 * max(takes, 1)))  # a pair is two bytes, 8/3 characters of base 64
    return {
        "title": escape.plain(page.title),
        "sure": SURE,
        "songs": [
            {
                "title": escape.plain(title_of(item)),
                "artist": escape.plain(item.artist),
                "takes": [
                    {
                        "label": escape.plain(label_of(take)),
                        "level": take.level,
                        "sec": round(take.length_sec, 4),
                        "peaks": _pack_peaks(take.peaks, points),
                    }
                    for take in item.takes
                ],
                "words": [
                    [escape.plain(word.text), round(word.start_sec, 3), round(word.end_sec, 3),
                     round(word.confidence, 2), word.line]
                    for word in item.words or ()
                ],
            }
            for item in page.all_items
        ],
    }  # fmt: skip


def _pack_peaks(peaks: NDArray[Any], points: int) -> str:
    """Pairs [P, 2] in -1..1 as base 64 of signed bytes, at most `points` of them."""
    pairs = np.asarray(peaks, dtype=np.float64).reshape(-1, 2)
    if len(pairs) > points:
        starts = np.arange(points) * len(pairs) // points
        pairs = np.stack([np.minimum.reduceat(pairs[:, 0], starts), np.maximum.reduceat(pairs[:, 1], starts)], axis=1)
    steps = np.clip(np.nan_to_num(pairs) * 127, -127, 127).round().astype(np.int8)
    return base64.b64encode(steps.tobytes()).decode("ascii")


def _with_files(root: Path, page: Page, *, embed: bool) -> Page:
    """The page with its pictures and lyric files as links: written below `root`, or put inside when embedding."""

    def lay_out(item: Item, folder: str) -> Item:
        linked, makers = _own_files(item, folder)
        if embed:
            inside = {href: _Inside(_data_uri(make(), href)) for href, make in makers.items()}
            return _relink(linked, lambda href: inside.get(href, href))
        for href, make in makers.items():
            (root / href).parent.mkdir(parents=True, exist_ok=True)
            files.publish_bytes(root / href, make())
        return linked

    return page.map_items(lay_out)


def _own_files(item: Item, folder: str) -> tuple[Item, dict[str, Callable[[], bytes]]]:
    """The item with links for what it holds as data, and for each of these links what makes the file's bytes."""
    makers: dict[str, Callable[[], bytes]] = {}

    def add(name: str, make: Callable[[], bytes]) -> str:
        makers[f"{folder}/{name}"] = make
        return f"{folder}/{name}"

    takes: list[Take] = []
    for take in item.takes:
        spectrogram = take.spectrogram
        if isinstance(spectrogram, bytes):
            same_level = sum(other.level == take.level for other in takes)
            spectrogram = add(f"spectrogram_{take.level}{'_' * same_level}.png", partial(bytes, spectrogram))
        takes.append(replace(take, spectrogram=spectrogram))
    downloads = dict(item.downloads)
    if item.words and "lrc" not in downloads:
        downloads["lrc"] = add("lyrics.lrc", lambda: lyric_files.lrc(item).encode())
    if item.words and "json" not in downloads:
        downloads["json"] = add("lyrics.json", lambda: lyric_files.words_json(item).encode())
    alignment = item.alignment
    if isinstance(alignment, np.ndarray):
        weights = np.asarray(alignment, dtype=np.float64)
        alignment = None
        if weights.size:
            add("align.json", lambda: lyric_files.alignment_json(weights).encode())
            alignment = add("align.png", lambda: png.alignment_png(weights))
    return replace(item, takes=tuple(takes), downloads=downloads, alignment=alignment), makers


def _relink(item: Item, change: Callable[[str], str]) -> Item:
    """The item with every link changed."""

    def changed(downloads: Mapping[str, str]) -> dict[str, str]:
        return {kind: change(href) for kind, href in downloads.items()}

    takes = tuple(
        replace(
            take,
            audio_href=change(take.audio_href),
            downloads=changed(take.downloads),
            spectrogram=change(take.spectrogram) if isinstance(take.spectrogram, str) else take.spectrogram,
        )
        for take in item.takes
    )
    alignment = change(item.alignment) if isinstance(item.alignment, str) else item.alignment
    return replace(item, takes=takes, downloads=changed(item.downloads), alignment=alignment)


def _only_level(page: Page, level: int) -> Page:
    """The page of one level, its links relative to that level's folder; links that lead elsewhere are left out."""
    inside = f"level_{level}/"

    def here(downloads: Mapping[str, str]) -> dict[str, str]:
        return {kind: href for kind, href in downloads.items() if href.startswith(inside)}

    def narrow(item: Item, folder: str) -> Item:
        takes = tuple(replace(take, downloads=here(take.downloads)) for take in item.takes if take.level == level)
        narrowed = replace(item, takes=takes, downloads=here(item.downloads))
        return _relink(narrowed, lambda href: href.removeprefix(inside))

    return replace(page.map_items(narrow), title=f"{page.title}, level {level}", levels=(), is_level=True)


def _above_levels(page: Page, levels: list[int]) -> Page:
    """The page of all levels; its pictures and lyric files are those that the levels' pages have written."""

    def lift(item: Item, folder: str) -> Item:
        linked, own = _own_files(item, folder)

        def up(href: str, level: int) -> str:
            return f"level_{level}/{href}" if href in own else href

        takes = (
            replace(take, spectrogram=up(take.spectrogram, take.level)) if isinstance(take.spectrogram, str) else take
            for take in linked.takes
        )
        return replace(_relink(linked, lambda href: up(href, levels[0])), takes=tuple(takes))

    if not levels:
        return page
    links = tuple((f"Level {level}", f"level_{level}/index.html") for level in levels)
    return replace(page.map_items(lift), levels=links)


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _data_uri(body: bytes, name: str) -> str:
    suffix = Path(name).suffix.lower()
    kind = TYPES.get(suffix) or mimetypes.guess_type(f"x{suffix}")[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(body).decode('ascii')}"


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def _clock(sec: float) -> str:
    whole = int(sec + 0.5)
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    )


def _facts(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": str(name), "value": _fact(value)} for name, value in settings.items() if value not in (None, "")]


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(entry) for entry in value)
    return str(value)
