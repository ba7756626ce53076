"""From a command line to songs: loads a model set, samples its levels, writes codes, sound and page."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jukebox import files, runlog, settings
from jukebox.codestore.geometry import Geometry
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.vector import Labeller
from jukebox.models import build, model_set
from jukebox.models.codec import VQVAECodec
from jukebox.models.labels import build_labeller
from jukebox.models.model_set import ModelSet
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.model import PriorShape
from jukebox.sampling import modes, plan
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.plan import LevelPlan, Window
from jukebox.sampling.requests import LevelSettings, requests_of, settings_of
from jukebox.sampling.save import RunFolder

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample what the command line asks for; the exit code."""
    hps = settings.parse("sample", sys.argv[1:] if argv is None else argv)
    sample, start = hps.section(SampleHps), hps.section(LaunchHps)
    if not sample.name:
        raise UsageError("--name is missing: the folder of the result, for example --name=sample_1.")
    models = model_set.find(sample.model, sample.restore_vqvae)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    root = Path(sample.name)
    if comm.is_first:
        root.mkdir(parents=True, exist_ok=True)
        with files.RunLock(root):
            return Session(hps, models, comm, root).run()
    return Session(hps, models, comm, root).run()


@dataclass(frozen=True)
class Level:
    """What is known of one level before its prior is loaded."""

    plan: LevelPlan
    shape: PriorShape
    hps: Resolved
    settings: LevelSettings


