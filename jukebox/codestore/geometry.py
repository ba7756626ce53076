"""How codes, audio samples and seconds correspond, at every level.

Level 0 is the bottom (finest) level. Code n of a level always means time n x hop of that level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jukebox.errors import StoreError


@dataclass(frozen=True)
class Geometry:
    """Sample rate, hops and codebook size of a codec; every length of a store follows from it.

    `hops` are audio samples per code, level 0 first, each a divisor of the next. `bins` is the number of codebook
    vectors of a level; 0 stands for continuous latents. `frame` codes of the top level belong together (the codebooks of
    a residual quantiser, one after the other): songs and windows are whole frames. Raises StoreError on values that fit no codec.
    """

    sr_hz: int
    hops: tuple[int, ...]
    bins: int
    frame: int = 1

    def __post_init__(self) -> None:
        numbers = (self.sr_hz, self.bins, self.frame, *self.hops)
        if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
            raise StoreError(f"sample rate, hops and bins must be whole numbers, not {numbers}")
        if not 1 <= self.sr_hz <= 10_000_000 or not 0 <= self.bins <= 2**31 or not 1 <= len(self.hops) <= 16:
            raise StoreError(f"no codec has {self.sr_hz} Hz, {len(self.hops)} levels and {self.bins} bins")
        if not 1 <= self.frame <= 4096:
            raise StoreError(f"no codec has frames of {self.frame} codes")
        if not all(1 <= hop <= 2**31 for hop in self.hops) or any(up % low for low, up in pairwise(self.hops)):
            raise StoreError(f"hops must be positive and each divide the next, level 0 first, not {self.hops}")

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.hops)

    @property
    def top_hop(self) -> int:
        """Samples per code of the top level, or per frame of its codes."""
        return self.hops[-1] * self.frame

    def padded_length(self, length_samples: int) -> int:
        """Length in samples, rounded up to whole top codes."""
        return -(-length_samples // self.top_hop) * self.top_hop

    def codes_for(self, level: int, length_samples: int) -> int:
        """Codes of a level that a song of this true length has once padded to whole top codes."""
        return self.padded_length(length_samples) // self.hops[level]

    def valid_codes(self, level: int, length_samples: int) -> int:
        """Codes of a level that hold at least one true sample."""
        return -(-length_samples // self.hops[level])

    def samples_for(self, level: int, n_codes: int) -> int:
        """Audio samples that this many codes of a level stand for."""
        return n_codes * self.hops[level]

    def code_at(self, level: int, time_sec: float) -> int:
        """The code of a level in which this moment lies."""
        return int(round(time_sec * self.sr_hz)) // self.hops[level]

    def seconds_at(self, level: int, code: int) -> float:
        """The moment at which this code of a level begins."""
        return code * self.hops[level] / self.sr_hz

    def ratio(self, level: int, upper: int) -> int:
        """Codes of `level` for one code of `upper`."""
        return self.hops[upper] // self.hops[level]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        frame = {"frame": self.frame} if self.frame > 1 else {}
        return {"sample_rate": self.sr_hz, "hops": list(self.hops), "bins": self.bins, **frame}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Geometry:
        """The reverse of `to_json`; raises StoreError on anything else."""
        hops = data.get("hops")
        if not isinstance(hops, Sequence) or isinstance(hops, str):
            raise StoreError(f"hops must be a list of whole numbers, not {hops!r}")
        return cls(data.get("sample_rate", None), tuple(hops), data.get("bins", None), data.get("frame", 1))

    def describe(self) -> str:
        """One line for messages."""
        return f"{self.sr_hz} Hz, hops {', '.join(map(str, self.hops))}, {self.bins} bins"
