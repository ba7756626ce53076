"""One process or many, through the same methods.

A `Comm` is what the processes of a run say to each other. Everyone calls a method, or no one: no collective stands
inside a condition on the rank. torch is imported inside functions, so that `--help` answers without it.
"""

import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
Op = Literal["sum", "max", "min"]
BUCKET_BYTES = 32 << 20
_POLL_SEC = 0.05


class PeerLost(RuntimeError):
    """A collective failed because another process died, froze or left; whoever that was knows the reason."""

    def __init__(self, text: str, *, timed_out: bool = False) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class Comm(ABC):
    """The processes of a run: who this one is, and what they can do together."""

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int, device: str, launcher: str) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank  # among the processes of this machine
        self.local_size = local_size
        self.device = device  # "cpu", "cuda:0", ...
        self.launcher = launcher  # "none", "mpi" or "torchrun"

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which speaks and writes for all."""
        return self.rank == 0

    @abstractmethod
    def all_reduce(self, tensor: "torch.Tensor", op: Op = "sum") -> "torch.Tensor":
        """Combine a tensor over all ranks, in place; every rank gets the same bits. Returns it."""

    @abstractmethod
    def all_reduce_tensors(
        self, tensors: Sequence["torch.Tensor"], op: Op = "sum", bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """Combine many tensors over all ranks, in place, in few large messages."""

    @abstractmethod
    def broadcast(self, tensor: "torch.Tensor", src: int = 0) -> "torch.Tensor":
        """Overwrite a tensor with that of rank `src`, in place. Returns it."""

    @abstractmethod
    def broadcast_object(self, value: T, src: int = 0) -> T:
        """The value that rank `src` has; the other ranks' are ignored."""

    @abstractmethod
    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here; raises PeerLost naming the ranks that are not, after the timeout."""

    @abstractmethod
    def run_first(self, make: Callable[[], T]) -> T:
        """Run `make` on rank 0 only and give its result to all; it may take longer than any timeout."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""

    @abstractmethod
    def mean(self, value: float) -> float:
        """The mean of a number over ranks."""

    @abstractmethod
    def close(self) -> None:
        """Give up the connections; nothing works afterwards."""


