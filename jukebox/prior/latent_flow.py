"""A prior over continuous latents: rectified flow with a transformer (arXiv:2209.03003; arXiv:2403.03206 sec. 3).

Latents x_0 and noise x_1 are joined by straight lines x_t = (1 - t) x_0 + t x_1; the net learns the velocity x_1 - x_0,
and sampling walks from noise at t = 1 to latents at t = 0. Legend: B batch, D latent channels, n frames, W width,
S lyric characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox.nn import patterns as P
from jukebox.nn.linear import Linear
from jukebox.nn.patterns import Pattern
from jukebox.nn.transformer import Block, LayerNorm, TransformerShape
from jukebox.prior.conditioners import Labels, LabelShape

Solver = Literal["euler", "heun"]


@dataclass(frozen=True)
class FlowShape:
    """Everything that shapes a flow. hop: audio samples per frame. labels None: unconditioned. n_tokens: S, 0 without
    lyrics."""

    latent_dim: int
    frames: int
    hop: int
    width: int
    depth: int
    heads: int
    labels: LabelShape | None = None
    n_tokens: int = 0
    n_vocab: int = 0

    @property
    def sample_length(self) -> int:
        """Audio samples of a window."""
        return self.frames * self.hop


class _AllSee(TransformerShape):
    """Layers in which every frame sees every frame and every lyric character: the encoder-decoder kind, whose encoder
    states are the layer's own input behind the lyrics."""

    def pattern(self, layer: int) -> Pattern:
        """The same of every layer."""
        return Pattern(P.ENCODER, self.n, encoder_len=self.encoder_len)


@dataclass
class Told:
    """What a window is told: `added` `[B, n, W]` to every frame, and lyric states `[B, S, W]`."""

    added: Tensor
    lyrics: Tensor | None


