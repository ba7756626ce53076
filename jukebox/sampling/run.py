"""From a command line to songs: loads a model set, samples its levels, writes codes, sound, alignment and page."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jukebox import files, runlog
from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import Codec
from jukebox.models.model_set import ModelSet
from jukebox.nn import linear
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.sampling import alignment, latents, lineage, modes, parts, plan, prepare, recorded, save
from jukebox.sampling.choir import Choir
from jukebox.sampling.excerpt import session_of, stretch_of
from jukebox.sampling.exports import Exports
from jukebox.sampling.forecast import Forecast
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.levels import Song
from jukebox.sampling.lyric_times import LyricTimes
from jukebox.sampling.parts import Part
from jukebox.sampling.perform import Performance
from jukebox.sampling.prepare import Level
from jukebox.sampling.requests import LevelSettings, Request, by_turns, requests_of, settings_of
from jukebox.sampling.run_page import single_file
from jukebox.sampling.save import Remembered, RunFolder
from jukebox.sampling.walk import Made

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Sample what the settings of `sample` ask for; the exit code."""
    sample, start = hps.section(SampleHps), hps.section(LaunchHps)
    if not sample.name:
        raise UsageError("--name is missing: the folder of the result, for example --name=sample_1.")
    begun = None if sample.model else recorded.as_begun(hps, Path(sample.name))
    hps, asked = begun or (hps, _asked(hps))
    sample = hps.section(SampleHps)
    if latents.is_flow_run(sample.model):
        return latents.main(hps, asked)
    models = model_set.find(sample.model, sample.restore_vqvae)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    root = Path(sample.name)
    if sample.plan:
        return Session(hps, models, asked, comm, root).tell_plan()
    if comm.is_first:
        files.make_folder(root, name="the run's folder", cure="Choose another --name.")
        with files.RunLock(root):
            return Session(hps, models, asked, comm, root).run()
    return Session(hps, models, asked, comm, root).run()


def _asked(hps: Resolved) -> list[Request]:
    """The songs asked for, each once; where nothing is said of them, those that --codes_file holds go on as themselves."""
    sample, song, seed = hps.section(SampleHps), hps.section(SongHps), hps.section(DrawHps).seed
    said = song.requests or song.artist or song.genre or song.lyrics or song.lyric_times
    if sample.mode not in ("continue", "upsample") or said:
        return requests_of(song, seed, None)
    before = save.asked_before(Path(sample.name))
    if before.get("settings") == _values(hps):  # it goes on; what it began with may have gone since
        return [Request.from_json(request) for request in before["requests"]]
    songs = lineage.same_songs(sample.codes_file, seed)
    if sample.total_sample_length_in_seconds:
        songs = [replace(request, total_sec=None) for request in songs]
    return songs or requests_of(song, seed, None)


