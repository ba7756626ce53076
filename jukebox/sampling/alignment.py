"""Which lyric character is sung when: the attention of one layer and head over whole songs, and word times from it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jukebox.labels.ids import Alphabet
from jukebox.labels.vector import Labeller
from jukebox.nn.patterns import NAMES, layer_kind
from jukebox.pages.page import WordTime
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling.levels import Song
from jukebox.sampling.plan import LevelPlan, window_starts

Weights = NDArray[np.float32]

FRAME_SEC = 0.05
"""Resolution of word times."""
FLOOR = 1e-3
"""Share of attention that counts as none: below it one word is as unlikely as another."""
ELSEWHERE = 0.05
"""Attention per code that counts as on no word: a prior may look past the lyrics where nothing is sung."""
SKIP_COST = 3.0
"""What it costs the path through the words to leave one out, in nats."""


def why_not(shape: PriorShape) -> str:
    """Why a prior cannot align lyrics with time; empty when it can."""
    layer, head = shape.alignment_layer, shape.alignment_head
    if not shape.n_tokens:
        return "this model does not read lyrics"
    if layer is None or head is None:
        return "this model names no alignment_layer and alignment_head (python jukebox/align.py --find finds them)"
    if not shape.reads_lyrics(layer):
        kind = NAMES[layer_kind(shape.transformer.attn_order, layer)]
        return f"layer {layer} (alignment_layer) is of the kind {kind!r}, which does not read lyrics"
    return ""


def align(
    prior: Prior, labeller: Labeller, plan: LevelPlan, songs: Sequence[Song], *, dtype: torch.dtype = torch.float32
) -> list[Weights]:  # fmt: skip
    """Attention `[N, F]` of every song's top codes (N) on its cleaned lyrics (F characters).

    Row i is the query that predicts code i. Column c is the key that carries character c - 1, since inputs are shifted
    by one. Where windows overlap the earliest that sees both code and character counts. plan is that of the top level;
    the prior must be able to align (`why_not`).
    """
    return [_align(prior, labeller, plan, song, dtype) for song in songs]


def _align(prior: Prior, labeller: Labeller, plan: LevelPlan, song: Song, dtype: torch.dtype) -> Weights:
    layer, head = prior.shape.alignment_layer, prior.shape.alignment_head
    assert layer is not None and head is not None
    codes = song.codes[plan.level]
    label = labeller.full(song.request.song, song.total_samples, 0)
    found = np.zeros((max(len(codes), plan.n_ctx), len(label.tokens) + 1), np.float32)  # the last column is padding
    padded = torch.zeros(1, len(found), dtype=torch.int64)
    padded[0, : len(codes)] = torch.from_numpy(codes)
    device = next(prior.parameters()).device
    for start in reversed(window_starts(len(found), plan.n_ctx, plan.hop)):
        y, characters = labeller.at(label, start * plan.samples_per_code, prior.sample_length)
        window = padded[:, start : start + plan.n_ctx].to(device)
        told = torch.from_numpy(y)[None].to(device)
        weights: Tensor = prior.lyric_attention({layer}, window, told, dtype=dtype)[layer]
        found[start : start + plan.n_ctx, characters] = weights[0, head].float().cpu().numpy()
    return found[: len(codes), :-1]


def word_times(weights: Weights, lyrics: str, alphabet: Alphabet, code_sec: float) -> list[WordTime]:
    """When each word of the lyrics, as the user wrote them, is sung; words that nothing attends to are left out.

    weights `[N, F]` as from `align`, code_sec: duration of a code. The words are taken in their order: of all paths
    through them the one that attention likes best (Viterbi). confidence: the share of attention on the word while it
    is sung.
    """
    words, columns = _words(lyrics, alphabet, weights.shape[1])
    if not words or not len(weights):
        return []
    return [
        WordTime(words[w][0], start, end, confidence, words[w][1])
        for w, (start, end, confidence) in _spans(weights, columns, code_sec).items()
    ]


def character_times(weights: Weights, code_sec: float) -> list[tuple[float, float] | None]:
    """Start and end of each cleaned character, in seconds, by the same path; None for what nothing attends to."""
    if not weights.size:
        return [None] * weights.shape[1]
    columns = np.arange(1, weights.shape[1])[:, None] + np.array([0, 1])  # column c carries character c - 1
    found = _spans(weights, columns, code_sec) if len(columns) else {}
    return [found[i][:2] if i in found else None for i in range(weights.shape[1])]


def _spans(weights: Weights, columns: NDArray[np.int64], code_sec: float) -> dict[int, tuple[float, float, float]]:
    """Start, end and confidence of each unit of the lyrics, in order; columns `[U, 2]`: its first and last + 1."""
    codes_per_frame = max(1, round(FRAME_SEC / code_sec))
    frames = np.add.reduceat(weights, np.arange(0, len(weights), codes_per_frame), axis=0, dtype=np.float64)
    upto = np.pad(frames.cumsum(axis=1), ((0, 0), (1, 0)))  # (T, F + 1)
    mass = upto[:, columns[:, 1]] - upto[:, columns[:, 0]]  # (T, U)
    share = mass / (mass.sum(axis=1, keepdims=True) + ELSEWHERE * codes_per_frame)
    path = _best_path(np.log(np.maximum(share, FLOOR)))
    found = {}
    for w in np.unique(path):
        at = np.flatnonzero((path == w) & (share[:, w] > FLOOR))
        if not len(at):
            continue
        heard = at[share[at, w] >= 0.25 * share[at, w].max()]
        start, end = (float(frame * codes_per_frame * code_sec) for frame in (heard[0], heard[-1] + 1))
        found[int(w)] = start, min(end, len(weights) * code_sec), round(float(share[heard, w].mean()), 3)
    return found


def _words(lyrics: str, alphabet: Alphabet, characters: int) -> tuple[list[tuple[str, int]], NDArray[np.int64]]:
    """The words with their lines, and for each the first and behind-the-last column of its characters, `[W, 2]`."""
    _, sources = alphabet.clean(lyrics)
    words, columns, position = [], [], 0
    for line, text in enumerate(lyrics.split("\n")):
        for match in re.finditer(r"\S+", text):
            first, last = np.searchsorted(sources, [position + match.start(), position + match.end()])
            first, last = min(first + 1, characters), min(last + 1, characters)  # column c carries character c - 1
            if first < last:
                words.append((match[0], line))
                columns.append((first, last))
        position += len(text) + 1
    return words, np.array(columns, np.int64).reshape(-1, 2)


def _best_path(score: NDArray[np.float64]) -> NDArray[np.int64]:
    """The word of each frame, never going back: score `[T, W]` in nats -> `[T]`."""
    order = np.arange(score.shape[1])
    skip = SKIP_COST * order  # leaving out the words between v and w costs skip[w] - skip[v] - SKIP_COST
    best = score[0] - skip
    came = np.zeros(score.shape, np.int64)
    for t in range(1, len(score)):
        reach = np.maximum.accumulate(best + skip)
        source = np.maximum.accumulate(np.where(best + skip == reach, order, 0))
        moved = np.full_like(best, -np.inf)
        moved[1:] = reach[:-1] - skip[1:] + SKIP_COST
        came[t] = np.where(moved > best, np.concatenate([[0], source[:-1]]), order)
        best = np.maximum(moved, best) + score[t]
    path = np.empty(len(score), np.int64)
    path[-1] = best.argmax()
    for t in range(len(score) - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    return path
