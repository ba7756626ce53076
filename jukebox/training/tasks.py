"""What is trained: a VQ-VAE or a prior, each with its loss, its measurements and its demo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jukebox.audio.spectral import mono
from jukebox.data.code_loader import CodeBatch
from jukebox.data.loaders import Batch as AudioBatch
from jukebox.interop.published import Entry
from jukebox.labels.vector import Labeller
from jukebox.models.checkpoint import load_own_state, own_state
from jukebox.nn.codebook import draw_candidates
from jukebox.parallel.comm import Comm
from jukebox.prior.model import Prior
from jukebox.runlog import RunLog
from jukebox.sampling.decode import decode_window
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.training.player import Player, Stepped
from jukebox.vqvae.losses import Bandwidth, LossShape, vqvae_loss
from jukebox.vqvae.model import VQVAE

Batch = AudioBatch | CodeBatch


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

    def prepare(self, batch: Batch) -> None:
        """Anything that must be known before the first step."""

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Output:
        """The loss of this rank's part of a batch."""

    def accept(self, out: Output, stepped: Stepped | None) -> dict[str, Tensor]:
        """Learn what is not learnt by gradients, if the step counted. stepped None: gradients are still being summed."""
        return {}

    @abstractmethod
    def evaluate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Mean metrics over held-out batches and all ranks, with averaged weights."""

    @abstractmethod
    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """Sound for TensorBoard, with averaged weights."""

    def own_state(self) -> dict[str, Any]:
        """State beside published tensors and players."""
        return own_state(self.net, self.table)

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back."""
        load_own_state(self.net, state)

    def averaged(self) -> AbstractContextManager[object]:
        """Within this context the net has its averaged weights and is in eval mode."""
        return _Averaged(self.net, self.players["main"])


class _Averaged:
    def __init__(self, net: nn.Module, player: Player) -> None:
        self.net, self.ema = net, player.ema or nullcontext()

    def __enter__(self) -> None:
        self.ema.__enter__()
        self.net.eval()

    def __exit__(self, *error: Any) -> None:
        self.net.train()
        self.ema.__exit__(*error)


@dataclass(frozen=True)
class Clips:
    """How much audio goes to TensorBoard: at most `most` clips per tag of at most `seconds`."""

    most: int
    seconds: float
    sr_hz: int

    def log(self, log: RunLog, tag: str, audio: Tensor, step: int) -> None:
        """audio `[B, T, C]`."""
        for i, clip in enumerate(audio[: self.most]):
            log.audio(f"{i}/{tag}", clip[: int(self.seconds * self.sr_hz)].float().cpu().numpy(), self.sr_hz, step)


def mono_audio(batch: Batch, device: str, most: int | None = None) -> Tensor:
    """The audio of a batch `[B, T, 1]` float32, left and right mixed by each item's share."""
    assert isinstance(batch, AudioBatch), "this task needs audio"
    return batch.to_mono()[:most].to(device)


def mean_over_ranks(sums: dict[str, float], count: float, comm: Comm) -> dict[str, float]:
    """Weighted means over all ranks, float64."""
    names = sorted({name for rank in comm.gather_objects(sorted(sums)) for name in rank})
    total = torch.tensor([sums.get(name, 0.0) for name in names] + [count], dtype=torch.float64, device=comm.device)
    comm.all_reduce(total)
    values = total.tolist()
    return {name: value / max(values[-1], 1e-12) for name, value in zip(names, values, strict=False)}


