"""From a command line to a trained net: reads settings, builds everything, calls fit()."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jukebox import files, runlog, settings
from jukebox.codestore.store import CodeStore
from jukebox.data import admission
from jukebox.data.audio_dataset import AudioDataset
from jukebox.data.bandwidth import measure_bandwidth
from jukebox.data.code_dataset import CodeDataset
from jukebox.data.code_loader import code_batches, code_evaluation_batches
from jukebox.data.hps import AudioHps, DataHps
from jukebox.data.loaders import batches, evaluation_batches
from jukebox.data.metadata import songs_of
from jukebox.errors import CheckpointError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.interop.published import Entry
from jukebox.models import build, checkpoint, model_set
from jukebox.models.codec import VQVAECodec
from jukebox.models.labels import build_labeller
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.parallel.hps import LaunchHps
from jukebox.prior.hps import LabelHps, PriorHps
from jukebox.prior.model import Prior
from jukebox.training.ema import EMA, default_mu
from jukebox.training.fit import Course, Reached, fit
from jukebox.training.hps import EmaHps, EvalHps, Fp16Hps, OptimiserHps, RunHps
from jukebox.training.optim import FP16FusedAdam, FusedAdam, LossScaler, apex_adam
from jukebox.training.player import Player
from jukebox.training.schedule import Schedule
from jukebox.training.tasks import Batch, Clips, PriorTask, Task, VQVAETask
from jukebox.vqvae.hps import VQVAEHps
from jukebox.vqvae.losses import Bandwidth
from jukebox.vqvae.model import VQVAE

log = logging.getLogger(__name__)


def main(hps: Resolved) -> int:
    """Train what the settings of `train` ask for; the exit code."""
    hps = complete(hps)
    start = hps.section(LaunchHps)
    comm = launch.start(start.device, start.threads, start.port, start.dist_timeout)
    runlog.setup(comm, quiet=start.quiet)
    folder = run_folder(hps)
    if comm.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        with files.RunLock(folder, force=hps.section(RunHps).force_unlock):
            comm.barrier()
            return _run(hps, comm, folder)
    comm.barrier()
    return _run(hps, comm, folder)


def complete(hps: Resolved) -> Resolved:
    """Fill in what follows from other keys, before anything is loaded.

    Raises UsageError when the data are not named, or a prior does not know its VQ-VAE.
    """
    run, data = hps.section(RunHps), hps.section(DataHps)
    what = "prior" if run.prior else "VQ-VAE"
    if not data.audio_files_dir and not (run.prior and data.codes):
        presets = ",".join(
            dict.fromkeys(o.removeprefix("preset ") for o in hps.origins.values() if o.startswith("preset "))
        )
        smallest = f"python jukebox/train.py --hps={presets or 'small_vqvae'} --audio_files_dir=DIR"
        if run.prior:
            smallest += (
                " --prior --restore_vqvae=RUN     (or --codes=STORE in place of --audio_files_dir and the VQ-VAE)"
            )
        raise UsageError(
            f"--audio_files_dir is missing: the folder of songs to train the {what} on. The smallest full command is\n"
            f"  {smallest}"
        )
    if run.prior and data.codes:
        hps = _with_store_keys(hps, CodeStore.open(Path(data.codes)))
    elif run.prior:
        restore = hps.section(VQVAEHps).restore_vqvae
        if not restore:
            raise UsageError(
                "A prior stands on a VQ-VAE: give --restore_vqvae=RUN, or --codes=STORE made by pre_encode.py."
            )
        found = checkpoint.read(model_set.locate(model_set.Part(restore)))
        if found.hps is not None:
            theirs = settings.from_values(found.hps, f"checkpoint {found.path}")
            hps = _with_vqvae_keys(hps, model_set.vqvae_values(theirs), str(found.path))
    if not run.name:
        named = [o.removeprefix("preset ") for o in hps.origins.values() if o.startswith("preset ")]
        hps = hps.with_values("the presets' names", name="_".join(dict.fromkeys(named)) or what.lower())
    return _with_sample_length(hps)


def _with_store_keys(hps: Resolved, store: CodeStore) -> Resolved:
    theirs = store.details[store.levels[0]].get("model")
    if not isinstance(theirs, dict):
        raise CheckpointError(f"--codes={store.root}: this store does not say which model made it; encode again.")
    where = str(theirs.get("checkpoint", ""))
    hps = _with_vqvae_keys(
        hps, settings.from_values(theirs["hps"], f"store {store.root}").values, f"store {store.root}"
    )
    if not hps.section(VQVAEHps).restore_vqvae and where:
        hps = hps.with_values(f"store {store.root}", restore_vqvae=where)
    return hps


def _with_vqvae_keys(hps: Resolved, theirs: Mapping[str, Any], where: str) -> Resolved:
    """Take the VQ-VAE's keys from where they are known; what the user set otherwise is an error, not overruled."""
    names = [name for name in model_set.vqvae_values(hps) if name in theirs]
    asked = {name: hps.values[name] for name in names if hps.given(name)}
    other = model_set.differing({n: theirs[n] for n in asked}, asked)
    if other:
        raise CheckpointError(f"{where} is another VQ-VAE than the command line says:\n{other}")
    return hps.with_values(where, **{name: theirs[name] for name in names})


