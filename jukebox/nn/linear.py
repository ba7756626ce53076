"""Every matrix product of the priors goes through this file: plain in training, packed once for decoding.

One code at a time, a prior reads each weight once per code, so that bytes decide its speed. `pack` replaces the layers
of a loaded net by one of four forms; all take and give float32 on a CPU, so that nothing else knows of them:

    form   weights                                     arithmetic
    fp32   float32                                     float32
    bf16   bfloat16                                    a step in float32, a prefill in bfloat16 with float32 sums
    int8   8 bits with one scale per output channel    likewise
    fp16   float16, for a GPU (there bf16 likewise)    half activations; on a GPU int8 gives bfloat16

On a CPU a step goes through all layers in one compiled function (`nn/kernels.py`), which reads these weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox import resources
from jukebox.errors import UsageError

Form = Literal["fp32", "fp16", "bf16", "int8"]

LANES = 16  # the compiled step sums so many numbers side by side,
BLOCK = 8  # of so many rows together (compiled code of before is known by the date of kernels.py: change that file too)

if torch.backends.mkldnn.is_available():  # not on every kind of machine
    _linear = torch.ops.mkldnn._linear_pointwise.default


class Linear(nn.Module):
    """`y = x @ weight + bias` with the published orientation of the matrix.

    Shapes: x `[..., n_in]`, weight `[n_in, n_out]`, bias `[n_out]`, y `[..., n_out]`. The weight is drawn from
    normal(0, 0.02 * init_scale), or is zero with `zero_out`; the bias starts at zero. Weight and bias are cast to the
    dtype of x, so that half weights can be trained by float32 activations and the reverse (arXiv:2005.00341 sec. 4).
    """

    def __init__(self, n_in: int, n_out: int, *, init_scale: float = 1.0, zero_out: bool = False) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        if not zero_out:
            nn.init.normal_(self.weight, std=0.02 * init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., n_out]`, in the dtype of x."""
        return F.linear(x, self.weight.to(x.dtype).t(), self.bias.to(x.dtype))


class Head(nn.Module):
    """Logits over a vocabulary: `y = x @ weight.T`, weight `[bins, n_in]`, always float32, no bias.

    `tied_to` shares the weight of an embedding; otherwise the weight starts uniform in +-1/sqrt(n_in).
    """

    def __init__(self, n_in: int, bins: int, tied_to: nn.Embedding | None = None) -> None:
        super().__init__()
        if tied_to is not None:
            self.weight = tied_to.weight
        else:
            self.weight = nn.Parameter(torch.empty(bins, n_in).uniform_(-(n_in**-0.5), n_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., bins]` float32."""
        return F.linear(x.float(), self.weight.float())


# --------------------------------------------------------------------------------------------------- packed for decoding


class Packed(nn.Module):
    """A product whose weights were rearranged once: x `[..., n_in]` -> `[..., n_out]`; not trained, not saved.

    weight `[n_out, n_in]`, bias `[n_out]` or None. itemsize: bytes of a weight that a product reads; result: dtype of y.
    """

    itemsize = 1
    result = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.n_out, self.n_in = weight.shape
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., n_out]`, float32 on a CPU."""
        y = self.product(x.reshape(-1, self.n_in))
        return y.view(*x.shape[:-1], self.n_out)

    def product(self, x: Tensor) -> Tensor:
        """The same for rows `[M, n_in]`."""
        raise NotImplementedError


class Rows(Packed):
    """Weights row by row, one row per output, as float32, bfloat16 or whole numbers of 8 bits with a scale per row.

    Padded with zeros to multiples of BLOCK rows and LANES inputs for the compiled step, which reads them as they lie;
    a prefill hands them to oneDNN, which puts them in order on its way: 3 to 9 % of its time (docs/benchmarks.md).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form) -> None:
        super().__init__(weight, bias)
        self.form: Form = form
        rows, columns = _up(self.n_out, BLOCK), _up(self.n_in, LANES)
        self.scale = None
        if form == "int8":
            weight, scale = _quantised(weight)
            self.scale = F.pad(scale, (0, rows - self.n_out))
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[form]
        self.itemsize = dtype.itemsize
        kept = torch.zeros(rows, columns, dtype=dtype) if weight.shape != (rows, columns) else None
        if kept is None:
            self.weight = weight.detach().to(dtype).contiguous()
        else:
            kept[: self.n_out, : self.n_in] = weight.detach()
            self.weight = kept
        self.biases = torch.zeros(rows)  # zeros where there are none
        if self.bias is not None:
            self.biases[: self.n_out] = self.bias
            self.bias = self.biases[: self.n_out]

    def product(self, x: Tensor) -> Tensor:
        weight = self.weight[: self.n_out, : self.n_in]
        if self.form == "fp32":
            return _product(x, weight, self.bias)
        half = torch.bfloat16 if "bf16" in forms("cpu") else torch.float32
        y = _product(x.to(half), weight.to(half), None).float()
        if self.scale is not None:
            scale = self.scale[: self.n_out]
            return y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y if self.bias is None else y + self.bias

    def told(self) -> list[int]:
        """What the compiled step is told of it (`kernels.Matrix`)."""
        scale = 0 if self.scale is None else self.scale.data_ptr()
        return [self.weight.data_ptr(), scale, self.biases.data_ptr(), self.weight.shape[1], self.weight.shape[0]]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x `[M, n_in]` times weight `[n_out, n_in]`, both of one dtype: by oneDNN where it is, 1.3 x as fast as without."""
    if torch.backends.mkldnn.is_available() and weight.is_contiguous():
        return _linear(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


def _up(n: int, unit: int) -> int:
    """n rounded up to a multiple of unit."""
    return -(-n // unit) * unit


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[n_out, n_in]` as int8 with one scale per output channel, symmetric."""
    weight = weight.detach().float().contiguous()
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round_().to(torch.int8), scale


