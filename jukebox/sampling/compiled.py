"""Steps on a CPU: all layers for the next code in one compiled function, shared by the threads of this process."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jukebox.nn import kernels
from jukebox.nn.cache import DecodeState
from jukebox.nn.kernels import Field, Matrix
from jukebox.nn.linear import Rows
from jukebox.nn.patterns import ENCODER
from jukebox.nn.tiles import one_thread
from jukebox.nn.transformer import Block
from jukebox.prior.model import Conditioning, Prior

log = logging.getLogger(__name__)

_WORTH_A_WORD = 2.0  # seconds
_WORTH_SHARING = 4e6  # bytes of weights in a step; below, waiting for one another costs more than it saves


class CompiledStep:
    """The steps of a batch after its prefill: `state` moves on, its caches are written in place.

    Weights are read where they lie, so packed layers must stay while this is used. `with step:` around the steps keeps
    torch to one thread for what is done between them: its other threads, once awake, spin for milliseconds on the cores of
    the next step, which halved its speed.
    """

    def __init__(self, prior: Prior, state: DecodeState, cond: Conditioning) -> None:
        net, shape = prior.net, prior.net.transformer.shape
        self.net, self.state, self.cond = net, state, cond
        layers: list[Block] = list(net.transformer.layers)  # type: ignore[arg-type]
        B, W = len(state.layers[0].kv), shape.width
        self.layers = np.array([_told(layer, cache.kv) for layer, cache in zip(layers, state.layers, strict=True)])
        head: Rows = net.out  # type: ignore[assignment]
        self.head = np.array(head.told())
        self.form = kernels.FORMS.index(head.form)
        self.heads, self.scale = shape.heads, np.float32(layers[0].scale)
        self.bins = head.n_out
        sizes = self.layers.max(0)
        matrices = self.layers[:, Field.QKV : Field.STATE].reshape(-1, len(Matrix))
        read = int(matrices[:, Matrix.INPUTS :].prod(1).sum()) * kernels.ITEMSIZE[self.form]
        self.threads = torch.get_num_threads() if read > _WORTH_SHARING else 1
        slots = max(cache.kv.shape[2] for cache in state.layers)

        def memory(*size: int) -> NDArray[np.float32]:
            return np.zeros(size, np.float32)

        wide = max(sizes[Field.FC + Matrix.OUTPUTS], sizes[Field.PROJ + Matrix.INPUTS])
        self.work = (
            memory(self.threads, B, W),
            memory(self.threads, B, sizes[Field.QKV + Matrix.INPUTS]),
            memory(B, sizes[Field.QKV + Matrix.OUTPUTS]),
            memory(B, sizes[Field.OUT + Matrix.INPUTS]),
            memory(B, sizes[Field.OUT + Matrix.OUTPUTS]),
            memory(B, wide),
            memory(B, sizes[Field.PROJ + Matrix.OUTPUTS]),
            memory(self.threads, slots),
        )
        self.logits = memory(B, self.head[Matrix.OUTPUTS])
        self.nothing = memory(0, W)
        self.counters = np.zeros(2, np.int64)
        if not kernels.step.signatures:  # type: ignore[attr-defined]
            self._compile()

        self._alone = one_thread()

    def __enter__(self) -> None:
        self._alone.__enter__()

    def __exit__(self, *error: object) -> None:
        self._alone.__exit__(*error)

    def _compile(self) -> None:
        """Have the step made for this machine, or read from the disk, before the clock of a song runs."""
        start = time.perf_counter()
        self.without_layers()
        if (took := time.perf_counter() - start) > _WORTH_A_WORD:
            log.info("steps were compiled for this machine in %.0f s", took)

    def without_layers(self) -> None:
        """What a step does once, whatever the depth of the net, by one thread."""
        no_layers, no_places = self.layers[:0], np.zeros((0, 3), np.int64)
        kernels.step(0, 1, *self._given(no_layers, no_places, np.zeros_like(self.work[0][0]), self.nothing))

    def _given(
        self, layers: NDArray[np.int64], places: NDArray[np.int64], x_in: NDArray[np.float32], x_out: NDArray[np.float32]
    ) -> tuple[Any, ...]:  # fmt: skip
        """The arguments of a step behind thread and threads."""
        return (
            self.counters.ctypes.data, self.form, self.heads, self.scale, layers, places, self.head, x_in, x_out, *self.work,
            self.logits,
        )  # fmt: skip

    def _part(self, thread: int, given: tuple[Any, ...]) -> None:
        """What one thread does of a step. A method, so that what is waiting to be done keeps the memory it reads."""
        kernels.step(thread, *given)

    def __call__(self, before: Tensor) -> Tensor:
        """The token drawn last, `[B, 1]`, or none at the start, `[B, 0]` -> logits `[B, K]`, good until the next call."""
        position = self.state.position
        if not isinstance(position, int) or position >= self.net.n:
            raise ValueError(f"the window of {self.net.n} positions is full")
        x_cond = self.cond.x_cond
        x_in = self.net.inputs(before, position, x_cond, self.cond.start)[:, 0].contiguous().numpy()
        x_out = self.nothing
        if x_cond is not None and not self.net.merged:
            x_out = x_cond[:, 0 if x_cond.shape[1] == 1 else position].expand(len(x_in), -1).contiguous().numpy()
        known = self.state.places()
        places = np.array([known[cache.pattern] for cache in self.state.layers])
        self.counters[:] = 0
        given = self.threads, *self._given(self.layers, places, x_in, x_out)
        with _one_step:
            others: list[Future[None]] = []
            try:
                for thread in range(1, self.threads):
                    others.append(_team(self.threads).submit(self._part, thread, given))
                self._part(0, given)
                for other in others:
                    other.result()
            except BaseException:  # Ctrl-C too: the others are told not to wait for this thread
                self.counters[1] = 1
                wait(others)
                raise
        self.state.position = position + 1
        return torch.from_numpy(self.logits)[:, : self.bins]


_one_step = Lock()  # at a time: the threads of a step must all be at work on it


@cache
def _team(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="step")


def _told(layer: Block, kv: Tensor) -> list[int]:
    attn, encoder = layer.attn, layer.attn.pattern.kind == ENCODER
    norms: list[nn.LayerNorm] = [layer.norm1, layer.norm2]
    matrices = [attn.q if encoder else attn.qkv, attn.out, layer.mlp.fc, layer.mlp.out]
    return [
        *(tensor.data_ptr() for norm in norms for tensor in (norm.weight, norm.bias)),
        *(number for matrix in matrices for number in matrix.told()),  # type: ignore[operator]
        attn.state, kv.data_ptr(), kv.stride(0), kv.stride(1), int(encoder),
    ]  # fmt: skip
