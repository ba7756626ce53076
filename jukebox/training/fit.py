"""THE loop, one for every task."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from jukebox.data.loaders import Batch as AudioBatch
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.runlog import Progress, RunLog
from jukebox.training.player import Stepped
from jukebox.training.tasks import Batch, Output, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """When what happens, in steps; 0 = never, for steps = no limit. batches_per_epoch divides batches into epochs."""

    steps: int
    epochs: int
    first_epoch: int
    batches_per_epoch: int
    log_steps: int
    save_iters: int
    eval_iters: int
    evaluate_epochs: bool
    demo_iters: int
    seconds_per_step: float  # of audio, over all ranks
    seed: int

    def epoch(self, reached: Reached) -> int:
        """The number of the epoch that the next batch belongs to."""
        return self.first_epoch + reached.batch // self.batches_per_epoch

    def is_over(self, reached: Reached) -> bool:
        """Whether nothing is left to do."""
        return 0 < self.steps <= reached.step or self.epoch(reached) >= self.epochs


@dataclass
class Reached:
    """How far a run is: steps taken and batches consumed, skipped ones included."""

    step: int = 0
    batch: int = 0


class Checkpoints(Protocol):
    """Where the state of a run is kept."""

    def save(self, task: Task, reached: Reached, *, last: bool) -> None:
        """Write it down; every rank calls it. Raises when that fails and there will be no later try."""


@dataclass
class Metrics:
    """Sums of metrics since the last line, kept on the device. Of a step that was skipped nothing is counted but that."""

    comm: Comm
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    steps: int = 0
    bad_reads: int = 0
    since: float = field(default_factory=time.monotonic)
    _waiting: list[dict[str, Tensor]] = field(default_factory=list)

    def count(self, batch: Batch, out: Output, learnt: dict[str, Tensor], stepped: Stepped | None) -> None:
        """Take in one batch, for good when its step is done."""
        own = "" if out.player == "main" else f"{out.player}_"
        found = {f"{own}loss": out.loss.detach(), **out.metrics, **learnt}
        if stepped is not None and stepped.done:
            last = {"lr": stepped.lr, "gn": stepped.grad_norm, "lg_loss_scale": stepped.log2_scale}
            found |= {own + name: torch.tensor(value) for name, value in last.items()}
        self._waiting.append(found)
        self.bad_reads = batch.bad_reads if isinstance(batch, AudioBatch) else 0
        if stepped is None:
            return
        for metrics in self._waiting if stepped.done else ():
            for name, value in metrics.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
                self.counts[name] = self.counts.get(name, 0) + 1
        self._waiting = []
        self.steps += stepped.done
        self.skipped += not stepped.done

    def flush(self) -> dict[str, float]:
        """Means over batches and ranks, and what was left out; empties the sums. Every rank calls it."""
        names = sorted(self.sums)
        means = [self.sums[n].double().cpu() / self.counts[n] for n in names]
        total = torch.stack([*means, torch.tensor(self.bad_reads * self.comm.size, dtype=torch.float64)])
        values = (self.comm.all_reduce(total) / self.comm.size).tolist()
        found = dict(zip([*names, "bad_reads"], values, strict=True))
        now = time.monotonic()
        found |= {"skipped": float(self.skipped), "sec_per_step": (now - self.since) / max(1, self.steps)}
        self.sums, self.counts, self.skipped, self.steps, self.since = {}, {}, 0, 0, now
        return found


def fit(
    task: Task, batches: Iterator[Batch], held_out: Callable[[], Iterator[Batch]] | None,
    course: Course, reached: Reached, events: RunLog, comm: Comm, checkpoints: Checkpoints,
) -> bool:  # fmt: skip
    """Train until the course or the learning rate ends (True), or someone asks to stop (False)."""
    metrics, main = Metrics(comm), task.players["main"]
    saved_at, epoch = reached.step, course.epoch(reached)
    if course.is_over(reached) or main.finished:
        return True
    with Progress(course.steps or None, "step", "train", start=reached.step) as bar:
        for batch in batches:
            launch.set_phase(f"step {reached.step}")
            if reached.batch == 0:
                task.prepare(batch)  # codebooks
            torch.manual_seed(_seed(course.seed, reached.batch, comm.rank))  # dropout, the same after a restart
            out = task.loss(batch, reached.step)  # forward: loss, metrics, whose turn it is
            stepped = task.players[out.player].step(out.loss)  # backward, overflow agreed on, clip, update, EMA
            learnt = task.accept(out, stepped)  # codebook sums, only when the step counted
            metrics.count(batch, out, learnt, stepped)  # stays on the device
            reached.batch += 1
            if stepped is None:
                continue  # more batches belong to this step
            reached.step += stepped.done
            step, moved = reached.step, stepped.done
            new_epoch, epoch = course.epoch(reached) > epoch, course.epoch(reached)

            def due(every: int, step: int = step, moved: bool = moved) -> bool:
                return moved and every > 0 and step % every == 0

            if due(course.log_steps):  # the only synchronisation
                found = metrics.flush()
                events.scalars(found, step)
                bar.note(loss=found.get("loss", math.nan), audio_sec=course.seconds_per_step * course.log_steps)
            if held_out and (due(course.eval_iters) or (new_epoch and course.evaluate_epochs)):
                evaluate(task, held_out, events, step)
            if due(course.save_iters) or due(course.demo_iters):
                with task.averaged():
                    task.show(batch, events, step, "train_")
                    if due(course.demo_iters):
                        task.demo(batch, events, step)
            over = course.is_over(reached) or main.finished
            stop = comm.any(launch.stop_requested())
            if (due(course.save_iters) or over or stop) and saved_at < step:
                checkpoints.save(task, reached, last=over or stop)
                saved_at = step
            bar.update(moved)
            if over or stop:
                return over
    return True


def evaluate(task: Task, held_out: Callable[[], Iterator[Batch]], events: RunLog, step: int) -> None:
    """Measure on the test part, with averaged weights; every rank calls it."""
    with task.averaged():
        found = task.evaluate(held_out(), events, step)
    events.scalars({f"test_{name}": value for name, value in found.items()}, step)
    log.info("step %d, test: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in sorted(found.items())))


def _seed(seed: int, batch: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {batch} {rank}".encode()).digest()[:8])
