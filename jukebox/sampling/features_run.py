"""Features of a folder of music: one file of arrays per song, taken up again after any stop.

<out>/features.json           what was asked, and of which model
<out>/<song>.npz              arrays `layer_<n>`: `[W]`, or `[F, W]` for F frames
<out>/<song>.json             the song's file and length; written last, so that where it stands the song is done
<out>/bad_files.tsv           what was left out, and why
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jukebox import files, runlog
from jukebox.audio.io import AudioError
from jukebox.data import admission
from jukebox.data.admission import Entry
from jukebox.data.metadata import songs_of
from jukebox.errors import DataError, UsageError
from jukebox.files import printable
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import Codec
from jukebox.nn import linear
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.model import Prior
from jukebox.resources import cores
from jukebox.sampling import features, latents, prepare
from jukebox.sampling.features import Extractor, Pool, States
from jukebox.sampling.hps import FeaturesHps, SampleHps, SongHps
from jukebox.sampling.levels import Song

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Hear every song of the folder that the settings of `features` name; the exit code."""
    asked, start = hps.section(FeaturesHps), hps.section(LaunchHps)
    if not asked.audio_files_dir or not asked.output_path:
        missing = "--output_path" if asked.audio_files_dir else "--audio_files_dir"
        raise UsageError(
            f"{missing} is missing. The smallest full command is\n"
            "  python jukebox/features.py --model=RUN --audio_files_dir=DIR --output_path=FEATURES"
        )
    if Path(asked.output_path).resolve().is_relative_to(Path(asked.audio_files_dir).expanduser().resolve()):
        raise UsageError(
            f"--output_path={asked.output_path} lies in the folder of the music, which is never written to."
        )
    if latents.is_flow_run(asked.model):
        raise UsageError(f"--model={asked.model} is a flow over latents, which has no codes; name a prior over codes.")
    models = model_set.find(asked.model, asked.restore_vqvae)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    if comm.is_first:
        with files.RunLock(asked.output_path, force=asked.force_unlock):
            return Folder(asked, models, comm).run()
    return Folder(asked, models, comm).run()