class Session:
    """One run of sample.py: everything is checked before the first prior is loaded. asked: the songs, each once."""

    def __init__(self, hps: Resolved, models: ModelSet, asked: Sequence[Request], comm: Comm, root: Path) -> None:
        self.sample, self.draw, self.song = hps.section(SampleHps), hps.section(DrawHps), hps.section(SongHps)
        self.hps, self.models, self.asked, self.comm = hps, models, asked, comm
        if self.draw.dtype != "auto":
            linear.check(self.draw.dtype, comm.device)
        self.codec: Codec
        self.codec, self.vqvae_hps = load_codec(models.vqvae, comm.device)
        self.geometry: Geometry = self.codec.geometry
        self._check_rate_and_levels()
        blends = dict.fromkeys(blend for request in asked for blend in request.blends)
        self.levels: dict[int, Level] = prepare.levels_of(
            self.sample, self.song, models, self.vqvae_hps, self.geometry, tuple(blends), aloud=comm.is_first
        )
        self.top = self.geometry.levels - 1
        self.lengths = prepare.Lengths(self.sample, self.geometry, models.song_sec)
        for request in asked:
            self.settings(request)
            prepare.check_song(self.lengths.song(request), self.levels, self.geometry)
        self.folder = RunFolder(root, self._identity())
        self.times = LyricTimes(self.folder, self.levels.get(self.top), self.geometry.sr_hz)
        self.exports = Exports(
            self.folder, self.codec, models, self.vqvae_hps, self.levels, self.settings, self.times, hps
        )  # fmt: skip

    def run(self) -> int:
        """Sample what is asked for; the exit code."""
        for _ in self.events():
            pass
        done = self.folder.done()
        if done and min(done) > 0 and 0 not in self.levels:
            log.info("The model has no prior below level %d: the sound is decoded from there.", min(done))
        log.info("%s", self.folder.root / "index.html")
        if self.sample.embed:
            log.info("%s", single_file(self.folder.root))
        return 0

    def events(self) -> Iterator[Made]:
        """Sample, with an event after each window that this process has made and published.

        Leave it at any moment: another walk, in this process or another, goes on from the last window. Raises SystemExit
        when the program was asked to stop.
        """
        order, songs = self._begin()
        part = parts.part_of(self.sample, order, len(songs), self.geometry)
        if part.from_samples:
            return self._excerpt(part, songs)
        self._announce(part.songs(songs))
        return Performance(self, part, songs).events()

    def _excerpt(self, part: Part, songs: list[Song]) -> Iterator[Made]:
        """A stretch by itself; the top level is sampled as far as it is needed, as a part of the run."""
        plans = {level: self.levels[level].plan for level in part.levels}
        stretch = stretch_of(part, songs, plans, self.geometry.top_hop, self.geometry.sr_hz)
        if self.top in plans:
            yield from Performance(self, Part((self.top,), part.items, stretch.stop), songs).events()
        inner, part, crops = session_of(self, stretch, songs, part)
        inner._announce(crops)
        yield from Performance(inner, part, crops).events()
        log.info("%s", inner.folder.root / "index.html")

    # --------------------------------------------------------------------------------------------------- before

    def tell_plan(self) -> int:
        """Say what the run would do and take; nothing is written. Raises OutOfMemory and OutOfSpace as the run would."""

        def tell() -> None:
            order, songs = self._known()
            part = parts.part_of(self.sample, order, len(songs), self.geometry)
            self._announce(part.songs(songs))
            forecast = self.forecast(part.songs(songs), part.levels)
            forecast.check()
            log.info("%s", forecast.text())

        self.comm.run_first(tell)
        return 0

    def forecast(self, songs: Sequence[Song], levels: Collection[int]) -> Forecast:
        """What sampling these levels of all items takes."""
        known = {level: self.levels[level] for level in levels}
        return Forecast(known, self.settings, songs, self.codec, self.draw.dtype, self.comm, self.folder.root)

    def _known(self) -> tuple[list[int], list[Song]]:
        """Levels to sample, and all items with the codes they have: as the folder remembers, or as asked for."""
        if self.folder.is_same():
            return self.folder.remembered().levels, self.stored_songs()
        found = self._plan()
        songs = [self.lengths.song(request) for request in self._grown(found)]
        for song, codes in zip(songs, found.given, strict=True):
            song.codes.update(codes)
        if all(
            song.have(level) >= self.levels[level].plan.total(song.length_samples)
            for song in songs
            for level in found.levels
        ):
            log.warning(
                "nothing is left to sing: what the songs begin with is as long as they shall be. For more give a larger "
                "--sample_length_in_seconds, for another way a --prompt_length_in_seconds."
            )
        return list(found.levels), songs

    def _check_rate_and_levels(self) -> None:
        if self.sample.sr not in (None, self.geometry.sr_hz):
            raise UsageError(
                f"--sr={self.sample.sr}, but the VQ-VAE was trained at {self.geometry.sr_hz} Hz. Leave out --sr."
            )
        parts.levels_asked(self.sample, self.geometry)

    def _identity(self) -> dict[str, Any]:
        """What decides the result, as plain JSON: a run that asks for the same goes on where it was left."""
        return {
            "model": self.models.name, "vqvae": self.codec.fingerprint, "settings": _values(self.hps),
            "requests": [_plain(request.to_json()) for request in self.asked],
        }  # fmt: skip

    def _begin(self) -> tuple[list[int], list[Song]]:
        """Open the folder, for a new run with the codes that are given: levels to sample, and all items."""

        def begin() -> None:
            goes_on = self.folder.is_same()
            order, songs = self._known()  # before the codes it reads are set aside
            self.forecast(songs, order).check()
            self.folder.begin()
            if not goes_on:
                requests = [song.request for song in songs]
                for song in songs:
                    for level in song.codes:
                        self.folder.save([song], level)
                lineage.adopt(self.folder.root, [r.parent for r in requests if r.parent], self.sample.codes_file)
                items = [request.to_json() for request in requests]
                day, files_sung = (
                    f"{time.localtime().tm_mday} {time.strftime('%B %Y')}",
                    model_set.checkpoint_digests(self.models),
                )
                self.folder.remember(Remembered(order, items, self.command(alone=True), day, files_sung))

        self.comm.run_first(begin)
        return self.folder.remembered().levels, self.stored_songs()

    def stored_songs(self) -> list[Song]:
        """All items of the run that the folder holds, with the codes they have."""
        songs = [self.lengths.song(Request.from_json(request)) for request in self.folder.remembered().items]
        for song in songs:
            self.folder.load_all(song, self.geometry.levels)
        return songs

    def _plan(self) -> modes.Plan:
        sample, levels = self.sample, list(self.levels)
        prompt_sec = sample.prompt_length_in_seconds
        if sample.mode == "primed":
            assert prompt_sec is not None, "checked with the flags"
            n = sample.n_samples or max(len(sample.audio_file), len(self.asked))
            found = modes.primed(levels, sample.audio_file, self.codec, prompt_sec, n)
        elif sample.mode == "ancestral":
            found = modes.ancestral(levels, sample.n_samples or len(self.asked))
        else:
            return self._plan_from_codes(int(prompt_sec * self.geometry.sr_hz) if prompt_sec else None)
        for request, given in zip(by_turns(self.asked, len(found.given)), found.given, strict=True):
            if request.prompt and request.prompt_sec:
                given.update(modes.prompt(request.prompt, self.codec, request.prompt_sec))
        return found

    def _plan_from_codes(self, prompt_samples: int | None) -> modes.Plan:
        sample, levels = self.sample, list(self.levels)
        if any(request.prompt for request in self.asked):
            raise UsageError(
                f"--mode={sample.mode} begins with saved codes; the songs of --requests name an audio_file."
            )
        saved = modes.load_codes(sample.codes_file, self.geometry, self.codec.fingerprint)
        n = sample.n_samples or len(saved)
        if n < len(saved):
            raise UsageError(
                f"--n_samples={n}, but {sample.codes_file} holds {len(saved)} songs. Leave --n_samples out, or choose songs "
                f"of a store: --codes_file=STORE:0,2."
            )
        saved = [saved[item % len(saved)] for item in range(n)]  # several branches of each
        if sample.mode == "continue":
            return modes.continued(levels, saved, self.geometry, prompt_samples)
        longest = max(self.lengths.song(request).length_samples for request in self.asked)
        return modes.upsampled(levels, saved, self.geometry, prompt_samples, longest)

    def _grown(self, found: modes.Plan) -> list[Request]:
        """The items of a plan, each with what it begins with."""
        hops, rate = self.geometry.hops, self.geometry.sr_hz
        kept = [max((len(z) * hops[l] for l, z in given.items()), default=0) / rate for given in found.given]
        requests = [
            replace(request, total_sec=request.total_sec or self.sample.total_sample_length_in_seconds)
            for request in by_turns(self.asked, len(kept))
        ]
        return lineage.grown(requests, kept, self.sample.codes_file, self.sample.audio_file)

    def _announce(self, songs: Sequence[Song]) -> None:
        """Say, before anything takes long, what will be done and what will not."""
        longest = max(songs, key=lambda song: song.length_samples)
        rows = plan.table(
            [level.plan for _, level in sorted(self.levels.items(), reverse=True)], longest.length_samples,
            self.geometry.sr_hz, {level: longest.have(level) for level in self.levels},
        )  # fmt: skip
        seconds = longest.length_samples / self.geometry.sr_hz
        count = "1 song" if len(songs) == 1 else f"{len(songs)} songs"
        log.info("%s of %.2f s at %d Hz\n%s", count, seconds, self.geometry.sr_hz, rows)
        for line in prepare.notices([song.request.song for song in songs], self.levels, self.top):
            log.info("%s", line)
        if self.models.licence:
            log.info("%s: %s", self.models.name, self.models.licence)
        for level, known in self.levels.items():
            if any(song.have(level) > known.plan.total(song.length_samples) for song in songs) and self.comm.is_first:
                log.warning("level %d: given codes are longer than the length asked for; the rest is not used", level)

    def settings(self, request: Request) -> dict[int, LevelSettings]:
        """How each level of an item is drawn."""
        return settings_of(self.draw, self.models, self.geometry.levels, request)

    def command(self, *, alone: bool = False) -> str:
        """The command line of this program, `alone` or as it was started."""
        start = {"mpi": "mpiexec", "torchrun": "torchrun"}.get(self.comm.launcher, "")
        before = [] if alone or self.comm.size == 1 else [start, "-n" if start == "mpiexec" else "--nproc-per-node"]
        before += [str(self.comm.size)] if before else []
        python = [] if before[:1] == ["torchrun"] else ["python"]
        return shlex.join([*before, *python, "jukebox/sample.py", *sys.argv[1:]])

    def choir(self, levels: Collection[int], songs: Sequence[Song]) -> Choir:
        """The priors of these levels, for these songs."""
        return Choir(
            self.models, self.vqvae_hps, self.levels, self.draw, self.comm.device,
            together=self.forecast(songs, levels).fits_together, record=self.folder.root / "progress",
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- alignment

    def realign(self, songs: Sequence[Song], done: Sequence[int]) -> None:
        """Align all songs anew and write the pages of the levels that are done once more.

        Raises UsageError when the model cannot align.
        """
        known, part = self.levels.get(self.top), self.models.priors[-1]
        if known is None or part is None or known.labeller is None:
            raise UsageError(
                f"--model={self.models.name} has no labelled prior of the top level: it cannot align lyrics."
            )
        if reason := alignment.why_not(known.shape):
            raise UsageError(f"--model={self.models.name}: {reason}. Give --alignment_layer and --alignment_head.")
        mine = [
            song for song in self.times.with_lyrics(songs) if song.request.item % self.comm.size == self.comm.rank
        ]  # fmt: skip
        if mine:
            self.times.align(*self.choir([self.top], songs).prior(self.top), mine)
        self.comm.barrier()
        if self.comm.is_first:
            aligned = self.times.found(songs)
            self.folder.save_aligned_codes(min(done), [aligned.get(song.request.item) for song in songs])
            self.exports.page(songs, last=True)
        self.comm.barrier()


def _values(hps: Resolved) -> dict[str, Any]:
    """The settings that decide the result, as plain JSON."""
    return {k: _plain(v) for k, v in hps.values.items() if k not in recorded.OF_A_START}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
