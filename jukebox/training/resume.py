"""What a run leaves on disk to go on from, and going on: from its own folder, or from another's checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jukebox import settings
from jukebox.data.hps import AudioHps, DataHps
from jukebox.errors import CheckpointError, UsageError, WriteFailed
from jukebox.files import fault_point
from jukebox.hparams.resolve import Resolved
from jukebox.interop.published import Entry
from jukebox.models import checkpoint, label_tables, model_set
from jukebox.parallel.comm import Comm
from jukebox.prior.hps import PriorHps
from jukebox.training.fit import Reached
from jukebox.training.hps import RunHps
from jukebox.training.prior_task import PriorTask
from jukebox.training.sources import Source
from jukebox.training.tasks import Task
from jukebox.training.vqvae_task import VQVAETask
from jukebox.vqvae.hps import VQVAEHps

log = logging.getLogger(__name__)

MOST_TRIES = 3
ALL = 1 << 30


@dataclass
class RunFolder:
    """Writes the checkpoints of a run. A disk that is full or fails is survived twice in a row: the run goes on to the
    next time to save, the last checkpoint stays."""

    folder: Path
    hps: Resolved
    source: Source
    comm: Comm
    failed: int = 0

    def save(self, task: Task, reached: Reached, *, last: bool) -> None:
        """Write `checkpoint_step_N`; every rank calls it. Raises WriteFailed at the third failure in a row, or the last."""
        run = self.hps.section(RunHps)
        if not run.save:
            return

        def write() -> WriteFailed | None:
            fault_point("training.before_save")
            try:
                checkpoint.write(self.folder, reached.step, **self.contents(task, reached), keep=run.keep or ALL)
            except WriteFailed as error:
                return error
            return None

        error = self.comm.run_first(write)
        self.failed = self.failed + 1 if error else 0
        if error and (last or self.failed == MOST_TRIES):
            raise error
        if error and self.comm.is_first:
            log.warning("%s Training goes on; the next try is %d steps away.", error, run.save_iters)

    def contents(self, task: Task, reached: Reached) -> dict[str, Any]:
        """The parts of a checkpoint. `model` holds averaged weights, as published; the raw ones stand in `extra`."""
        model, opt = task.published()
        extra = {
            "players": {name: p.state_dict() for name, p in task.players.items()},
            "own": task.own_state(),
            "batch": reached.batch,
            "global_batch": self.source.global_batch,
            "per_epoch": self.source.per_epoch,
            "data": self.source.fingerprint,
        }
        return {"hps": dict(self.hps.values), "model": model, "opt": opt, "extra": extra}


def begin_from(hps: Resolved, folder: Path, comm: Comm) -> Path | None:
    """The checkpoint a run goes on from: its own newest, or the one that --resume, --restore_vqvae or --restore_prior
    names; None for a fresh start. Every rank calls it. Raises UsageError, CheckpointError."""
    run = hps.section(RunHps)
    if run.resume not in ("auto", "never"):
        return checkpoint.locate(model_set.locate(model_set.Part(run.resume)))
    own = comm.run_first(lambda: checkpoint.latest_valid(folder))
    if own and run.resume == "never":
        raise UsageError(f"{folder} has checkpoints already. Choose another --name, or --resume=auto to go on.")
    other = hps.section(PriorHps).restore_prior if run.prior else hps.section(VQVAEHps).restore_vqvae
    return own or (checkpoint.locate(model_set.locate(model_set.Part(other))) if other else None)


def restore(task: Task, found: checkpoint.Checkpoint, hps: Resolved, source: Source, comm: Comm) -> Reached:
    """Put a task where a checkpoint was taken; how far that is.

    With a file of ours that is weights, averages, codebook sums, optimiser, schedule, loss scale and place in the data.
    Files of others have averaged weights, perhaps the optimiser and the step; averages and codebook counts then begin
    from the weights, the data from the start. A prior for other artists and genres takes the tables it can use
    (models/label_tables.py). Raises CheckpointError when the file is of another net.
    """
    if isinstance(task, PriorTask):
        found = label_tables.fitted(found, task.table)
    note = _other_keys(found, hps, task.table)
    task.load_published(found, note)
    if "players" in found.extra:
        for name, state in found.extra["players"].items():
            task.players[name].load_state_dict(state)
        task.load_own_state(found.extra["own"])
        return Reached(found.step, _place_in_data(found, source, comm))
    task.players["main"].restart(found.step)
    if isinstance(task, VQVAETask) and task.net.use_bottleneck:
        samples = hps.section(AudioHps).sample_length * hps.section(DataHps).bs * comm.size
        for level, hop in enumerate(task.net.hops):
            task.net.codebook(level).restore(samples / hop / task.net.bins)
    return Reached(found.step, 0)


def _other_keys(found: checkpoint.Checkpoint, hps: Resolved, table: Sequence[Entry]) -> str:
    """A table of the keys that make the file's net another than this one. Raises CheckpointError when a file of ours,
    whose keys are complete and true, has any."""
    if found.hps is None:
        return ""
    theirs = settings.from_values(found.hps, f"checkpoint {found.path}")
    prior, ours = hps.section(RunHps).prior, "players" in found.extra
    if ours and theirs.section(RunHps).prior != prior:
        kinds = ("a VQ-VAE", "a prior")
        raise CheckpointError(f"{found.path} is {kinds[not prior]}, and this run trains {kinds[prior]}.")
    names = model_set.SHAPING + (model_set.PRIOR_SHAPING if prior else ())
    differing = checkpoint.differing_keys(theirs.values, hps.values, names)
    if ours and differing:
        first = checkpoint.first_misfit(found.model, table)
        first = f"The first tensor that does not fit: {first}.\n" if first else ""
        raise CheckpointError(
            f"{found.path} is a net of other hyperparameters:\n{differing}\n{first}"
            f"Use these values (--hps={found.path.parent / 'hps.toml'} has them all), or another "
            f"{'--restore_prior' if prior else '--restore_vqvae'} or --name."
        )
    return differing


def _place_in_data(found: checkpoint.Checkpoint, source: Source, comm: Comm) -> int:
    """The next batch. With another number of items per step it is the first that repeats none within its epoch."""
    batch, before = int(found.extra["batch"]), int(found.extra["global_batch"])
    if found.extra["data"] != source.fingerprint and comm.is_first:
        log.warning("the data are not those this run began with; it goes on with what is there now")
    if before == source.global_batch:
        return batch
    if comm.is_first:
        log.warning("a step now takes %d items over all processes, before it took %d; the order of the data stays, the "
                    "course of the losses does not", source.global_batch, before)  # fmt: skip
    epoch, within = divmod(batch, int(found.extra["per_epoch"]))
    return epoch * source.per_epoch + min(-(-within * before // source.global_batch), source.per_epoch - 1)
