"""How well an attention head follows the lyrics: which (layer, head) of a prior aligns them with time.

A head that reads along attends, code after code, to characters that lie on a line from the first to the last one sung.
Figures that say so, all of attention `[N, C]` of N codes on C characters, and none alone:

on_path     the share of attention that lies near the best path that never goes back (Viterbi), within one character or
            1/64 of them, less the same share when the codes are shuffled. A head that looks at one place, or anywhere,
            gains nothing from the order of the codes: near 0. One that reads along: nearly 1.
linear      the correlation of time with the expected character, weighted by how much attention lyrics get at all.
            A head that jumps between like characters is far from a line.
reach       how many characters get attention (e to the entropy of their shares), as a part of half of those that should be
            sung. A head that moves a little, or between two places, does not reach far.
lyrics      the share of attention that is on lyrics, as a part of FAINT.

Their product is the score, averaged over songs. What untrained and trained nets reach stands in docs/benchmarks.md; `LEAST`
lies far from both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LEAST = 0.1
"""A score below counts as "none"."""
AS_GOOD = 0.85
"""A head is about as good as the best from this share of its score on: trained nets have several that read along."""
FAINT = 0.05
"""Share of attention on lyrics below which a head counts for less, in proportion: it looks elsewhere."""
FEWEST = 8
"""A line through fewer characters or codes says nothing."""


@dataclass(frozen=True)
class Score:
    """A head's figures, means over songs."""

    on_path: float
    linear: float
    reach: float
    lyrics: float
    score: float


def score(weights: Floats, sung: float, rng: np.random.Generator) -> Floats | None:
    """Figures of K heads on one song, `[K, 5]` in the order of `Score`; None where there is too little to see.

    weights `[K, N, C]`: attention of the codes that are sung on the characters they are told, in their order. sung: how
    many of the characters belong to these codes, as far as is known.
    """
    _, codes, characters = weights.shape
    if codes < FEWEST or characters < FEWEST:
        return None
    mass = weights.sum(axis=2)  # (K, N)
    shuffled = weights[:, rng.permutation(codes)]
    figures = [
        _on_best_path(weights) - _on_best_path(shuffled),
        _linear(weights, mass),
        _reach(weights) / (min(max(sung, FEWEST), characters) / 2),
        mass.mean(axis=1) / FAINT,
    ]
    found = np.clip(np.stack(figures, axis=1), 0, 1)
    return np.concatenate([found, found.prod(axis=1, keepdims=True)], axis=1).astype(np.float32)


def _on_best_path(weights: Floats) -> Floats:
    """Share of attention `[K]` near the best path that never goes back."""
    characters = weights.shape[2]
    aside = max(1, round(characters / 64))
    upto = np.pad(weights.cumsum(axis=2), ((0, 0), (0, 0), (1, 0)))
    at = np.arange(characters)
    near = upto[:, :, np.minimum(at + aside + 1, characters)] - upto[:, :, np.maximum(at - aside, 0)]
    best = near[:, 0]
    for code in range(1, near.shape[1]):
        best = np.maximum.accumulate(best, axis=1) + near[:, code]
    share: Floats = best.max(axis=1) / np.maximum(weights.sum(axis=(1, 2)), 1e-9)
    return share


def _linear(weights: Floats, mass: Floats) -> Floats:
    """Correlation `[K]` of time and expected character, every code weighted by its attention on lyrics."""
    share = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-9)  # (K, N)
    place = weights @ np.arange(weights.shape[2], dtype=np.float32) / np.maximum(mass, 1e-9)
    time = np.arange(weights.shape[1], dtype=np.float32)
    place = place - (share * place).sum(axis=1, keepdims=True)
    late = time - (share * time).sum(axis=1, keepdims=True)
    together = (share * place * late).sum(axis=1)
    apart = (share * place**2).sum(axis=1) * (share * late**2).sum(axis=1)
    found: Floats = together / np.sqrt(np.maximum(apart, 1e-12))
    return found


def _reach(weights: Floats) -> Floats:
    """How many characters get attention, `[K]`: e to the entropy of their shares."""
    share = weights.sum(axis=1) / np.maximum(weights.sum(axis=(1, 2)), 1e-9)[:, None]
    found: Floats = np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum(axis=1))
    return found
