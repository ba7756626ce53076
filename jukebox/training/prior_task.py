"""Training a prior: it learns to predict codes (arXiv:2005.00341 sec. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jukebox.audio.spectral import mono
from jukebox.data.code_loader import CodeBatch
from jukebox.errors import CheckpointError
from jukebox.interop.published import Entry
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller
from jukebox.parallel.comm import Comm
from jukebox.prior.model import Prior
from jukebox.runlog import RunLog
from jukebox.sampling.alignment import why_not
from jukebox.sampling.decode import decode_window
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys
from jukebox.training.player import Player
from jukebox.training.tasks import Batch, Clips, Output, Task, mono_audio
from jukebox.vqvae.model import VQVAE


@dataclass
class PriorTask(Task):
    """A prior of one level. Its codes come from a store, or are made on the fly by `vqvae`; with a store that may be
    None, and then nothing can be heard. codec: fingerprint of the VQ-VAE whose codes these are, "" where unknown."""

    net: Prior
    table: list[Entry]
    players: dict[str, Player]
    comm: Comm
    clips: Clips
    labeller: Labeller | None
    vqvae: VQVAE | None
    codec: str
    dtype: torch.dtype
    seed: int
    bs_sample: int
    _histogram: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the held-out codes measured so far

    def meet(self, songs: Callable[[], Iterable[SongMeta]]) -> None:
        """Names outside the tables and characters outside the alphabet are told, or with --strict_labels refused, now."""
        labeller = self.labeller
        if labeller is not None:
            self.comm.run_first(lambda: labeller.survey(songs()))

    def loss(self, batch: Batch, step: int) -> Output:
        """Bits per code, and with lyrics bits per character."""
        out = self.net(*self._inputs(batch), self.dtype)
        metrics = out.metrics()
        del metrics["loss"]
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

    def evaluate(self, batches: Iterator[Batch], log: RunLog, step: int) -> dict[str, float]:
        """Bits per held-out code, beside `unigram`, the entropy of those codes by themselves."""
        self._histogram = torch.zeros(self.net.shape.bins, dtype=torch.float64)
        found = super().evaluate(batches, log, step)
        counts = self.comm.all_reduce(self._histogram)
        p = counts / counts.sum()
        return {**found, "unigram": float(-(p * torch.log2(p.clamp_min(1e-12))).sum())}

    def measure(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Bits per code of held-out windows."""
        codes, upper, y = self._inputs(batch)
        self._histogram += torch.bincount(codes.flatten(), minlength=len(self._histogram)).cpu()
        return self.net(codes, upper, y, self.dtype).metrics(), len(codes)

    def show(self, batch: Batch, log: RunLog, step: int, part: str) -> None:
        """The input, what its codes keep of it, its labels, and what the prior attends to in the first one's lyrics."""
        most = max(1, self.clips.most)
        codes, upper, y = self._inputs(batch, most)
        if not isinstance(batch, CodeBatch):
            self.clips.log(log, f"{part}x_in", mono_audio(batch, self.comm.device, most), step)
        if self.vqvae is not None:
            self.clips.log(log, f"{part}x_out", self._audio(codes), step)
        self._log_labels(log, f"{part}y_in", y, step)
        layer, head = self.net.shape.alignment_layer, self.net.shape.alignment_head
        if layer is not None and head is not None and not why_not(self.net.shape) and y is not None:
            first = None if upper is None else upper[:1]
            weights = self.net.lyric_attention({layer}, codes[:1], y[:1], first, self.dtype)[layer][0, head].float()
            picture = (weights / weights.amax().clamp_min(1e-9)).T  # (characters, codes)
            log.image(f"{part}alignment", picture.cpu().numpy(), step)

    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """The batch's own codes decoded, and one window sampled from scratch under the same labels and upper codes."""
        if self.vqvae is None:
            return
        codes, upper, y = self._inputs(batch, self.bs_sample)
        keys = noise_keys(torch.full((len(codes),), self.seed), torch.arange(len(codes)), self.net.level)
        keys = keys.to(self.comm.device)

        def choose(logits: Tensor, place: int) -> Tensor:
            return draw(logits, Knobs(), gumbel(keys, place, logits.shape[1]))

        made = decode_window(self.net, codes[:, :0], self.net.n_ctx, choose, upper=upper, y=y, dtype=self.dtype)
        self.clips.log(log, f"x_ds_start_{self.net.level}", self._audio(codes), step)
        self.clips.log(log, "sample_x_T1", self._audio(made), step)
        self._log_labels(log, "sample_x_T1", y, step)

    def own_state(self) -> dict[str, Any]:
        """Whose codes it learns."""
        return {**super().own_state(), "codec": self.codec}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back. Raises CheckpointError when the codes are of another VQ-VAE now."""
        super().load_own_state(state)
        before = state.get("codec", "")
        if before and self.codec and before != self.codec:
            raise CheckpointError(
                f"This prior was trained on the codes of VQ-VAE {before}, and these are of VQ-VAE {self.codec}: to it they "
                "mean nothing. Name the first one (--restore_vqvae), give codes that it made (--codes), or train a new "
                "prior under another --name."
            )

    def _log_labels(self, log: RunLog, tag: str, y: Tensor | None, step: int) -> None:
        if self.labeller and y is not None:
            said = (self.labeller.describe(row) for row in y.cpu().numpy())
            lines = [f"{i}: {d['artist']} / {d['genre']} / {d['lyrics']}" for i, d in enumerate(said)]
            log.text(tag, "\n\n".join(lines), step)

    def _audio(self, codes: Tensor) -> Tensor:
        assert self.vqvae is not None
        level = self.net.level
        return mono(self.vqvae.decode([codes.clamp(0, self.vqvae.bins - 1)], level, level + 1))[..., None]
