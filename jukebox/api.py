"""The Python face: a model in memory that encodes, decodes, sings and hears. Needs no MPI, writes nothing unasked.

    import jukebox

    model = jukebox.load("logs/top,logs/up1,logs/up0")            # or "1b_lyrics", a run, a checkpoint file
    songs = model.songs(artist="mira vale", seconds=12, n=3)
    for window in model.sample(songs):                            # a window of a level at a time
        print(window.level, window.start_sec, window.stop_sec)
    sound = model.audio(songs[0])                                 # [T] at model.sr_hz
    heard = model.features("song.mp3", layers=[36], pool="mean")  # {36: [W]}

Composing together, one decision at a time: sample a few takes of the top level, listen, choose one, go on from it with
several takes of what follows, and upsample what is to stay.

    takes = model.songs(artist="mira vale", seconds=6, total_seconds=60, n=3)
    for _ in model.sample(takes, levels=[2]):
        pass
    more = model.takes(takes[1], seconds=12, n=3)                 # or keep_seconds=4: from there on anew
    for _ in model.sample(more, levels=[2], temp=0.98):
        pass
    for _ in model.sample(more[2], levels=[1, 0]):
        pass

Everything that can be mended raises a `jukebox.errors.UserError` that says how. Audio is float32 in -1 ... 1; T samples,
C channels, N codes, F frames, W width of the prior.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jukebox import settings
from jukebox.audio import io
from jukebox.errors import DataError, UsageError
from jukebox.hparams.resolve import Layer, Resolved
from jukebox.labels.song import SongMeta
from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import Codec
from jukebox.nn import linear
from jukebox.parallel import launch
from jukebox.parallel.comm import SoloComm
from jukebox.prior.model import Prior
from jukebox.sampling import features, latents, modes, plan, prepare
from jukebox.sampling.choir import Choir
from jukebox.sampling.exports import tags_of
from jukebox.sampling.features import Audio, Extractor, Pool, States
from jukebox.sampling.forecast import Forecast
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.levels import Codes, LevelSinger, Song
from jukebox.sampling.requests import Blend, LevelSettings, Request, request_from, settings_of
from jukebox.sampling.schedule import Schedule, goals
from jukebox.sampling.walk import Made, walk

log = logging.getLogger(__name__)

Name = str | Mapping[str, float]
"""An artist or genre, or a blend of several with their weights."""
Value = float | Sequence[float] | None
"""One value, or one per level, level 0 first; None = as the model set says."""
Dtype = Literal["auto", "fp32", "fp16", "bf16", "int8"]

__all__ = ["Model", "Song", "Sung", "load"]


def load(
    model: str | os.PathLike[str], *, device: str = "auto", dtype: Dtype = "fp32", restore_vqvae: str = "",
    ids_dir: str = "", hop_fraction: Value = None,
) -> Model:  # fmt: skip
    """A model set by name, a run (its folder, or its name below logs/), a checkpoint file, or several by comma.

    device: as --device of sample.py. dtype: of the priors' weights, as --dtype of sample.py. restore_vqvae: the VQ-VAE
    in place of the one the model names. ids_dir: tables of artists and genres. hop_fraction: step between windows as a
    share of the window, when sampling. The VQ-VAE is read now, a prior when it is first needed. Nothing is downloaded.
    Raises UserError.
    """
    if latents.is_flow_run(os.fspath(model)):
        raise UsageError(f"{model} is a flow over latents, which has no codes: sample.py sings with it.")
    found = model_set.find(os.fspath(model), restore_vqvae)
    return Model(found, launch.solo_device(device), dtype, ids_dir=ids_dir, hop_fraction=hop_fraction)


@dataclass(frozen=True)
class Sung:
    """A window that was just sampled, of songs that have its codes now. given: how many of them were there before."""

    made: Made
    codec: Codec

    @property
    def level(self) -> int:
        """0 is the finest."""
        return self.made.level

    @property
    def songs(self) -> tuple[Song, ...]:
        """Those that were sampled together."""
        return self.made.songs

    @property
    def start_sec(self) -> float:
        """Where the new codes begin."""
        return self.codec.geometry.seconds_at(self.level, self._start)

    @property
    def stop_sec(self) -> float:
        """Where they end."""
        return self.codec.geometry.seconds_at(self.level, self._stop)

    @property
    def codes(self) -> list[Codes]:
        """The new codes of each song, `[n]`."""
        return [song.codes[self.level][self._start : self._stop] for song in self.songs]

    def audio(self) -> list[NDArray[np.float32]]:
        """The sound of the new codes of each song, `[n * hop]`, decoded now."""
        return [self.codec.decode(song.codes[self.level], self.level, self._start, self._stop) for song in self.songs]

    @property
    def _start(self) -> int:
        return self.made.window.start + self.made.window.given

    @property
    def _stop(self) -> int:
        return self.made.window.start + self.made.window.length


class Model:
    """What `load` gives. Songs are plain values of the caller's; a model only keeps the nets that it has read."""

    def __init__(
        self, models: model_set.ModelSet, device: str, dtype: Dtype, *, ids_dir: str = "", hop_fraction: Value = None
    ) -> None:
        if dtype != "auto":
            linear.check(dtype, device)
        self.models, self.device = models, device
        self.codec: Codec
        self.codec, self._vqvae = load_codec(models.vqvae, device)
        self.geometry = self.codec.geometry
        self._sample = _settings(hop_fraction=hop_fraction).section(SampleHps)
        self._song, self._dtype = SongHps(ids_dir=ids_dir), _settings(dtype=dtype).section(DrawHps)
        self._blends: tuple[Blend, ...] = ()
        self._known: dict[int, prepare.Level] = {}
        if any(models.priors):
            self._known = prepare.levels_of(self._sample, self._song, models, self._vqvae, self.geometry)
            self._choir = self._new_choir()
        if models.licence:
            log.warning("%s: %s", models.name, models.licence)

    def __repr__(self) -> str:
        priors = ", ".join(map(str, sorted(self._known))) or "none"
        return f"<jukebox model {self.models.name}: {self.geometry.describe()}; priors of levels {priors}>"

    @property
    def sr_hz(self) -> int:
        """Sample rate of all audio that comes and goes."""
        return self.geometry.sr_hz

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels that have a prior, highest first."""
        return tuple(sorted(self._known, reverse=True))

    # ------------------------------------------------------------------------------------------------------- codes

    def encode(
        self, audio: Audio, *, sr_hz: int | None = None, levels: Sequence[int] | None = None
    ) -> dict[int, Codes]:  # fmt: skip
        """Codes `[N]` of every level, or of some, padded with silence to whole top codes.

        sr_hz: rate of an array, which is resampled; None = it has the model's. Channels are mixed to one.
        """
        for level in levels or ():
            self._check_level(level)
        return self.codec.encode(self._mono(audio, sr_hz), levels)

    def decode(self, codes: Codes, level: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Audio of the codes start ... stop - 1 of one level, `[(stop - start) * hop]`, unclipped.

        The codes `[N]` outside the range are its context: ranges join without a seam.
        """
        self._check_level(level)
        codes = np.asarray(codes)
        if codes.ndim != 1 or codes.dtype.kind not in "iu":
            raise DataError(f"codes are whole numbers [N], not {codes.dtype} of shape {list(codes.shape)}.")
        if len(codes) and not 0 <= codes.min() <= codes.max() < self.geometry.bins:
            raise DataError(f"these codes are not of this model: its codes are 0 to {self.geometry.bins - 1}.")
        stop = len(codes) if stop is None else stop
        if not 0 <= start <= stop <= len(codes):
            raise UsageError(f"start={start}, stop={stop}: there are {len(codes)} codes.")
        if start == stop:
            return np.zeros(0, np.float32)
        return self.codec.decode(codes.astype(np.int64), level, start, stop)

    def audio(self, song: Song, level: int | None = None) -> NDArray[np.float32]:
        """A song as far as it is sampled, at its finest level or the one asked for."""
        there = [l for l in sorted(song.codes) if song.have(l)]
        if not there or level not in (None, *there):
            raise UsageError(f"level={level}: this song has codes of levels {', '.join(map(str, there)) or 'none'}.")
        level = there[0] if level is None else level
        return self.decode(song.codes[level], level)[: song.length_samples]

    def write(self, path: str | os.PathLike[str], song: Song, level: int | None = None) -> None:
        """Write what `audio` gives as a sound file: wav, flac, mp3, ogg, opus or m4a, tagged as synthetic."""
        io.write(path, self.audio(song, level), self.sr_hz, tags=tags_of(self.models))

    def save_codes(self, path: str | os.PathLike[str], songs: Song | Sequence[Song]) -> None:
        """Write the codes of songs of one length as a list of tensors `[songs, N]`, one per level.

        `load_codes` and --codes_file of sample.py read it. Raises DataError when the songs have not equally many codes.
        """
        modes.save_codes(Path(path), [song.codes for song in _several(songs)], self.geometry.levels)

    def load_codes(self, where: str | os.PathLike[str]) -> list[dict[int, Codes]]:
        """Saved codes of each song, by level: a .pth.tar, a store or the run that holds it, or some items, as RUN:3,5."""
        return modes.load_codes(os.fspath(where), self.geometry, self.codec.fingerprint)

    # ----------------------------------------------------------------------------------------------------- singing

    def songs(
        self, *, artist: Name = "unknown", genre: Name = "unknown", lyrics: str = "", seconds: float | None = None,
        total_seconds: float | None = None, seed: int = 0, n: int | None = None, prompt: Audio | None = None,
        prompt_seconds: float | None = None, sr_hz: int | None = None, given: Sequence[Mapping[int, Codes]] = (),
    ) -> list[Song]:  # fmt: skip
        """n songs to be sampled, numbered from 0; seed and number together give the noise of each.

        lyrics: a text, or a file of lyrics with their times (.lrc, .vtt, .json, .txt). seconds: their length; None = as
        long as what they begin with, else as the model set says, else 20. total_seconds: of the imagined whole. prompt: a recording they begin with,
        of which prompt_seconds are kept. given: codes they begin with, by turns, from `encode` or `load_codes`.
        """
        if prompt is not None and given:
            raise UsageError("songs begin with a prompt or with given codes; leave one of them out.")
        if prompt is not None:
            given = [self._prompt(prompt, prompt_seconds, sr_hz)]
        asked: dict[str, Any] = {"artist": _plain(artist), "genre": _plain(genre), "seed": seed}
        key = "lyrics_file" if lyrics.endswith((".lrc", ".vtt", ".json", ".txt")) and "\n" not in lyrics else "lyrics"
        asked |= {key: lyrics} if lyrics else {}
        asked |= {"total_sample_length_in_seconds": total_seconds} if total_seconds is not None else {}
        request, _ = request_from(asked, "songs()", Path.cwd(), 0)
        self._number(request.blends)
        return [
            self._begin(replace(request, item=item), dict(given[item % len(given)]) if given else {}, seconds)
            for item in range(max(1, len(given)) if n is None else n)
        ]

    def takes(
        self, song: Song, *, n: int = 1, keep_seconds: float | None = None, seconds: float | None = None,
        seed: int | None = None,
    ) -> list[Song]:  # fmt: skip
        """n songs that begin as this one does and go on in ways of their own; it stays as it is.

        keep_seconds: so much of it is kept, on every level, to whole top codes; None = all. seconds: the new length, also
        a shorter one; None = the same. seed: None = the one after the song's, so that takes of takes differ too.
        """
        kept = {level: codes.copy() for level, codes in song.codes.items()}
        if keep_seconds is not None:
            _check_seconds("keep_seconds", keep_seconds)
            whole = int(keep_seconds * self.sr_hz) // self.geometry.top_hop * self.geometry.top_hop
            kept = {level: codes[: whole // self.geometry.hops[level]] for level, codes in kept.items()}
        request = replace(song.request, seed=song.request.seed + 1 if seed is None else seed)
        length_sec = (song.length_samples + 0.5) / self.sr_hz if seconds is None else seconds  # not a sample less
        return [self._begin(replace(request, item=item), dict(kept), length_sec) for item in range(n)]

    def sample(
        self, songs: Song | Sequence[Song], *, levels: Collection[int] | None = None, until_seconds: float | None = None,
        temp: Value = None, top_k: Value = None, top_p: Value = None, min_p: Value = None,
        max_batch_size: Value = None, chunk_size: Value = None, mask_lyric_codes: bool = False, finest_first: bool = True,
    ) -> Iterator[Sung]:  # fmt: skip
        """Sample what the songs lack, with an event after every window; they grow in place.

        levels: None = all that have a prior. until_seconds: windows that begin later are left for another time. temp ...
        chunk_size: as the flags of sample.py; a song's own settings win. finest_first: go down to the finest level as soon
        as a window's upper codes exist, where memory holds all priors; else each level is finished first.

        Leave the loop at any event and call again to go on, with other settings if you like. Everything is checked
        before the first window. Raises UserError.
        """
        chosen = _several(songs)
        wanted = self._wanted(levels)
        draw = _settings(
            temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, max_batch_size=max_batch_size, chunk_size=chunk_size
        ).section(DrawHps)  # fmt: skip
        self._check_songs(chosen, wanted)

        def drawn(request: Request) -> dict[int, LevelSettings]:
            return settings_of(draw, self.models, self.geometry.levels, request)

        known = {level: self._known[level] for level in wanted}
        forecast = Forecast(known, drawn, chosen, self.codec, self._dtype.dtype, SoloComm(self.device), Path())
        self._choir.together = forecast.fits_together
        plans = {level: one.plan for level, one in known.items()}
        until = None if until_seconds is None else int(until_seconds * self.sr_hz)
        schedule = Schedule(
            plans, goals(chosen, plans, until), lambda request, level: drawn(request)[level],
            finest_first and self._choir.together,
        )  # fmt: skip
        return self._walk(chosen, schedule, mask_lyric_codes)

    def _walk(self, songs: Sequence[Song], schedule: Schedule, mask_lyric_codes: bool) -> Iterator[Sung]:
        def singer(level: int, chosen: LevelSettings) -> LevelSinger:
            return replace(self._choir.singer(level, chosen), mask_lyric_codes=mask_lyric_codes)

        for made in walk(songs, schedule, singer):
            yield Sung(made, self.codec)

    # ----------------------------------------------------------------------------------------------------- hearing

    def features(
        self, audio: Audio, *, layers: Sequence[int] = (), pool: Pool = "mean", level: int | None = None,
        song: SongMeta | None = None, sr_hz: int | None = None, hop_fraction: float = 1.0, batch_size: int = 4,
    ) -> States:  # fmt: skip
        """What a prior holds behind some of its layers while it reads a recording of any length, by layer.

        layers: numbers of layers, 0 = what goes in; () = the middle one; nothing behind the last is computed. pool: "mean"
        gives `[W]`, a number so many vectors per second `[F, W]`, "all" one per code `[N, W]`. level: None = the highest.
        song: artist, genre and lyrics that the prior is told; None = unknown. hop_fraction: step between windows.
        """
        return next(self.features_of(
            [audio], layers=layers, pool=pool, level=level, song=song, sr_hz=sr_hz, hop_fraction=hop_fraction,
            batch_size=batch_size,
        ))  # fmt: skip

    def features_of(
        self, clips: Iterable[Audio], *, layers: Sequence[int] = (), pool: Pool = "mean", level: int | None = None,
        song: SongMeta | None = None, sr_hz: int | None = None, hop_fraction: float = 1.0, batch_size: int = 4,
    ) -> Iterator[States]:  # fmt: skip
        """As `features`, of many recordings in order; windows of several of them are computed together."""
        known = self._known[features.level_of(self.models, level)]
        shape, ratio = known.shape, known.plan.ratio
        chosen = tuple(layers) or features.middle(shape)
        features.check(chosen, pool, shape, self.sr_hz)
        if not 0 < hop_fraction <= 1 or batch_size < 1:
            raise UsageError(f"hop_fraction={hop_fraction} lies in 0 ... 1, batch_size={batch_size} begins at 1.")
        hop, _ = plan.hop_codes(hop_fraction, shape.n_ctx, ratio or self.geometry.frame)
        prior, dtype = self._choir.prior(shape.level)
        extractor = Extractor(
            prior, replace(known.plan, hop=hop), self.sr_hz, chosen, pool, known.labeller, batch_size, dtype
        )  # fmt: skip
        meta = song or SongMeta()
        return extractor.hear(features.encoded(self._mono(clip, sr_hz), self.codec, shape, meta) for clip in clips)

    def prior(self, level: int) -> Prior:
        """The net of a level, read now if it was not: frozen, packed for its dtype."""
        self._wanted([level])
        return self._choir.prior(level)[0]

    def release(self) -> None:
        """Drop the priors that were read; they are read again when they are needed."""
        if self._known:
            self._choir = self._new_choir()

    # ------------------------------------------------------------------------------------------------------ inside

    def _new_choir(self) -> Choir:
        return Choir(self.models, self._vqvae, self._known, self._dtype, self.device)

    def _number(self, blends: Sequence[Blend]) -> None:
        """Make blends known to all levels; priors are read anew, with their voices."""
        fresh = [blend for blend in dict.fromkeys(blends) if blend not in self._blends]
        if fresh:
            self._blends += tuple(fresh)
            self._known = prepare.levels_of(
                self._sample, self._song, self.models, self._vqvae, self.geometry, self._blends
            )  # fmt: skip
            self.release()

    def _begin(self, request: Request, given: dict[int, Codes], seconds: float | None) -> Song:
        there = max((len(codes) * self.geometry.hops[level] for level, codes in given.items()), default=0)
        if seconds is None and there:
            seconds = (there + 0.5) / self.sr_hz
        song = prepare.Lengths(self._sample, self.geometry, self.models.song_sec).song(
            replace(request, length_sec=seconds)
        )
        for level, codes in given.items():
            song.codes[level] = np.asarray(codes, np.int64)[: song.length_samples // self.geometry.hops[level]]
        return song

    def _prompt(self, prompt: Audio, seconds: float | None, sr_hz: int | None) -> Mapping[int, Codes]:
        if seconds is not None:
            _check_seconds("prompt_seconds", seconds)
        if isinstance(prompt, str | os.PathLike) and seconds is not None:
            return modes.prompt(os.fspath(prompt), self.codec, seconds)
        audio = self._mono(prompt, sr_hz)
        length = len(audio) if seconds is None else int(seconds * self.sr_hz)
        length = length // self.geometry.top_hop * self.geometry.top_hop
        if not 0 < length <= len(audio):
            raise UsageError(f"prompt_seconds={seconds}: the prompt has {len(audio) / self.sr_hz:.2f} s.")
        return self.codec.encode(audio[:length])

    def _wanted(self, levels: Collection[int] | None) -> list[int]:
        wanted = sorted(self._known if levels is None else set(levels), reverse=True)
        absent = [level for level in wanted if level not in self._known]
        if absent or not wanted:
            there = ", ".join(map(str, self.levels)) or "none"
            raise UsageError(f"levels={absent}: {self.models.name} has priors of levels {there}.")
        return wanted

    def _check_songs(self, songs: Sequence[Song], wanted: Sequence[int]) -> None:
        """Every window must have what it stands on."""
        numbers = [song.request.item for song in songs]
        if len(set(numbers)) < len(numbers):
            raise UsageError("two of these songs have the same number, and so the same noise: sample them in turn.")
        for song in songs:
            prepare.check_song(song, {level: self._known[level] for level in wanted}, self.geometry)
            for level in wanted:
                ratio, above = self._known[level].plan.ratio, level + 1
                needed = song.length_samples // self.geometry.hops[level]
                if ratio and above not in wanted and song.have(above) * ratio < needed:
                    raise UsageError(
                        f"song {song.request.item} is to be {song.length_samples / self.sr_hz:.2f} s long, but its codes "
                        f"of level {above} end after {self.geometry.seconds_at(above, song.have(above)):.2f} s: sample "
                        f"level {above} first, or take no more of it with takes(song, seconds=...)."
                    )

    def _check_level(self, level: int) -> None:
        if not 0 <= level < self.geometry.levels:
            raise UsageError(f"level={level}: this model has levels 0 to {self.geometry.levels - 1}.")

    def _mono(self, audio: Audio, sr_hz: int | None) -> NDArray[np.float32]:
        return features.mono(audio, self.sr_hz, sr_hz)


def _settings(**values: object) -> Resolved:
    """Settings of sample.py from Python values; None = the default. Raises HparamsError naming the key."""
    schema = settings.PROGRAMS["sample"].schema
    known = {
        name: schema.convert(
            name, value if isinstance(value, str | Sequence) or name == "dtype" else (value,), "Python"
        )
        for name, value in values.items()
        if value is not None
    }
    return schema.resolve([Layer("Python", known)])


def _check_seconds(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UsageError(f"{name}={value:g}: give a number of seconds from 0 up.")


def _several(songs: Song | Sequence[Song]) -> list[Song]:
    found = [songs] if isinstance(songs, Song) else list(songs)
    if not found:
        raise UsageError("there are no songs; model.songs(...) makes some.")
    return found


def _plain(name: Name) -> str | dict[str, float]:
    return name if isinstance(name, str) else dict(name)
