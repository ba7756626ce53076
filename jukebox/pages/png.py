"""Writes palette PNG files from numbers, and pictures of attention: numpy and zlib are enough for that."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Night, violet, ember, straw: dark to light with even steps of lightness, so that it also reads in grey.
ANCHORS = np.array([(16, 15, 24), (58, 28, 84), (136, 40, 92), (205, 78, 68), (243, 148, 77), (252, 236, 190)])
SHADES = 64  # more shades show nothing more and double the file


def palette() -> NDArray[np.uint8]:
    """[SHADES, 3] colours from dark to light."""
    at = np.linspace(0, len(ANCHORS) - 1, SHADES)
    channels = [np.interp(at, np.arange(len(ANCHORS)), ANCHORS[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def heat_map(values: NDArray[Any]) -> bytes:
    """A PNG of values [height, width] in 0..1, dark to light; what lies outside is clipped, NaN is dark."""
    clean = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0.0, 1.0)
    shades = (clean * (SHADES - 1)).round().astype(np.uint8)
    height, width = shades.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), shades], axis=1)  # each row begins with filter type 0
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, palette
    chunks = [
        (b"IHDR", header),
        (b"PLTE", palette().tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def shrink(values: NDArray[Any], limit: int) -> NDArray[Any]:
    """At most `limit` rows: the largest value of each run of rows, so that a thin ridge stays visible."""
    rows = len(values)
    if rows <= limit:
        return values
    starts = np.arange(limit) * rows // limit
    return np.asarray(np.maximum.reduceat(values, starts, axis=0))


def alignment_png(weights: NDArray[Any]) -> bytes:
    """Attention [time, characters] as a picture: time left to right, the first character at the bottom."""
    small = shrink(shrink(np.asarray(weights, dtype=np.float64), 1024).T, 512)  # [characters, time]
    top = small.max(initial=0.0)
    return heat_map(np.sqrt(small / top)[::-1] if top > 0 else small)  # the root lifts faint traces into sight
