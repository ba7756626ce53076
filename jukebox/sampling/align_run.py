"""Aligns a finished sampling run anew: one of ours, or one that the first implementation left."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jukebox import files, runlog
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.song import SongMeta
from jukebox.models import model_set, restricted
from jukebox.models.model_set import ModelSet
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.sampling import find_run
from jukebox.sampling.hps import AlignHps, FindHps, SampleHps
from jukebox.sampling.levels import Song
from jukebox.sampling.recorded import settings_from
from jukebox.sampling.requests import Request
from jukebox.sampling.run import Session
from jukebox.sampling.save import Remembered

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Align the run that the settings of `align` name, or find the head that can; the exit code."""
    asked, start = hps.section(AlignHps), hps.section(LaunchHps)
    if hps.section(FindHps).find:
        return find_run.main(hps)
    if not asked.logdir:
        raise UsageError("--logdir is missing: the folder of a sampling run, for example --logdir=sample_1b.")
    if not Path(asked.logdir).is_dir():
        raise UsageError(f"--logdir={asked.logdir}: there is no such folder.")
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    if comm.is_first:
        with files.RunLock(Path(asked.logdir)):
            return align_run(asked, comm)
    return align_run(asked, comm)


def align_run(asked: AlignHps, comm: Comm) -> int:
    """Align every song of a run with its lyrics, and write its pages. Raises UserError where that cannot be done."""
    root = Path(asked.logdir)
    session, songs = _ours(asked, comm) if (root / "run.json").exists() else _foreign(asked, comm)
    done = session.folder.done()
    if not done:
        raise UsageError(f"--logdir={asked.logdir}: no level of this run is finished.")
    session.realign(songs, done)
    log.info("%s", root / "index.html")
    return 0


def _ours(asked: AlignHps, comm: Comm) -> tuple[Session, list[Song]]:
    """The session that made a run, from what it recorded of itself."""
    root = Path(asked.logdir)
    try:
        recorded = json.loads((root / "run.json").read_text(encoding="utf-8"))
        requests = [Request.from_json(request) for request in recorded["requests"]]
        values = dict(recorded["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{root / 'run.json'} cannot be read ({error}); is this the folder of a sampling run?"
        ) from None
    hps = _settings(values, asked, str(root / "run.json"))
    session = Session(hps, _models(hps, asked), requests, comm, root)
    songs = session.stored_songs()
    if not all(song.have(session.top) for song in songs):
        raise UsageError(f"--logdir={root}: the top level of this run is not finished; run sample.py again first.")
    return session, songs


def _foreign(asked: AlignHps, comm: Comm) -> tuple[Session, list[Song]]:
    """A session around the codes and labels of a run that has only `level_<l>/data.pth.tar`."""
    root = Path(asked.logdir)
    found = sorted(root.glob("level_*/data.pth.tar"))
    if not found:
        raise UsageError(f"--logdir={root}: holds neither run.json nor level_0/data.pth.tar.")
    if not asked.model:
        raise UsageError("--model is missing: this run does not say what sang, for example --model=1b_lyrics.")
    tree = restricted.load(found[0])
    try:
        zs, top = tree["zs"], tree["labels"][-1]
        length = int(tree["x"].shape[1])
        described = [(info, int(y[0])) for info, y in zip(top["info"], top["y"], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{found[0]}: holds no codes, labels and sound of a sampling run.") from None
    values = {"model": asked.model, "name": str(root), "sample_length": length}
    hps = _settings(values, asked, str(found[0]))
    models = _models(hps, asked)
    codec, _ = model_set.load_vqvae(models.vqvae)
    requests = [
        Request(item, _song(info), 0, total_sec=(total + 0.5) / codec.geometry.sr_hz)
        for item, (info, total) in enumerate(described)
    ]
    session = Session(hps, models, requests, comm, root)
    songs = [session.lengths.song(request) for request in requests]
    for song in songs:
        rows: list[torch.Tensor] = [z[song.request.item] for z in zs if len(z) == len(songs)]
        song.codes = {level: row.long().numpy() for level, row in enumerate(rows) if len(row)}
    session.comm.run_first(lambda: _remember(session, requests))
    return session, songs


def _remember(session: Session, requests: Sequence[Request]) -> None:
    (session.folder.root / "progress").mkdir(exist_ok=True)
    session.folder.remember(Remembered([], [request.to_json() for request in requests]))


def _song(info: Mapping[str, Any]) -> SongMeta:
    known = {name: info[name] for name in ("artist", "genre", "lyrics") if isinstance(info.get(name), str)}
    return SongMeta.from_json(known)


def _settings(values: Mapping[str, Any], asked: AlignHps, where: str) -> Resolved:
    """The settings of sample.py that a run was made with, with what the command line says instead."""
    instead = {
        "model": asked.model, "hop_fraction": asked.hop_fraction, "ids_dir": asked.ids_dir,
    }  # fmt: skip
    values = {**values, **{name: value for name, value in instead.items() if value}}
    return settings_from(values, where)


def _models(hps: Resolved, asked: AlignHps) -> ModelSet:
    """The model set, its top prior with the layer and head asked for."""
    sample = hps.section(SampleHps)
    models = model_set.find(sample.model, sample.restore_vqvae)
    top = models.priors[-1]
    place = {"alignment_layer": asked.alignment_layer, "alignment_head": asked.alignment_head}
    given = {name: value for name, value in place.items() if value is not None}
    if top is None or not given:
        return models
    return replace(models, priors=(*models.priors[:-1], replace(top, options={**top.options, **given})))
