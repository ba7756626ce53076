"""Steps on a CPU: all layers for the next code in one compiled function, shared by the threads of this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from jukebox.nn import kernels
from jukebox.nn.cache import DecodeState
from jukebox.nn.kernels import Field, Matrix
from jukebox.nn.linear import Rows
from jukebox.nn.patterns import ENCODER
from jukebox.nn.transformer import Block
from jukebox.prior.model import Conditioning, Prior

_WORTH_SHARING = 4e6  # bytes of weights in a step; below, waiting for one another costs more than it saves


class CompiledStep:
    """The steps of a batch after its prefill: `state` moves on, its caches are written in place.

    Weights are read where they lie, so packed layers must stay while this is used.
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
        read = int((self.layers[:, 4:24].reshape(-1, 4, 5)[..., 3:].prod(-1)).sum()) * kernels.ITEMSIZE[self.form]
        self.threads = torch.get_num_threads() if read > _WORTH_SHARING else 1
        slots = max(cache.kv.shape[2] for cache in state.layers)

        def memory(*size: int) -> np.ndarray:
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

    def __call__(self, before: Tensor) -> Tensor:
        """The token drawn last, `[B, 1]`, or none at the start, `[B, 0]` -> logits `[B, K]`, good until the next call."""
        position = self.state.position
        x_cond = self.cond.x_cond
        x_in = self.net.inputs(before, position, x_cond, self.cond.start)[:, 0].contiguous().numpy()
        x_out = self.nothing
        if x_cond is not None and not self.net.merged:
            x_out = x_cond[:, 0 if x_cond.shape[1] == 1 else position].expand(len(x_in), -1).contiguous().numpy()
        known = self.state.places()
        places = np.array([known[cache.pattern] for cache in self.state.layers])
        self.counters[:] = 0
        given = (
            self.threads, self.counters.ctypes.data, self.form, self.heads, self.scale, self.layers, places, self.head,
            x_in, x_out, *self.work, self.logits,
        )  # fmt: skip
        try:
            others = [_team(self.threads).submit(kernels.step, i, *given) for i in range(1, self.threads)]
            kernels.step(0, *given)
            for other in others:
                other.result()
        except BaseException:  # Ctrl-C too: nobody waits for this thread
            self.counters[1] = 1
            raise
        self.state.position = position + 1
        return torch.from_numpy(self.logits)[:, : self.bins]


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
