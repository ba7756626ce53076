"""Priors of true shape and random weights for gpu.py, which come to a card packed, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from jukebox import settings
from jukebox.models import build
from jukebox.nn import linear
from jukebox.prior.model import Prior, PriorShape

PRIORS = {"upsampler_level_1": "vqvae,upsampler_level_1", "prior_1b_lyrics": "vqvae,prior_1b_lyrics",
          "prior_5b_lyrics": "vqvae,prior_5b_lyrics"}  # fmt: skip
SMALL = {"prior_width": 64, "prior_depth": 19, "n_ctx": 256, "cond_width": 16, "cond_depth": 2, "prime_width": 32,
         "prime_depth": 2, "min_duration": 1.0, "alignment_layer": None, "alignment_head": None}  # fmt: skip


def level_of(model: str) -> tuple[int, ...]:
    """The levels that nets of this shape sample; both upsamplers are alike."""
    return (1, 0) if model.startswith("upsampler") else (2,)


def shape_of(model: str, small: bool) -> PriorShape:
    """Of a preset, or, for a rehearsal, a small one of its kind."""
    shape = build.prior_shape(settings.from_presets(PRIORS[model], **(SMALL if small else {})))
    return replace(shape, alignment_layer=None)


def plain_prior(shape: PriorShape, device: str, cut: Callable[[Prior], None] = lambda _: None) -> Prior:
    """A float32 prior; `cut` may take layers away before it comes to life."""
    with torch.device("meta"):
        prior = Prior(shape)
    cut(prior)
    prior = prior.to_empty(device=device).eval().requires_grad_(False)
    fill = _Filler(device)
    for name, tensor in prior.named_parameters():
        fill(name, tensor)
    return prior


def packed_prior(shape: PriorShape, form: linear.Form, device: str) -> Prior:
    """A packed prior; of its plain layers only one is on the device at a time."""
    with torch.device("meta"):
        prior = Prior(shape).eval().requires_grad_(False)
    fill = _Filler(device)
    for module in list(prior.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, linear.Linear):
                setattr(module, name, _packed(child.to_empty(device=device), form, fill))
    head = prior.net.out
    prior.net.out = nn.Identity()
    prior.to_empty(device=device)
    for name, tensor in prior.named_parameters():
        fill(name, tensor)
    if prior.net.merged:
        prior.net.out = _packed(head.to_empty(device=device), form, fill)
    else:
        prior.net.out = linear.Head(head.weight.shape[1], head.weight.shape[0], prior.net.emb)
        linear.pack(prior.net, form)
    return prior


def _packed(layer: nn.Module, form: linear.Form, fill: _Filler) -> nn.Module:
    for name, tensor in layer.named_parameters():
        fill(name, tensor)
    holder = nn.ModuleDict({"layer": layer})
    linear.pack(holder, form)
    return holder["layer"]


class _Filler:
    """Gives tensors the spread of trained ones; blocks of numbers repeat."""

    def __init__(self, device: str) -> None:
        self.numbers = torch.randn(1 << 22, device=device, generator=torch.Generator(device).manual_seed(0))
        self.shift = 0

    def __call__(self, name: str, tensor: Tensor) -> None:
        self.shift = (self.shift + 7919) % (1 << 20)
        numbers = self.numbers[self.shift :]
        spread = 1.0 if "norm" in name and name.endswith("weight") else 0.02
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), len(numbers)):
            part = flat[start : start + len(numbers)]
            part.copy_(numbers[: len(part)] * spread)
