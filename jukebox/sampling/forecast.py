"""What a run will take, before it starts: memory of every level against the limit, disk, and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from jukebox.errors import OutOfSpace
from jukebox.models.codec import Codec, VQVAECodec
from jukebox.nn import linear
from jukebox.nn.linear import Form
from jukebox.parallel import launch
from jukebox.parallel.comm import Comm
from jukebox.resources import anonymous_bytes, disk_free_bytes, memory_limit_bytes, size_text
from jukebox.runlog import duration_text
from jukebox.sampling import needs, speed
from jukebox.sampling.levels import Song
from jukebox.sampling.memory import OutOfMemory
from jukebox.sampling.needs import Needs, needs_of
from jukebox.sampling.plan import Window, next_window
from jukebox.sampling.prepare import Level
from jukebox.sampling.requests import LevelSettings, Request

_BYTES_PER_SAMPLE = 2 + 4 + 1  # on disk, of each level: wav, data.pth.tar, and codes in three forms
_BYTES_WHILE_EXPORTING = 4  # float copies that data.pth.tar is made from


@dataclass(frozen=True)
class LevelForecast:
    """One level, as one process samples it: songs at once, batches of them, windows of the longest song."""

    level: Level
    settings: LevelSettings
    songs: int
    batches: int
    windows: Sequence[Window]
    form: Form | Literal["auto"]
    device: str

    @cached_property
    def needs(self) -> Needs:
        """Bytes of memory."""
        return self.with_other(self.songs, self.form)

    def with_other(self, songs: int, form: Form | Literal["auto"]) -> Needs:
        """Bytes of memory with other settings."""
        return needs_of(
            self.level.shape, form, songs=songs, given=max((w.given for w in self.windows), default=0),
            chunk_size=self.settings.chunk_size, half_stored=bool(self.level.hps.values["fp16_params"]),
            device=self.device,
        )  # fmt: skip

    def seconds(self) -> float:
        """Measured now, for a few codes, and scaled."""
        form: Form = "fp32" if self.form == "auto" else self.form
        if not self.windows:
            return 0.0
        found = speed.measure(self.level.shape, form, self.songs, self.settings.chunk_size, self.device)
        drawn = sum(window.length - window.given for window in self.windows)
        return self.batches * found.seconds(drawn, sum(window.given for window in self.windows))


class Forecast:
    """What one process of a run takes. songs: all items; codec: loaded; dtype: as --dtype says."""

    def __init__(
        self, levels: Mapping[int, Level], settings: Callable[[Request], Mapping[int, LevelSettings]],
        songs: Sequence[Song], codec: Codec, dtype: Form | Literal["auto"], comm: Comm, root: Path,
    ) -> None:  # fmt: skip
        self.songs, self.codec, self.comm, self.root = songs, codec, comm, root
        mine = -(-len(songs) // comm.size)
        self.levels: list[LevelForecast] = []
        for number, level in sorted(levels.items(), reverse=True):
            chosen = max((settings(song.request)[number] for song in songs), key=lambda s: s.max_batch_size)
            together = min(chosen.max_batch_size, mine)
            batches = -(-mine // together)
            windows = max((_windows(level, song) for song in songs), key=len)
            self.levels.append(LevelForecast(level, chosen, together, batches, windows, dtype, comm.device))

    # --------------------------------------------------------------------------------------------------- memory

    @cached_property
    def base_bytes(self) -> int:
        """Taken already, by libraries and codec, and for decoding sound."""
        if torch.device(self.comm.device).type != "cpu":
            return _decoding_bytes(self.codec)
        return anonymous_bytes() + _decoding_bytes(self.codec) * torch.get_num_threads()

    @cached_property
    def limit_bytes(self) -> int:
        """What one process may take: of its card, or its share of the machine."""
        card = launch.device_memory(self.comm.device)
        return card[1] if card else memory_limit_bytes() // self.comm.local_size

    @property
    def fits_together(self) -> bool:
        """Whether all priors can be in memory at the same time."""
        return (
            self.base_bytes + needs.together([level.needs for level in self.levels], self.comm.device)
            <= self.limit_bytes
        )

    def check(self) -> None:
        """Raises OutOfMemory, with numbers and what to do, when a level does not fit even by itself; OutOfSpace when its
        results do not fit on the disk."""
        for level in self.levels:
            if self.base_bytes + level.needs.peak > self.limit_bytes:
                raise OutOfMemory(self._refusal(level))
        there = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        missing = self.disk_bytes() - there - disk_free_bytes(self.root)
        if missing > 0:
            raise OutOfSpace(
                f"--name={self.root}: {len(self.songs)} songs take {size_text(self.disk_bytes())} of disk, "
                f"{size_text(disk_free_bytes(self.root))} are free. Free {size_text(missing)} or name another disk."
            )

    def _refusal(self, level: LevelForecast) -> str:
        n, number = level.needs, level.level.plan.level
        place = "this GPU has" if self.comm.device != "cpu" else "this machine gives"
        share = f" to each of {self.comm.local_size} processes" if self.comm.local_size > 1 else ""
        lines = [
            f"Level {number} does not fit into memory: it needs {size_text(self.base_bytes + n.peak)}, {place} "
            f"{size_text(self.limit_bytes)}{share}.",
            f"  weights {size_text(n.weights)} ({size_text(n.loading)} while they are read), keys and values "
            f"{size_text(n.cache)}, passes {size_text(n.activations)} for {level.songs} songs at once; the program itself "
            f"and decoding {size_text(self.base_bytes)}",
        ]
        cures = self._cures(level)
        if self.comm.local_size > 1:
            cures.append("Start fewer processes.")
        return "\n".join([*lines, *(cures or ["Nothing smaller is known for this model: it needs a larger machine."])])

    def _cures(self, level: LevelForecast) -> list[str]:
        def peak(songs: int, form: Form | Literal["auto"]) -> int:
            return self.base_bytes + level.with_other(songs, form).peak

        cures = []
        songs = level.songs
        while songs > 1:
            songs //= 2
            if (needed := peak(songs, level.form)) <= self.limit_bytes:
                cures.append(f"Give --max_batch_size={songs}: {size_text(needed)}.")
                break
        other = [form for form in linear.forms(self.comm.device) if form not in ("fp32", level.form)]
        for form in reversed(other):
            for songs in dict.fromkeys((level.songs, 1)):
                if (needed := peak(songs, form)) <= self.limit_bytes:
                    fewer = f" --max_batch_size={songs}" if songs < level.songs else ""
                    cures.append(f"Give --dtype={form}{fewer}: {size_text(needed)}.")
                    return cures
        return cures

    # ------------------------------------------------------------------------------------------------- disk, text

    def disk_bytes(self) -> int:
        """What sound, codes and exports of all items take."""
        levels = len(self.codec.geometry.hops)
        samples = sum(song.length_samples for song in self.songs)
        return samples * (levels * _BYTES_PER_SAMPLE + _BYTES_WHILE_EXPORTING)

    def text(self) -> str:
        """All of it as a table; measures the time."""
        rows = ["level  songs at once  weights    cache   passes  at most  windows      time"]
        total = 0.0
        for level in self.levels:
            n, seconds = level.needs, level.seconds()
            total += seconds
            sizes = "".join(f"{size_text(size):>9}" for size in (n.weights, n.cache, n.activations, n.peak))
            rows.append(
                f"{level.level.plan.level:5d}  {f'{level.batches} x {level.songs}':>13}{sizes} {len(level.windows):8d} "
                f"{duration_text(seconds):>9}"
            )
        peak = max(level.needs.peak for level in self.levels)
        how = "one prior at a time"
        if self.fits_together:
            peak, how = (
                needs.together([level.needs for level in self.levels], self.comm.device),
                "all priors at the same time",
            )
        where = self.comm.device if self.comm.device != "cpu" else "this machine"
        rows.append(
            f"memory  {size_text(self.base_bytes + peak)} in each of {self.comm.size} processes ({how}; "
            f"{size_text(self.base_bytes)} of it libraries, VQ-VAE and decoding) of {size_text(self.limit_bytes)} on {where}"
        )
        rows.append(f"disk    {size_text(self.disk_bytes())} of {size_text(disk_free_bytes(self.root))} that are free")
        rows.append(
            f"time    {duration_text(total)}, decoding apart, by a short measurement on this machine as it is now"
        )
        return "\n".join(rows)


def _windows(level: Level, song: Song) -> list[Window]:
    """The windows of a level that a song still lacks."""
    plan, found = level.plan, list[Window]()
    total, have = plan.total(song.length_samples), song.have(plan.level)
    while window := next_window(total, plan.n_ctx, plan.hop, have):
        found.append(window)
        have = window.start + window.length
    return found


def _decoding_bytes(codec: Codec) -> int:
    """What decoding a piece of sound takes; 0 where it is not known."""
    if not isinstance(codec, VQVAECodec):
        return 0
    return needs.decoding_bytes(codec.vqvae, codec.chunk_samples)
