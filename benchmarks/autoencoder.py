"""How fast autoencoders encode and decode, and in how much memory: the shipped configs beside the VQ-VAE presets.

    python benchmarks/autoencoder.py                                    every row, 20 s of stereo
    python benchmarks/autoencoder.py --model=dac_2048_32_vae --seconds=5     one row

One JSON line per row, each from a process of its own, so that peak memory is its own. Weights are random. In the same
run, what the chunks give is compared with one pass over the first second (the largest difference beside the spread of
the values, and for codes the share that differs). The last row is one training step, generator and discriminator each,
of a small oobleck on crops of 1 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from jukebox import settings
from jukebox.autoencoder import config as C
from jukebox.autoencoder import reach
from jukebox.autoencoder.discriminators import build_discriminator
from jukebox.autoencoder.losses import GeneratorLosses
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.schema import check
from jukebox.data.hps import AudioHps
from jukebox.models import build
from jukebox.models.codec import VQVAECodec

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("dac_2048_32_vae", "encodec_musicgen_rvq", "stable_audio_1_0_vae", "stable_audio_2_0_vae")
PRESETS = ("small_vqvae", "vqvae")
TRAINING = "training_step"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def peak_gb() -> float:
    """Of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def noise(channels: int, length: int) -> torch.Tensor:
    """Audio `[1, C, T]`."""
    return torch.randn(1, channels, length, generator=torch.Generator().manual_seed(0)) * 0.2


