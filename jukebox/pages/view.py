"""A page as the nested names that page.html asks for, and as the data that page.js reads."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jukebox import files
from jukebox.errors import DataError
from jukebox.pages import escape
from jukebox.pages.family import Family, Node
from jukebox.pages.links import Inside, data_uri
from jukebox.pages.page import Group, Item, Page, Take

PEAK_BUDGET = 55_000  # characters that all waveforms of a page together may take: with 16 songs it stays below 200 kB
FEWEST_PEAKS = 120
EAGER_TAKES = 24  # up to here the length of every sound is read at once; above, when it is asked for
EMBED_FORMATS = ("mp3", "ogg", "opus", "m4a", "flac")  # a single file takes the smaller of what there is
EMBED_DOWNLOAD_BYTES = 64 * 1024
SURE = 0.5  # words timed with less confidence are drawn faint


class PageView:
    """Fills the names of page.html; with `embed_from`, files of that folder are put inside the page."""

    def __init__(self, page: Page, embed_from: Path | None = None) -> None:
        self.source = page
        self.embed_from = embed_from
        takes = sum(len(item.takes) for item in page.all_items)
        self.preload = "metadata" if takes <= EAGER_TAKES else "none"
        self.family = Family(page)
        self.aside = {id(item) for group in page.groups if group.aside for item in group.items}
        self.anchors = {id(item): f"song-{number}" for number, item in enumerate(page.all_items, start=1)}

    def page(self) -> dict[str, Any]:
        """The names of the whole page."""
        page = self.source
        items = page.all_items
        groups = [self.group(number, group) for number, group in enumerate(page.all_groups, start=1)]
        named = [group for group in groups if group["heading"]]
        levels = {take.level for item in items for take in item.takes}
        own = [item for item in items if id(item) not in self.aside]
        length_sec = sum(item.takes[-1].length_sec for item in own if item.takes)
        counts = [_count(len(own), "song"), _clock(length_sec), _count(len(levels), "level"), page.created]
        return {
            "title": page.title,
            "summary": " · ".join(filter(None, counts)),
            "ai": page.ai_generated,
            "note": page.note,
            "licence": page.licence,
            "up": page.is_level and not self.embed_from,
            "levels": [{"label": label, "href": escape.href(href)} for label, href in page.levels],
            "contents": named if len(named) > 1 else [],
            "tree": self.tree(),
            "has_tree": bool(self.family.roots),
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

    def tree(self) -> list[dict[str, Any]]:
        """Who grew from whom, as steps: `down` opens a list, `up` closes one, `next` ends an entry, `twig` begins one."""
        steps: list[dict[str, Any]] = []
        before = -1
        for depth, node in self.family.walk():
            steps += [{"down": True}] if depth > before else [*([{"up": True}] * (before - depth)), {"next": True}]
            steps.append({"twig": self.twig(node)})
            before = depth
        steps += [{"up": True}] * (before + 1)
        return [{"down": None, "up": None, "next": None, "twig": None} | step for step in steps]

    def twig(self, node: Node) -> dict[str, Any]:
        """The names of one song in the tree of takes."""

        def units(sec: float) -> str:
            return f"{1000 * max(sec, 0.0) / (self.family.length_sec or 1.0):.1f}"

        return {
            "twig_href": f"#{self.anchors[id(node.item)]}" if node.item else "",
            "twig_number": node.item.id if node.item else "",
            "numbered": id(node.item) not in self.aside,
            "twig_name": node.name,
            "twig_from": f"from {_clock(node.kept_sec)}" if node.parent else "",
            "kept_x": units(node.origin_sec), "kept_width": units(node.kept_sec),
            "own_x": units(node.origin_sec + node.kept_sec), "own_width": units(node.length_sec - node.kept_sec),
        }  # fmt: skip

    def parent(self, item: Item) -> dict[str, Any] | None:
        """What a song begins with, in words, and a link to it if it is on this page."""
        node = self.family.of(item)
        if node.parent is None:
            return None
        begin, end = node.parent.start_sec, node.parent.end_sec
        elder = node.elder.item if node.elder else None
        return {
            "grown": f"begins with {f'{begin:g} to {end:g} s' if begin else f'the first {end:g} s'} of",
            "parent_name": node.parent.name,
            "parent_href": f"#{self.anchors[id(elder)]}" if elder else "",
        }

    def song(self, item: Item) -> dict[str, Any]:
        """The names of one song's player, lyrics, pictures and facts."""
        page = self.source
        facts = dict(item.settings) | ({} if item.seed is None else {"seed": item.seed})
        sounds = {f"{label_of(take)} sound": self.exact(take) for take in item.takes}
        ai = {"origin": "AI-generated"} if page.ai_generated else {}
        words = item.words or ()
        unsure = sum(word.confidence < SURE for word in words)
        return {
            "number": item.id,
            "numbered": id(item) not in self.aside,
            "song_anchor": self.anchors[id(item)],
            "song_title": item.name,
            "byline": " · ".join(filter(None, [item.artist, item.genre])),
            "length": _clock(item.takes[0].length_sec) if item.takes else "",
            "partial": item.partial,
            "song_note": item.note,
            "silent": not item.takes,
            "takes": [self.take(item, take) for take in item.takes],
            "has_lyrics": bool(item.lyrics.strip()),
            "lines": [{"line": line} for line in escape.plain(item.lyrics).split("\n")],
            "lang": item.lang,
            "has_song_links": bool(item.downloads),
            "song_links": self.downloads(item.downloads, item.name),
            "timing": f"{unsure} of {len(words)} words are faint: the attention was spread, their times are guesses."
            if unsure
            else "",
            "pictures": self.pictures(item),
            "has_pictures": bool(self.pictures(item)),
            "has_alignment": isinstance(item.alignment, str),
            "song_facts": _facts(facts | sounds | {"made": page.created, "licence": page.licence} | ai),
            "parent": self.parent(item),
            "song_command": item.command or page.command,
        }

    def take(self, item: Item, take: Take) -> dict[str, Any]:
        return {
            "take_label": label_of(take),
            "src": self.sound(take),
            "preload": self.preload,
            "listen": f"{item.name}, {label_of(take)}",
            "loudness": loudness_of(take),
            "links": self.downloads(take.downloads, f"{item.name}, {label_of(take)}", self.inside(take)),
        }

    def exact(self, take: Take) -> str:
        return f"{take.length_sec:.3f} s, {take.length_samples:,} samples at {take.sr_hz:,} Hz, {loudness_of(take)}"

    def inside(self, take: Take) -> str:
        """The file whose bytes a single file holds as the take's sound; "" where the page is not one."""
        if self.embed_from is None:
            return ""
        smaller = [take.downloads[kind] for kind in EMBED_FORMATS if kind in take.downloads]
        return smaller[0] if smaller else take.audio_href

    def sound(self, take: Take) -> str:
        return self.link(self.inside(take) or take.audio_href)

    def downloads(self, links: Mapping[str, str], what: str, sound: str = "") -> list[dict[str, str]]:
        """The links of a song or take. In a single file large ones are left out; `sound` is there already, once."""
        found = []
        for kind, path in links.items():
            entry = {"kind": kind, "what": f"{what}, {kind}", "target": "", "file": Path(path).name}
            if path == sound:
                found.append(entry)
                continue
            if self.embed_from is not None and not isinstance(path, Inside):
                file = files.inside(self.embed_from, path)
                if not file.is_file() or file.stat().st_size > EMBED_DOWNLOAD_BYTES:
                    continue
            found.append(entry | {"target": self.link(path), "file": ""})
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
        if isinstance(path, Inside):
            return path
        address = escape.href(path)
        if self.embed_from is None:
            return address
        file = files.inside(self.embed_from, path)
        try:
            return data_uri(file.read_bytes(), file.name)
        except OSError as error:
            raise DataError(f"{files.printable(str(file))}: cannot be put into the page ({error.strerror}).") from error