def _with_sample_length(hps: Resolved) -> Resolved:
    """Samples of one chunk: for a prior exactly a window, for a VQ-VAE whole codes of the top level."""
    audio, vqvae = hps.section(AudioHps), hps.section(VQVAEHps)
    if hps.section(RunHps).prior:
        p = hps.section(PriorHps)
        length = p.n_ctx * vqvae.hops[p.level]
        if audio.sample_length not in (0, length):
            log.warning("--sample_length=%d: a window of this prior is %d x %d = %d samples; that is taken",
                        audio.sample_length, p.n_ctx, vqvae.hops[p.level], length)  # fmt: skip
    else:
        asked = audio.sample_length or int(audio.sample_length_in_seconds * audio.sr)
        length = asked // vqvae.top_hop * vqvae.top_hop
        if audio.sample_length not in (0, length):
            log.warning("--sample_length=%d is rounded down to %d, whole codes of the top level", asked, length)
        if not length:
            raise UsageError(
                f"--sample_length={asked} is less than one code of the top level ({vqvae.top_hop} samples)."
            )
    return hps.with_values("computed", sample_length=length)


def run_folder(hps: Resolved) -> Path:
    """logs/<name>. Raises UsageError for a name that would leave the folder of runs."""
    run = hps.section(RunHps)
    return files.inside(run.local_logdir, run.name, UsageError)


@dataclass
class Source:
    """Where batches come from: without end from a position on, and the held-out part once."""

    train: Callable[[int], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]] | None
    per_epoch: int
    fingerprint: str
    bandwidth: Bandwidth
    held_out_items: int


def _run(hps: Resolved, comm: Comm, folder: Path) -> int:
    run = hps.section(RunHps)
    launch.set_run_folder(folder)
    if comm.is_first:
        files.remove_stale_temps(folder)
        files.publish_text(folder / "hps.toml", hps.to_toml())
        runlog.write_provenance(folder, sys.argv)
    before = _resume_from(run, folder, comm)
    source = _open_data(hps, comm, folder)
    torch.manual_seed(run.seed)
    task = build_task(hps, comm, source.bandwidth)
    reached = Reached()
    if before:
        reached = _restore(task, checkpoint.read(before), hps, comm, source)
        log.info("continuing %s at step %d", before, reached.step)
    course = _course(hps, comm, source)
    with runlog.RunLog(folder, comm, purge_step=reached.step + 1) as events:
        events.text("hps", hps.to_toml(), reached.step)
        if not (run.train or not run.test):
            return _only_measure(task, source, events, reached, comm)

        def save() -> None:
            if run.save:
                comm.run_first(lambda: _save(folder, task, hps, reached, source, run.keep))

        ended = fit(
            task, source.train(reached.batch), source.held_out, course, reached, events, comm, save, run.seed
        )  # fmt: skip
    if ended == "stopped":
        log.info("stopped at step %d; the same command goes on from there", reached.step)
        return launch.stop_code()
    log.info("done: %d steps, %s", reached.step, folder)
    return 0


