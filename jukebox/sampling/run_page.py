"""The pages of a run: what its folder holds of each song, as the plain data that `jukebox/pages` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jukebox import files
from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.pages import links, lyric_files, png
from jukebox.pages.page import Group, Item, Page, Take
from jukebox.pages.render import take, write_page
from jukebox.sampling import align_files, lineage
from jukebox.sampling.levels import Song
from jukebox.sampling.save import FORMATS, Aligned, RunFolder


@dataclass(frozen=True)
class RunFacts:
    """What the page says about a whole run; as `pages.Page` has them."""

    title: str
    command: str
    settings: Mapping[str, Any]
    created: str = ""
    licence: str = ""
    note: str = ""
    continue_command: str = ""
    keep_command: str = ""


@dataclass(frozen=True)
class SongFacts:
    """What it says about one song besides what was asked for. partial: how far it is, "" when it is whole."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    partial: str = ""
    command: str = ""
    aligned: Aligned | None = None


@dataclass
class RunPages:
    """`index.html` over all levels of a run, and one inside each of them."""

    folder: RunFolder
    _takes: dict[Path, tuple[tuple[int, int, int], Take]] = field(default_factory=dict, repr=False)

    def write(
        self, songs: Sequence[Song], facts: RunFacts, known: Mapping[int, SongFacts], *, embed: bool = False
    ) -> Path:
        """All pages anew, of what can be heard by now; with `embed` also one file that holds everything, `<run>.html`.

        known: by item. Returns the path of the upper page.
        """
        root, levels = self.folder.root, self.folder.audible()
        codes = self._codes()
        items = tuple(self._item(song, levels, known[song.request.item], codes) for song in songs)
        page = Page(
            facts.title, facts.command, facts.created, facts.settings, items, note=facts.note, licence=facts.licence,
            continue_command=facts.continue_command, keep_command=facts.keep_command,
        )  # fmt: skip

        def at_level(level: int, *, write: bool) -> Page:
            return page.map_items(lambda item, _: self._with_lyrics(item, level, known[item.id].aligned, write=write))

        for level in levels:
            write_page(self.folder.level(level), links.only_level(at_level(level, write=True), level))
        page = links.above_levels(at_level(levels[0], write=False) if levels else page, levels)
        if elders := tuple(self._elder(one) for one in lineage.ancestors(root)):
            page = replace(page, groups=(*page.groups, Group("What they grew from", elders, aside=True)))
        if embed:
            write_page(root, page, embed=True, name=single_file(root).name)
        return write_page(root, page)

    def _item(self, song: Song, levels: Sequence[int], known: SongFacts, codes: Mapping[tuple[int, int], str]) -> Item:
        number, about = song.request.item, song.request.song
        paths = {level: self.folder.wav(number, level) for level in levels}
        takes = tuple(
            self._take(path, level, {"codes": codes[number, level]} if (number, level) in codes else {})
            for level, path in paths.items()
            if path.exists()
        )
        return Item(
            number, about.title, _known(about.artist), _known(about.genre), about.lyrics, seed=song.request.seed, settings=known.settings, takes=takes,
            words=(known.aligned.words if known.aligned else None) or None, key=self.folder.key(number),
            parent=song.request.parent, codes=f"{self.folder.root}:{number}", partial=known.partial, command=known.command,
        )  # fmt: skip

    def _take(self, path: Path, level: int, more: Mapping[str, str]) -> Take:
        """What the page shows of a sound; measured again when the file has changed."""
        found = path.stat()
        version = (found.st_ino, found.st_size, found.st_mtime_ns)
        if path not in self._takes or self._takes[path][0] != version:
            href = path.relative_to(self.folder.root).as_posix()
            self._takes[path] = version, take(level, io.read(path), io.probe(path).sr_hz, href)
        offered = {suffix[1:]: path.with_suffix(suffix) for suffix in (".wav", *FORMATS)}
        there = {kind: file.relative_to(self.folder.root).as_posix() for kind, file in offered.items() if file.exists()}
        return replace(self._takes[path][1], downloads={**there, **more})

    def _codes(self) -> dict[tuple[int, int], str]:
        """The files of the store that hold the codes of an item and level."""
        if not (self.folder.root / "codes").is_dir():
            return {}
        store = CodeStore.open(self.folder.root / "codes")
        return {
            (item, level): store.plan.item_path(Path("codes"), level, item, ".npy").as_posix()
            for item in store.index.items.tolist()
            for level in store.levels
        }

    def _elder(self, one: lineage.Ancestor) -> Item:
        about, path = one.request.song, one.folder / "sound.wav"
        return Item(
            one.request.item, one.name, _known(about.artist), _known(about.genre), about.lyrics, seed=one.request.seed,
            takes=(self._take(path, one.level, {}),), words=one.words() or None, key=one.key, parent=one.request.parent,
        )  # fmt: skip

    def _with_lyrics(self, item: Item, level: int, aligned: Aligned | None, *, write: bool) -> Item:
        """The item with links to what belongs to its lyrics, in a level's folder; with `write` the files too."""
        folder, href = self.folder.level(level) / f"item_{item.id}", f"level_{level}/item_{item.id}"
        if aligned is None:  # as asked for: no time is known of them
            if write:
                folder.mkdir(parents=True, exist_ok=True)
                files.publish_text(folder / "lyrics.json", align_files.lyrics_json(item.lyrics))
            return item
        weights = align_files.trimmed(aligned.weights)
        made: dict[str, Callable[[], bytes]] = {}
        made["lyrics.json"] = lambda: align_files.lyrics_json(aligned.lyrics[: weights.shape[1]]).encode()
        if weights.size:
            made["align.json"] = lambda: align_files.align_json(weights).encode()
            made["align.png"] = lambda: align_files.align_png(weights)
            made["alignment.png"] = lambda: png.alignment_png(weights)
        if words := item.words:
            made["lyrics.lrc"] = lambda: lyric_files.lrc(item).encode()
            made["lyrics.vtt"] = lambda: align_files.vtt(words).encode()
        for name, make in made.items() if write else ():
            folder.mkdir(parents=True, exist_ok=True)
            files.publish_bytes(folder / name, make())
        offered = {"lrc": "lyrics.lrc", "vtt": "lyrics.vtt"}
        downloads = {kind: f"{href}/{name}" for kind, name in offered.items() if name in made}
        return replace(item, downloads=downloads, alignment=f"{href}/alignment.png" if weights.size else None)


def single_file(root: Path) -> Path:
    """The one file with everything in it, of a run in this folder."""
    return root / f"{files.safe_component(root.resolve().name)}.html"


def _known(name: str) -> str:
    return "" if name == "unknown" else name
