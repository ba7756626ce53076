"""From a model config to an autoencoder's task: what its keys mean for a run, its nets, players and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jukebox import files
from jukebox.autoencoder.config import ModelConfig, read_config
from jukebox.autoencoder.discriminators import Discriminator, build_discriminator
from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.autoencoder.model import Autoencoder, load_weights
from jukebox.autoencoder.pretransforms import InnerAutoencoder
from jukebox.autoencoder.recipe import OptimiserConfig, TrainingConfig
from jukebox.errors import HparamsError, UsageError
from jukebox.hparams.resolve import Resolved, keys_of
from jukebox.models.autoencoder_files import read_weights
from jukebox.parallel.comm import Comm
from jukebox.settings import COMMAND_LINE
from jukebox.training.autoencoder_task import AutoencoderTask
from jukebox.training.ema import WarmingEMA
from jukebox.training.hps import EmaHps, EvalHps, OptimiserHps, RunHps
from jukebox.training.optim import LossScaler, named_optimiser
from jukebox.training.player import Player
from jukebox.training.schedule import Constant, Rate, named_schedule
from jukebox.training.tasks import Clips

log = logging.getLogger(__name__)

PRECISION = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_OF_THE_LOOP = ("iters_before_update", "bucket")  # the optimiser's keys that a model config does not have


def read_training_config(path: str) -> tuple[ModelConfig, TrainingConfig]:
    """The model config in a file, and its training section. Raises HparamsError."""
    config = read_config(path)
    if config.training is None:
        raise HparamsError(f"--model-config={path}: training is missing, the section that says how to train")
    if config.audio_channels > 2:
        raise HparamsError(
            f"--model-config={path}: audio_channels: mono (1) and stereo (2) are read, not {config.audio_channels}"
        )
    if (why := config.why_nothing_to_learn()) is not None:
        raise HparamsError(f"{path}: {why}")
    return config, config.training


def complete(hps: Resolved) -> Resolved:
    """The hyperparameters of a run whose model config says the rest. Raises UsageError, HparamsError."""
    asked, run = hps.section(AutoencoderHps), hps.section(RunHps)
    config, training = read_training_config(asked.model_config)
    if run.prior:
        raise UsageError("--model-config describes an autoencoder; --prior trains a prior. Leave one of them out.")
    said = {"sr": config.sample_rate, "sample_length": config.sample_size, "channels": config.audio_channels}
    for name, value in said.items():
        if hps.origins[name] == COMMAND_LINE and hps.values[name] != value:
            raise UsageError(
                f"--{name}={hps.values[name]}, but --model-config={asked.model_config} says {value}. Leave it out."
            )
    elsewhere = [*(name for name in keys_of(OptimiserHps) if name not in _OF_THE_LOOP), *keys_of(EmaHps)]
    if typed := [name for name in elsewhere if hps.origins[name] == COMMAND_LINE]:
        raise UsageError(
            f"--{typed[0]}: of an autoencoder the model config says this (training.optimizer_configs, training.use_ema)."
        )
    if hps.origins["demo_iters"] != COMMAND_LINE:
        said["demo_iters"] = training.demo.demo_every
    hps = hps.with_values(f"model config {asked.model_config}", **said)
    name = run.name or Path(asked.model_config).stem
    return hps.with_values("computed", name=name) if not run.name else hps


def build_task(hps: Resolved, comm: Comm) -> AutoencoderTask:
    """A fresh autoencoder with its players, on its device. Raises HparamsError, CheckpointError."""
    asked, run = hps.section(AutoencoderHps), hps.section(RunHps)
    config, training = read_training_config(asked.model_config)
    torch.manual_seed(run.seed)
    net = Autoencoder(config.model)
    if net.discrete is not None and net.hop % net.discrete.num_quantizers:
        log.warning(
            "--model-config=%s: a frame of %d samples cannot be dealt to %d codebooks in whole samples: no prior will be "
            "able to learn the tokens; a number of codebooks that divides downsampling_ratio can",
            asked.model_config, net.hop, net.discrete.num_quantizers,
        )  # fmt: skip
    if asked.pretrained_ckpt_path:
        load_weights(net, read_weights(asked.pretrained_ckpt_path), asked.pretrained_ckpt_path)
    if asked.pretransform_ckpt_path:
        _fill_pretransform(net, asked.pretransform_ckpt_path)
    net.to(comm.device).train()
    part = training.losses.discriminator
    discriminator = build_discriminator(part, config.model.channels_out).to(comm.device) if part else None
    evals = hps.section(EvalHps)
    with _placed(asked.model_config):
        players = build_players(net, discriminator, training, asked.precision, comm, hps.section(OptimiserHps))
    return AutoencoderTask(
        net=net, players=players, comm=comm, clips=Clips(evals.max_log, evals.max_len, config.sample_rate), config=config,
        config_text=json.dumps(config.model_dump(mode="json", exclude_unset=True)), discriminator=discriminator,
        teacher=_teacher(training, comm.device), dtype=PRECISION[asked.precision],
        folder=files.inside(run.local_logdir, run.name, UsageError), seed=run.seed,
    )  # fmt: skip


def _fill_pretransform(net: Autoencoder, path: str) -> None:
    if not isinstance(net.pretransform, InnerAutoencoder):
        raise UsageError("--pretransform_ckpt_path is for a model whose pretransform is an autoencoder.")
    load_weights(net.pretransform.model, read_weights(path), path, strict=True)


def _teacher(training: TrainingConfig, device: str) -> Autoencoder | None:
    if training.teacher_model is None or training.teacher_model_ckpt is None:
        return None
    teacher = Autoencoder(training.teacher_model.model)
    load_weights(teacher, read_weights(training.teacher_model_ckpt), training.teacher_model_ckpt, strict=True)
    return teacher.to(device).eval().requires_grad_(False)


def build_players(
    net: Autoencoder, discriminator: Discriminator | None, training: TrainingConfig, precision: str, comm: Comm,
    loop: OptimiserHps,
) -> dict[str, Player]:  # fmt: skip
    """`main` moves the autoencoder, `discriminator` the other, as the training section says. Raises HparamsError."""
    configs = training.optimizer_configs
    chosen: dict[str, tuple[nn.Module, OptimiserConfig | None]] = {
        "main": (net, configs.autoencoder if configs else None)
    }
    if discriminator is not None:
        if configs is not None and configs.discriminator is None:
            raise HparamsError(
                "training.optimizer_configs.discriminator: this key is missing; loss_configs has a discriminator"
            )
        chosen["discriminator"] = (discriminator, configs.discriminator if configs else None)
    scheduled = all(config is not None and config.scheduler is not None for _, config in chosen.values())
    if not scheduled and any(config is not None and config.scheduler is not None for _, config in chosen.values()):
        log.warning("a scheduler is used only where both optimisers have one: the rates stay constant")
    players = {}
    for name, (module, config) in chosen.items():
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        params = [p for _, p in named]
        if not params:
            raise HparamsError(
                "model: requires_grad is false for everything that could learn; leave something to train"
            )
        kind, arguments = _optimiser(config, training)
        where = f"training.optimizer_configs.{'autoencoder' if name == 'main' else name}"
        with _placed(f"{where}.optimizer" if config else "training.learning_rate"):
            optimiser = named_optimiser(params, kind, arguments)
        base = float(optimiser.param_groups[0]["lr"])
        rate: Rate = Constant(base)
        if scheduled and config is not None and config.scheduler is not None:
            with _placed(f"{where}.scheduler"):
                rate = named_schedule(base, config.scheduler.type, config.scheduler.config)
        ema = WarmingEMA(params, net.buffers()) if name == "main" and training.use_ema else None
        players[name] = Player(
            named, optimiser, rate, comm, ema=ema, scaler=LossScaler() if precision == "16-mixed" else None,
            clip=float("inf"), accumulate=loop.iters_before_update, bucket_bytes=loop.bucket << 20,
        )  # fmt: skip
    return players


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Puts a place in front of what is wrong there."""
    try:
        yield
    except HparamsError as error:
        raise HparamsError(f"{where}: {error}") from error


def _optimiser(config: OptimiserConfig | None, training: TrainingConfig) -> tuple[str, dict[str, Any]]:
    if config is None:
        return "AdamW", {"lr": training.learning_rate, "betas": (0.8, 0.99)}
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in config.optimizer.config.items()}
    return config.optimizer.type, arguments
