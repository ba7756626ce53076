"""What a task is: a net with its players, its loss, its measurements and what it lets us hear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jukebox.audio.spectral import PUBLISHED, mono
from jukebox.data.code_loader import CodeBatch
from jukebox.data.loaders import Batch as AudioBatch
from jukebox.interop.published import Entry
from jukebox.labels.song import SongMeta
from jukebox.models.checkpoint import (
    Checkpoint,
    load_into,
    load_own_state,
    opt_from_published,
    opt_to_published,
    own_state,
    published_state,
)
from jukebox.parallel.comm import Comm
from jukebox.runlog import RunLog
from jukebox.training.player import Player, Stepped

Batch = AudioBatch | CodeBatch
KEPT = ("betas", "eps", "weight_decay")


@dataclass
class Output:
    """What a batch gives: the loss to go down, what is logged, whose turn it is, and what `accept` needs."""

    loss: Tensor
    metrics: dict[str, Tensor]
    player: str = "main"
    learnt: Any = None


class Task(ABC):
    """A net to train. Rank r of N has the items r, r + N, ... of the global batch."""

    net: nn.Module
    table: list[Entry]
    players: dict[str, Player]
    comm: Comm

    def prepare(self, batch: Batch) -> None:  # noqa: B027 (few tasks need it)
        """Anything that must be known before the first step."""

    def meet(self, songs: Callable[[], Iterable[SongMeta]]) -> None:  # noqa: B027 (few tasks need it)
        """What must be known of all songs before training; every rank calls it. Raises DataError."""

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Output:
        """The loss of this rank's part of a batch."""

    def accept(self, out: Output, stepped: Stepped | None) -> dict[str, Tensor]:
        """Learn what is not learnt by gradients, if the step counted. stepped None: gradients are still being summed."""
        return {}

    @abstractmethod
    def measure(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Mean metrics of a held-out batch, and the number of its items."""

    @abstractmethod
    def show(self, batch: Batch, log: RunLog, step: int, part: str) -> None:
        """Clips and pictures of what goes in and comes out, for TensorBoard; `part` ("train_", "test_") begins the tags."""

    def demo(self, batch: Batch, log: RunLog, step: int) -> None:  # noqa: B027 (few tasks have one)
        """What is costly to make, for TensorBoard: samples."""

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], log: RunLog, step: int) -> dict[str, float]:
        """Mean metrics over held-out batches and all ranks; the first batch is shown."""
        sums: dict[str, float] = {}
        count = 0
        for number, batch in enumerate(batches):
            if number == 0:
                self.show(batch, log, step, "test_")
            found, items = self.measure(batch)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) * items
            count += items
        return _means(sums, count, self.comm)

    def published(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Averaged weights under published names, in their order, and the optimiser's state counted in that order."""
        player = self.players["main"]
        averages: dict[str, Tensor] = dict(zip(player.names, player.ema.averages, strict=True)) if player.ema else {}
        model = published_state(self.net, self.table)
        for entry in self.table:
            average = averages.get(entry.ours, averages.get(entry.tied_to))
            if average is not None:
                model[entry.published] = average.to(model[entry.published].dtype)
        return model, opt_to_published(player.optimiser.state_dict(), player.names, self.table)

    def load_published(self, found: Checkpoint, note: str) -> None:
        """Put back what `published` gave; raises CheckpointError, ended by `note`, for another net's."""
        load_into(self.net, dict(found.model), self.table, source=str(found.path), note=note)
        player = self.players["main"]
        if found.opt:
            state = opt_from_published(found.opt, player.names, self.table)
            asked = [{key: group[key] for key in KEPT} for group in player.optimiser.param_groups]
            player.optimiser.load_state_dict(state)
            for group, flags in zip(player.optimiser.param_groups, asked, strict=True):
                group |= flags  # the command line wins over what was saved

    def own_state(self) -> dict[str, Any]:
        """State beside published tensors and players."""
        return {"net": own_state(self.net, self.table)}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back."""
        load_own_state(self.net, state["net"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the net has its averaged weights, is in eval mode, and records no gradients."""
        with self.players["main"].ema or nullcontext(), torch.no_grad():
            self.net.eval()
            try:
                yield
            finally:
                self.net.train()


@dataclass(frozen=True)
class Clips:
    """How much sound goes to TensorBoard: at most `most` clips per tag of at most `seconds`."""

    most: int
    seconds: float
    sr_hz: int

    def log(self, log: RunLog, tag: str, audio: Tensor, step: int) -> None:
        """audio `[B, T, C]`."""
        for i, clip in enumerate(audio[: self.most]):
            log.audio(f"{i}/{tag}", clip[: int(self.seconds * self.sr_hz)].float().cpu().numpy(), self.sr_hz, step)

    def compare(self, log: RunLog, tag: str, audio: Tensor, other: Tensor, step: int) -> None:
        """The spectrograms of the first clips of two `[B, T, C]`, the first above the second."""
        if self.most and audio.shape[1] > PUBLISHED.n_fft // 2:  # below, there is nothing to see
            length = max(int(self.seconds * self.sr_hz), PUBLISHED.n_fft)
            pictures = [_spectrogram(clip[:1, :length].float()) for clip in (audio, other)]
            log.image(tag, np.concatenate(pictures), step)


def _spectrogram(audio: Tensor) -> NDArray[np.uint8]:
    """A picture of `[1, T, C]`: 80 dB from black to white, low notes below, at most about 1000 columns."""
    magnitude = PUBLISHED.magnitude(mono(audio))[0]  # (F, frames)
    magnitude = magnitude[1:, :: 1 + magnitude.shape[1] // 1000]
    rows = magnitude.unflatten(0, (-1, 4)).amax(1)  # (256, columns)
    level_db = 20 * torch.log10(rows.clamp_min(1e-6) / rows.amax().clamp_min(1e-6))
    found: NDArray[np.uint8] = ((level_db / 80 + 1).clamp(0, 1) * 255).byte().flip(0).cpu().numpy()
    return found


def mono_audio(batch: Batch, device: str, most: int | None = None) -> Tensor:
    """The audio of a batch `[B, T, 1]` float32, left and right mixed by each item's share."""
    assert isinstance(batch, AudioBatch), "this task needs audio"
    return batch.to_mono()[:most].to(device)


def _means(sums: dict[str, float], count: int, comm: Comm) -> dict[str, float]:
    """Weighted means over all ranks, float64; a rank may have nothing to add."""
    names = sorted({name for rank in comm.gather_objects(sorted(sums)) for name in rank})
    total = torch.tensor([sums.get(name, 0.0) for name in names] + [count], dtype=torch.float64)
    comm.all_reduce(total)
    values = total.tolist()
    return {name: value / max(values[-1], 1) for name, value in zip(names, values, strict=False)}
