"""--dry_run: what a training run will need, measured on two steps of it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator

import torch

from jukebox.hparams.resolve import Resolved
from jukebox.models.restricted import storage_bytes
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.resources import disk_free_bytes, memory_limit_bytes, size_text
from jukebox.runlog import duration_text
from jukebox.training.fit import Course, Reached
from jukebox.training.hps import RunHps
from jukebox.training.resume import RunFolder
from jukebox.training.tasks import Batch, Task


def measure(
    task: Task, batches: Iterator[Batch], course: Course, run_folder: RunFolder, hps: Resolved, comm: Comm
) -> str:
    """Take two steps, the first of them to warm up, and say what all will take; nothing is written. Collective."""
    seconds: list[float] = []
    while len(seconds) < 2:
        begun, stepped = time.monotonic(), None
        while stepped is None:
            batch = next(batches)
            if not seconds:
                task.prepare(batch)
            out = task.loss(batch, 0)
            stepped = task.players[out.player].step(out.loss)
            task.accept(out, stepped)
        seconds.append(time.monotonic() - begun)
    run = hps.section(RunHps)
    size = storage_bytes(run_folder.contents(task, Reached()))
    files = f"{run.keep} kept" if run.keep else "all kept"
    need = f", {size_text(size * (run.keep + 1))} of disk with one being written" if run.keep else ""
    rows = {
        "net": f"{sum(p.numel() for p in task.net.parameters()) / 1e6:.3g} M parameters, {comm.size} x {comm.device}",
        "step": f"{seconds[1]:.3g} s (the first {seconds[0]:.3g} s), {course.seconds_per_step:.3g} s of audio",
        "epoch": f"{course.batches_per_epoch} batches, about {duration_text(course.batches_per_epoch * seconds[1])}",
        "memory": _memory(comm),
        "checkpoint": f"{size_text(size)}, {files}{need}; {size_text(disk_free_bytes(run.local_logdir))} are free",
    }
    if course.steps:
        rows["run"] = f"{course.steps} steps, about {duration_text(course.steps * seconds[1])}"
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items())


def _memory(comm: Comm) -> str:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peaks = comm.all_reduce(torch.tensor([peak, 0.0], dtype=torch.float64), "max").tolist()
    text = f"{size_text(peaks[0])} in each process at most, {size_text(memory_limit_bytes())} on this machine"
    if on_device := launch.device_memory(comm.device):
        text += f"; on the GPU {size_text(on_device[0])} of {size_text(on_device[1])}"
    return text
