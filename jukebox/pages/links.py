"""What a page holds as data becomes files beside it, and links to them."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jukebox import files
from jukebox.pages import lyric_files, png
from jukebox.pages.mime import TYPES
from jukebox.pages.page import Item, Page, Take


class Inside(str):
    """A data: address that this module has made; anything else that looks like one is taken for a file name."""


def data_uri(body: bytes, name: str) -> str:
    suffix = Path(name).suffix.lower()
    kind = TYPES.get(suffix) or mimetypes.guess_type(f"x{suffix}")[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(body).decode('ascii')}"


def with_files(root: Path, page: Page, *, embed: bool) -> Page:
    """The page with its pictures and lyric files as links: written below `root`, or put inside when embedding."""

    def lay_out(item: Item, folder: str) -> Item:
        linked, makers = _own_files(item, folder)
        if embed:
            inside = {href: Inside(data_uri(make(), href)) for href, make in makers.items()}
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
    if "json" not in downloads and item.takes:
        downloads["json"] = add("song.json", lambda: lyric_files.song_json(item).encode())
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


def only_level(page: Page, level: int) -> Page:
    """The page of one level, its links relative to that level's folder; links that lead elsewhere are left out."""
    inside = f"level_{level}/"

    def here(downloads: Mapping[str, str]) -> dict[str, str]:
        return {kind: href for kind, href in downloads.items() if href.startswith(inside)}

    def narrow(item: Item, folder: str) -> Item:
        takes = tuple(replace(take, downloads=here(take.downloads)) for take in item.takes if take.level == level)
        narrowed = replace(item, takes=takes, downloads=here(item.downloads))
        return _relink(narrowed, lambda href: href.removeprefix(inside))

    return replace(page.map_items(narrow), title=f"{page.title}, level {level}", levels=(), is_level=True)


def above_levels(page: Page, levels: list[int]) -> Page:
    """The page of all levels; its pictures and lyric files are those that the levels' pages have written."""

    def lift(item: Item, folder: str) -> Item:
        linked, own = _own_files(item, folder)

        def up(href: str, level: int) -> str:
            return f"level_{level}/{href}" if href in own else href

        takes = (
            replace(take, spectrogram=up(take.spectrogram, take.level)) if isinstance(take.spectrogram, str) else take
            for take in linked.takes
        )
        highest = linked.takes[0].level if linked.takes else levels[0]
        return replace(_relink(linked, lambda href: up(href, highest)), takes=tuple(takes))

    if not levels:
        return page
    links = tuple((f"Level {level}", f"level_{level}/index.html") for level in levels)
    return replace(page.map_items(lift), levels=links)
