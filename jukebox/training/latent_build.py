"""From a model config of a prior over latents to its task and data."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.data.dataset_config import PreEncodedDirs, WebDataset, read_config
from jukebox.data.hps import AudioHps, DataHps
from jukebox.data.pre_encoded_dataset import PreEncodedDataset
from jukebox.data.split import held_out
from jukebox.errors import DataError, UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.interop.published import Entry
from jukebox.models.labels import build_labeller
from jukebox.models.latent_model import autoencoder_of, flow_shape, read_flow_config
from jukebox.parallel.comm import Comm
from jukebox.prior.latent_flow import LatentFlow
from jukebox.training.ema import WarmingEMA
from jukebox.training.hps import EvalHps, OptimiserHps, RunHps
from jukebox.training.latent_task import LatentFlowTask, LatentWindows
from jukebox.training.optim import named_optimiser
from jukebox.training.player import Player
from jukebox.training.schedule import Constant, named_schedule
from jukebox.training.sources import Source
from jukebox.training.tasks import Batch, Clips
from jukebox.vqvae.losses import Bandwidth

log = logging.getLogger(__name__)


def complete(hps: Resolved) -> Resolved:
    """The hyperparameters of a run whose model config says the rest. Raises UsageError, HparamsError, CheckpointError."""
    asked, run = hps.section(AutoencoderHps), hps.section(RunHps)
    config = read_flow_config(asked.model_config)
    if not asked.dataset_config:
        raise UsageError(f"--model-config={asked.model_config} needs --dataset-config, a data set of latents.")
    codec = autoencoder_of(config)
    said = {"sr": codec.geometry.sr_hz, "sample_length": config.model.frames * codec.model.hop}
    if not hps.given("demo_iters"):
        said["demo_iters"] = config.training.demo.demo_every
    name = run.name or Path(asked.model_config).stem
    return hps.with_values(f"model config {asked.model_config}", **said, name=name)


def open_source(hps: Resolved, comm: Comm) -> Source:
    """Windows of latents, whole files held out; every rank calls it. Raises DataError, StoreError."""
    asked, data, run = hps.section(AutoencoderHps), hps.section(DataHps), hps.section(RunHps)
    config = read_flow_config(asked.model_config)
    found = read_config(asked.dataset_config)
    if not (isinstance(found, PreEncodedDirs) or (isinstance(found, WebDataset) and found.pre_encoded)):
        raise DataError(
            f"--dataset-config={asked.dataset_config}: training.pre_encoded needs dataset_type pre_encoded, or wds with "
            "pre_encoded true"
        )
    frames = config.model.frames
    if found.latent_crop_length not in (None, frames):
        raise DataError(
            f"--dataset-config={asked.dataset_config}: latent_crop_length {found.latent_crop_length}, but the model's windows "
            f"have frames {frames}; write the same, or leave it out"
        )
    dataset = PreEncodedDataset(replace(found, latent_crop_length=frames), run.seed)
    about = [dataset.about(i) for i in range(len(dataset))]
    per_file: Counter[str] = Counter()
    for file, valid in about:
        per_file[file] += max(1, valid // frames)
    test = held_out(per_file, data.train_test_split, run.seed)
    audio = hps.section(AudioHps)
    hop, rate = audio.sample_length // frames, audio.sr

    def windows(of_test: bool) -> LatentWindows:
        kept = [i for i, (file, valid) in enumerate(about) if valid and (file in test) == of_test]
        return LatentWindows(dataset, kept, frames, hop, rate)

    train, rest = windows(False), windows(True)
    if not len(train):
        raise DataError(f"--dataset-config={asked.dataset_config}: nothing is left to train on")
    global_batch = data.bs * comm.size
    digest = hashlib.sha256(repr((about, frames, run.seed, sorted(test))).encode()).hexdigest()[:16]

    def from_batch(start: int) -> Iterator[Batch]:
        return cast("Iterator[Batch]", train.train(data.bs, comm, run.seed, start))

    def held_out_batches() -> Iterator[Batch]:
        return cast("Iterator[Batch]", rest.once(data.bs, comm))

    return Source(
        from_batch, held_out_batches if len(rest) else None, global_batch, max(1, len(train) // global_batch), digest,
        Bandwidth(),
    )  # fmt: skip


def build_task(hps: Resolved, comm: Comm) -> LatentFlowTask:
    """A fresh flow with its player, on its device. Raises HparamsError, CheckpointError."""
    run, data, loop = hps.section(RunHps), hps.section(DataHps), hps.section(OptimiserHps)
    config = read_flow_config(hps.section(AutoencoderHps).model_config)
    codec = autoencoder_of(config, comm.device)
    shape = flow_shape(config, codec, hps)
    net = LatentFlow(shape)
    if config.model.pretransform.scale is not None:
        net.scale.fill_(config.model.pretransform.scale)
    net.to(comm.device)
    training, named = config.training, list(net.named_parameters())
    params = [p for _, p in named]
    chosen = training.optimizer
    optimiser = named_optimiser(
        params,
        chosen.optimizer.type if chosen else "AdamW",
        chosen.optimizer.config if chosen else {"lr": training.learning_rate},
    )
    base = float(optimiser.param_groups[0]["lr"])
    planned = chosen.scheduler if chosen else None
    player = Player(
        named, optimiser, named_schedule(base, planned.type, planned.config) if planned else Constant(base), comm,
        ema=WarmingEMA(params) if training.use_ema else None, clip=loop.clip, accumulate=loop.iters_before_update,
        bucket_bytes=loop.bucket << 20,
    )  # fmt: skip
    evals = hps.section(EvalHps)
    parameters = dict(named)
    table = [Entry(name, name, tuple(t.shape), parameter=name in parameters) for name, t in net.state_dict().items()]
    return LatentFlowTask(
        net=net, table=table, players={"main": player}, comm=comm,
        clips=Clips(evals.max_log, evals.max_len, codec.geometry.sr_hz), config=config,
        labeller=build_labeller(hps, shape, ids_dir=data.ids_dir, strict=data.strict_labels), codec=codec, seed=run.seed,
    )  # fmt: skip