class SoloComm(Comm):
    """A run of one process."""

    def __init__(self, device: str = "cpu", launcher: str = "none") -> None:
        super().__init__(0, 1, 0, 1, device, launcher)

    def all_reduce(self, tensor: "torch.Tensor", op: Op = "sum") -> "torch.Tensor":
        return tensor

    def all_reduce_tensors(
        self, tensors: Sequence["torch.Tensor"], op: Op = "sum", bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        pass

    def broadcast(self, tensor: "torch.Tensor", src: int = 0) -> "torch.Tensor":
        return tensor

    def broadcast_object(self, value: T, src: int = 0) -> T:
        return value

    def gather_objects(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        pass

    def run_first(self, make: Callable[[], T]) -> T:
        return make()

    def any(self, flag: bool) -> bool:
        return bool(flag)

    def mean(self, value: float) -> float:
        return float(value)

    def close(self) -> None:
        pass


class DistComm(Comm):
    """A run of many processes, over torch.distributed.

    The default group is gloo: it carries CPU tensors, objects and flags. `device_group` carries CUDA tensors.
    Objects travel as pickles, between processes of this run only.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        local_rank: int,
        local_size: int,
        launcher: str,
        store: "Store",
        timeout_sec: float,
    ) -> None:
        super().__init__(rank, size, local_rank, local_size, "cpu", launcher)
        self._store = store
        self._timeout = timedelta(seconds=timeout_sec)
        self._device_group: dist.ProcessGroup | None = None
        self._turn = 0  # of run_first

    def use_device(self, device: str) -> None:
        """Carry CUDA tensors too, over NCCL; every rank calls it."""
        import torch
        import torch.distributed as dist

        torch.cuda.set_device(device)
        self._device_group = dist.new_group(backend="nccl", timeout=self._timeout)
        self.device = device

    def all_reduce(self, tensor: "torch.Tensor", op: Op = "sum") -> "torch.Tensor":
        self.all_reduce_tensors([tensor], op)
        return tensor

    def all_reduce_tensors(
        self, tensors: Sequence["torch.Tensor"], op: Op = "sum", bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        import torch
        import torch.distributed as dist

        reduce_op = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op]
        under_way: deque[tuple[Any, torch.Tensor, list[torch.Tensor]]] = deque()
        with _peers_at("all_reduce"), torch.no_grad():
            for bucket in _buckets(tensors, bucket_bytes):
                flat = _flat(bucket)
                work = dist.all_reduce(flat, reduce_op, group=self._group(flat), async_op=True)
                under_way.append((work, flat, bucket))
                if len(under_way) > 1:  # one bucket travels while the next is packed
                    _land(*under_way.popleft())
            while under_way:
                _land(*under_way.popleft())

    def broadcast(self, tensor: "torch.Tensor", src: int = 0) -> "torch.Tensor":
        import torch
        import torch.distributed as dist

        with _peers_at("broadcast"), torch.no_grad():
            flat = _flat([tensor])
            work = dist.broadcast(flat, src, group=self._group(flat), async_op=True)
            _land(work, flat, [tensor])
        return tensor

    def broadcast_object(self, value: T, src: int = 0) -> T:
        import torch.distributed as dist

        box = [value if self.rank == src else None]
        with _peers_at("broadcast_object"):
            dist.broadcast_object_list(box, src)
        return box[0]  # type: ignore[return-value]

    def gather_objects(self, value: T) -> list[T]:
        import torch.distributed as dist

        boxes: list[Any] = [None] * self.size
        with _peers_at("gather_objects"):
            dist.all_gather_object(boxes, value)
        return boxes

    def barrier(self) -> None:
        import torch.distributed as dist

        with _peers_at("barrier"):
            dist.monitored_barrier(timeout=self._timeout, wait_all_ranks=True)

    def run_first(self, make: Callable[[], T]) -> T:
        self._turn += 1
        done = f"run_first/{self._turn}"
        value: Any = None
        if self.is_first:
            value = make()
            self._store.set(done, "1")
        with _peers_at("run_first"):
            while not self._store.check([done]):  # a collective would time out during long work
                time.sleep(_POLL_SEC)
        return self.broadcast_object(value)  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        import torch

        return bool(self.all_reduce(torch.tensor([int(flag)], dtype=torch.int32), "max").item())

    def mean(self, value: float) -> float:
        import torch

        return float(self.all_reduce(torch.tensor([value], dtype=torch.float64)).item()) / self.size

    def close(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    # What the way out needs (launch.py): a board that works while collectives do not.

    def first_failure(self, text: str) -> tuple[bool, str]:
        """Report a failure: whether it is the first of this run, and the first one's text."""
        found = self._store.compare_set("failure", "", f"{self.rank} {text}").decode(errors="replace")
        return found == f"{self.rank} {text}", found

    def known_failure(self) -> str | None:
        """The first failure reported in this run, as `<rank> <text>`."""
        return self._store.get("failure").decode(errors="replace") if self._store.check(["failure"]) else None

    def roll_call(self, wait_sec: float) -> list[int]:
        """The ranks that do not answer within `wait_sec`; those that stand at the same error call it too."""
        self._store.set(f"here/{self.rank}", "1")
        end = time.monotonic() + wait_sec
        while absent := [rank for rank in range(self.size) if not self._store.check([f"here/{rank}"])]:
            if time.monotonic() > end:
                break
            time.sleep(_POLL_SEC)
        return absent

    def meet(self, wait_sec: float | None) -> bool:
        """Wait, as long as it takes or `wait_sec`, until every rank came here; once in a run."""
        self._store.add("met", 1)
        end = None if wait_sec is None else time.monotonic() + wait_sec
        while self._store.add("met", 0) < self.size:
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(_POLL_SEC)
        return True

    def _group(self, tensor: "torch.Tensor") -> "dist.ProcessGroup | None":
        return self._device_group if tensor.is_cuda else None


_LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|timeout|connection refused|failed to pass|"
    r"received errors while waiting|failed to recv|socket",
    re.IGNORECASE,
)


@contextmanager
def _peers_at(what: str) -> Iterator[None]:
    """Tells a lost peer from a fault of our own; torch raises RuntimeError for both."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        timed_out = re.search(r"timed out|timeout|failed to pass", str(error), re.IGNORECASE) is not None
        fate = "no answer in time" if timed_out else "another process was killed or crashed"
        raise PeerLost(f"{what}: {fate} ({error})", timed_out=timed_out) from None


def _buckets(tensors: Sequence["torch.Tensor"], bucket_bytes: int) -> Iterator[list["torch.Tensor"]]:
    """Groups of one dtype and device, in a fixed order, each up to `bucket_bytes` (a larger tensor goes alone)."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        bucket: list[torch.Tensor] = []
        room = bucket_bytes
        for tensor in group:
            if bucket and tensor.nbytes > room:
                yield bucket
                bucket, room = [], bucket_bytes
            bucket.append(tensor)
            room -= tensor.nbytes
        yield bucket


def _flat(bucket: list["torch.Tensor"]) -> "torch.Tensor":
    """One dense vector: the tensor itself where it can be, else a copy of all."""
    import torch

    if len(bucket) == 1 and bucket[0].is_contiguous():
        return bucket[0].detach().view(-1)
    return torch.cat([tensor.detach().reshape(-1) for tensor in bucket])


def _land(work: Any, flat: "torch.Tensor", bucket: list["torch.Tensor"]) -> None:
    work.wait()
    if len(bucket) == 1 and flat.data_ptr() == bucket[0].data_ptr():
        return
    start = 0
    for tensor in bucket:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
