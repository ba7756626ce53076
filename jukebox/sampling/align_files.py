"""The files of an alignment beside the page, in the forms that the first implementation gave them, and subtitles.

`align.png` and `align.json` are made of bytes as Pillow made them (bicubic resizing in 8 bits, Gaussian blur by three
box blurs): players and notebooks of that time read them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jukebox.labels import timed
from jukebox.labels.song import CharTime
from jukebox.pages.page import WordTime

Bytes = NDArray[np.uint8]

PICTURE = (1024, 512)  # time, characters
CODES_PER_ROW = 16
BLUR_RADIUS = 1.5


def trimmed(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Attention `[N, F]` without the characters at the end that nothing attends to."""
    used = np.flatnonzero((weights > 0).any(axis=0))
    return weights[:, : used[-1] + 1] if len(used) else weights[:, :0]


def align_png(weights: NDArray[np.float32]) -> bytes:
    """A greyscale picture of trimmed attention: time from left to right, the first character at the bottom."""
    time, characters = PICTURE
    return grey_png(np.rot90(resized(to_bytes(weights), time, characters)))


def align_rows(weights: NDArray[np.float32]) -> Bytes:
    """Trimmed attention, blurred, 0 to 255: one row per 16 codes, one column per character."""
    rows = max(1, len(weights) // CODES_PER_ROW)
    return blurred(resized(to_bytes(weights), rows, weights.shape[1]), BLUR_RADIUS)


def align_json(weights: NDArray[np.float32]) -> str:
    """`align_rows` as text."""
    return json.dumps(align_rows(weights).tolist())


def lyrics_json(lyrics: str) -> str:
    """Cleaned lyrics as characters, moved on by one, as the columns of the attention are."""
    return json.dumps(["", *lyrics[:-1]] if lyrics else [])


def vtt(words: Sequence[WordTime]) -> str:
    """Words with times as WebVTT subtitles, a cue per line of the lyrics."""
    text, times = "", list[CharTime]()
    for before, word in zip([None, *words], words, strict=False):
        if before is not None:
            text += " " if before.line == word.line else "\n"
            times.append((before.end_sec, word.start_sec))
        text += word.text
        times += [(word.start_sec, word.end_sec)] * len(word.text)
    return timed.vtt_text(text, times)


def to_bytes(weights: NDArray[np.float32]) -> Bytes:
    """0 ... 1 as 0 ... 255, rounded down."""
    return (weights.astype(np.float64) * 255).astype(np.uint8)


def resized(image: Bytes, height: int, width: int) -> Bytes:
    """Bicubic resizing of `[H, W]` as Pillow's: first the width, then the height, each rounded to 8 bits."""
    if image.shape[1] != width:
        image = _resample(image, width)
    return _resample(image.T, height).T if image.shape[0] != height else image


def _resample(image: Bytes, width: int) -> Bytes:
    """Rows to a new width with coefficients of 22 bits (doi:10.1109/TASSP.1981.1163711, a = -0.5)."""
    old, bits = image.shape[1], 22
    scale = old / width
    spread = max(scale, 1.0)
    coefficients = np.zeros((old, width), np.int64)
    for x in range(width):
        centre = (x + 0.5) * scale
        first, last = max(int(centre - 2 * spread + 0.5), 0), min(int(centre + 2 * spread + 0.5), old)
        taps = _cubic((np.arange(first, last) - centre + 0.5) / spread)
        exact = taps / taps.sum() * (1 << bits)
        coefficients[first:last, x] = np.trunc(exact + np.where(exact < 0, -0.5, 0.5))
    total = image.astype(np.float64) @ coefficients.astype(np.float64)  # exact: below 2 ** 53
    rounded: Bytes = np.clip((total.astype(np.int64) + (1 << (bits - 1))) >> bits, 0, 255).astype(np.uint8)
    return rounded


def _cubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def blurred(image: Bytes, radius: float) -> Bytes:
    """Gaussian blur as three box blurs of a fractional length (doi:10.1007/978-3-642-24785-9_38), both ways."""
    variance = np.float32(radius) ** 2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    for _ in range(3):
        image = _box(image, float(np.float32(whole + part)))
    turned = image.T
    for _ in range(3):
        turned = _box(turned, float(np.float32(whole + part)))
    return np.ascontiguousarray(turned.T)


def _box(image: Bytes, radius: float) -> Bytes:
    """Mean of 2 radius + 1 neighbours in each row, in fixed point of 24 bits; the edges go on as they are."""
    whole = int(radius)
    weight = int((1 << 24) / (radius * 2 + 1))
    edge = ((1 << 24) - (2 * whole + 1) * weight) // 2
    padded = np.pad(image.astype(np.int64), ((0, 0), (whole + 1, whole + 1)), mode="edge")
    n = image.shape[1]
    middle = sum(padded[:, 1 + i : 1 + i + n] for i in range(2 * whole + 1))
    ends = padded[:, :n] + padded[:, 2 * whole + 2 : 2 * whole + 2 + n]
    return ((middle * weight + ends * edge + (1 << 23)) >> 24).astype(np.uint8)


def grey_png(image: Bytes) -> bytes:
    """An 8-bit greyscale PNG of `[H, W]`."""
    height, width = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image], axis=1)  # each row begins with filter type 0
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
