"""From audio to a store of codes: one writer per shard, whole songs in bounded memory, taken up again after any stop."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from jukebox import __version__, runlog
from jukebox.codestore.store import CodeStore
from jukebox.codestore.writer import StoreWriter, check_place
from jukebox.encoding import choice, sources
from jukebox.encoding.custom import Rejected
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.pipeline import encode_jobs
from jukebox.encoding.sources import Job
from jukebox.errors import DataError, UsageError, UserError
from jukebox.files import printable
from jukebox.hparams.resolve import Resolved
from jukebox.models.codec import Codec
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps

log = logging.getLogger(__name__)

PUBLISHED = (
    "model_config", "ckpt_path", "model_half", "dataset_config", "output_path", "batch_size", "sample_size",
    "is_discrete", "num_nodes", "num_workers", "strategy", "limit_batches", "shuffle",
)  # fmt: skip
"""The flags that other programs expect under `args` of details.json, in their order."""


def main(hps: Resolved) -> int:
    """Encode what the settings ask for; the exit code."""
    encode, start = hps.section(EncodeHps), hps.section(LaunchHps)
    _check(encode)
    chosen = choice.choose(hps)
    if encode.num_nodes > 1 and launch.world().launcher == "none":
        raise UsageError(_how_to_launch(encode.num_nodes, sys.argv[1:]))
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    nodes = sum(rank == 0 for rank in comm.gather_objects(comm.local_rank))
    if hps.given("num_nodes") and nodes != encode.num_nodes:
        raise UsageError(f"--num-nodes={encode.num_nodes}, but the launcher started this on {nodes} machine(s).")
    if encode.strategy != "auto" and comm.is_first:
        log.warning("--strategy=%s: accepted for old commands, without any effect", encode.strategy)
    codec, about = choice.load(chosen, hps, comm.device)
    store = encode_all(encode, codec, about, comm)
    return 0 if store else launch.stop_code()


def _check(encode: EncodeHps) -> None:
    """What no key can check alone, before anything is loaded."""
    if bool(encode.audio_files_dir) == bool(encode.dataset_config) or not encode.output_path:
        what = (
            "--output-path is missing"
            if not encode.output_path
            else "--audio_files_dir and --dataset-config are both given: the audio is named in exactly one way"
            if encode.audio_files_dir
            else "--audio_files_dir (or --dataset-config) is missing"
        )
        raise UsageError(
            f"{what}. The smallest full command is\n"
            "  python jukebox/pre_encode.py --restore_vqvae=RUN --audio_files_dir=DIR --output-path=STORE"
        )
    if encode.shifts > 1 and encode.crop != "all":
        raise UsageError("--shifts makes variants of whole songs; leave --crop out with it.")


def _how_to_launch(nodes: int, words: Sequence[str]) -> str:
    hosts = ",".join(f"HOST{i + 1}" for i in range(nodes))
    command = f"mpiexec -n {nodes} -ppn 1 -hosts {hosts} python jukebox/pre_encode.py {shlex.join(words)}"
    return (
        f"--num-nodes={nodes}, but this was started as one process without a launcher. Type, with the names of the "
        f"machines and as many processes (-n, -ppn) as they have GPUs,\n  {command}"
    )


def encode_all(encode: EncodeHps, codec: Codec, about: Mapping[str, Any], comm: Comm) -> CodeStore | None:
    """Encode every item that is not in the store yet; the finished store, or None when the run was asked to stop.

    Every rank calls it. about: what the store says of its model. Raises DataError, StoreError, OutOfSpace.
    """
    root = Path(encode.output_path)
    levels = tuple(sorted(set(encode.keep_levels or range(codec.geometry.levels))))
    if not set(levels) <= set(range(codec.geometry.levels)):
        asked = ",".join(map(str, encode.keep_levels))
        raise UsageError(f"--keep_levels={asked}: this model has levels 0 to {codec.geometry.levels - 1}.")
    if comm.is_first:
        check_place(root, codec.geometry, codec.fingerprint)
    comm.barrier()
    jobs = sources.find(encode, codec, comm)
    if not jobs:
        raise DataError("Nothing is left to encode.")

    def begin() -> StoreWriter:
        return StoreWriter.create_or_resume(
            root, codec.geometry, codec.fingerprint, [job.source() for job in jobs], shards=encode.shards or None,
            default_shards=comm.size, levels=levels, arrays=codec.arrays(levels, encode.compat),
            window_samples=codec.window_samples, compat=encode.compat, flat=codec.window_samples > 0,
            force_unlock=encode.force_unlock,
        )  # fmt: skip

    writer = begin() if comm.is_first else None
    comm.barrier()
    with writer or StoreWriter.attach(root) as writer:
        stopped = comm.any(_encode_mine(writer, jobs, codec, encode, comm))
        if stopped:
            log.info("stopped; the same command goes on from there")
            return None
        if comm.is_first:
            writer.finish(_details(encode, about))
        comm.barrier()
    store = CodeStore.open(root)
    seconds = int(store.lengths.sum()) / codec.geometry.sr_hz
    log.info("%d items, %.1f s of audio, %d levels in %s", len(store), seconds, len(store.levels), printable(str(root)))
    return store


def _encode_mine(writer: StoreWriter, jobs: Sequence[Job], codec: Codec, encode: EncodeHps, comm: Comm) -> bool:
    """Encode what is open in this rank's shards; whether it was asked to stop."""
    mine = writer.pending(comm.rank, comm.size)
    bar = runlog.Progress(len(mine), "items", "encode")
    failed = 0
    encoded = encode_jobs([(item, jobs[item]) for item in mine], codec, writer.plan.levels, encode)
    for done in encoded:
        launch.set_phase(f"storing {jobs[done.item].recording.entry.file}")
        if isinstance(done.result, UserError):
            failed += not isinstance(done.result, Rejected)
            if failed and encode.on_bad_file == "error":
                raise done.result
            if failed > max(1, encode.max_bad * len(jobs)):
                raise DataError(
                    f"{failed} files can no longer be read, more than --max_bad allows; the last: {done.result}"
                )
            log.warning("left out: %s", done.result)
            writer.skip(done.item, str(done.result))
        else:
            writer.add(done.item, *done.result)
        bar.update()
        if launch.stop_requested():
            encoded.close()
            return True
    bar.close()
    return False


def _details(encode: EncodeHps, about: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: getattr(encode, name) for name in PUBLISHED}
    arguments |= {f.name: getattr(encode, f.name) for f in fields(encode) if f.name not in PUBLISHED}  # type: ignore[arg-type]
    versions = {
        "jukebox": __version__, "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "av")},
    }  # fmt: skip
    return {
        "model_config": encode.model_config or None, "dataset_config": encode.dataset_config or None,
        "sample_size": encode.sample_size, "args": arguments, "versions": versions, "model": dict(about),
    }  # fmt: skip
