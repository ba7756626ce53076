"""What sampling one level takes of memory, known before anything is loaded.

Weights and caches are counted. The largest pass is rehearsed: the very code that will sample runs on tensors without
memory (the meta device), one layer of each kind, and what lives at the same time is added up.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jukebox.nn import linear
from jukebox.nn.linear import Form, Head, Linear
from jukebox.prior.model import Prior, PriorShape
from jukebox.resources import RELEASE_BYTES
from jukebox.sampling.logits import Knobs, draw, gumbel
from jukebox.vqvae.model import VQVAE

_KEPT = 1.5
"""Of what passes hold, so much stays taken: the allocator keeps freed pieces (measured, tests/sampling/test_needs.py)."""


@dataclass(frozen=True)
class Needs:
    """Bytes of one level. loading: at most, while plain weights become packed ones; weights: packed. For a batch of
    songs, cache: keys and values; activations: what the largest pass takes beside those."""

    loading: int
    weights: int
    cache: int
    activations: int

    @property
    def peak(self) -> int:
        """At most, at any time."""
        return max(self.loading, self.weights + self.cache + self.activations)


@lru_cache
def needs_of(
    shape: PriorShape, form: Form | Literal["auto"], *, songs: int, given: int = 0, chunk_size: int | None = None,
    half_stored: bool = False, device: str = "cpu",
) -> Needs:  # fmt: skip
    """What a prior of this shape takes. songs: in a batch; given: codes that a window may begin with, read in passes of
    chunk_size. half_stored: `fp16_params`, matrices come in float16. device: where it is sampled.

    auto is counted as float32, which it falls back to, and as the measuring of its gate, when two forms are held.
    """
    kind = torch.device(device).type
    with torch.device("meta"):
        prior = Prior(shape)
    products = [m for m in prior.modules() if isinstance(m, Linear | Head)]
    matrices = sum(m.weight.nbytes for m in products if isinstance(m, Linear))
    parameters = sum(p.nbytes for p in prior.parameters())
    plain = parameters - (matrices // 2 if half_stored else 0)
    rest = parameters - sum(p.nbytes for m in products if isinstance(m, Linear) for p in m.parameters())
    known: list[Form] = [*linear.forms(kind)] if form == "auto" else [form]
    packed = {f: rest + sum(linear.held_bytes(m, f, kind) for m in products) for f in known}
    largest = max(m.weight.nbytes for m in products)
    loading = max(plain, *packed.values()) + largest
    if form == "auto":
        loading = plain + max(size - rest for f, size in packed.items() if f != "fp32" or len(known) == 1)
    state = prior.new_state(songs, cache_dtype(known[0], kind))
    conditioning, steps = _rehearse(prior, known[0], songs, given, chunk_size, kind)
    there = state.nbytes() if kind == "cpu" else 0  # caches are made after the conditioning; on a GPU they stay
    activations = round(_KEPT * max(conditioning - there, steps)) + RELEASE_BYTES
    return Needs(loading, max(packed.values()), state.nbytes(), activations)


def together(levels: Sequence[Needs], device: str) -> int:
    """Bytes at most when the weights of all levels stay in memory, on a GPU their recorded caches too, while one of them
    is loaded or at work."""
    stays = [level.weights + (level.cache if torch.device(device).type != "cpu" else 0) for level in levels]
    return sum(stays) + max((level.peak - own for level, own in zip(levels, stays, strict=True)), default=0)


@torch.inference_mode()
def decoding_bytes(vqvae: VQVAE, samples: int) -> int:
    """What decoding a piece of so many samples of sound takes beside the weights, at the level that takes most."""
    found = 0
    for decoder, hop in zip(vqvae.decoders, vqvae.hops, strict=True):
        imagined = copy.deepcopy(decoder).to("meta")
        with _Living() as living:
            imagined(torch.empty(1, vqvae.codebook(0).width, samples // hop, device="meta"))
        found = max(found, living.most)
    return round(_KEPT * found)


def cache_dtype(form: Form, device: str) -> torch.dtype:
    """What keys and values are kept in: half numbers on a GPU only."""
    if torch.device(device).type == "cpu":
        return torch.float32
    return {"fp32": torch.float32, "fp16": torch.float16}.get(form, torch.bfloat16)


@torch.inference_mode()
def _rehearse(
    prior: Prior, form: Form, songs: int, given: int, chunk_size: int | None, kind: str
) -> tuple[int, int]:  # fmt: skip
    """Bytes that live at most beside weights and caches while a window of `songs` begins: in its conditioning, before
    there are caches; and in the last and largest pass of the prefill with one draw."""
    one_of_each_kind(prior)
    _imitate(prior, form, kind)
    dtype = cache_dtype(form, kind)
    whole = prior.prefix + given + 1  # the start vector counts
    rows = min(chunk_size or whole, whole)
    with _Living() as living:
        cond = prior.condition(*_made_up(prior, songs), dtype)
        conditioning, living.most = living.most, 0
        state = prior.new_state(songs, dtype)
        if cond.encoded is not None:
            prior.net.transformer.encode(cond.encoded, state)
        state.position = whole - rows
        before = torch.empty(songs, rows - (rows == whole), dtype=torch.int64, device="meta")
        hidden = prior.net.extend(before, state, cond.x_cond, cond.start)
        logits = prior.net.out(hidden[:, -1])
        draw(logits, Knobs(), gumbel(before.new_zeros(songs), 0, logits.shape[1]))
    return conditioning, living.most - state.nbytes()


def one_of_each_kind(prior: Prior) -> None:
    """Keep one layer of each attention kind: passes through the others take the same memory, one after the other."""
    first: dict[int, nn.Module] = {}
    for layer in prior.net.transformer.layers:
        first.setdefault(layer.attn.pattern.kind, layer)  # type: ignore[union-attr, arg-type]
    prior.net.transformer.layers = nn.ModuleList(first.values())


def _imitate(prior: Prior, form: Form, kind: str) -> None:
    """Put products that make the same tensors as packed ones in place of the plain ones."""
    for module in list(prior.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                weight = child.weight.t()
                half = linear.Half(weight, child.bias, cache_dtype(form, kind))
                setattr(module, name, half if kind != "cpu" else _Product(weight, child.bias, form))


class _Product(linear.Packed):
    """What `linear.Rows` makes on its way, on tensors without memory; oneDNN puts the weights in order beside them."""

    def __init__(self, weight: Tensor, bias: Tensor, form: Form) -> None:
        super().__init__(weight, bias)
        self.form = form

    def product(self, x: Tensor) -> Tensor:
        m, orders = len(x), 2 if self.form == "int8" else 1
        if self.form == "fp32":
            ordered = x.new_empty(self.n_out, self.n_in)
            y = x.new_empty(m, self.n_out)
        else:
            ordered = x.new_empty(orders * self.n_out, self.n_in, dtype=torch.bfloat16)
            y = x.to(torch.bfloat16).new_empty(m, self.n_out).float() + 1
        del ordered
        return y


def _made_up(prior: Prior, songs: int) -> tuple[Tensor | None, Tensor | None]:
    """Upper codes and labels without values."""

    def numbers(columns: int) -> Tensor:
        return torch.empty(songs, columns, dtype=torch.int64, device="meta")

    labels = prior.shape.labels
    y = numbers(4 + labels.genre_slots + prior.n_tokens) if labels else None
    return numbers(prior.n_ctx // prior.ratio) if prior.ratio else None, y


class _Living(TorchDispatchMode):
    """Adds up the memory that tensors would have, from when they are made until they are dropped, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._made(tensor.untyped_storage())
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._dropped, key)

    def _dropped(self, key: int) -> None:
        self.now -= self._bytes.pop(key)
