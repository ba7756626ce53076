"""Singing with a prior over latents: windows left to right, each begun with the end of the one before.

Legend: D latent channels, n frames of a window, N frames of a song.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jukebox import files, runlog
from jukebox.audio import io
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.labels.vector import Labeller
from jukebox.models import checkpoint
from jukebox.models.labels import build_labeller
from jukebox.models.latent_model import TrainedFlow, carried_flow, load_flow, noise_for
from jukebox.models.port import is_port
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.latent_flow import sample
from jukebox.sampling.hps import DrawHps, FlowHps, SampleHps, SongHps
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import hop_codes, song_sec, whole_length, window_starts
from jukebox.sampling.requests import Request
from jukebox.sampling.run_page import RunFacts, RunPages, SongFacts
from jukebox.sampling.save import Remembered, RunFolder

log = logging.getLogger(__name__)


def is_flow_run(model: str) -> bool:
    """Whether a `--model` value names a run of a prior over latents."""
    path = Path(model)
    if not model or not path.exists() or path.suffix == ".toml" or is_port(path):
        return False
    return carried_flow(checkpoint.read(path)) is not None


def main(hps: Resolved, asked: Sequence[Request]) -> int:
    """Sing what is asked for with a run of a prior over latents; the exit code."""
    wanted, start = hps.section(SampleHps), hps.section(LaunchHps)
    if wanted.mode != "ancestral" or any(request.prompt for request in asked):
        raise UsageError("a prior over latents sings from nothing: leave --mode, --codes_file and --audio_file out.")
    if wanted.plan:
        raise UsageError("--plan is for priors over codes; a prior over latents is small. Leave it out.")
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    flow = load_flow(wanted.model, comm.device)
    root = Path(wanted.name)
    lock = None
    if comm.is_first:
        files.make_folder(root, name="the run's folder", cure="Choose another --name.")
        lock = files.RunLock(root)
        lock.__enter__()
    try:
        return _run(hps, flow, asked, comm, root)
    finally:
        if lock:
            lock.__exit__(None, None, None)


def _run(hps: Resolved, flow: TrainedFlow, asked: Sequence[Request], comm: Comm, root: Path) -> int:
    wanted = hps.section(SampleHps)
    n = wanted.n_samples or len(asked)
    requests = [replace(asked[i % len(asked)], item=i) for i in range(n)]
    songs = [_song(request, wanted, flow) for request in requests]
    labeller = labeller_of(flow, hps.section(SongHps))
    values = {name: value for name, value in hps.values.items() if name not in hps.section(LaunchHps).__dict__}
    folder = RunFolder(root, {"model": wanted.model, "settings": {k: str(v) for k, v in values.items()}})

    def begin() -> None:
        if not folder.is_same():
            folder.begin()
            command = "python jukebox/sample.py " + " ".join(shlex.quote(word) for word in sys.argv[1:])
            folder.remember(Remembered([0], [request.to_json() for request in requests], command))
        folder.level(0).mkdir(exist_ok=True)

    comm.run_first(begin)
    mine = [song for song in songs if song.request.item % comm.size == comm.rank]
    mine = [song for song in mine if not (folder.level(0) / f"item_{song.request.item}.wav").exists()]
    with runlog.Progress(len(mine), "song", "singing") as bar:
        for song in mine:
            latents = sing(flow, song, labeller, hps.section(FlowHps), wanted.hop_fraction[0])
            _publish(folder.level(0), song, latents, flow)
            bar.update()
            if launch.stop_requested():
                return launch.stop_code()
    comm.barrier()
    if comm.is_first:
        chosen, rate = hps.section(FlowHps), flow.codec.geometry.sr_hz
        shown = {
            "model": wanted.model, "seed": hps.section(DrawHps).seed, "steps": chosen.flow_steps, "solver": chosen.flow_solver,
            "guidance": chosen.flow_guidance, "length": f"{songs[0].length_samples / rate:.2f} s",
        }  # fmt: skip
        remembered = folder.remembered()
        facts = RunFacts(root.resolve().name, remembered.command, shown, remembered.created)
        known = {song.request.item: SongFacts(shown, command=remembered.command) for song in songs}
        log.info("%s", RunPages(folder).write(songs, facts, known, embed=wanted.embed))
    comm.barrier()
    return 0


def _song(request: Request, wanted: SampleHps, flow: TrainedFlow) -> Song:
    rate, hop = flow.codec.geometry.sr_hz, flow.net.shape.hop
    seconds, samples = song_sec(wanted.sample_length_in_seconds, None), wanted.sample_length
    if request.length_sec is not None:
        seconds, samples = request.length_sec, 0
    length = whole_length(seconds, samples, rate, hop)
    total_sec = request.total_sec or wanted.total_sample_length_in_seconds
    song = Song(request, length, int(total_sec * rate) if total_sec else length)
    label = flow.net.shape.labels
    if song.length_samples > song.total_samples:
        raise UsageError(
            "--total_sample_length_in_seconds is the length of the whole song; it cannot be the shorter one."
        )
    if label is not None and not label.min_duration * rate <= song.total_samples < label.max_duration * rate:
        raise UsageError(
            f"--total_sample_length_in_seconds={song.total_samples / rate:g}: this model knows songs of {label.min_duration:g} "
            f"to {label.max_duration:g} s."
        )
    return song


def labeller_of(flow: TrainedFlow, song: SongHps) -> Labeller | None:
    """Makes the labels that a flow was trained with; None for an unlabelled one."""
    ids_dir = song.ids_dir or str(flow.hps.values.get("ids_dir") or "")
    return build_labeller(
        flow.hps, flow.net.shape, ids_dir=ids_dir, strict=song.strict_labels, text_compat=song.text_compat
    )  # fmt: skip


def sing(
    flow: TrainedFlow, song: Song, labeller: Labeller | None, chosen: FlowHps, hop_fraction: float = 0.5
) -> Tensor:
    """The latents `[D, N]` of a song, on the CPU; a function of its seed and item alone."""
    shape = flow.net.shape
    total, device = song.length_samples // shape.hop, next(flow.net.parameters()).device
    step, _ = hop_codes(hop_fraction, shape.frames, None)
    found = torch.zeros(shape.latent_dim, 0)
    seed = song.request.seed * 65_537 + song.request.item
    label = labeller.full(song.request.song, song.total_samples, 0) if labeller else None
    for number, start in enumerate(window_starts(total, shape.frames, step)):
        given = found[:, start:].to(device)
        y = None
        if labeller is not None and label is not None:
            vector, _ = labeller.at(label, start * shape.hop, shape.sample_length)
            y = torch.from_numpy(vector)[None].to(device)
        made = sample(
            flow.net, noise_for(flow.net, [seed], [number]), y, steps=chosen.flow_steps, solver=chosen.flow_solver,
            guidance=chosen.flow_guidance, given=given[None],
        )[0].cpu()  # fmt: skip
        found = torch.cat([found[:, :start], made], dim=1)
    return found[:, :total]


def _publish(folder: Path, song: Song, latents: Tensor, flow: TrainedFlow) -> None:
    """The latents as .npy, then the sound: where that stands, the item is finished."""
    item = song.request.item
    audio = flow.codec.decode_latents(latents)[: song.length_samples]
    files.publish(folder / f"latents_{item:04d}.npy", lambda out: np.save(out, latents.numpy()))
    tags = {"comment": "made with Jukebox", "AI_GENERATED": "true"}
    io.write(folder / f"item_{item}.wav", audio, flow.codec.geometry.sr_hz, tags=tags)
