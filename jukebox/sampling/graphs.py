"""One step with the position on the device: every shape fixed, recorded once as a CUDA graph.

A step of 72 layers is a thousand small kernels; launched one by one they are bound by the host. A recorded step is one
launch. On a CPU the same function runs as it is, which is how it is tested.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jukebox.nn.cache import DecodeState
from jukebox.prior.model import Conditioning, Prior

_WARM_UP = 3  # runs before the recording, in which libraries choose kernels and take workspace


class FixedStep:
    """The steps of a batch, from the position that `state` has reached after its prefill.

    Memory of token, position and logits is the same in every step; the caches of `state` are written in place.
    """

    def __init__(self, prior: Prior, state: DecodeState, cond: Conditioning) -> None:
        self.prior, self.cond, self.state = prior, cond, state.fixed()
        assert isinstance(self.state.position, Tensor)
        self.position = self.state.position
        batch, device = len(state.layers[0].kv), self.position.device
        self.before = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):  # streams and recordings belong to one card
                self._record()

    def __call__(self, before: Tensor) -> Tensor:
        """The token drawn last, `[B, 1]` -> logits `[B, K]` of the next; good until the next call."""
        self.before.copy_(before)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.logits

    def _run(self) -> None:
        net = self.prior.net
        hidden = net.extend(self.before, self.state, self.cond.x_cond, self.cond.start)
        self.logits: Tensor = net.out(hidden[:, -1])
        self.position.add_(1)
        self.state.position = self.position

    def _record(self) -> None:
        """Warm up on a side stream, then record. What these runs write at this position, the first step overwrites."""
        start = self.position.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._run()
                self.position.copy_(start)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # sound may be decoded by another thread
            self._run()
        self.position.copy_(start)
        self.graph = graph


class Steps:
    """Steps of one prior, recorded once for a batch size: the windows that follow use the recording again, and with it
    the memory of caches and conditioning. A batch of another size drops them."""

    def __init__(self) -> None:
        self._kept: FixedStep | None = None

    def begin(
        self, prior: Prior, batch: int, cond: Conditioning, dtype: torch.dtype
    ) -> tuple[DecodeState, Conditioning]:
        """An empty state for a window and its conditioning, in the memory that was recorded where there is one."""
        kept = self._kept
        if (
            kept is None
            or kept.prior is not prior
            or (len(kept.before), kept.state.layers[0].kv.dtype) != (batch, dtype)
        ):
            self._kept = None
            return prior.new_state(batch, dtype), cond
        state = DecodeState(kept.state.layers)
        state.reset()
        kept.cond.copy_(cond)
        return state, kept.cond

    def after_prefill(self, prior: Prior, state: DecodeState, cond: Conditioning) -> FixedStep:
        """The step that goes on from a state that `begin` gave, with its conditioning."""
        if self._kept is None:
            self._kept = FixedStep(prior, state, cond)
        else:
            self._kept.position.fill_(state.position)  # type: ignore[arg-type]
        return self._kept