class Session:
    """One run of sample.py: everything is checked before the first prior is loaded."""

    def __init__(self, hps: Resolved, models: ModelSet, comm: Comm, root: Path) -> None:
        self.sample, self.draw, self.song = hps.section(SampleHps), hps.section(DrawHps), hps.section(SongHps)
        self.hps, self.models, self.comm, self.root = hps, models, comm, root
        self.codec: VQVAECodec
        self.codec, self.vqvae_hps = model_set.load_vqvae(models.vqvae, comm.device)
        self.geometry: Geometry = self.codec.geometry
        self._check_rate_and_levels()
        self.length = plan.whole_length(
            self.sample.sample_length_in_seconds, self.sample.sample_length, self.geometry.sr_hz, self.geometry.top_hop
        )  # fmt: skip
        total_sec = self.sample.total_sample_length_in_seconds
        self.total = int(total_sec * self.geometry.sr_hz) if total_sec else self.length
        self.levels = self._levels()

    def run(self) -> int:
        """Sample all levels; 0, or the code of a run that was asked to stop."""
        begun = self._begin()
        songs = self._songs(begun)
        if self.comm.is_first:
            given = {l: songs[0].have(l) for l in self.levels}
            log.info(
                "%d songs of %.2f s at %d Hz\n%s", len(songs), self.length / self.geometry.sr_hz, self.geometry.sr_hz,
                plan.table([level.plan for _, level in sorted(self.levels.items(), reverse=True)], self.length,
                           self.geometry.sr_hz, given),
            )  # fmt: skip
        done = self._exported_given(songs)
        for level in self.order:
            self._sample_level(level, songs)
            done.append(level)
            self._publish(level, songs, done)
        lowest = min(done)
        if lowest > 0 and self.comm.is_first:
            log.info("The model has no prior below level %d: the sound is decoded from there.", lowest)
        log.info("%s", self.folder.root / "index.html")
        return 0

    # --------------------------------------------------------------------------------------------------- before

    def _check_rate_and_levels(self) -> None:
        if self.sample.sr not in (None, self.geometry.sr_hz):
            raise UsageError(
                f"--sr={self.sample.sr}, but the VQ-VAE was trained at {self.geometry.sr_hz} Hz. Leave out --sr."
            )
        if self.sample.levels not in (None, len(self.geometry.hops)):
            raise UsageError(
                f"--levels={self.sample.levels}, but the VQ-VAE of this model has {len(self.geometry.hops)} levels."
            )

    def _levels(self) -> dict[int, Level]:
        chosen = settings_of(self.draw, self.models, len(self.geometry.hops))
        fractions = self.sample.hop_fraction
        found = {}
        for level, part in enumerate(self.models.priors):
            if part is None:
                continue
            _, hps = model_set.prior_hps(part, self.vqvae_hps, level)
            shape = build.prior_shape(hps)
            ratio = self.geometry.hops[level + 1] // self.geometry.hops[level] if shape.conditioner else None
            if level >= len(fractions):
                raise UsageError(f"--hop_fraction has {len(fractions)} values; level {level} needs one too.")
            hop, rounded = plan.hop_codes(fractions[level], shape.n_ctx, ratio)
            if rounded and self.comm.is_first:
                log.warning("--hop_fraction of level %d is rounded to %d of %d codes", level, hop, shape.n_ctx)
            level_plan = LevelPlan(level, shape.n_ctx, hop, self.geometry.hops[level], ratio)
            level_plan.check(self.length, self.geometry.sr_hz)
            self._check_timing(shape)
            found[level] = Level(level_plan, shape, hps, chosen[level])
        if not found:
            raise UsageError(f"--model={self.models.name} names no prior; nothing can be sampled.")
        return found

    def _check_timing(self, shape: PriorShape) -> None:
        """Every window must lie inside the timing tables of a labelled top prior (known before anything is loaded)."""
        label = shape.labels
        if label is None or not label.timing:
            return
        low, high = label.min_duration * label.sr_hz, label.max_duration * label.sr_hz
        if not low <= self.total < high or self.length > self.total:
            raise UsageError(
                f"--total_sample_length_in_seconds={self.total / self.geometry.sr_hz:g}: this model knows songs of "
                f"{label.min_duration:g} to {label.max_duration:g} s, and the whole song cannot be shorter than the "
                f"{self.length / self.geometry.sr_hz:.2f} s asked for."
            )

    def _plan(self) -> modes.Plan:
        sample, levels = self.sample, list(self.levels)
        prompt = sample.prompt_length_in_seconds
        prompt_samples = int(prompt * self.geometry.sr_hz) if prompt else None
        if sample.mode == "ancestral":
            return modes.ancestral(levels, sample.n_samples or 1)
        if sample.mode == "primed":
            assert prompt is not None, "checked with the flags"
            n = sample.n_samples or len(sample.audio_file)
            return modes.primed(levels, sample.audio_file, self.codec, prompt, n)
        saved = modes.load_codes(sample.codes_file, self.geometry, self.codec.fingerprint)
        if sample.n_samples not in (None, len(saved)):
            raise UsageError(
                f"--n_samples={sample.n_samples}, but {sample.codes_file} holds {len(saved)} songs. Leave --n_samples out."
            )
        if sample.mode == "continue":
            return modes.continued(levels, saved, self.geometry, prompt_samples)
        return modes.upsampled(levels, saved, self.geometry, prompt_samples, self.length)

    def _begin(self) -> modes.Plan | None:
        """Open the folder; the plan of a new run, None when an earlier one goes on (its codes are there)."""
        asked = {
            "model": self.models.name, "vqvae": self.codec.fingerprint, "length_samples": self.length,
            "settings": {k: v for k, v in self.hps.values.items() if k not in ("quiet", "device", "threads", "port")},
        }  # fmt: skip
        self.folder = RunFolder(self.root, _plain(asked))

        def begin() -> modes.Plan | None:
            found = (
                None if self.folder.is_same() else self._plan()
            )  # before an earlier run, which may hold the codes, is set aside
            self.folder.begin()
            return found

        return self.comm.run_first(begin)

    def _songs(self, begun: modes.Plan | None) -> list[Song]:
        """All items of the run, each with the codes it has."""
        if begun is not None and self.comm.is_first:
            fresh = [
                Song(request, self.length, self.total, dict(given))
                for request, given in zip(
                    requests_of(self.song, self.draw.seed, len(begun.given)), begun.given, strict=True
                )
            ]  # fmt: skip
            self.folder.save(fresh)
            self.folder.remember(list(begun.levels), len(fresh))
        self.comm.barrier()
        self.order, count = self.folder.remembered()
        songs = []
        for request in requests_of(self.song, self.draw.seed, count):
            codes = self.folder.load(request.item)
            songs.append(Song(request, self.length, self.total, codes or {}))
        for level in self.levels:
            longest = max(song.have(level) for song in songs)
            if longest > self.levels[level].plan.total(self.length) and self.comm.is_first:
                log.warning(
                    "level %d: the given codes are longer than the length asked for; the rest is not used", level
                )
        return songs

    # --------------------------------------------------------------------------------------------------- while

    def _mine(self, songs: Sequence[Song]) -> list[Song]:
        return [song for song in songs if song.request.item % self.comm.size == self.comm.rank]

    def _sample_level(self, level: int, songs: list[Song]) -> None:
        known, mine = self.levels[level], self._mine(songs)
        part = self.models.priors[level]
        assert part is not None
        missing = sum(max(0, known.plan.total(self.length) - song.have(level)) for song in mine)
        if missing:
            prior, hps = model_set.load_prior(part, self.vqvae_hps, level, self.comm.device)
            labeller = self._labeller(hps, prior)
            singer = LevelSinger(prior, known.plan, known.settings, labeller)
            with runlog.Progress(missing, "code", f"level {level}") as bar:

                def on_window(batch: Sequence[Song], window: Window) -> None:
                    self.folder.save(batch)
                    launch.set_phase(f"level {level}, window {window.start}")
                    if launch.stop_requested():
                        log.info("Stopped. The same command goes on from here.")
                        raise SystemExit(launch.stop_code())

                singer.sing(mine, on_window, bar.update)
        self.comm.barrier()
        for song in songs:
            song.codes = self.folder.load(song.request.item) or song.codes

    def _labeller(self, hps: Resolved, prior: Any) -> Labeller | None:
        return build_labeller(hps, prior, ids_dir=self.song.ids_dir, strict=self.song.strict_labels)

    def _exported_given(self, songs: list[Song]) -> list[int]:
        """Levels above those sampled whose codes were given: decoded too, so that all can be compared."""
        above = [l for l in range(len(self.geometry.hops)) if l > max(self.order) and all(s.have(l) for s in songs)]
        done: list[int] = []
        for level in sorted(above, reverse=True):
            done.append(level)
            self._publish(level, songs, done)
        return done

    def _publish(self, level: int, songs: list[Song], done: list[int]) -> None:
        """Decode, then write everything of a finished level."""
        tags = {"comment": self.models.licence or "made with Jukebox", "AI_GENERATED": "true"}
        if not self.folder.finished(level):
            for song in self._mine(songs):
                self.folder.decode(song, level, self.codec, tags)
            self.comm.barrier()
        if self.comm.is_first and not self.folder.finished(level):
            chosen = [
                asdict(self.levels[l].settings) if l in self.levels else {} for l in range(len(self.geometry.hops))
            ]
            self.folder.export(songs, level, len(self.geometry.hops), [], chosen)
            self.folder.drop_arrays(level)
        if self.comm.is_first:
            details = {"model": {"checkpoint": self.models.vqvae.checkpoint, "hps": dict(self.vqvae_hps.values)}}
            self.folder.store(songs, done, self.codec, details)
            command = "python jukebox/sample.py " + " ".join(shlex.quote(word) for word in sys.argv[1:])
            shown = {
                "model": self.models.name, "mode": self.sample.mode, "seed": self.draw.seed,
                "length": f"{self.length / self.geometry.sr_hz:.2f} s",
                **{f"level {l}": _knobs(known.settings) for l, known in sorted(self.levels.items(), reverse=True)},
            }  # fmt: skip
            self.folder.page(songs, done, self.geometry.sr_hz, self.root.name, command, shown, self.models.licence)
        self.comm.barrier()


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
