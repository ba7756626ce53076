"""What others read of a run - sounds, data.pth.tar, store and pages - made from its codes, while they grow and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.models.codec import Codec
from jukebox.models.model_set import ModelSet
from jukebox.sampling import commands
from jukebox.sampling.hps import DrawHps, SampleHps
from jukebox.sampling.levels import Song
from jukebox.sampling.lyric_times import LyricTimes
from jukebox.sampling.prepare import Level
from jukebox.sampling.requests import LevelSettings, Request
from jukebox.sampling.run_page import RunFacts, RunPages, SongFacts
from jukebox.sampling.save import RunFolder, labels_of

_SHARE = 0.05
"""Of the time of a run, what goes into letting it be heard before it is finished."""


class Seldom:
    """Something that may take a share of the time: due at first, and then when it has paid for itself."""

    def __init__(self, share: float = _SHARE) -> None:
        self._share, self._next = share, 0.0

    def is_due(self) -> bool:
        """Whether it may be done again."""
        return time.monotonic() >= self._next

    def run(self, work: Callable[[], object]) -> None:
        """Do it, and see how long it takes."""
        began = time.monotonic()
        work()
        ended = time.monotonic()
        self._next = ended + (ended - began) / self._share


def tags_of(models: ModelSet, song: SongMeta | None = None, album: str = "") -> dict[str, str]:
    """What a sound file made with these models says of itself to players, and to whoever asks what made it."""
    said = {"title": song.title, "artist": song.artist, "genre": song.genre, "lyrics": song.lyrics} if song else {}
    said |= {"album": album, "comment": models.licence or "made with Jukebox", "AI_GENERATED": "true"}
    return {name: text for name, text in said.items() if text not in ("", "unknown")}


@dataclass
class Exports:
    """All of them are functions of codes, settings and lyric times alone: made again, they are the same files."""

    folder: RunFolder
    codec: Codec
    models: ModelSet
    vqvae: Resolved
    levels: Mapping[int, Level]
    settings: Callable[[Request], Mapping[int, LevelSettings]]
    times: LyricTimes
    hps: Resolved

    def __post_init__(self) -> None:
        self.sample, self.draw = self.hps.section(SampleHps), self.hps.section(DrawHps)
        self.pages = RunPages(self.folder)
        self._heard: dict[tuple[int, int], int] = {}  # codes of an item and level that its sound was made from

    def total(self, song: Song, level: int) -> int:
        """Codes of a level of a whole song."""
        return song.length_samples // self.codec.geometry.hops[level]

    def is_whole(self, song: Song, level: int) -> bool:
        """Whether a song has all its codes at a level."""
        return song.have(level) >= self.total(song, level)

    def sound(self, song: Song, level: int) -> None:
        """Decode a level of a song as far as it goes, unless that was done."""
        item, have = song.request.item, song.have(level)
        if not have or self._heard.get((item, level)) == have:
            return
        if not self.is_whole(song, level):
            self.folder.decode(
                song, level, self.codec, tags_of(self.models, song.request.song, self.folder.root.resolve().name)
            )
        elif not self.folder.is_decoded(item, level):
            self.folder.decode_whole(
                song, level, self.codec, tags_of(self.models, song.request.song, self.folder.root.resolve().name)
            )
        self._heard[item, level] = have

    def is_decoded(self, songs: Sequence[Song], level: int) -> bool:
        """Whether all songs are whole at a level, and their sounds are there."""
        return all(
            self.is_whole(song, level) and self.folder.is_decoded(song.request.item, level) for song in songs
        )  # fmt: skip

    def whole_levels(self, songs: Sequence[Song]) -> None:
        """`data.pth.tar` of the levels that have become whole, and the store of all that are. For one process."""
        fresh = False
        for level in reversed(range(self.codec.geometry.levels)):
            if not self.folder.finished(level) and self.is_decoded(songs, level):
                self._export(level, songs)
                fresh = True
        done = self.folder.done()
        if done and (fresh or not (self.folder.root / "codes").exists()):
            details = {"model": {"checkpoint": self.models.vqvae.checkpoint, "hps": dict(self.vqvae.values)}}
            self.folder.store(songs, done, self.codec, details)

    def _export(self, level: int, songs: Sequence[Song]) -> None:
        levels = range(self.codec.geometry.levels)
        chosen = [self.settings(song.request) for song in songs]
        seeds = [song.request.seed for song in songs]
        kwargs = [_recorded([each[l] for each in chosen], seeds) if l in self.levels else {} for l in levels]
        labels = [
            labels_of([self.levels[l].label(song) for song in songs] if l in self.levels else [None] * len(songs))
            for l in levels
        ]
        self.folder.export(songs, level, len(levels), labels, kwargs)
        self.folder.drop_arrays(level)

    def page(self, songs: Sequence[Song], *, last: bool = False) -> None:
        """The pages of everything that can be heard now; songs that are not whole say how far they are.

        last: nothing more is sampled now, so that the single file that --embed asks for is due.
        """
        remembered, sample, root = self.folder.remembered(), self.sample, self.folder.root
        partial = {song.request.item: text for song in songs if (text := self._how_far(song))}
        aligned = self.times.found(songs)
        lengths = sorted({song.length_samples / self.codec.geometry.sr_hz for song in songs})
        whole_sec = sorted({song.total_samples / self.codec.geometry.sr_hz for song in songs})
        common: dict[str, Any] = {"model": self.models.name, "mode": sample.mode, "dtype": self.draw.dtype}
        known = {
            song.request.item: SongFacts(
                {**common, **self._knobs(song.request), **_prompt(song.request), **remembered.checkpoints},
                partial.get(song.request.item, ""),
                f"{remembered.command} --items={song.request.item}" if remembered.command and len(songs) > 1 else "",
                aligned.get(song.request.item),
            )
            for song in songs
        }  # fmt: skip
        settings = common | {
            "seed": self.draw.seed,
            "length": _from_to(lengths),
            "of a whole song of": _from_to(whole_sec),
            "step between windows": ", ".join(
                f"level {level}: {known.plan.hop / known.plan.n_ctx:.3g}"
                for level, known in sorted(self.levels.items(), reverse=True)
            )
            + " of a window",
            "all settings": "run.json, beside this page",
        }
        note = f"{len(partial)} of {len(songs)} songs are not whole yet." if partial else ""
        facts = RunFacts(
            root.resolve().name, remembered.command, settings, remembered.created, self.models.licence, note,
            commands.sing_on(self.hps), commands.keep(self.hps),
        )  # fmt: skip
        self.pages.write(songs, facts, known, embed=sample.embed and last)

    def _knobs(self, request: Request) -> dict[str, str]:
        """How each level of a song is drawn."""
        chosen = self.settings(request)
        return {f"level {level} drawing": _spelled(chosen[level]) for level in sorted(self.levels, reverse=True)}

    def _how_far(self, song: Song) -> str:
        """`level 2 whole, level 1 12.3 of 20.0 s`; empty when every level that will be sampled is whole."""
        levels = [l for l in reversed(range(self.codec.geometry.levels)) if l in self.levels or song.have(l)]
        if all(self.is_whole(song, level) for level in levels):
            return ""
        texts, rate = [], self.codec.geometry.sr_hz
        for level in levels:
            have_sec = song.have(level) * self.codec.geometry.hops[level] / rate
            whole = self.is_whole(song, level)
            texts.append(
                f"level {level} " + ("whole" if whole else f"{have_sec:.1f} of {song.length_samples / rate:.1f} s")
            )
        return ", ".join(texts)


def _from_to(seconds: Sequence[float]) -> str:
    """Of several, in order, the first and the last."""
    return " to ".join(f"{sec:.2f} s" for sec in dict.fromkeys((seconds[0], seconds[-1])))


def _prompt(request: Request) -> dict[str, str]:
    parent = request.parent
    if parent is None:
        return {}
    begin = f"{parent.start_sec:g} to {parent.end_sec:g} s" if parent.start_sec else f"the first {parent.end_sec:g} s"
    return {"prompt": f"{begin} of {parent.name}"}


def _spelled(level: LevelSettings) -> str:
    found = [f"temperature {level.knobs.temp:g}"]
    found += [f"top k {level.knobs.top_k}"] if level.knobs.top_k else []
    found += [f"top p {level.knobs.top_p:g}"] if level.knobs.top_p else []
    return ", ".join(found + ([f"min p {level.knobs.min_p:g}"] if level.knobs.min_p else []))


def _recorded(chosen: Sequence[LevelSettings], seeds: Sequence[int]) -> dict[str, Any]:
    """How a level was drawn, as plain values: those of the first song, and `items` lists all where songs differ."""
    each = [
        {**asdict(one.knobs), "seed": seed, "chunk_size": one.chunk_size, "max_batch_size": one.max_batch_size}
        for one, seed in zip(chosen, seeds, strict=True)
    ]  # fmt: skip
    return each[0] | ({} if all(other == each[0] for other in each) else {"items": each})
