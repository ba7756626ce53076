"""From a command line to songs: loads a model set, samples its levels, writes codes, sound, alignment and page."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from jukebox import files, runlog
from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import Codec
from jukebox.models.model_set import ModelSet, Part
from jukebox.nn import linear
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.model import Prior
from jukebox.sampling import alignment, latents, modes, plan, precision, prepare
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.plan import Window
from jukebox.sampling.prepare import Level
from jukebox.sampling.requests import LevelSettings, Request, requests_of, settings_of
from jukebox.sampling.save import Aligned, Facts, Remembered, RunFolder, labels_of

log = logging.getLogger(__name__)

_NOT_ASKED = ("quiet", "device", "threads", "port", "dist_timeout")  # do not decide the result


def main(hps: Resolved) -> int:
    """Sample what the settings of `sample` ask for; the exit code."""
    sample, start = hps.section(SampleHps), hps.section(LaunchHps)
    if not sample.name:
        raise UsageError("--name is missing: the folder of the result, for example --name=sample_1.")
    asked = requests_of(hps.section(SongHps), hps.section(DrawHps).seed, None)
    if latents.is_flow_run(sample.model):
        return latents.main(hps, asked)
    models = model_set.find(sample.model, sample.restore_vqvae)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    root = Path(sample.name)
    if comm.is_first:
        root.mkdir(parents=True, exist_ok=True)
        with files.RunLock(root):
            return Session(hps, models, asked, comm, root).run()
    return Session(hps, models, asked, comm, root).run()


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
            self.sample, self.song, models, self.vqvae_hps, self.geometry, tuple(blends)
        )
        self.top = self.geometry.levels - 1
        self.lengths = prepare.Lengths(self.sample, self.geometry)
        for request in asked:
            self._settings(request)
            prepare.check_song(self.lengths.song(request), self.levels, self.geometry)
        self.folder = RunFolder(root, self._identity())

    def run(self) -> int:
        """Sample all levels; 0, or the code of a run that was asked to stop."""
        order, songs = self._begin()
        self._announce(songs)
        done = []
        given = [l for l in range(self.geometry.levels) if l > max(order) and all(song.have(l) for song in songs)]
        if self.top in given and self.top in self.levels:
            self._work(self.top, songs)
        for level in sorted(given, reverse=True):  # decoded too, so that all can be compared
            done.append(level)
            self._publish(level, songs, done)
        for level in order:
            self._work(level, songs)
            done.append(level)
            self._publish(level, songs, done)
        if min(done) > 0:
            log.info("The model has no prior below level %d: the sound is decoded from there.", min(done))
        log.info("%s", self.folder.root / "index.html")
        return 0

    # --------------------------------------------------------------------------------------------------- before

    def _check_rate_and_levels(self) -> None:
        if self.sample.sr not in (None, self.geometry.sr_hz):
            raise UsageError(
                f"--sr={self.sample.sr}, but the VQ-VAE was trained at {self.geometry.sr_hz} Hz. Leave out --sr."
            )
        if self.sample.levels not in (None, self.geometry.levels):
            raise UsageError(
                f"--levels={self.sample.levels}, but the VQ-VAE of this model has {self.geometry.levels} levels."
            )

    def _identity(self) -> dict[str, Any]:
        """What decides the result, as plain JSON: a run that asks for the same goes on where it was left."""
        values = {k: v for k, v in self.hps.values.items() if k not in _NOT_ASKED}
        return {
            "model": self.models.name, "vqvae": self.codec.fingerprint, "settings": _plain(values),
            "requests": [_plain(request.to_json()) for request in self.asked],
        }  # fmt: skip

    def _begin(self) -> tuple[list[int], list[Song]]:
        """Open the folder, for a new run with the codes that are given: levels to sample, and all items."""

        def begin() -> None:
            found = None if self.folder.is_same() else self._plan()  # before the codes it reads are set aside
            self.folder.begin()
            if found is not None:
                requests = requests_of(self.song, self.draw.seed, len(found.given))
                fresh = [self.lengths.song(request) for request in requests]
                for song, codes in zip(fresh, found.given, strict=True):
                    song.codes.update(codes)
                self.folder.save(fresh)
                command = "python jukebox/sample.py " + " ".join(shlex.quote(word) for word in sys.argv[1:])
                items = [request.to_json() for request in requests]
                self.folder.remember(Remembered(list(found.levels), items, command))

        self.comm.run_first(begin)
        return self.folder.remembered().levels, self.stored_songs()

    def stored_songs(self) -> list[Song]:
        """All items of the run that the folder holds, with the codes they have."""
        songs = [self.lengths.song(Request.from_json(request)) for request in self.folder.remembered().items]
        for song in songs:
            song.codes = self.folder.load(song.request.item) or {}
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
        for request, given in zip(
            requests_of(self.song, self.draw.seed, len(found.given)), found.given, strict=True
        ):  # fmt: skip
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
        if sample.n_samples not in (None, len(saved)):
            raise UsageError(
                f"--n_samples={sample.n_samples}, but {sample.codes_file} holds {len(saved)} songs. Leave --n_samples out."
            )
        if sample.mode == "continue":
            return modes.continued(levels, saved, self.geometry, prompt_samples)
        longest = max(self.lengths.song(request).length_samples for request in self.asked)
        return modes.upsampled(levels, saved, self.geometry, prompt_samples, longest)

    def _announce(self, songs: Sequence[Song]) -> None:
        """Say, before anything takes long, what will be done and what will not."""
        longest = max(songs, key=lambda song: song.length_samples)
        rows = plan.table(
            [level.plan for _, level in sorted(self.levels.items(), reverse=True)], longest.length_samples,
            self.geometry.sr_hz, {level: longest.have(level) for level in self.levels},
        )  # fmt: skip
        seconds = longest.length_samples / self.geometry.sr_hz
        log.info("%d songs of %.2f s at %d Hz\n%s", len(songs), seconds, self.geometry.sr_hz, rows)
        for line in prepare.notices([song.request.song for song in songs], self.levels, self.top):
            log.info("%s", line)
        if self.models.licence:
            log.info("%s: %s", self.models.name, self.models.licence)
        for level, known in self.levels.items():
            if any(song.have(level) > known.plan.total(song.length_samples) for song in songs) and self.comm.is_first:
                log.warning("level %d: given codes are longer than the length asked for; the rest is not used", level)

    # --------------------------------------------------------------------------------------------------- while

    def _mine(self, songs: Sequence[Song]) -> list[Song]:
        return [song for song in songs if song.request.item % self.comm.size == self.comm.rank]

    def _work(self, level: int, songs: list[Song]) -> None:
        """Sample what is missing of a level and, at the top, align lyrics with it; the prior is loaded only for that."""
        known, mine, part = self.levels[level], self._mine(songs), self.models.priors[level]
        assert part is not None
        missing = sum(max(0, known.plan.total(song.length_samples) - song.have(level)) for song in mine)
        to_align = self._to_align(mine) if level == self.top else []
        if missing or to_align:
            prior = self._load(known, part, len(songs))
            if missing:
                self._sing(prior, known, mine, missing)
            if to_align:
                self._align(prior, known, to_align)
        self.comm.barrier()
        for song in songs:
            song.codes = self.folder.load(song.request.item) or song.codes

    def _load(self, known: Level, part: Part, songs: int) -> Prior:
        """The prior of a level, packed in the form that --dtype asks for."""
        prior, _ = model_set.load_prior(part, self.vqvae_hps, known.plan.level, self.comm.device)
        known.add_blends(prior)
        self.dtype = precision.pack(prior, self.draw.dtype, self.folder.root / "precision.json", songs)
        return prior

    def _sing(self, prior: Prior, known: Level, songs: Sequence[Song], missing: int) -> None:
        level = known.plan.level

        def on_window(batch: Sequence[Song], window: Window) -> None:
            self.folder.save(batch)
            launch.set_phase(f"level {level}, window {window.start}")
            if launch.stop_requested():
                log.info("Stopped. The same command goes on from here.")
                raise SystemExit(launch.stop_code())

        with runlog.Progress(missing, "code", f"level {level}") as bar:
            for chosen, alike in self._by_settings(songs, level):
                singer = LevelSinger(
                    prior, known.plan, chosen, known.labeller, self.dtype, self.draw.mask_lyric_codes
                )  # fmt: skip
                singer.sing(alike, on_window, bar.update)

    def _settings(self, request: Request) -> dict[int, LevelSettings]:
        return settings_of(self.draw, self.models, self.geometry.levels, request)

    def _by_settings(self, songs: Sequence[Song], level: int) -> Iterator[tuple[LevelSettings, list[Song]]]:
        """Songs that are drawn alike can be sampled together."""

        def chosen(song: Song) -> LevelSettings:
            return self._settings(song.request)[level]

        for _, alike in groupby(sorted(songs, key=lambda song: repr(chosen(song))), key=chosen):
            group = list(alike)
            yield chosen(group[0]), group

    # ------------------------------------------------------------------------------------------------- alignment

    def _to_align(self, songs: Sequence[Song]) -> list[Song]:
        """Songs with lyrics of which no alignment is stored yet, where the top prior can make one."""
        known = self.levels[self.top]
        if known.labeller is None or alignment.why_not(known.shape):
            return []
        found = [song for song in songs if known.labeller.alphabet.clean(song.request.song.lyrics)[0]]
        return [song for song in found if self.folder.load_alignment(song.request.item) is None]

    def _align(self, prior: Prior, known: Level, songs: Sequence[Song]) -> None:
        assert known.labeller is not None
        with runlog.Progress(len(songs), "song", "aligning") as bar:
            for song in songs:
                weights = alignment.align(prior, known.labeller, known.plan, [song], dtype=self.dtype)
                self.folder.save_alignment(song.request.item, weights[0])
                bar.update()

    def _aligned(self, songs: Sequence[Song]) -> dict[int, Aligned]:
        """The stored alignments by item, with the times of words."""
        known = self.levels.get(self.top)
        if known is None or known.labeller is None or alignment.why_not(known.shape):
            return {}
        code_sec, alphabet = known.plan.samples_per_code / self.geometry.sr_hz, known.labeller.alphabet
        found = {}
        for song in songs:
            weights, lyrics = self.folder.load_alignment(song.request.item), song.request.song.lyrics
            if weights is not None:
                words = alignment.word_times(weights, lyrics, alphabet, code_sec)
                found[song.request.item] = Aligned(weights, alphabet.clean(lyrics)[0], tuple(words))
        return found

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
        mine = [song for song in self._mine(songs) if known.labeller.alphabet.clean(song.request.song.lyrics)[0]]
        if mine:
            prior = self._load(known, part, len(songs))
            self._align(prior, known, mine)
        self.comm.barrier()
        if self.comm.is_first:
            aligned = self._aligned(songs)
            self.folder.save_aligned_codes(min(done), [aligned.get(song.request.item) for song in songs])
            self.folder.page(songs, done, self._facts(songs), aligned)
        self.comm.barrier()

    # --------------------------------------------------------------------------------------------------- after

    def _publish(self, level: int, songs: list[Song], done: list[int]) -> None:
        """Decode, then write everything of a finished level."""
        tags = {"comment": self.models.licence or "made with Jukebox", "AI_GENERATED": "true"}
        if not self.folder.finished(level):
            for song in self._mine(songs):
                self.folder.decode(song, level, self.codec, tags)
            self.comm.barrier()
        if self.comm.is_first:
            if not self.folder.finished(level):
                self._export(level, songs)
            details = {"model": {"checkpoint": self.models.vqvae.checkpoint, "hps": dict(self.vqvae_hps.values)}}
            self.folder.store(songs, done, self.codec, details)
            self.folder.page(songs, done, self._facts(songs), self._aligned(songs))
        self.comm.barrier()

    def _export(self, level: int, songs: Sequence[Song]) -> None:
        chosen = self._settings(songs[0].request)
        kwargs = [asdict(chosen[l]) if l in self.levels else {} for l in range(self.geometry.levels)]
        labels = [
            labels_of([self.levels[l].label(song) for song in songs] if l in self.levels else [None] * len(songs))
            for l in range(self.geometry.levels)
        ]
        self.folder.export(songs, level, self.geometry.levels, labels, kwargs)
        self.folder.drop_arrays(level)

    def _facts(self, songs: Sequence[Song]) -> Facts:
        chosen = self._settings(songs[0].request)
        shown = {
            "model": self.models.name, "mode": self.sample.mode, "seed": self.draw.seed,
            "length": f"{max(song.length_samples for song in songs) / self.geometry.sr_hz:.2f} s",
            **{f"level {l}": _knobs(chosen[l]) for l in sorted(self.levels, reverse=True)},
        }  # fmt: skip
        command = self.folder.remembered().command
        return Facts(self.folder.root.name, self.geometry.sr_hz, command, shown, self.models.licence)


def _knobs(level: LevelSettings) -> str:
    found = [f"temperature {level.knobs.temp:g}"]
    found += [f"top {level.knobs.top_k}"] if level.knobs.top_k else []
    found += [f"top p {level.knobs.top_p:g}"] if level.knobs.top_p else []
    return ", ".join(found + ([f"min p {level.knobs.min_p:g}"] if level.knobs.min_p else []))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