class Folder:
    """One run over a folder; what does not fit together is said before the prior is loaded."""

    def __init__(self, asked: FeaturesHps, models: model_set.ModelSet, comm: Comm) -> None:
        self.asked, self.comm, self.root = asked, comm, Path(asked.output_path)
        self.codec: Codec
        self.codec, vqvae_hps = load_codec(models.vqvae, comm.device)
        geometry = self.codec.geometry
        level = features.level_of(models, asked.level)
        part = models.priors[level]
        assert part is not None
        only = replace(models, priors=tuple(part if l == level else None for l in range(geometry.levels)))
        sample = SampleHps(hop_fraction=(asked.hop_fraction,) * geometry.levels)
        self.known = prepare.levels_of(sample, SongHps(ids_dir=asked.ids_dir), only, vqvae_hps, geometry)[level]
        pool = features.pool_of(asked.pool)
        layers = asked.layers or features.middle(self.known.shape)
        features.check(layers, pool, self.known.shape, geometry.sr_hz)
        linear.check(asked.dtype, comm.device)
        prior, _ = model_set.load_prior(part, vqvae_hps, level, comm.device)
        self.identity = self._identity(models.name, prior, layers, pool)
        del prior.net.transformer.layers[max(layers) :]  # never computed, and half of a large prior
        if asked.dtype != "fp32":
            linear.pack(prior, asked.dtype)
        self.extractor = Extractor(
            prior, self.known.plan, geometry.sr_hz, layers, pool, self.known.labeller, asked.batch_size,
            linear.result_dtype(prior),
        )  # fmt: skip

    def _identity(self, model: str, prior: Prior, layers: tuple[int, ...], pool: Pool) -> dict[str, Any]:
        """What decides the features, as plain JSON."""
        shape, geometry = self.known.shape, self.codec.geometry
        return {
            "model": model, "level": shape.level, "layers": list(layers), "pool": pool, "labelled": self.asked.labelled,
            "hop_codes": self.known.plan.hop, "dtype": self.asked.dtype, "width": shape.transformer.width,
            "sr_hz": geometry.sr_hz, "samples_per_code": geometry.hops[shape.level], "vqvae": self.codec.fingerprint,
            "prior": self.comm.run_first(lambda: fingerprint(prior)),
        }  # fmt: skip

    def run(self) -> int:
        """Hear what is not heard yet; 0, or the code of a run that was asked to stop."""
        entries, songs = self._find()
        pending: list[int] = self.comm.run_first(lambda: self._begin(entries))
        mine = pending[self.comm.rank :: self.comm.size]
        failed: list[str] = []
        stopped = self.comm.any(self._hear([(entries[i], songs[i]) for i in mine], failed))
        failed = [reason for reasons in self.comm.gather_objects(failed) for reason in reasons]
        if failed:
            raise DataError(
                f"{len(failed)} of {len(entries)} files changed or broke while the others were heard; mend or remove them "
                "and run this again:\n" + "\n".join(failed[:10])
            )
        if stopped:
            log.info("Stopped. The same command goes on from here.")
            return launch.stop_code()
        log.info("%d songs in %s", len(entries), printable(str(self.root)))
        return 0

    def _find(self) -> tuple[Sequence[Entry], Sequence[SongMeta]]:
        asked = self.asked
        index = admission.admit(
            asked.audio_files_dir, self.root / ".audio_index.json", self.comm, on_bad_file=asked.on_bad_file,
            max_bad=asked.max_bad, max_audio_sec=asked.max_audio_sec, workers=max(1, cores() // self.comm.local_size),
            report=self.root / "bad_files.tsv",
        )  # fmt: skip
        unknown = [SongMeta()] * len(index.usable)
        return index.usable, songs_of(index, asked.metadata) if asked.labelled else unknown

    def _begin(self, entries: Sequence[Entry]) -> list[int]:
        """Make the folder ready; the numbers of the songs that are not done. For one process."""
        for folder in {self.root, *(self._place(entry, ".npz").parent for entry in entries)}:
            files.remove_stale_temps(folder)
        path = self.root / "features.json"
        if path.exists():
            try:
                there = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise UsageError(f"{path} is damaged; give another --output_path, or delete this folder.") from None
            other = [f"  {name} {there.get(name)} there, {value} asked for" for name, value in self.identity.items()
                     if name != "model" and there.get(name) != value]  # fmt: skip
            if other:
                raise UsageError(
                    f"--output_path={self.root} holds other features; give another folder:\n" + "\n".join(other)
                )
        else:
            files.publish_json(path, self.identity, indent=1)
        pending = [i for i, entry in enumerate(entries) if not self._is_done(entry)]
        if done := len(entries) - len(pending):
            log.info("%d of %d songs are done already", done, len(entries))
        return pending

    def _place(self, entry: Entry, suffix: str) -> Path:
        return files.inside(self.root, entry.file + suffix)

    def _is_done(self, entry: Entry) -> bool:
        try:
            facts = json.loads(self._place(entry, ".json").read_text(encoding="utf-8"))
            same = (facts["size_bytes"], facts["digest"]) == (entry.size_bytes, entry.digest)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return same and self._place(entry, ".npz").exists()

    def _hear(self, todo: Sequence[tuple[Entry, SongMeta]], failed: list[str]) -> bool:
        """Whether this process was asked to stop before it had heard all of `todo`."""
        read: deque[tuple[Entry, Song]] = deque()

        def songs() -> Iterator[Song]:
            for entry, meta in todo:
                path = Path(self.asked.audio_files_dir) / entry.file
                launch.set_phase(f"hearing {printable(entry.file)}")
                try:
                    audio = features.mono(path, self.codec.geometry.sr_hz)
                except AudioError as error:
                    failed.append(f"  {error}")
                    continue
                read.append((entry, features.encoded(audio, self.codec, self.known.shape, meta)))
                yield read[-1][1]

        with runlog.Progress(len(todo), "song", "hear") as bar:
            for states in self.extractor.hear(songs()):
                self._publish(*read.popleft(), states)
                bar.update()
                if launch.stop_requested():
                    return True
        return False

    def _publish(self, entry: Entry, song: Song, states: States) -> None:
        arrays = {f"layer_{layer}": values for layer, values in states.items()}
        target = self._place(entry, ".npz")
        files.make_folder(target.parent)
        files.publish(target, lambda out: np.savez(out, **arrays))  # type: ignore[arg-type]
        facts = {
            "file": entry.file, "size_bytes": entry.size_bytes, "digest": entry.digest,
            "length_sec": song.length_samples / self.codec.geometry.sr_hz, "total_sec": song.total_samples / self.codec.geometry.sr_hz,
            **({"song": song.request.song.to_json()} if self.asked.labelled else {}),
            "shapes": {name: list(values.shape) for name, values in arrays.items()},
        }  # fmt: skip
        files.publish_json(self._place(entry, ".json"), facts, indent=1)
        files.fault_point("features.after_song")


def fingerprint(prior: Prior) -> str:
    """SHA-256 of all weights."""
    digest = hashlib.sha256()
    state: Mapping[str, Any] = prior.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