def of_config(name: str, seconds: float) -> dict[str, Any]:
    """Encode and decode with a shipped config."""
    config = C.read_config(ROOT / f"hparams/autoencoders/{name}.json")
    torch.manual_seed(0)
    model = Autoencoder(config.model).eval().requires_grad_(False)
    if (books := model.averaged_codebooks) is not None:
        for book in books.quantizer.codebooks:
            book.start(torch.randn_like(book.vectors))
    rate = config.sample_rate
    x = noise(config.model.channels_in, int(seconds * rate) // model.hop * model.hop)
    before = peak_gb()
    # In eval mode, chunk by chunk; the bottleneck's random numbers are not compared, only what goes into it.
    encode_sec, (latents, _) = timed(lambda: reach.encode_long(model, x))
    decode_sec, audio = timed(lambda: reach.decode_long(model, latents))
    peak = peak_gb()
    short = x[..., : rate // model.hop * model.hop]
    with torch.inference_mode():
        whole = model.encode(short, skip_bottleneck=True)[0]
        pieces = reach.encode_long(model, short, chunk_samples=1)[1]["pre_bottleneck_latents"]
    off = float((whole - pieces).abs().max() / whole.std())
    length = x.shape[-1] / rate
    assert audio.shape[-1] <= x.shape[-1] and off < 1e-2, off
    return {
        "model": name, "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 1), "seconds": length,
        "encode_x": round(length / encode_sec, 3), "decode_x": round(length / decode_sec, 3), "before_gb": round(before, 2),
        "peak_gb": round(peak, 2), "chunks_off": off,
    }  # fmt: skip


def of_preset(name: str, seconds: float) -> dict[str, Any]:
    """Encode and decode with a VQ-VAE, at its finest level; stereo is mixed to mono, as it does."""
    hps = settings.from_presets(name)
    torch.manual_seed(0)
    net = build.build_vqvae(hps).eval()
    for level in range(net.levels):
        net.codebook(level).start(torch.randn_like(net.codebook(level).vectors))
    rate = hps.section(AudioHps).sr
    codec = VQVAECodec(net, rate)
    audio = noise(2, int(seconds * rate)).mean(1)[0].numpy()
    before = peak_gb()
    encode_sec, codes = timed(lambda: codec.encode(audio))
    decode_sec, _ = timed(lambda: codec.decode(codes[0], 0))
    peak = peak_gb()
    small = VQVAECodec(net, rate, chunk_samples=1)
    one, other = (c.encode(audio[:rate], [0])[0] for c in (codec, small))
    return {
        "model": name, "parameters_m": round(sum(p.numel() for p in net.parameters()) / 1e6, 1), "seconds": seconds,
        "encode_x": round(seconds / encode_sec, 3), "decode_x": round(seconds / decode_sec, 3), "before_gb": round(before, 2),
        "peak_gb": round(peak, 2), "codes_off": float(np.mean(one != other)),
    }  # fmt: skip


def training_step(_: str, seconds: float) -> dict[str, Any]:
    """Seconds of a generator and of a discriminator step of a small oobleck, stereo, batch 2 of 1 s at 44.1 kHz."""
    levels = {"channels": 16, "c_mults": [1, 2, 4], "strides": [4, 4, 8], "use_snake": True}
    sizes = [2048, 512, 128]
    tree = {
        "model_type": "autoencoder", "sample_rate": 44100, "sample_size": 44032,
        "model": {
            "encoder": {"type": "oobleck", "config": {"latent_dim": 32, **levels}},
            "decoder": {"type": "oobleck", "config": {"latent_dim": 16, **levels}},
            "bottleneck": {"type": "vae"}, "latent_dim": 16, "downsampling_ratio": 128, "io_channels": 2,
        },
        "training": {"learning_rate": 1e-4, "loss_configs": {
            "discriminator": {
                "type": "encodec", "weights": {"adversarial": 0.1, "feature_matching": 5.0},
                "config": {"filters": 16, "n_ffts": sizes, "hop_lengths": [s // 4 for s in sizes], "win_lengths": sizes},
            },
            "spectral": {
                "config": {"fft_sizes": sizes, "hop_sizes": [s // 4 for s in sizes], "win_lengths": sizes},
                "weights": {"mrstft": 1.0},
            },
        }},
    }  # fmt: skip
    config = check(C.ModelConfig, tree, "training step")
    assert config.training is not None and config.training.losses.discriminator is not None
    torch.manual_seed(0)
    model, losses = Autoencoder(config.model).train(), GeneratorLosses(config)
    judge = build_discriminator(config.training.losses.discriminator, 2)
    movers = [torch.optim.AdamW(net.parameters(), 1e-4) for net in (model, judge)]
    x = noise(2, config.sample_size).repeat(2, 1, 1)

    def step(turn: int) -> float:
        with torch.set_grad_enabled(turn == 0):
            latents, info = model.encode(x)
            decoded = model.decode(latents)
        if turn == 0:
            adversarial = judge.generator_losses(x, decoded)
            loss = torch.stack(list(losses(x, decoded, info, adversarial=adversarial).values())).sum()
        else:
            loss = judge.own_loss(x, decoded)
        movers[turn].zero_grad()
        loss.backward()
        movers[turn].step()
        return float(loss.detach())

    step(0)
    step(1)
    repeats = max(1, round(seconds / 4))
    own = [timed(lambda: step(0)) for _ in range(repeats)]
    theirs = [timed(lambda: step(1)) for _ in range(repeats)]
    assert own[-1][1] < 1.5 * own[0][1], "the loss grows"
    return {
        "model": TRAINING, "generator_step_s": round(median(s for s, _ in own), 3),
        "discriminator_step_s": round(median(s for s, _ in theirs), 3), "peak_gb": round(peak_gb(), 2),
    }  # fmt: skip


def main() -> None:
    """One row in this process, or every row in processes of their own."""
    parser = argparse.ArgumentParser(description="Autoencoders: x real time and peak memory.")
    parser.add_argument("--model", default="", choices=["", *CONFIGS, *PRESETS, TRAINING], help="one row; empty = all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of stereo audio")
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    asked = parser.parse_args()
    if asked.model:
        if asked.threads:
            torch.set_num_threads(asked.threads)
        row = of_preset if asked.model in PRESETS else training_step if asked.model == TRAINING else of_config
        print(json.dumps({**row(asked.model, asked.seconds), "threads": torch.get_num_threads()}), flush=True)
        return
    for name in (*CONFIGS, *PRESETS, TRAINING):
        words = [f"--model={name}", f"--seconds={asked.seconds}", f"--threads={asked.threads}"]
        done = subprocess.run([sys.executable, __file__, *words], check=False)
        if done.returncode:
            print(json.dumps({"model": name, "failed": done.returncode}), flush=True)


if __name__ == "__main__":
    main()
