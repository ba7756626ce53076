"""Everything about a run that is known, and checked, before the first prior is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Label, Labeller
from jukebox.models import build, model_set
from jukebox.models.labels import build_labeller
from jukebox.models.model_set import ModelSet
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling import alignment, plan
from jukebox.sampling.hps import SampleHps, SongHps
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan, window_starts
from jukebox.sampling.requests import Blend, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """What is known of one level before its prior is loaded. labeller: None for an unlabelled prior."""

    plan: LevelPlan
    shape: PriorShape
    hps: Resolved
    labeller: Labeller | None
    blends: tuple[Blend, ...] = ()

    def add_blends(self, prior: Prior) -> None:
        """Give the loaded prior the vectors of blended artists and genres, behind its tables."""
        if self.labeller is None:
            return
        for blend in self.blends:
            id_ = prior.labels.add(blend.kind, [(_ids(self.labeller, blend.kind, name), w) for name, w in blend.parts])
            assert id_ == self.labeller.ids.blends[blend.kind, blend.name]

    def label(self, song: Song) -> Label | None:
        """The label of a whole song; None for an unlabelled prior."""
        return self.labeller.full(song.request.song, song.total_samples, 0) if self.labeller else None


def levels_of(
    sample: SampleHps,
    song: SongHps,
    models: ModelSet,
    vqvae: Resolved,
    geometry: Geometry,
    blends: Sequence[Blend] = (),
    *,
    aloud: bool = True,
) -> dict[int, Level]:
    """The levels that have a prior. aloud: whether this process warns. Raises UserError for what does not fit together."""
    found = {}
    told: set[str] = set()
    for level, part in enumerate(models.priors):
        if part is None:
            continue
        hps = model_set.prior_hps(part, vqvae, level)
        shape = build.prior_shape(hps)
        if level >= len(sample.hop_fraction):
            raise UsageError(f"--hop_fraction has {len(sample.hop_fraction)} values; level {level} needs one too.")
        ratio = geometry.hops[level + 1] // geometry.hops[level] if shape.conditioner else None
        hop, rounded = plan.hop_codes(sample.hop_fraction[level], shape.n_ctx, ratio or geometry.frame)
        if rounded and aloud:
            log.warning("--hop_fraction of level %d is rounded to %d of %d codes", level, hop, shape.n_ctx)
        labeller = None
        if shape.labels is not None:
            ids_dir = song.ids_dir or model_set.ids_dir_of(models, hps)
            labeller = build_labeller(
                hps, shape, ids_dir=ids_dir, strict=song.strict_labels, text_compat=song.text_compat, aloud=aloud
            )  # fmt: skip
            assert labeller is not None
            labeller.ids.told = told
            _number(labeller, shape, blends)
        level_plan = LevelPlan(level, shape.n_ctx, hop, geometry.hops[level], ratio)
        found[level] = Level(level_plan, shape, hps, labeller, tuple(blends))
    if not found:
        raise UsageError(f"--model={models.name} names no prior; nothing can be sampled.")
    return found


def _number(labeller: Labeller, shape: PriorShape, blends: Sequence[Blend]) -> None:
    """Ids for blends, behind the model's tables, in order."""
    assert shape.labels is not None
    following = {"artist": shape.labels.artists, "genre": shape.labels.genres}
    for blend in blends:
        for name, _ in blend.parts:
            _ids(labeller, blend.kind, name)  # said now if it is unknown
        labeller.ids.blends[blend.kind, blend.name] = following[blend.kind]
        following[blend.kind] += 1


def _ids(labeller: Labeller, kind: str, name: str) -> list[int]:
    if kind == "artist":
        return [labeller.ids.artist_id(name)]
    return labeller.ids.genre_ids(name, labeller.max_genre_words)


@dataclass(frozen=True)
class Lengths:
    """How long the songs of a run are, where a request does not say so itself. usual_sec: as the model set says."""

    sample: SampleHps
    geometry: Geometry
    usual_sec: float | None = None

    def song(self, request: Request) -> Song:
        """The item, still without codes. Raises UsageError when it is shorter than a top code."""
        seconds, samples = (
            plan.song_sec(self.sample.sample_length_in_seconds, self.usual_sec),
            self.sample.sample_length,
        )
        if request.length_sec is not None:
            seconds, samples = request.length_sec, 0
        length = plan.whole_length(seconds, samples, self.geometry.sr_hz, self.geometry.top_hop)
        total_sec = request.total_sec or self.sample.total_sample_length_in_seconds
        return Song(request, length, int(total_sec * self.geometry.sr_hz) if total_sec else length)


def check_song(song: Song, levels: dict[int, Level], geometry: Geometry) -> None:
    """Every window of a song must lie inside its level, its tables of timing and its lyrics. Raises UserError."""
    for level in levels.values():
        level.plan.check(song.length_samples, geometry.sr_hz)
        _check_timing(song, level.shape, geometry.sr_hz)
        if level.labeller is None:
            continue
        label = level.labeller.full(song.request.song, song.total_samples, 0)
        for start in window_starts(level.plan.total(song.length_samples), level.plan.n_ctx, level.plan.hop):
            level.labeller.at(label, start * level.plan.samples_per_code, level.shape.sample_length)


def _check_timing(song: Song, shape: PriorShape, sr_hz: int) -> None:
    total_sec, length_sec = song.total_samples / sr_hz, song.length_samples / sr_hz
    if song.length_samples > song.total_samples:
        raise UsageError(
            f"--total_sample_length_in_seconds={total_sec:g} is the length of the whole song; it cannot be shorter than "
            f"the {length_sec:.2f} s asked for."
        )
    label = shape.labels
    if label is None or not label.timing:
        return
    if not label.min_duration * sr_hz <= song.total_samples < label.max_duration * sr_hz:
        if length_sec >= label.max_duration:
            raise UsageError(
                f"--sample_length_in_seconds={length_sec:g}: this model knows songs of {label.min_duration:g} to "
                f"{label.max_duration:g} s. Give a length in between."
            )
        raise UsageError(
            f"--total_sample_length_in_seconds={total_sec:g}: this model knows songs of {label.min_duration:g} to "
            f"{label.max_duration:g} s (of which {length_sec:.2f} s are asked for). Give a length in between."
        )


def notices(songs: Sequence[SongMeta], levels: dict[int, Level], top: int) -> list[str]:
    """What is said at the start about lyrics that will not be sung, or not be aligned."""
    without = sum(not song.lyrics.strip() for song in songs)
    reads = top in levels and levels[top].shape.n_tokens > 0
    lines = []
    if without < len(songs):
        reason = alignment.why_not(levels[top].shape) if top in levels else ""
        if top not in levels:
            lines.append("There is no prior of the top level: lyrics are not aligned with time.")
        elif reason:
            lines.append(f"Lyrics are {'sung, but ' if reads else ''}not aligned with time: {reason}.")
    if without and (reads or without < len(songs)):
        lines.append(f"{without} of {len(songs)} songs have no lyrics; they are sampled without.")
    return lines
