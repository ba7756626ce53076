"""What a page shows, as plain data: a page holds groups of items (songs), an item holds takes (one sound per level)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WordTime:
    """When one word of the lyrics is sung."""

    text: str
    start_sec: float
    end_sec: float
    confidence: float = 1.0  # 0 = the attention was flat and the time a guess, 1 = sharp
    line: int = 0  # index into lyrics.split("\n")

    def __post_init__(self) -> None:
        assert math.isfinite(self.start_sec) and math.isfinite(self.end_sec)
        if not math.isfinite(self.confidence):  # nothing attended at all
            object.__setattr__(self, "confidence", 0.0)


@dataclass(frozen=True)
class Parent:
    """What a song grew from: another take, or a recording, of which start_sec to end_sec are its beginning."""

    name: str  # what it is called where it is not on the page: "songs:3", the file of a recording
    start_sec: float
    end_sec: float
    key: str = ""  # the `Item.key` of the take; "" for a recording


@dataclass(frozen=True, eq=False)
class Take:
    """One recording of an item: the same song decoded from one level. Level 0 is the finest."""

    level: int
    label: str  # what the button says; "" means "Level <level>"
    audio_href: str  # relative to the page's folder, "/" between parts, never above it
    sr_hz: int
    length_samples: int
    peaks: NDArray[
        np.float32
    ]  # [P, 2] lowest and highest sample of P equal parts, -1..1; sound.describe_audio makes it
    loudness_db: float | None = None  # LUFS; None for silence
    downloads: Mapping[str, str] = field(default_factory=dict)  # {"wav": href, "lrc": href, ...}
    spectrogram: bytes | str | None = None  # a PNG to be written, or the href of one that exists

    @property
    def length_sec(self) -> float:
        return self.length_samples / self.sr_hz


@dataclass(frozen=True, eq=False)
class Item:
    """One song of a page."""

    id: int
    title: str = ""  # "" means the first line of the lyrics, or "Song <id>"
    artist: str = ""
    genre: str = ""
    lyrics: str = ""
    lang: str = ""  # BCP 47, as in <p lang="de">; "" when unknown
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # shown as facts of this song, in this order
    takes: tuple[Take, ...] = ()  # highest level first; empty while nothing is sung yet
    words: tuple[WordTime, ...] | None = None
    alignment: NDArray[Any] | str | None = None  # [time, characters] 0..1 over the whole song, or the href of its PNG
    downloads: Mapping[str, str] = field(default_factory=dict)  # of the song as a whole: {"codes": href}
    key: str = ""  # names this take among the takes of all runs; what `Parent.key` points to
    parent: Parent | None = None  # the take or recording this one begins with
    command: str = ""  # what makes this item again; "" means the page's command
    codes: str = ""  # where its codes are, as the command line takes it: "songs:3"
    partial: str = ""  # "12 of 33 windows" while it is still being sung; "" when it is whole
    note: str = ""

    @property
    def name(self) -> str:
        """Its title, else the first line of its lyrics, else its number."""
        first_line = next((line.strip() for line in self.lyrics.splitlines() if line.strip()), "")
        if len(first_line) > 48:
            first_line = first_line[:48].rsplit(" ", 1)[0] + " …"
        return self.title.strip() or first_line.rstrip(",;:") or f"Song {self.id}"


@dataclass(frozen=True, eq=False)
class Group:
    """Items under one heading: "from scratch", "continued", "reconstructions", ..."""

    title: str
    items: tuple[Item, ...]
    note: str = ""
    aside: bool = False  # songs of elsewhere, neither counted nor numbered


@dataclass(frozen=True, eq=False)
class Page:
    """A whole page. Give `items`, or `groups` for several headings; with both, the items come first."""

    title: str
    command: str = ""
    created: str = ""  # text: a page made again from the same data has the same bytes
    settings: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    groups: tuple[Group, ...] = ()
    note: str = ""
    licence: str = ""
    ai_generated: bool = True
    is_level: bool = False  # the page of one level, in a folder below the page of all levels
    continue_command: str = ""  # sings on from {codes}, after {seconds} of them
    keep_command: str = ""  # puts {codes}, one or several, into a store of their own
    levels: tuple[tuple[str, str], ...] = ()  # (label, href) of the pages of single levels

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """The groups, with `items` as a first group without a heading."""
        return ((Group("", self.items),) if self.items else ()) + self.groups

    @property
    def all_items(self) -> tuple[Item, ...]:
        return tuple(item for group in self.all_groups for item in group.items)

    def map_items(self, change: Callable[[Item, str], Item]) -> Page:
        """The same page with `change(item, folder)` in place of every item; `folder` is where its own files go.

        That is `item_<id>`, with a mark when an id comes again (a gallery of several runs).
        """
        taken: set[str] = set()

        def changed(item: Item) -> Item:
            folder = f"item_{item.id}"
            while folder in taken:
                folder += "_"
            taken.add(folder)
            return change(item, folder)

        return replace(
            self,
            items=tuple(map(changed, self.items)),
            groups=tuple(replace(group, items=tuple(map(changed, group.items))) for group in self.groups),
        )
