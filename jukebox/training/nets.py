"""From hyperparameters to a task: the net on its device, restored where asked, and the player that moves it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from jukebox.autoencoder.hps import AutoencoderHps
from jukebox.codestore.store import CodeStore
from jukebox.data.hps import AudioHps, DataHps
from jukebox.errors import UsageError
from jukebox.hparams.resolve import Resolved
from jukebox.models import build, model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.codec import VQVAECodec
from jukebox.models.labels import build_labeller
from jukebox.models.latent_model import is_flow
from jukebox.parallel.comm import Comm
from jukebox.settings import COMMAND_LINE
from jukebox.training import autoencoder_build, latent_build
from jukebox.training.ema import EMA, Kind, default_mu
from jukebox.training.hps import EmaHps, EvalHps, Fp16Hps, OptimiserHps, RunHps
from jukebox.training.optim import FP16FusedAdam, FusedAdam, LossScaler, apex_adam
from jukebox.training.player import Player
from jukebox.training.prior_task import PriorTask
from jukebox.training.schedule import Schedule
from jukebox.training.tasks import Clips, Task
from jukebox.training.vqvae_task import VQVAETask
from jukebox.vqvae.hps import VQVAEHps
from jukebox.vqvae.losses import Bandwidth
from jukebox.vqvae.model import VQVAE

log = logging.getLogger(__name__)


def build_task(hps: Resolved, comm: Comm, bandwidth: Bandwidth) -> Task:
    """A fresh net with its player, on its device. Raises HparamsError, CheckpointError, StoreError."""
    torch.manual_seed(hps.section(RunHps).seed)
    if config := hps.section(AutoencoderHps).model_config:
        if is_flow(config):
            return latent_build.build_task(hps, comm)
        return autoencoder_build.build_task(hps, comm)
    return _prior_task(hps, comm) if hps.section(RunHps).prior else _vqvae_task(hps, comm, bandwidth)


def _vqvae_task(hps: Resolved, comm: Comm, bandwidth: Bandwidth) -> Task:
    v = hps.section(VQVAEHps)
    net = build.build_vqvae(hps).to(comm.device)
    return VQVAETask(
        net=net, table=build.vqvae_names(hps), players={"main": _player(hps, comm, net)}, shape=build.build_loss(hps),
        bandwidth=bandwidth, comm=comm, clips=_clips(hps), mu=v.l_mu, threshold=v.revival_threshold,
        reset_revived=v.reset_revived_sums, seed=hps.section(RunHps).seed,
    )  # fmt: skip


def _prior_task(hps: Resolved, comm: Comm) -> Task:
    data, half = hps.section(DataHps), hps.section(Fp16Hps)
    net = build.build_prior(hps)
    table = build.prior_names(hps)
    labeller = build_labeller(
        hps, net, ids_dir=data.ids_dir, strict=data.strict_labels, text_compat=data.text_compat, timed=data.lyric_times,
        aloud=comm.is_first,
    )  # fmt: skip
    if half.fp16_params:
        build.halve(net, table)
    net.to(comm.device)
    vqvae, codec = _frozen_vqvae(hps, comm)
    return PriorTask(
        net=net, table=table, players={"main": _player(hps, comm, net)}, comm=comm, clips=_clips(hps),
        labeller=labeller, vqvae=vqvae, codec=codec, seed=hps.section(RunHps).seed,
        dtype=torch.float16 if half.fp16 else torch.float32, bs_sample=hps.section(EvalHps).bs_sample or data.bs,
    )  # fmt: skip


def _frozen_vqvae(hps: Resolved, comm: Comm) -> tuple[VQVAE | None, str]:
    """The VQ-VAE under a prior, to encode audio and to hear codes, and its fingerprint.

    With a store it is needed for hearing only and need not be there; where it is named, it must be the store's.
    """
    restore, stored = hps.section(VQVAEHps).restore_vqvae, hps.section(DataHps).codes
    named = hps.origins["restore_vqvae"] == COMMAND_LINE
    fingerprint = CodeStore.open(Path(stored)).fingerprint if stored else ""
    if not restore or (stored and not named and not hps.section(EvalHps).demo_iters):
        return None, fingerprint
    if stored and not named and not Path(restore).exists():
        log.info(
            "%s, which made these codes, is not there: no demos. --restore_vqvae=RUN names its new place.", restore
        )
        return None, fingerprint
    codec, _ = load_codec(model_set.Part(restore), comm.device)
    if not isinstance(codec, VQVAECodec):
        if not stored:
            raise UsageError(
                f"{restore} is an autoencoder: encode the audio first with pre_encode.py --restore_vqvae=RUN --is-discrete."
            )
        CodeStore.open(Path(stored), expect_fingerprint=codec.fingerprint)
        log.info("%s is an autoencoder: no demos while its prior trains; sample.py sings through it.", restore)
        return None, codec.fingerprint
    if stored:
        CodeStore.open(Path(stored), expect_fingerprint=codec.fingerprint)
        codec.vqvae.encoders = nn.ModuleList()  # not needed, so not kept
    return codec.vqvae.requires_grad_(False), codec.fingerprint


def _player(hps: Resolved, comm: Comm, net: nn.Module) -> Player:
    o, half, average = hps.section(OptimiserHps), hps.section(Fp16Hps), hps.section(EmaHps)
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    params = [p for _, p in named]
    make = apex_adam if o.optimizer == "apex" else FP16FusedAdam if half.fp16_opt else FusedAdam
    optimiser: torch.optim.Optimizer = make(
        params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay
    )
    schedule = Schedule(
        o.lr, o.lr_scale, o.lr_warmup, o.lr_decay, o.lr_gamma, o.lr_use_linear_decay, o.lr_use_cosine_decay,
        o.lr_start_linear_decay,
    )  # fmt: skip
    ema = None
    if average.ema:
        mu = average.mu if average.mu is not None else default_mu(hps.section(DataHps).bs, comm.size)
        kind: Kind = "cpu" if average.cpu_ema else "fused" if average.ema_fused else "plain"
        ema = EMA(params, mu, kind, average.cpu_ema_freq)
    scaler = LossScaler(half.fp16_loss_scale, half.fp16_scale_window) if half.fp16 else None
    return Player(
        named, optimiser, schedule, comm, ema=ema, scaler=scaler, clip=o.clip, ignore_grad_norm=o.ignore_grad_norm,
        accumulate=o.iters_before_update, bucket_bytes=o.bucket << 20,
    )  # fmt: skip


def _clips(hps: Resolved) -> Clips:
    evals = hps.section(EvalHps)
    return Clips(evals.max_log, evals.max_len, hps.section(AudioHps).sr)
