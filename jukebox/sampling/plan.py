"""How much is to be sampled, in which windows; numbers only, known before any model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jukebox.errors import UsageError

_SONG_SEC = 20.0  # where neither the command line nor the model set says how long a song is


@dataclass(frozen=True)
class Window:
    """One window of a level: codes [start, start + length) of a song, of which `given` are there already."""

    start: int
    length: int
    given: int


def window_starts(total: int, n_ctx: int, hop: int) -> list[int]:
    """Starts of the windows that cover `total` codes in steps of `hop`; the last one is moved back to end there.

    A total below n_ctx is one window at 0. (arXiv:2005.00341 sec. 4.1, windowed sampling)
    """
    if total <= n_ctx:
        return [0]
    starts = []
    for start in range(0, total - n_ctx + hop, hop):
        if start + n_ctx >= total:
            starts.append(total - n_ctx)
            break
        starts.append(start)
    return starts


def next_window(total: int, n_ctx: int, hop: int, have: int) -> Window | None:
    """The window that goes on from `have` codes towards `total`; None when they are all there."""
    for start in window_starts(total, n_ctx, hop):
        length = min(n_ctx, total - start)
        if start + length > have:
            return Window(start, length, max(0, have - start))
    return None


@dataclass(frozen=True)
class LevelPlan:
    """What one level needs. n_ctx: codes of a window; ratio: codes per code of the level above (None at the top)."""

    level: int
    n_ctx: int
    hop: int
    samples_per_code: int
    ratio: int | None

    def total(self, length_samples: int) -> int:
        """Codes of this level for a length in samples."""
        return length_samples // self.samples_per_code

    def check(self, length_samples: int, sr_hz: int) -> None:
        """Raises UsageError when no window fits into the length.

        Only the top level can be sampled in part of a window: elsewhere a window needs all its upper codes.
        """
        if self.ratio is not None and self.total(length_samples) < self.n_ctx:
            least = self.n_ctx * self.samples_per_code / sr_hz
            raise UsageError(
                f"--sample_length_in_seconds={length_samples / sr_hz:.2f} is shorter than one window of level "
                f"{self.level} ({least:.2f} s). Ask for at least {least:.2f} s, or stop above with --levels."
            )


def hop_codes(fraction: float, n_ctx: int, ratio: int | None) -> tuple[int, bool]:
    """Step between windows in codes, at least one, and whether it was rounded.

    An upsampler's windows must begin where an upper code begins, so its step is rounded down to whole upper codes.
    """
    hop = max(1, int(fraction * n_ctx))
    unit = ratio or 1
    rounded = max(unit, hop - hop % unit)
    return rounded, rounded != hop


def song_sec(asked: float | None, usual: float | None) -> float:
    """How long a song is: as asked for, else as the model set says, else 20 s."""
    return asked or usual or _SONG_SEC


def whole_length(seconds: float, samples: int, sr_hz: int, top_hop: int) -> int:
    """Length in samples, rounded down to whole top codes. Raises UsageError when nothing is left."""
    if not 0 <= seconds < math.inf:
        raise UsageError(f"a length of {seconds:g} s is none: give a number of seconds above 0.")
    asked = samples or int(seconds * sr_hz)
    length = asked // top_hop * top_hop
    if not length:
        raise UsageError(
            f"--sample_length_in_seconds={asked / sr_hz:g} is less than one top code ({top_hop / sr_hz:.3f} s)."
        )
    return length


def table(levels: list[LevelPlan], length_samples: int, sr_hz: int, given: dict[int, int]) -> str:
    """Seconds, codes and windows of every level, as the sampler prints them before it starts."""
    rows = ["level   seconds     codes    given   windows   window (s)"]
    for plan in levels:
        total = plan.total(length_samples)
        windows = len(window_starts(total, plan.n_ctx, plan.hop))
        rows.append(
            f"{plan.level:5d} {total * plan.samples_per_code / sr_hz:9.2f} {total:9d} {given.get(plan.level, 0):8d} "
            f"{windows:9d} {plan.n_ctx * plan.samples_per_code / sr_hz:12.2f}"
        )
    return "\n".join(rows)