class LatentFlow(nn.Module):
    """The velocity of latents `[B, D, n]` at time t `[B]`, for a label vector y as priors over codes have it.

    A label that is dropped, at random in training and on purpose for guidance, is replaced by a learnt one.
    """

    scale: Tensor

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.shape = shape
        W, n = shape.width, shape.frames
        self.register_buffer("scale", torch.ones(()))  # latents are divided by it
        self.before = Linear(shape.latent_dim, W)
        self.pos = nn.Parameter(torch.randn(n, W) * 0.02)
        self.time = nn.Sequential(Linear(64, W), nn.SiLU(), Linear(W, W))
        if shape.labels is not None:
            self.labels = Labels(shape.labels)
            self.nobody = nn.Parameter(torch.zeros(W))
        if shape.n_tokens:
            self.characters = nn.Embedding(shape.n_vocab, W)
            self.character_pos = nn.Parameter(torch.randn(shape.n_tokens, W) * 0.02)
        layers = _AllSee(n, W, shape.depth, shape.heads, 0, encoder_len=n + shape.n_tokens, m_attn=1.0, m_mlp=4.0)
        self.layers = nn.ModuleList(Block(layers, layer) for layer in range(shape.depth))
        self.shifts = nn.ModuleList(Linear(W, W, zero_out=True) for _ in range(shape.depth))
        self.norms = nn.ModuleList(LayerNorm(W) for _ in range(shape.depth))
        self.norm = LayerNorm(W)
        self.after = Linear(W, shape.latent_dim, zero_out=True)

    @property
    def n_tokens(self) -> int:
        """S."""
        return self.shape.n_tokens

    @property
    def sample_length(self) -> int:
        """Audio samples of a window."""
        return self.shape.sample_length

    def told(self, y: Tensor | None, B: int, dropped: Tensor | None = None) -> Told:
        """What label vectors y `[B, 4 + G + S]` say; `dropped` `[B]` bool: items that are told nothing."""
        shape, W = self.shape, self.shape.width
        added = self.pos.new_zeros(B, shape.frames, W)
        if shape.labels is None:
            return Told(added, None)
        assert y is not None, "a labelled flow needs labels"
        start, timing = self.labels(y)
        added = added + start + (0.0 if timing is None else timing)
        keep = torch.ones(B, dtype=torch.bool, device=y.device) if dropped is None else ~dropped
        added = torch.where(keep[:, None, None], added, self.nobody.expand_as(added))
        if not shape.n_tokens:
            return Told(added, None)
        lyrics = self.characters(y[:, y.shape[1] - shape.n_tokens :]) + self.character_pos
        return Told(added, lyrics * keep[:, None, None])

    def forward(self, x: Tensor, t: Tensor, told: Told) -> Tensor:
        """x `[B, D, n]`, t `[B]` in [0, 1] -> velocity `[B, D, n]`."""
        moment = self.time(_waves(t))[:, None]  # (B, 1, W)
        h = self.before(x.mT) + self.pos + told.added + moment  # (B, D, n) -> (B, n, W)
        for layer, shift, norm in zip(self.layers, self.shifts, self.norms, strict=True):
            h = h + shift(told.added + moment)
            seen = norm(h)
            h = layer(h, seen if told.lyrics is None else torch.cat([told.lyrics, seen], dim=1))
        velocity: Tensor = self.after(self.norm(h)).mT
        return velocity

    def loss(self, x: Tensor, mask: Tensor, told: Told, t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity at t `[B]` over the frames where mask `[B, n]` is 1; x is scaled."""
        at = t[:, None, None]
        found: Tensor = self((1 - at) * x + at * noise, t, told)
        error = (found - (noise - x)).square().mean(1)  # (B, n)
        return (error * mask).sum() / mask.sum().clamp_min(1)


def draw_times(uniform: Tensor) -> Tensor:
    """Times of training, from uniform numbers: denser in the middle, where the velocity is hardest to tell
    (logit-normal, arXiv:2403.03206 sec. 3.1)."""
    return torch.sigmoid(torch.erfinv((2 * uniform - 1).clamp(-0.999999, 0.999999)) * math.sqrt(2))


def _waves(t: Tensor) -> Tensor:
    """t `[B]` -> `[B, 64]`, sines and cosines of it."""
    frequencies = torch.exp(torch.linspace(0.0, math.log(1000.0), 32, device=t.device))
    angles = t[:, None] * frequencies * math.pi
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@torch.no_grad()
def sample(
    net: LatentFlow, noise: Tensor, y: Tensor | None, *, steps: int = 50, solver: Solver = "heun", guidance: float = 1.0,
    given: Tensor | None = None, on_step: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """Latents `[B, D, n]`, in their own scale, from noise `[B, D, n]`.

    given `[B, D, m]`: latents that the window begins with; at every moment they are where their own line leads.
    guidance above 1 leads away from what an item without labels would be (arXiv:2207.12598 eq. 6). Heun's solver costs
    two evaluations a step, and one at the last.
    """
    B = len(noise)
    told = net.told(y, B)
    free = (
        net.told(y, B, torch.ones(B, dtype=torch.bool, device=noise.device))
        if guidance != 1.0 and y is not None
        else None
    )

    known = None if given is None or not given.shape[2] else given / net.scale

    def velocity(x: Tensor, t: float) -> Tensor:
        if known is not None:
            m = known.shape[2]
            x = torch.cat([(1 - t) * known + t * noise[..., :m], x[..., m:]], dim=2)
        time = torch.full((B,), t, device=x.device)
        found: Tensor = net(x, time, told)
        if free is None:
            return found
        without: Tensor = net(x, time, free)
        return without + guidance * (found - without)

    found = integrate(velocity, noise, steps, solver, on_step) * net.scale
    return found if given is None else torch.cat([given, found[..., given.shape[2] :]], dim=2)


def integrate(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, solver: Solver,
    on_step: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """From t = 1 to t = 0 in equal steps."""
    for step in range(steps):
        t, following = 1 - step / steps, 1 - (step + 1) / steps
        v = velocity(x, t)
        ahead = x + (following - t) * v
        if solver == "heun" and step < steps - 1:
            v = (v + velocity(ahead, following)) / 2
            ahead = x + (following - t) * v
        x = ahead
        if on_step:
            on_step()
    return x


def pad_window(latents: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Latents `[D, m]`, m <= n, filled up with zeros to `[D, n]`, and the mask `[n]` of those that are real."""
    m = latents.shape[1]
    mask = (torch.arange(frames) < m).float()
    return F.pad(latents, (0, frames - m)), mask