def _only_measure(task: Task, source: Source, events: runlog.RunLog, reached: Reached, comm: Comm) -> int:
    if not source.held_out:
        raise UsageError("--test: the test part is empty; lower --train_test_split.")
    found = task.evaluate(source.held_out())
    events.scalars({f"test_{name}": value for name, value in found.items()}, reached.step)
    log.info("step %d: %s", reached.step, ", ".join(f"{name} {value:.4f}" for name, value in sorted(found.items())))
    return 0


def _course(hps: Resolved, comm: Comm, source: Source) -> Course:
    run, evals, data, audio = hps.section(RunHps), hps.section(EvalHps), hps.section(DataHps), hps.section(AudioHps)
    return Course(
        steps=run.steps, epochs=run.epochs, first_epoch=run.curr_epoch, batches_per_epoch=source.per_epoch,
        log_steps=run.log_steps, save_iters=run.save_iters, eval_iters=evals.eval_iters,
        evaluate_epochs=run.test and evals.eval_iters == 0, demo_iters=evals.demo_iters,
        seconds_per_batch=data.bs * comm.size * audio.sample_length / audio.sr,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- data


def _open_data(hps: Resolved, comm: Comm, folder: Path) -> Source:
    data = hps.section(DataHps)
    return _open_codes(hps, comm) if hps.section(RunHps).prior and data.codes else _open_audio(hps, comm, folder)


def _open_codes(hps: Resolved, comm: Comm) -> Source:
    data, label = hps.section(DataHps), hps.section(LabelHps)
    for name in ("aug_blend",):
        if getattr(data, name):
            raise UsageError(
                f"--{name} changes the sound, which stored codes cannot follow; leave it out with --codes."
            )
    store = CodeStore.open(Path(data.codes))
    p = hps.section(PriorHps)
    shared: dict[str, Any] = {"train_test_split": data.train_test_split, "seed": hps.section(RunHps).seed}
    if label.labelled:
        shared |= {"min_duration": label.min_duration, "max_duration": label.max_duration}
    train = CodeDataset(store, p.level, p.n_ctx, part="train", aug_shift=data.aug_shift, **shared)
    held_out = None if data.train_test_split >= 1 else CodeDataset(store, p.level, p.n_ctx, part="test", **shared)
    where = {"bs": data.bs, "comm_rank": comm.rank, "comm_size": comm.size}
    seed = hps.section(RunHps).seed
    return Source(
        train=lambda start: code_batches(train, seed=seed, start_step=start, **where),
        held_out=None if held_out is None else lambda: code_evaluation_batches(held_out, **where),
        per_epoch=max(1, len(train) // (data.bs * comm.size)),
        fingerprint=f"{store.fingerprint} {len(train)}",
        bandwidth=Bandwidth(),
        held_out_items=len(held_out) if held_out else 0,
    )


def _open_audio(hps: Resolved, comm: Comm, folder: Path) -> Source:
    data, audio = hps.section(DataHps), hps.section(AudioHps)
    label, run = hps.section(LabelHps), hps.section(RunHps)
    workers = data.bs if data.nworkers is None else data.nworkers
    index = admission.admit(
        data.audio_files_dir, folder / "audio_index.json", comm, on_bad_file=data.on_bad_file, max_bad=data.max_bad,
        max_audio_sec=data.max_audio_sec, report=folder / "bad_files.tsv",
    )  # fmt: skip
    songs = songs_of(index, data.metadata)
    shared: dict[str, Any] = {
        "sr_hz": audio.sr, "sample_length": audio.sample_length, "split": data.split,
        "train_test_split": data.train_test_split, "min_duration": label.min_duration,
        "max_duration": label.max_duration, "seed": run.seed,
    }  # fmt: skip
    train = AudioDataset(index, songs, part="train", aug_shift=data.aug_shift, aug_blend=data.aug_blend, **shared)
    held_out = None if data.train_test_split >= 1 else AudioDataset(index, songs, part="test", **shared)
    where = {"bs": data.bs, "comm_rank": comm.rank, "comm_size": comm.size, "workers": workers,
             "on_bad_file": data.on_bad_file, "max_bad": data.max_bad}  # fmt: skip
    bandwidth = Bandwidth()
    if not run.prior:
        measured = measure_bandwidth(train, comm, cache=folder)
        bandwidth = Bandwidth(measured.l1, measured.l2, measured.spec)
    return Source(
        train=lambda start: batches(train, seed=run.seed, start_step=start, **where),
        held_out=None if held_out is None else lambda: evaluation_batches(held_out, **where),
        per_epoch=max(1, len(train) // (data.bs * comm.size)),
        fingerprint=train.fingerprint(),
        bandwidth=bandwidth,
        held_out_items=len(held_out) if held_out else 0,
    )


# ------------------------------------------------------------------------------------------------------------- nets


def build_task(hps: Resolved, comm: Comm, bandwidth: Bandwidth) -> Task:
    """The net with its player, on its device; restored where --restore_vqvae or --restore_prior says so."""
    return _prior_task(hps, comm) if hps.section(RunHps).prior else _vqvae_task(hps, comm, bandwidth)


def _vqvae_task(hps: Resolved, comm: Comm, bandwidth: Bandwidth) -> Task:
    v, run = hps.section(VQVAEHps), hps.section(RunHps)
    net = build.build_vqvae(hps)
    table = build.vqvae_names(hps)
    if v.restore_vqvae:
        found = checkpoint.read(model_set.locate(model_set.Part(v.restore_vqvae)))
        checkpoint.load_into(net, dict(found.model), table, source=str(found.path))
        length = hps.section(AudioHps).sample_length * hps.section(DataHps).bs * comm.size
        for level in range(net.levels if net.use_bottleneck else 0):
            net.codebook(level).restore(length / net.hops[level] / net.bins)
    net.to(comm.device)
    return VQVAETask(
        net=net, table=table, players={"main": _player(hps, comm, net)}, shape=build.build_loss(hps),
        bandwidth=bandwidth, comm=comm, clips=_clips(hps), mu=v.l_mu, threshold=v.revival_threshold,
        reset_revived=v.reset_revived_sums, seed=run.seed,
    )  # fmt: skip


def _prior_task(hps: Resolved, comm: Comm) -> Task:
    data, p, run = hps.section(DataHps), hps.section(PriorHps), hps.section(RunHps)
    net = build.build_prior(hps)
    table = build.prior_names(hps)
    labeller = build_labeller(hps, net, ids_dir=data.ids_dir, strict=data.strict_labels)
    if p.restore_prior:
        found = checkpoint.read(model_set.locate(model_set.Part(p.restore_prior)))
        checkpoint.load_into(net, dict(found.model), table, source=str(found.path))
    if hps.section(Fp16Hps).fp16_params:
        _halve(net, table)
    net.to(comm.device)
    evals = hps.section(EvalHps)
    return PriorTask(
        net=net, table=table, players={"main": _player(hps, comm, net)}, comm=comm, clips=_clips(hps),
        labeller=labeller, vqvae=_frozen_vqvae(hps, comm), seed=run.seed,
        dtype=torch.float16 if hps.section(Fp16Hps).fp16 else torch.float32,
        bs_sample=evals.bs_sample or data.bs,
    )  # fmt: skip


def _frozen_vqvae(hps: Resolved, comm: Comm) -> VQVAE | None:
    """The VQ-VAE under a prior: needed to encode audio, and for demos; with a store it may be absent."""
    restore = hps.section(VQVAEHps).restore_vqvae
    stored = bool(hps.section(DataHps).codes)
    if not restore or (stored and not hps.section(EvalHps).demo_iters):
        return None
    codec: VQVAECodec
    codec, _ = model_set.load_vqvae(model_set.Part(restore), comm.device)
    return codec.vqvae.requires_grad_(False)


def _halve(net: Prior, table: list[Entry]) -> None:
    """Matrices of the transformers to float16, as `fp16_params` says; nothing else (spec 3.6)."""
    parameters = dict(net.named_parameters())
    for entry in table:
        if entry.half_ok and entry.ours in parameters:
            parameters[entry.ours].data = parameters[entry.ours].data.half()


def _player(hps: Resolved, comm: Comm, net: nn.Module) -> Player:
    o, half, average = hps.section(OptimiserHps), hps.section(Fp16Hps), hps.section(EmaHps)
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    params = [p for _, p in named]
    settings_: dict[str, Any] = {"lr": o.lr, "betas": (o.beta1, o.beta2), "eps": o.eps, "weight_decay": o.weight_decay}
    optimiser: torch.optim.Optimizer
    if o.optimizer == "apex":
        optimiser = apex_adam(params, **settings_)
    else:
        optimiser = (FP16FusedAdam if half.fp16_opt else FusedAdam)(params, **settings_)
    schedule = Schedule(
        o.lr, o.lr_scale, o.lr_warmup, o.lr_decay, o.lr_gamma, o.lr_use_linear_decay, o.lr_use_cosine_decay,
        o.lr_start_linear_decay,
    )  # fmt: skip
    ema = None
    if average.ema:
        mu = average.mu if average.mu is not None else default_mu(hps.section(DataHps).bs, comm.size)
        kind = "cpu" if average.cpu_ema else "fused" if average.ema_fused else "plain"
        ema = EMA(params, mu, kind, average.cpu_ema_freq)  # type: ignore[arg-type]
    scaler = LossScaler(half.fp16_loss_scale, half.fp16_scale_window) if half.fp16 else None
    return Player(
        named, optimiser, schedule, comm, ema=ema, scaler=scaler, clip=o.clip, ignore_grad_norm=o.ignore_grad_norm,
        accumulate=o.iters_before_update,
    )  # fmt: skip


def _clips(hps: Resolved) -> Clips:
    evals = hps.section(EvalHps)
    return Clips(evals.max_log, evals.max_len, hps.section(AudioHps).sr)


# ------------------------------------------------------------------------------------------------------------- resuming


def _resume_from(run: RunHps, folder: Path, comm: Comm) -> Path | None:
    if run.resume not in ("auto", "never"):
        return checkpoint.locate(run.resume)
    found = comm.run_first(lambda: checkpoint.latest_valid(folder))
    if found and run.resume == "never":
        raise UsageError(f"{folder} has checkpoints already. Choose another --name, or --resume=auto to go on.")
    return found


def _save(folder: Path, task: Task, hps: Resolved, reached: Reached, source: Source, keep: int) -> None:
    player = task.players["main"]
    averages: dict[str, Tensor] = dict(zip(player.names, player.ema.averages, strict=True)) if player.ema else {}
    model = checkpoint.published_state(task.net, task.table)
    for entry in task.table:  # `model` holds averaged weights, as published; the raw ones stand in `extra`
        average = averages.get(entry.ours, averages.get(entry.tied_to))
        if average is not None:
            model[entry.published] = average.to(model[entry.published].dtype)
    extra = {
        "players": {name: p.state_dict() for name, p in task.players.items()},
        "own": task.own_state(),
        "batch": reached.batch,
        "data": source.fingerprint,
    }
    opt = checkpoint.opt_to_published(player.optimiser.state_dict(), player.names, task.table)
    checkpoint.write(folder, reached.step, hps=dict(hps.values), model=model, opt=opt, extra=extra, keep=keep)


def _restore(task: Task, found: checkpoint.Checkpoint, hps: Resolved, comm: Comm, source: Source) -> Reached:
    """Put a run back where it was: raw weights, averages, codebook sums, optimiser, schedule, scaler, data position."""
    theirs = settings.from_values(found.hps or {}, f"checkpoint {found.path}")
    differing = checkpoint.differing_keys(theirs.values, hps.values, model_set.SHAPING + model_set.PRIOR_SHAPING)
    if differing:
        raise CheckpointError(
            f"{found.path} is a net of other hyperparameters:\n{differing}\nUse these values, or another --name."
        )
    checkpoint.load_into(task.net, dict(found.model), task.table, source=str(found.path))
    player = task.players["main"]
    if found.opt:
        state = checkpoint.opt_from_published(found.opt, player.names, task.table)
        flags = [{k: g[k] for k in ("betas", "eps", "weight_decay")} for g in player.optimiser.param_groups]
        player.optimiser.load_state_dict(state)
        for group, asked in zip(player.optimiser.param_groups, flags, strict=True):
            group |= asked  # the command line wins over what was saved
    if not found.extra:  # another program's file: averaged weights, no averages, no position
        player.steps = found.step
        return Reached(found.step, 0)
    for name, state in found.extra["players"].items():
        task.players[name].load_state_dict(state)
    task.load_own_state(found.extra["own"])
    if found.extra["data"] != source.fingerprint:
        log.warning("the data are not those this run began with; it goes on with what is there now")
    return Reached(found.step, int(found.extra["batch"]))
