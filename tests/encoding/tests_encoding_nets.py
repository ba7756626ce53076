"""Tiny VQ-VAEs with weights that mean nothing, and songs, for the tests here and the programs they start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from jukebox.hparams.resolve import Resolved
from jukebox.models import build, checkpoint
from jukebox.vqvae.model import VQVAE

TINY = {
    "sr": 8000, "levels": 3, "downs_t": (2, 1, 1), "strides_t": (2, 2, 4), "emb_width": 4, "l_bins": 32, "width": 8,
    "depth": 2, "dilation_growth_rate": 3, "hvqvae_multipliers": (2, 1, 1),
}  # fmt: skip
LENGTHS = {"a": 12_345, "b": 40_000, "c": 70_001, "d": 1, "e": 31, "f": 20_000}  # samples at 8 kHz


def net_of(hps: Resolved, seed: int = 0) -> VQVAE:
    """A VQ-VAE whose codebooks hold what its encoders say of noise, from soft to loud as songs are: all codes occur."""
    torch.manual_seed(seed)
    net = build.build_vqvae(hps).eval()
    length = 400 * net.hops[-1]
    noise = torch.randn(1, 1, length) * torch.linspace(0.01, 0.4, length)
    with torch.no_grad():
        for name, parameter in net.encoders.named_parameters():  # louder, or noise of rounding is all that arrives
            parameter.mul_(0.0 if name.endswith("bias") else 2.0)
        for level in range(net.levels):
            proj = net.encoders[level].blocks[-1].proj
            spread = net.encoders[level](noise).std()
            proj.weight.div_(spread)
            rows = net.encoders[level](noise)[0].t()
            book = net.codebook(level)
            book.vectors.copy_(rows[torch.randperm(len(rows))[torch.arange(book.bins) % len(rows)]])
            book.vectors.add_(torch.randn_like(book.vectors), alpha=0.01 * float(rows.std()))
    return net


def save_run(folder: Path, hps: Resolved, net: VQVAE) -> Path:
    """A run folder as train.py leaves it."""
    table = build.vqvae_names(hps)
    model = checkpoint.published_state(net, table)
    checkpoint.write(folder, 1, hps=dict(hps.values), model=model, opt=None, extra={})
    return folder


def make_song(path: Path, length: int, rate: int = 8000, channels: int = 2, seed: int = 0) -> Path:
    """A sound file of noise that rises and falls, 16 bit."""
    draw = np.random.default_rng(seed + length)
    loud = 0.3 + 0.2 * np.sin(np.arange(length) / 500)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, draw.normal(0, 0.2, (length, channels)) * loud[:, None], rate)
    return path
