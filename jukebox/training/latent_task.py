"""Training a prior over latents from a data set of pre-encoded ones.

Legend: B batch, D latent channels, n frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jukebox.data.loaders import Order
from jukebox.data.pre_encoded_dataset import PreEncodedDataset, PreEncodedItem
from jukebox.errors import DataError
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller
from jukebox.models.autoencoder_codec import AutoencoderCodec
from jukebox.models.latent_model import FlowConfig, config_text, noise_for
from jukebox.parallel.comm import Comm
from jukebox.prior.latent_flow import LatentFlow, draw_times, pad_window, sample
from jukebox.runlog import RunLog
from jukebox.training.tasks import Batch, Clips, Output, Task

_DEMO_STEPS = 20


@dataclass(frozen=True)
class LatentBatch:
    """Windows `[B, D, n]` float32 with their masks `[B, n]`; offsets and totals `[B]` in audio samples."""

    latents: Tensor
    mask: Tensor
    songs: list[SongMeta]
    offsets: Tensor
    totals: Tensor


@dataclass
class LatentWindows:
    """Windows of `frames` latents of some items. With random_crop a long item counts once per window that fits into it,
    and each begins anywhere; otherwise an item is its first window."""

    dataset: PreEncodedDataset
    items: Sequence[int]
    frames: int
    hop: int
    sr_hz: int

    def __post_init__(self) -> None:
        windows = [
            max(1, self.dataset.about(i)[1] // self.frames) if self.dataset.config.random_crop else 1
            for i in self.items
        ]
        self._windows = [(item, k) for item, count in zip(self.items, windows, strict=True) for k in range(count)]

    def __len__(self) -> int:
        return len(self._windows)

    def train(self, bs: int, comm: Comm, seed: int, start: int) -> Iterator[LatentBatch]:
        """Batches without end from a global batch on, the same for any number of ranks."""
        order = Order(len(self), bs * comm.size, seed)
        step = start
        while True:
            places = [order.item(*position) for position in order.positions(step, comm.rank, comm.size)]
            yield self._batch([(self._windows[i], draw) for i, draw in places])
            step += 1

    def once(self, bs: int, comm: Comm) -> Iterator[LatentBatch]:
        """Every window of this rank once."""
        mine = self._windows[comm.rank :: comm.size]
        for first in range(0, len(mine), bs):
            yield self._batch([(window, 0) for window in mine[first : first + bs]])

    def _batch(self, chosen: Sequence[tuple[tuple[int, int], int]]) -> LatentBatch:
        found = [self.dataset.item(item, draw * 4096 + k) for (item, k), draw in chosen]
        padded = [pad_window(torch.from_numpy(np.array(one.latents, np.float32)), self.frames) for one in found]
        facts = [self._place(one) for one in found]
        return LatentBatch(
            latents=torch.stack([latents for latents, _ in padded]),
            mask=torch.stack([
                mask * torch.nn.functional.pad(torch.from_numpy(one.mask).float(), (0, self.frames - len(one.mask)))
                for (_, mask), one in zip(padded, found, strict=True)
            ]),
            songs=[song for song, _, _ in facts],
            offsets=torch.tensor([offset for _, offset, _ in facts]),
            totals=torch.tensor([total for _, _, total in facts]),
        )  # fmt: skip

    def _place(self, one: PreEncodedItem) -> tuple[SongMeta, int, int]:
        """The song, where the window begins in it, and its length, in samples; other programs know whole seconds only."""
        info, start = one.info, int(one.info.get("latent_crop_start", 0)) * self.hop
        offset = info.get("offset_samples", int(info.get("seconds_start", 0)) * self.sr_hz) + start
        total = info.get("total_samples", int(info.get("seconds_total", 0)) * self.sr_hz)
        song = info.get("song")
        return (
            SongMeta.from_json(song if isinstance(song, dict) else info, str(info.get("relpath", ""))),
            offset,
            max(total, offset + 1),
        )


@dataclass
class LatentFlowTask(Task):
    """A rectified flow over latents. codec: the autoencoder, to hear samples; None where its weights are not there."""

    net: LatentFlow
    table: Any
    players: Any
    comm: Comm
    clips: Clips
    config: FlowConfig
    labeller: Labeller | None
    codec: AutoencoderCodec | None
    seed: int = 0
    measured: int = field(default=0)

    def prepare(self, batch: Batch) -> None:
        """Without a scale in the config, latents get unit variance over the first batch of all ranks."""
        if self.config.model.pretransform.scale is not None:
            return
        made = _latents(batch)
        real = made.latents * made.mask[:, None]
        sums = torch.stack([real.square().sum(), made.mask.sum() * made.latents.shape[1]]).double()
        self.comm.all_reduce(sums)
        self.net.scale.fill_(float((sums[0] / sums[1].clamp_min(1)).sqrt().clamp_min(1e-6)))

    def loss(self, batch: Batch, step: int) -> Output:
        """The velocity's mean squared error at times drawn for each item."""
        B = len(_latents(batch).latents)
        device = self.comm.device
        t = draw_times(torch.rand(B, device=device))
        dropped = torch.rand(B, device=device) < self.config.training.label_dropout
        loss = self._error(_latents(batch), t, dropped)
        return Output(loss, {})

    def _error(
        self, batch: LatentBatch, t: Tensor, dropped: Tensor | None, generator: torch.Generator | None = None
    ) -> Tensor:
        x = batch.latents.to(self.comm.device) / self.net.scale
        noise = torch.randn(x.shape, generator=generator).to(x) if generator else torch.randn_like(x)
        told = self.net.told(self._labels(batch), len(x), dropped)
        return self.net.loss(x, batch.mask.to(x), told, t, noise)

    def _labels(self, batch: LatentBatch) -> Tensor | None:
        if self.labeller is None:
            return None
        facts = zip(batch.songs, batch.totals.tolist(), batch.offsets.tolist(), strict=True)
        return torch.from_numpy(np.stack([self.labeller.label(*fact) for fact in facts])).to(self.comm.device)

    def evaluate(self, batches: Iterator[Batch], log: RunLog, step: int) -> dict[str, float]:
        """The loss at times and noise that are the same in every measurement."""
        self.measured = 0
        return super().evaluate(batches, log, step)

    def measure(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Means over held-out windows."""
        made = _latents(batch)
        B = len(made.latents)
        generator = torch.Generator().manual_seed(self.measured)
        self.measured += 1
        t = ((torch.arange(B) + 0.5) / B).to(self.comm.device)
        return {"loss": self._error(made, t, None, generator)}, B

    def show(self, batch: Batch, log: RunLog, step: int, part: str) -> None:
        """What the batch's latents sound like."""
        if self.codec is None:
            return
        made = _latents(batch)
        self._hear(made.latents[: max(1, self.clips.most)], log, f"{part}x_in", step)

    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """Windows sampled under the batch's labels."""
        made = _latents(batch)
        most = min(len(made.latents), max(1, self.clips.most))
        noise = noise_for(self.net, list(range(most)), [0] * most)
        y = self._labels(made)
        latents = sample(self.net, noise, None if y is None else y[:most], steps=_DEMO_STEPS)
        log.scalars({"sample_latents_std": float(latents.std()), "sample_latents_mean": float(latents.mean())}, step)
        if self.codec is not None:
            self._hear(latents, log, "sample", step)

    def _hear(self, latents: Tensor, log: RunLog, tag: str, step: int) -> None:
        assert self.codec is not None
        for i, one in enumerate(latents):
            log.audio(f"{i}/{tag}", self.codec.decode_latents(one), self.codec.geometry.sr_hz, step)

    def own_state(self) -> dict[str, Any]:
        """The config, beside what every task has."""
        return {**super().own_state(), "flow_config": config_text(self.config)}


def _latents(batch: Any) -> LatentBatch:
    assert isinstance(batch, LatentBatch), "a prior over latents needs pre-encoded ones"
    if batch.latents.ndim != 3:
        raise DataError("the data set holds codes, not latents: pre-encode without --is-discrete")
    return batch
