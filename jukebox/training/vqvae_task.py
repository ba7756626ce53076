"""Training a VQ-VAE: it learns to reconstruct audio through codes (arXiv:2005.00341 sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jukebox.interop.published import Entry
from jukebox.parallel.comm import Comm
from jukebox.runlog import RunLog
from jukebox.training.candidates import global_candidates
from jukebox.training.player import Player, Stepped
from jukebox.training.tasks import Batch, Clips, Output, Task, mono_audio
from jukebox.vqvae.losses import Bandwidth, LossShape, vqvae_loss
from jukebox.vqvae.model import VQVAE, LevelOutput


@dataclass
class VQVAETask(Task):
    """A VQ-VAE with its losses and its codebooks.

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
            mine = self._candidates(rows, len(x), level, start=True)
            self.net.codebook(level).start(self.comm.all_reduce(mine))

    def loss(self, batch: Batch, step: int) -> Output:
        """`loss = recons + spectral + multispectral + commit`, summed over levels."""
        x = mono_audio(batch, self.comm.device)
        outputs = self.net(x)
        loss, metrics = self._losses(x, outputs)
        learnt = []
        for level, out in enumerate(outputs if self.net.use_bottleneck else []):
            sums, counts = self.net.codebook(level).statistics(out.rows, out.codes.flatten())
            learnt.append([sums, counts, self._candidates(out.rows, len(x), level)])
        self.seen += 1
        return Output(loss, metrics, learnt=learnt)

    def _losses(self, x: Tensor, outputs: list[LevelOutput]) -> tuple[Tensor, dict[str, Tensor]]:
        estimates, commits = [o.estimate for o in outputs], [o.commit for o in outputs]
        loss, metrics = vqvae_loss(x, estimates, commits, self.shape, self.bandwidth)
        metrics["fit"] = torch.stack([o.distance for o in outputs]).mean()
        metrics["pn"] = torch.stack([o.prenorm for o in outputs]).mean()
        return loss, metrics

    def accept(self, out: Output, stepped: Stepped | None) -> dict[str, Tensor]:
        """Update the codebooks with the sums of all ranks and of all batches of the step."""
        if self._pending:  # sums and counts add up; candidates are those of the last batch
            for level, earlier in zip(out.learnt, self._pending, strict=True):
                level[0] += earlier[0]
                level[1] += earlier[1]
        self._pending = out.learnt if stepped is None else []
        if stepped is None or not stepped.done or not out.learnt:
            return {}
        self.comm.all_reduce_tensors([tensor for level in out.learnt for tensor in level])
        found = [
            self.net.codebook(level).update(
                *parts, mu=self.mu, threshold=self.threshold, reset_revived=self.reset_revived
            )
            for level, parts in enumerate(out.learnt)
        ]
        return {name: torch.stack([metrics[name] for metrics in found]).mean() for name in found[0]}

    def _candidates(self, rows: Tensor, B: int, level: int, start: bool = False) -> Tensor:
        return global_candidates(rows, B, self.net.bins, self.comm, self.seed, (self.seen, level, int(start)))

    def measure(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Losses and spectral convergence of held-out chunks."""
        x = mono_audio(batch, self.comm.device)
        loss, metrics = self._losses(x, self.net(x))
        return {"loss": loss, **metrics}, len(x)

    def show(self, batch: Batch, log: RunLog, step: int, part: str) -> None:
        """The input, the reconstruction, and what each level alone keeps of it."""
        x = mono_audio(batch, self.comm.device, max(1, self.clips.most))
        outputs = self.net(x)
        self.clips.log(log, f"{part}x_in", x, step)
        self.clips.log(log, f"{part}x_out", outputs[0].estimate, step)
        for level, out in enumerate(outputs):
            self.clips.log(log, f"{part}x_ds_start_{level}", out.estimate, step)
        self.clips.compare(log, f"{part}x_in_over_out", x, outputs[0].estimate, step)

    def own_state(self) -> dict[str, Any]:
        """Codebook sums and counts, and how many draws were made."""
        return {**super().own_state(), "seen": self.seen}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back."""
        super().load_own_state(state)
        self.seen = int(state["seen"])
