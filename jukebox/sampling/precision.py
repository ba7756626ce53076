"""Which arithmetic a prior may be sampled in: every form below float32 is gated by teacher-forced bits per code."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from jukebox import files
from jukebox.nn import linear
from jukebox.nn.linear import Form
from jukebox.nn.transformer import bits
from jukebox.prior.model import Prior
from jukebox.sampling.decode import decode_window
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys

log = logging.getLogger(__name__)

LIMIT_BITS: dict[Form, float] = {"fp32": 1e-3, "fp16": 0.005, "bf16": 0.005, "int8": 0.01}
"""How far the teacher-forced bits per code may be from those in float32."""

_BATCH, _CODES = 2, 48  # what a measurement draws: two songs cost a step hardly more than one


@dataclass(frozen=True)
class Verdict:
    """How a form compares with float32: bits per code more (or less), and how often both prefer the same code."""

    form: Form
    bits: float
    agreement: float

    @property
    def passes(self) -> bool:
        """Whether the form may be used."""
        return abs(self.bits) <= LIMIT_BITS[self.form]


@dataclass
class Example:
    """A short piece to measure on: codes `[B, m]`, upper codes and labels as in `Prior.condition`."""

    codes: Tensor
    upper: Tensor | None
    y: Tensor | None

    @torch.inference_mode()
    def logits(self, prior: Prior, dtype: torch.dtype = torch.float32) -> Tensor:
        """Teacher-forced logits `[B, m, K]`, each given the codes before it, as songs are sampled: the first half code by
        code, the second half code by code behind a prefill of the first, because the two compute otherwise."""
        codes = iter(self.codes.t())
        seen: list[Tensor] = []

        def force(logits: Tensor, place: int) -> Tensor:
            seen.append(logits.clone())
            forced: Tensor = next(codes) + prior.shift
            return forced

        m = self.codes.shape[1]
        for given, length in ((0, m // 2), (m // 2, m)):
            if given < length:
                decode_window(
                    prior, self.codes[:, :given], length, force, upper=self.upper, y=self.y, dtype=dtype
                )  # fmt: skip
        return torch.stack(seen, 1)


def example(prior: Prior, batch: int = _BATCH, codes: int = _CODES) -> Example:
    """What the prior itself sings under made-up conditions: the same for the same weights, on any day."""
    device = prior.net.pos.device
    numbers = torch.Generator().manual_seed(0)
    upper = None
    if prior.ratio:
        upper = torch.randint(prior.shape.bins, (batch, prior.n_ctx // prior.ratio), generator=numbers).to(device)
    y = made_up_labels(prior, batch, numbers).to(device) if prior.shape.labels else None
    keys = noise_keys(torch.zeros(batch, dtype=torch.int64), torch.arange(batch), prior.level).to(device)

    def choose(logits: Tensor, place: int) -> Tensor:
        return draw(logits, Knobs(), gumbel(keys, place, logits.shape[1]))

    nothing = torch.zeros(batch, 0, dtype=torch.int64, device=device)
    drawn = decode_window(prior, nothing, min(codes, prior.n_ctx), choose, upper=upper, y=y, mask_lyric_codes=True)
    return Example(drawn, upper, y)


def made_up_labels(prior: Prior, batch: int, numbers: torch.Generator) -> Tensor:
    """Labels `[batch, 4 + G + S]` of the first window of a song of two windows: artist and genre 0, any lyrics."""
    shape = prior.shape.labels
    assert shape is not None
    longest = int(shape.max_duration * shape.sr_hz) - 1
    total = min(max(2 * prior.sample_length, int(shape.min_duration * shape.sr_hz)), longest)
    head = [total, 0, prior.sample_length, 0, 0] + [-1] * (shape.genre_slots - 1)
    lyrics = torch.randint(max(1, prior.shape.n_vocab), (batch, prior.n_tokens), generator=numbers)
    return torch.cat([torch.tensor(head).expand(batch, -1), lyrics], 1)


def judge(form: Form, reference: Tensor, found: Tensor, codes: Tensor) -> Verdict:
    """Compare teacher-forced logits `[B, m, K]` of a form with those in float32, on codes `[B, m]`."""
    same = (reference.argmax(-1) == found.argmax(-1)).float().mean()
    return Verdict(form, (bits(found, codes) - bits(reference, codes)).item(), same.item())


def measure(prior: Prior, form: Form, piece: Example, reference: Tensor) -> tuple[Verdict, Callable[[], None]]:
    """Pack the prior in a form and judge it; also returns the way back to plain weights."""
    back = linear.way_back(prior)
    linear.pack(prior, form)
    targets = piece.codes + prior.shift
    return judge(form, reference, piece.logits(prior, linear.result_dtype(prior)), targets), back


def pack(
    prior: Prior, asked: Literal["auto"] | Form, record: Path | None = None, device: str = "cpu"
) -> torch.dtype:  # fmt: skip
    """Pack a prior for sampling on a device; the dtype of its caches.

    auto takes the fastest form that passes the gate, and float32 where none does. The verdicts go to `record`, a JSON
    file, and a run that goes on takes what it says: all its windows are sampled alike. A form that is known beforehand
    goes to the device packed, so that a GPU never holds the plain weights.
    """
    form = _recorded(record, prior, device) if asked == "auto" else asked
    if form is None:
        form = _fastest(prior.to(device), record)
    linear.pack(prior, form, device)
    prior.to(device)
    return linear.result_dtype(prior)


def _fastest(prior: Prior, record: Path | None) -> Form:
    candidates = linear.fastest_first(prior.net.pos.device.type)
    verdicts: list[Verdict] = []
    if candidates:
        piece = example(prior)
        reference = piece.logits(prior)
        for candidate in candidates:
            verdict, back = measure(prior, candidate, piece, reference)
            back()
            verdicts.append(verdict)
            if verdict.passes:
                break
    form: Form = next((verdict.form for verdict in verdicts if verdict.passes), "fp32")
    told = "; ".join(f"{v.form} {v.bits:+.4f} bits per code, {v.agreement:.1%} same choice" for v in verdicts)
    log.info("level %d is sampled in %s (%s)", prior.level, form, told or "nothing else is fast here")
    if record is not None:
        known = json.loads(record.read_text()) if record.exists() else {}
        known[str(prior.level)] = {"form": form, "verdicts": [asdict(verdict) for verdict in verdicts]}
        files.publish_json(record, known, indent=1)
    return form


def _recorded(record: Path | None, prior: Prior, device: str) -> Form | None:
    if record is None or not record.exists():
        return None
    found = json.loads(record.read_text()).get(str(prior.level), {})
    form: Form | None = found.get("form")
    return form if form in linear.forms(device) else None
