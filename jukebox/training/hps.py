"""Keys of a training run: its course, optimiser, averages, half precision, and what is measured on the way."""

from typing import Literal

from jukebox.hparams.resolve import key, section


@section("run", "Run")
class RunHps:
    name: str = key("", "name of the run: its folder is local_logdir/name", example="small_vqvae")
    local_logdir: str = key("logs", "folder that holds the runs")
    prior: bool = key(False, "train a prior (see --level); False = train the VQ-VAE")
    train: bool = key(False, "train; the default too, unless only --test is given")
    test: bool = key(False, "measure on the test part after every epoch; alone, measure once and end")
    seed: int = key(0, "seed of weights, order of data, shifts, dropout and codebook restarts", ge=0)
    epochs: int = key(10000, "train up to this epoch", gt=0)
    curr_epoch: int = key(-1, "number of the first epoch of a fresh run", ge=-1)
    steps: int = key(0, "stop after so many optimiser steps, counted from the start of the run; 0 = no limit", ge=0)
    save: bool = key(True, "write checkpoints")
    save_iters: int = key(20000, "between two checkpoints", unit="steps", gt=0)
    keep: int = key(2, "newest checkpoints kept; 0 = all", ge=0)
    resume: str = key(
        "auto",
        "auto = continue when the run folder has a checkpoint, never = refuse to, or the checkpoint to go on from",
    )
    force_unlock: bool = key(False, "take over a run folder that another machine locked and left")
    dry_run: bool = key(
        False, "build everything, take two steps, print memory, time and disk needed, write nothing, and end"
    )
    log_steps: int = key(100, "between two lines of scalars", unit="steps", gt=0)

    @property
    def trains(self) -> bool:
        """Whether this run trains: with --train, and also with neither --train nor --test."""
        return self.train or not self.test


@section("optimiser", "Optimiser and learning rate")
class OptimiserHps:
    optimizer: Literal["fused", "apex"] = key("fused", "our Adam, or NVIDIA Apex's FusedAdam with the same results")
    lr: float = key(0.0003, "learning rate", gt=0)
    beta1: float = key(0.9, "decay of the first moment", ge=0, lt=1)
    beta2: float = key(0.999, "decay of the second moment", ge=0, lt=1)
    eps: float = key(1e-8, "added to the root of the second moment", gt=0)
    weight_decay: float = key(0.0, "decoupled weight decay", ge=0)
    clip: float = key(1.0, "gradients are scaled down to this norm", gt=0)
    ignore_grad_norm: float = key(0.0, "steps with a larger gradient norm are skipped; 0 = none", ge=0)
    iters_before_update: int = key(
        1, "batches whose gradients are summed into one optimiser step", unit="batches", gt=0
    )
    bucket: int = key(128, "gradients sent between processes in one message", unit="MB", gt=0)
    lr_warmup: float = key(100.0, "the rate rises linearly from 0", unit="steps", gt=0)
    lr_scale: float = key(1.0, "factor on lr", gt=0)
    lr_gamma: float = key(1.0, "factor on the rate after every lr_decay steps", gt=0)
    lr_decay: float = key(
        1e10, "between two factors lr_gamma, or length of the linear or cosine decay", unit="steps", gt=0
    )
    lr_use_linear_decay: bool = key(False, "the rate falls linearly to 0 over lr_decay steps; then the run ends")
    lr_use_cosine_decay: bool = key(False, "the rate falls along a cosine to 0 over lr_decay steps; then the run ends")
    lr_start_linear_decay: int = key(0, "where the linear or cosine decay begins", unit="steps", ge=0)


@section("ema", "Averaged weights")
class EmaHps:
    ema: bool = key(True, "keep a moving average of the weights; checkpoints, measuring and demos use it")
    mu: float | None = key(None, "its factor; None = 1 - (bs x processes / 8) / 1000", ge=0, lt=1)
    ema_fused: bool = key(True, "keep it in one flat buffer")
    cpu_ema: bool = key(False, "keep it in host memory")
    cpu_ema_freq: int = key(100, "between two updates of the average in host memory", unit="steps", gt=0)


@section("fp16", "Half precision")
class Fp16Hps:
    fp16: bool = key(False, "half-precision activations in the transformer, with loss scaling")
    fp16_params: bool = key(False, "half-precision weights of the transformer's matrices")
    fp16_opt: bool = key(False, "half-precision moments of the optimiser")
    fp16_loss_scale: float | None = key(None, "fixed loss scale; None = dynamic, from 2 ** 16", gt=0)
    fp16_scale_window: float = key(1000.0, "good steps in which the dynamic loss scale doubles", unit="steps", gt=0)


@section("eval", "Measuring and demos on the way")
class EvalHps:
    eval_iters: int = key(0, "between two measurements on the test part; 0 = after every epoch", unit="steps", ge=0)
    demo_iters: int = key(
        12000, "between two demos of a prior: songs sampled for TensorBoard; 0 = none", unit="steps", ge=0
    )
    bs_sample: int | None = key(None, "items sampled in a prior's demo; None = as many as bs", unit="items", gt=0)
    max_len: float = key(24.0, "longest TensorBoard clip", unit="s", gt=0)
    max_log: int = key(32, "most TensorBoard clips per tag", unit="clips", ge=0)
