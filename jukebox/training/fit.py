"""THE loop, one for every task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

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
    seconds_per_batch: float


@dataclass
class Reached:
    """How far a run is: steps taken and batches consumed, skipped ones included."""

    step: int = 0
    batch: int = 0


@dataclass
class Metrics:
    """Sums of metrics since the last line, kept on the device."""

    comm: Comm
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def count(self, out: Output, learnt: dict[str, torch.Tensor], stepped: Stepped | None) -> None:
        """Take in one batch."""
        found = {"loss": out.loss.detach(), **out.metrics, **learnt}
        if stepped is not None and stepped.done:
            last = {"lr": stepped.lr, "gn": stepped.grad_norm, "lg_loss_scale": stepped.log2_scale}
            found |= {name: torch.tensor(value) for name, value in last.items()}
        self.skipped += stepped is not None and not stepped.done
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Means over batches and ranks; empties the sums. Every rank calls it."""
        names = sorted(self.sums)
        total = torch.stack([self.sums[n].double().to(self.comm.device) / self.counts[n] for n in names])
        values = (self.comm.all_reduce(total) / self.comm.size).tolist()
        found = dict(zip(names, values, strict=True))
        if self.skipped:
            found["skipped"] = float(self.skipped)
        self.sums, self.counts, self.skipped = {}, {}, 0
        return found


def fit(
    task: Task, batches: Iterator[Batch], held_out: Callable[[], Iterator[Batch]] | None,
    course: Course, reached: Reached, log: RunLog, comm: Comm, save: Callable[[], None], seed: int,
) -> str:  # fmt: skip
    """Train until the course ends or someone asks to stop; says which: "finished" or "stopped"."""
    metrics, player = Metrics(comm), task.players["main"]
    saved_at = reached.step
    if _finished(course, reached) or player.finished:
        return "finished"
    with Progress(course.steps or None, "step", "train", start=reached.step) as bar:
        for batch in batches:
            if reached.batch == 0:
                task.prepare(batch)
            launch.set_phase(f"step {reached.step}")
            torch.manual_seed(hash((seed, reached.batch, comm.rank)))  # dropout, the same after a restart
            out = task.loss(batch, reached.step)  # forward: loss, metrics, whose turn
            stepped = task.players[out.player].step(out.loss)  # backward, overflow agreed on, clip, update, EMA
            learnt = task.accept(out, stepped)  # codebook sums, only when the step counted
            metrics.count(out, learnt, stepped)
            reached.batch += 1
            reached.step += stepped is not None and stepped.done
            moved, step = stepped is not None and stepped.done, reached.step
            epoch_over = reached.batch % course.batches_per_epoch == 0

            if moved and _due(step, course.log_steps):  # the only synchronisation
                found = metrics.means()
                log.scalars(found, step)
                bar.note(loss=found["loss"], lr=found["lr"], audio_sec=course.seconds_per_batch * course.log_steps)
            if held_out and (moved and _due(step, course.eval_iters) or epoch_over and course.evaluate_epochs):
                found = task.evaluate(held_out())
                log.scalars({f"test_{name}": value for name, value in found.items()}, step)
            if moved and _due(step, course.demo_iters):
                task.demo(batch, log, step)
            finished = _finished(course, reached) or player.finished
            stop = comm.any(launch.stop_requested())
            if (moved and _due(step, course.save_iters) or finished or stop) and saved_at < step:
                save()
                saved_at = step
            bar.update(moved)
            if finished or stop:
                return "finished" if finished else "stopped"
    return "finished"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finished(course: Course, reached: Reached) -> bool:
    epoch = course.first_epoch + reached.batch // course.batches_per_epoch
    return (0 < course.steps <= reached.step) or epoch >= course.epochs