@dataclass
class VQVAETask(Task):
    """A VQ-VAE learns to reconstruct audio (arXiv:2005.00341 sec. 3).

    Codebooks start from rows of the first batch and learn from the sums of all ranks; candidates are drawn by (seed,
    batch, level) from the rows of the whole global batch, so that any number of ranks gives the same codebooks.
    """

    net: VQVAE
    table: list[Entry]
    players: dict[str, Player]
    shape: LossShape
    bandwidth: Bandwidth
    comm: Comm
    clips: Clips
    mu: float
    threshold: float
    reset_revived: bool
    seed: int
    seen: int = 0  # batches, numbers the draws
    _pending: list[list[Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Start fresh codebooks from the first batch."""
        if not self.net.use_bottleneck or all(bool(self.net.codebook(i).ready) for i in range(self.net.levels)):
            return
        x = mono_audio(batch, self.comm.device)
        for level in range(self.net.levels):
            rows = self.net.embed(x, level).transpose(1, 2).flatten(0, 1)
            self.net.codebook(level).start(self._candidates(rows, len(x), level, start=True))

    def loss(self, batch: Batch, step: int) -> Output:
        """`loss = recons + spectral + multispectral + commit`, summed over levels."""
        x = mono_audio(batch, self.comm.device)
        outputs = self.net(x)
        loss, metrics = vqvae_loss(
            x, [o.estimate for o in outputs], [o.commit for o in outputs], self.shape, self.bandwidth
        )  # fmt: skip
        metrics["fit"] = torch.stack([o.distance for o in outputs]).mean()
        metrics["pn"] = torch.stack([o.prenorm for o in outputs]).mean()
        learnt = []
        for level, out in enumerate(outputs if self.net.use_bottleneck else []):
            sums, counts = self.net.codebook(level).statistics(out.rows, out.codes.flatten())
            learnt.append([sums, counts, self._candidates(out.rows, len(x), level, reduce=False)])
        self.seen += 1
        return Output(loss, metrics, learnt=learnt)

    def accept(self, out: Output, stepped: Stepped | None) -> dict[str, Tensor]:
        """Update the codebooks with the sums of all ranks and of all batches of the step."""
        if self._pending:  # sums and counts add up; candidates are those of the last batch
            for level, earlier in zip(out.learnt, self._pending, strict=True):
                level[0] += earlier[0]
                level[1] += earlier[1]
        self._pending = out.learnt if stepped is None else []
        if stepped is None or not stepped.done:
            return {}
        self.comm.all_reduce_tensors([tensor for level in out.learnt for tensor in level])
        found = [
            self.net.codebook(level).update(
                *parts, mu=self.mu, threshold=self.threshold, reset_revived=self.reset_revived
            )
            for level, parts in enumerate(out.learnt)
        ]
        return {name: torch.stack([metrics[name] for metrics in found]).mean() for name in (found[0] if found else ())}

    def _candidates(self, rows: Tensor, B: int, level: int, start: bool = False, reduce: bool = True) -> Tensor:
        """Rows of the global batch to start or revive codes with; this rank's share of them unless reduced."""
        comm, bins, N = self.comm, self.net.bins, len(rows) // B
        total = comm.size * len(rows)
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[self.seen, level, int(start), 0]))
        items = torch.arange(B, device=rows.device) * comm.size + comm.rank
        ids = (items[:, None] * N + torch.arange(N, device=rows.device)).flatten()
        if total < bins:
            repeated = total * -(-bins // total)
            order = torch.from_numpy(rng.permutation(repeated))
            noise = torch.from_numpy(rng.standard_normal((repeated, rows.shape[1]), dtype=np.float32))
        else:
            order, noise = torch.from_numpy(rng.choice(total, bins, replace=False)), None
        drawn = draw_candidates(rows, ids, total, order, bins, noise)
        return comm.all_reduce(drawn) if reduce else drawn

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Losses and spectral convergence of held-out chunks, at every level."""
        sums: dict[str, float] = {}
        count = 0.0
        with self.averaged():
            for batch in batches:
                x = mono_audio(batch, self.comm.device)
                outputs = self.net(x)
                estimates = [o.estimate for o in outputs]
                loss, metrics = vqvae_loss(x, estimates, [o.commit for o in outputs], self.shape, self.bandwidth)
                for name, value in {"loss": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(x)
                count += len(x)
        return mean_over_ranks(sums, count, self.comm)

    @torch.no_grad()
    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """The input, the reconstruction, and what each level alone keeps of it."""
        x = mono_audio(batch, self.comm.device, max(1, self.clips.most))
        with self.averaged():
            outputs = self.net(x)
        self.clips.log(log, "train_x_in", x, step)
        self.clips.log(log, "train_x_out", outputs[0].estimate, step)
        for level, out in enumerate(outputs):
            self.clips.log(log, f"train_x_ds_start_{level}", out.estimate, step)

    def own_state(self) -> dict[str, Any]:
        """Codebook sums and counts, and how many draws were made."""
        return {"net": super().own_state(), "seen": self.seen}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back."""
        super().load_own_state(state["net"])
        self.seen = int(state["seen"])


@dataclass
class PriorTask(Task):
    """A prior learns to predict codes (arXiv:2005.00341 sec. 4). Codes come from a store, or are made on the fly."""

    net: Prior
    table: list[Entry]
    players: dict[str, Player]
    comm: Comm
    clips: Clips
    labeller: Labeller | None
    vqvae: VQVAE | None
    dtype: torch.dtype
    seed: int
    bs_sample: int

    def loss(self, batch: Batch, step: int) -> Output:
        """Bits per code, and with lyrics bits per character."""
        codes, upper, y = self._inputs(batch)
        out = self.net(codes, upper, y, self.dtype)
        metrics = out.metrics()
        metrics.pop("loss")
        return Output(out.loss, metrics)

    def _inputs(self, batch: Batch, most: int | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Codes `[B, n_ctx]`, upper codes and labels of (the first `most` items of) a batch."""
        device, level = self.comm.device, self.net.level
        upper: Tensor | None = None
        if isinstance(batch, CodeBatch):
            codes = batch.codes[:most].to(device)
            upper = None if batch.upper is None else batch.upper[:most].to(device)
        else:
            assert self.vqvae is not None, "audio needs the VQ-VAE"
            x = mono_audio(batch, device, most)
            found = self.vqvae.encode(x, level, level + (2 if self.net.ratio else 1), bs_chunks=len(x))
            codes, upper = found[0], found[1] if self.net.ratio else None
        y: Tensor | None = None
        if self.labeller:
            facts = zip(batch.songs[:most], batch.totals.tolist(), batch.offsets.tolist(), strict=False)
            y = torch.from_numpy(np.stack([self.labeller.label(*fact) for fact in facts])).to(device)
        return codes, upper, y

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Bits per held-out code, beside the unigram entropy of those codes."""
        sums: dict[str, float] = {}
        count = 0.0
        histogram = torch.zeros(self.net.shape.bins, dtype=torch.float64, device=self.comm.device)
        with self.averaged():
            for batch in batches:
                codes, upper, y = self._inputs(batch)
                histogram += torch.bincount(codes.flatten(), minlength=len(histogram))
                for name, value in self.net(codes, upper, y, self.dtype).metrics().items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(codes)
                count += len(codes)
        found = mean_over_ranks(sums, count, self.comm)
        p = self.comm.all_reduce(histogram) / histogram.sum()
        return {**found, "unigram": float(-(p * torch.log2(p.clamp_min(1e-12))).sum())}

    @torch.no_grad()
    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """The batch's own codes decoded, and one window sampled from scratch under the same labels and upper codes."""
        if self.vqvae is None:
            return
        codes, upper, y = self._inputs(batch, self.bs_sample)
        keys = noise_keys(torch.full((len(codes),), self.seed), torch.arange(len(codes)), self.net.level)
        keys = keys.to(self.comm.device)

        def choose(logits: Tensor, place: int) -> Tensor:
            return draw(logits, Knobs(), gumbel(keys, place, logits.shape[1]))

        with self.averaged():
            made = decode_window(
                self.net, codes[:, :0], self.net.n_ctx, choose, upper=upper, y=y, dtype=self.dtype
            )  # fmt: skip
        level = self.net.level
        self.clips.log(log, f"x_ds_start_{level}", self._audio(codes), step)
        self.clips.log(log, "sample_x_T1", self._audio(made), step)
        if self.labeller and y is not None:
            said = (self.labeller.describe(row) for row in y.cpu().numpy())
            lines = [f"{i}: {d['artist']} / {d['genre']} / {d['lyrics']}" for i, d in enumerate(said)]
            log.text("sample_x_T1", "\n\n".join(lines), step)

    def _audio(self, codes: Tensor) -> Tensor:
        assert self.vqvae is not None
        level = self.net.level
        return mono(self.vqvae.decode([codes.clamp(0, self.vqvae.bins - 1)], level, level + 1))[..., None]
