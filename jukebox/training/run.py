"""From a command line to a trained net: reads settings, builds everything, calls fit()."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from jukebox import files, runlog
from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.data.hps import AudioHps, DataHps
from jukebox.errors import UsageError, UserError
from jukebox.hparams.resolve import Resolved
from jukebox.models import checkpoint
from jukebox.models.latent_model import is_flow
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.hps import PriorHps
from jukebox.training import dry_run, latent_build
from jukebox.training.autoencoder_task import Diverged
from jukebox.training.complete import complete
from jukebox.training.fit import Course, Reached, evaluate, fit
from jukebox.training.hps import EvalHps, OptimiserHps, RunHps
from jukebox.training.nets import build_task
from jukebox.training.resume import RunFolder, begin_from, restore
from jukebox.training.sources import Source, open_source

__all__ = ["build_task", "main"]

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Train what the settings of `train` ask for; the exit code."""
    start = hps.section(LaunchHps)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    hps = complete(hps)
    run = hps.section(RunHps)
    folder = files.inside(run.local_logdir, run.name, UsageError)
    with _held(folder, run, comm), _memory_explained(hps):
        return _run(hps, comm, folder)


@contextmanager
def _held(folder: Path, run: RunHps, comm: Comm) -> Iterator[None]:
    """The run's folder, made and locked for this run alone; every rank calls it."""
    lock = None
    if comm.is_first and not run.dry_run:
        files.make_folder(folder, name="the run's folder", cure="Choose another --local_logdir.")
        lock = files.RunLock(folder, force=run.force_unlock)
        lock.__enter__()
    try:
        comm.barrier()
        yield
    finally:
        if lock:
            lock.__exit__(None, None, None)


def _run(hps: Resolved, comm: Comm, folder: Path) -> int:
    run = hps.section(RunHps)
    before = begin_from(hps, folder, comm)
    if not run.trains and before is None:
        raise UsageError(
            "--test alone measures a trained net: give the --name of a run, --restore_vqvae or --restore_prior."
        )
    if not run.dry_run:
        launch.set_run_folder(folder)
    config = hps.section(AutoencoderHps).model_config
    flow = bool(config) and is_flow(config)
    source = latent_build.open_source(hps, comm) if flow else open_source(hps, comm, folder)
    task = build_task(hps, comm, source.bandwidth)
    task.meet(source.songs)
    reached = Reached()
    if before:
        reached = restore(task, checkpoint.read(before), hps, source, comm)
        log.info("going on from %s at step %d", before, reached.step)
    course, run_folder = _course(hps, comm, source), RunFolder(folder, hps, source, comm)
    if run.dry_run:
        report = dry_run.measure(task, source.train(reached.batch), course, run_folder, hps, comm)
        if comm.is_first:
            print(report)
        return 0
    if comm.is_first:
        files.remove_stale_temps(folder)
        files.publish_text(folder / "hps.toml", hps.to_toml())
        runlog.write_provenance(folder, sys.argv)
    with runlog.RunLog(folder, comm, purge_step=reached.step + 1) as events:
        events.text("hps", f"```\n{hps.to_toml()}```", reached.step)
        if not run.trains:
            if not source.held_out:
                raise UsageError("--test: nothing is held out; lower --train_test_split.")
            evaluate(task, source.held_out, events, reached.step)
            return 0
        try:
            finished = fit(
                task, source.train(reached.batch), source.held_out, course, reached, events, comm, run_folder
            )  # fmt: skip
        except Diverged:
            run_folder.save(task, reached, last=True)  # the weights of the last good step
            raise
    if not finished:
        log.info("stopped at step %d; the same command goes on from there", reached.step)
        return launch.stop_code()
    log.info("done: %d steps, %s", reached.step, folder)
    return 0


def _course(hps: Resolved, comm: Comm, source: Source) -> Course:
    run, evals, audio = hps.section(RunHps), hps.section(EvalHps), hps.section(AudioHps)
    accumulate = hps.section(OptimiserHps).iters_before_update
    return Course(
        steps=run.steps, epochs=run.epochs, first_epoch=run.curr_epoch, batches_per_epoch=source.per_epoch,
        log_steps=run.log_steps, save_iters=run.save_iters, eval_iters=evals.eval_iters,
        evaluate_epochs=run.test and evals.eval_iters == 0, demo_iters=evals.demo_iters,
        seconds_per_step=source.global_batch * accumulate * audio.sample_length / audio.sr, seed=run.seed,
    )  # fmt: skip


@contextmanager
def _memory_explained(hps: Resolved) -> Iterator[None]:
    """Says which keys to lower when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        data, audio, p = hps.section(DataHps), hps.section(AudioHps), hps.section(PriorHps)
        large = f"--bs={data.bs} or " + (
            f"--n_ctx={p.n_ctx}" if hps.section(RunHps).prior else f"--sample_length={audio.sample_length}"
        )
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"Out of memory: lower {large}. The last checkpoint is good. ({cause})") from error