class Int8OnGPU(Packed):
    """8 bit weights and bfloat16 activations on a GPU: its own kernel for few rows where a trial agrees, else every
    weight is made bfloat16, which 8 bits are exactly; many rows pay for that."""

    FEW = 16

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.weight, self.scale = _quantised(weight)
        self.scale_few = self.scale.to(torch.bfloat16)
        self.result = torch.float32 if bias is None else torch.bfloat16
        self.few = self.FEW if self._has_kernel() else 0

    def product(self, x: Tensor) -> Tensor:
        if len(x) > self.few:
            return self._widened(x).to(self.result)
        y = self._few_rows(x)
        return y.to(self.result) if self.bias is None else (y + self.bias).to(self.result)

    def _few_rows(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale_few)

    def _widened(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16)).float()
        return y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)

    def _has_kernel(self) -> bool:
        """Whether this device multiplies 8 bit weights of this shape, by trying it."""
        x = torch.ones(1, self.n_in, device=self.weight.device)
        try:
            found, expected = self._few_rows(x).float(), self._widened(x)
            expected = expected if self.bias is None else expected - self.bias
            return bool((found - expected).abs().max() <= 0.02 * expected.abs().max())
        except RuntimeError:
            return False


class Half(Packed):
    """Half weights, cast once; half in, half out: for a GPU. Logits (no bias) are float32 throughout: their weights are
    1 % of all, and rounded they would differ by more than the gate allows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias)
        self.result = torch.float32 if bias is None else dtype
        self.weight, self.itemsize = weight.detach().to(self.result).contiguous(), self.result.itemsize
        self.bias = None if bias is None else bias.detach().to(dtype)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.result), self.weight, self.bias)


@cache
def forms(device: str) -> tuple[Form, ...]:
    """The forms a device computes well in, most bytes per weight first."""
    if torch.device(device).type != "cpu":
        return "fp32", "fp16", "bf16", "int8"
    known = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("fp32", "bf16", "int8") if known else ("fp32", "int8")


def fastest_first(device: str) -> list[Form]:
    """The forms below float32: on a CPU by their bytes, on a GPU those first that its matrix units compute in.

    Without numba 8 bits are the slowest: layer by layer all weights are widened in every step.
    """
    below: list[Form] = [form for form in forms(device) if form != "fp32"]
    if torch.device(device).type == "cpu" and find_spec("numba") is None:
        below.remove("int8")
    return below if torch.device(device).type != "cpu" else below[::-1]


def check(form: Form, device: str) -> None:
    """Raises UsageError for a form that the device does not compute in."""
    kind = torch.device(device).type
    if form not in forms(device):
        raise UsageError(f"--dtype={form} is not for this {kind}; it computes in {', '.join(forms(device))}.")


def _packed(layer: Linear | Head, form: Form) -> nn.Module:
    weight = layer.weight.t() if isinstance(layer, Linear) else layer.weight  # [n_out, n_in]
    bias = layer.bias if isinstance(layer, Linear) else None
    if not weight.is_cuda:
        return Rows(weight, bias, form)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    return Int8OnGPU(weight, bias) if form == "int8" else Half(weight, bias, half[form])


def pack(net: nn.Module, form: Form, device: str | None = None) -> None:
    """Replace every `Linear` and `Head` inside `net` by its packed form, for decoding. Each is freed as it is replaced,
    so that both forms of a large net are never in memory together, unless `way_back` keeps the plain one.

    device: where the packed layers go, one by one, and then all else; None = they stay. Raises UsageError for a form the
    device does not compute in.
    """
    check(form, device or next(net.parameters()).device.type)
    packed: dict[int, nn.Module] = {}  # by layer: one that stands in two places is packed once
    freed = 0
    for module, name in [(module, name) for module, name, _ in _plain(net)]:
        child = getattr(module, name)
        if id(child) not in packed:
            freed += child.weight.nbytes
            packed[id(child)] = _packed(child.to(device) if device else child, form)
        setattr(module, name, packed[id(child)])
        if freed > resources.RELEASE_BYTES:
            freed = 0
            resources.release_freed()


def way_back(net: nn.Module) -> Callable[[], None]:
    """What puts the plain layers of now back in place of packed ones; while it is kept, so are they."""
    places = list(_plain(net))

    def back() -> None:
        for module, name, child in places:
            setattr(module, name, child)

    return back


def _plain(net: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every layer that can be packed: who holds it, under which name."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, Linear | Head):
                yield module, name, child


def held_bytes(layer: Linear | Head, form: Form, device: str) -> int:
    """Bytes that the packed form of a layer holds."""
    each = {"fp32": 4, "int8": 1}.get(form, 2)
    if isinstance(layer, Head) and torch.device(device).type != "cpu" and form != "int8":
        each = 4
    return layer.weight.numel() * each + (4 * len(layer.bias) if isinstance(layer, Linear) else 0)


def result_dtype(net: nn.Module) -> torch.dtype:
    """What the packed products of a net give, and so what keys and values are kept in: half numbers on a GPU only."""
    results = {module.result for module in net.modules() if isinstance(module, Packed)}
    return next(iter(results - {torch.float32}), torch.float32)
