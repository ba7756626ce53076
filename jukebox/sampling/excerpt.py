"""A stretch of the songs of a run, by itself: what its codes sound like there, with finer levels sampled for it alone.

It has a folder of its own, `<run>/excerpts/<from>-<to>`, with sounds and page like a run, and goes on like one. It is a
preview: levels below the top begin at the stretch instead of going on from what comes before, so that their codes are
not those that the run will have there. The run itself is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jukebox.errors import UsageError
from jukebox.sampling.exports import Exports
from jukebox.sampling.levels import Codes, Song
from jukebox.sampling.lyric_times import LyricTimes
from jukebox.sampling.parts import Part
from jukebox.sampling.plan import LevelPlan
from jukebox.sampling.save import RunFolder

if TYPE_CHECKING:
    from jukebox.sampling.run import Session

FOLDER = "excerpts"


@dataclass(frozen=True)
class Stretch:
    """Samples [start, stop) of every song; both are where a top code begins."""

    start: int
    stop: int

    def crop(self, song: Song, hops: Sequence[int]) -> Song:
        """The stretch as a song, with the codes of every level that the whole song has there."""
        codes: dict[int, Codes] = {}
        for level, hop in enumerate(hops):
            if song.have(level) * hop >= self.stop:
                codes[level] = song.codes[level][self.start // hop : self.stop // hop]
        return Song(song.request, self.stop - self.start, song.total_samples, codes, self.start)


def stretch_of(part: Part, songs: Sequence[Song], plans: Mapping[int, LevelPlan], top_hop: int, sr_hz: int) -> Stretch:
    """What --from and --to mean: widened to whole top codes, and to a window of each level that is sampled.

    Raises UsageError when a song ends before it.
    """
    shortest = min(song.length_samples for song in part.songs(songs))
    asked = shortest if part.until_samples is None else min(part.until_samples, shortest)
    if part.from_samples >= asked:
        raise UsageError(
            f"--from={part.from_samples / sr_hz:g} is not before {asked / sr_hz:g} s, where "
            f"{'--to is' if part.until_samples == asked else 'a song ends'}."
        )
    start, stop = part.from_samples // top_hop * top_hop, -(-asked // top_hop) * top_hop
    window = max((plan.n_ctx * plan.samples_per_code for plan in plans.values() if plan.ratio is not None), default=0)
    stop = min(max(stop, start + window), shortest // top_hop * top_hop)
    return Stretch(max(0, min(start, stop - window)) // top_hop * top_hop, stop)


def session_of(
    session: Session, stretch: Stretch, songs: Sequence[Song], part: Part
) -> tuple[Session, Part, list[Song]]:
    """The session, part and songs of an excerpt; its folder is made ready. Raises UsageError where codes are missing."""
    hops, rate, top = session.geometry.hops, session.geometry.sr_hz, session.top
    root = session.folder.root / FOLDER / f"{stretch.start / rate:.2f}-{stretch.stop / rate:.2f}"
    crops = [stretch.crop(song, hops) for song in part.songs(songs)]
    if not all(crop.have(top) for crop in crops):
        reached = min(song.have(top) for song in part.songs(songs)) * hops[top] / rate
        raise UsageError(
            f"--from: level {top} goes to {reached:.2f} s only, the stretch to {stretch.stop / rate:.2f} s. Sample that level "
            f"first, or with it: --levels={top},..."
        )
    levels = tuple(level for level in part.levels if not all(crop.have(level) for crop in crops))
    inner = copy.copy(session)
    asked: dict[str, Any] = {
        **session.folder.asked,
        "stretch": [stretch.start, stretch.stop],
        "items": sorted(part.items),
    }
    inner.folder = RunFolder(root, asked)
    inner.times = LyricTimes(inner.folder, None, rate)
    inner.exports = Exports(
        inner.folder, session.codec, session.models, session.vqvae_hps, session.levels, session.settings, inner.times,
        session.hps,
    )  # fmt: skip

    def begin() -> None:
        goes_on = inner.folder.is_same()
        inner.folder.begin()
        if not goes_on:
            for crop in crops:
                for level in crop.codes:
                    inner.folder.save([crop], level)
            items = [crop.request.to_json() for crop in crops]
            told = session.folder.remembered()
            inner.folder.remember(replace(told, levels=list(levels), items=items, command=session.command(alone=True)))

    session.comm.run_first(begin)
    for crop in crops:
        crop.codes.clear()
        inner.folder.load_all(crop, len(hops))
    return inner, Part(tuple(inner.folder.remembered().levels), part.items), crops