def label_of(take: Take) -> str:
    return take.label or f"Level {take.level}"


def loudness_of(take: Take) -> str:
    return "silent" if take.loudness_db is None else f"{take.loudness_db:.1f} LUFS".replace("-", "\u2212")


def player_data(page: Page) -> dict[str, Any]:
    """What the script needs and the HTML does not say."""
    takes = sum(len(item.takes) for item in page.all_items)
    family = Family(page)
    numbers = {id(item): number for number, item in enumerate(page.all_items)}
    points = max(FEWEST_PEAKS, PEAK_BUDGET * 3 // (8 * max(takes, 1)))  # a pair is two bytes, 8/3 characters of base 64
    return {
        "title": escape.plain(page.title),
        "sure": SURE,
        "continue": escape.plain(page.continue_command),
        "keep": escape.plain(page.keep_command),
        "songs": [
            {
                "title": escape.plain(item.name),
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
                "codes": escape.plain(item.codes),
                "kept": round(node.kept_sec, 4),
                "origin": round(node.origin_sec, 4),
                "elder": numbers.get(id(node.elder.item)) if node.elder else None,
            }
            for item, node in ((item, family.of(item)) for item in page.all_items)
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def _clock(sec: float) -> str:
    whole = int(sec + 1e-3)  # as page.js counts
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
