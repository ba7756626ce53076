"""One page that plays everything the demo made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.labels.song import SongMeta
from jukebox.pages.lyric_files import read_words
from jukebox.pages.page import Group, Item, Page, Take
from jukebox.pages.render import take, write_page
from jukebox.walkthrough import singing
from jukebox.walkthrough.figures import Figure

RUNS = (
    ("scratch", "From nothing", "The top prior invents, two upsamplers fill in."),
    ("continued", "Continued", "Three seconds of the songs above, sung on another way."),
    ("upsampled", "Upsampled again", "The top codes of the songs above, filled in another way."),
    ("primed", "Primed by a recording", "Three seconds of a recording never heard before, then the model goes on."),
)


def write(root: Path, found: Sequence[Figure]) -> Path:
    """`index.html` of the demo: samples of all modes, then reconstructions; the figures stand on top."""
    groups = [_singing(root), *(_run(root, name, title, note) for name, title, note in RUNS)]
    groups.append(_reconstructions(root))
    shown = {figure.name: f"{figure.value:.2f} {figure.unit}".strip() for figure in found}
    return write_page(root, Page(title="Jukebox demo", command="make demo", settings=shown, groups=tuple(groups)))


def _run(root: Path, name: str, title: str, note: str) -> Group:
    items = []
    store = CodeStore.open(root / name / "codes")
    for number in range(len(store)):
        song = SongMeta.from_json(store.item(number).meta["song"])
        takes = [_take(root, level, root / name / f"level_{level}" / f"item_{number}.wav") for level in (2, 1, 0)]
        artist, genre = (song.artist, song.genre) if song.artist != "unknown" else ("", "")
        items.append(Item(id=number, title=f"{title} {number + 1}", artist=artist, genre=genre, takes=tuple(takes)))
    return Group(title, tuple(items), note)


def _singing(root: Path) -> Group:
    """The songs with words, which the page follows."""
    items, run = [], root / "singing"
    for number, song in enumerate(singing.asked_of(run)):
        takes = [_take(root, level, run / f"level_{level}" / f"item_{number}.wav") for level in (2, 1, 0)]
        told = run / "level_0" / f"item_{number}" / "song.json"
        words = read_words(told.read_text(encoding="utf-8"), song.lyrics)
        items.append(
            Item(id=number, artist=song.artist, genre=song.genre, lyrics=song.lyrics, takes=tuple(takes), words=words)
        )
    return Group("Words", tuple(items), "A small singer, trained before, sings words that it never read.")


def _reconstructions(root: Path) -> Group:
    items = []
    folder = root / "reconstructions"
    for number, original in enumerate(sorted((folder / "originals").glob("song_*.wav"))):
        takes = [_take(root, level, folder / f"level_{level}" / original.name) for level in (2, 1, 0)]
        takes.append(replace(_take(root, -1, original), label="Original"))
        items.append(Item(id=number, title=f"Held-out song {number + 1}", takes=tuple(takes)))
    return Group("Reconstructions", tuple(items), "Songs never heard in training, written as codes and read back.")


def _take(root: Path, level: int, path: Path) -> Take:
    audio = io.read(path)
    return take(level, audio, io.probe(path).sr_hz, str(path.relative_to(root)))
