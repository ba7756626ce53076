"""Writes a page: plain data in, one folder of HTML and pictures out, whole or not at all, the same bytes every time.

    page = Page("My songs", items=(Item(0, "First", takes=(take(0, audio, sr_hz, "item_0.wav"),)),))
    write_page("logs/my_songs", page)

The look is in page.html, page.css and page.js beside this file; nothing of it is here.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from jukebox import files
from jukebox.pages import escape, links, template
from jukebox.pages.page import Group, Item, Page, Parent, Take, WordTime
from jukebox.pages.sound import Sound, describe_audio
from jukebox.pages.view import PageView, player_data

__all__ = [
    "Group", "Item", "Page", "Parent", "Sound", "Take", "WordTime", "describe_audio", "take", "write_page", "write_run",
]  # fmt: skip


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
        level, label, audio_href, sr_hz, sound.length_samples, sound.peaks, sound.loudness_db, downloads, sound.spectrogram
    )  # fmt: skip


def write_run(folder: str | os.PathLike[str], page: Page) -> Path:
    """`index.html` with all levels, and `level_<l>/index.html` for each level by itself.

    Links in `page` are relative to `folder`, and a take's sound stands in its own level's folder, so that each of them
    can be copied alone. Returns the path of the upper page. Raises as `write_page`.
    """
    root = Path(folder)
    levels = sorted({take.level for item in page.all_items for take in item.takes}, reverse=True)
    for level in levels:
        write_page(root / f"level_{level}", links.only_level(page, level))
    return write_page(root, links.above_levels(page, levels))


def write_page(folder: str | os.PathLike[str], page: Page, *, embed: bool = False, name: str = "index.html") -> Path:
    """Writes `name` into `folder`, and beside it, in `item_<id>/`, the pictures, `align.json`, `lyrics.lrc` and `song.json`.

    Every link is relative to `folder`. With `embed` the page is a single file: sounds and pictures are inside it, and
    nothing is written beside it. Returns the path of the page.
    Raises DataError for a link that leaves the folder, WriteFailed or OutOfSpace when a file cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    text = render_page(links.with_files(root, page, embed=embed), root if embed else None)
    path = root / name
    files.publish_bytes(path, text.encode("utf-8"))
    return path


def render_page(page: Page, embed_from: Path | None = None) -> str:
    """The HTML of a page whose pictures are files already; with `embed_from`, files of that folder are put inside."""
    style, script, shell = (_asset(name) for name in ("page.css", "page.js", "page.html"))
    own, fetched = ("", "'none'") if embed_from else ("'self' ", "'self'")
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src {own}data:; "
        f"media-src {own}blob: data:; connect-src {fetched}; base-uri 'none'; form-action 'none'"
    )
    data = escape.json_script(player_data(page))
    view = PageView(page, embed_from).page()
    return template.fill(shell, {**view, "policy": policy, "style": style, "script": script, "data": data})


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
