"""Every matrix product of the priors goes through this file: plain in training, packed once for decoding.

One code at a time, a prior reads each weight once per code, so that bytes decide its speed. `pack` replaces the layers
of a loaded net by one of four forms; all take and give float32 on a CPU, so that nothing else knows of them:

    form   weights                                     arithmetic
    fp32   float32 in the order oneDNN wants           float32
    bf16   bfloat16 in that order                      bfloat16 products, float32 sums
    int8   8 bits with one scale per output channel    activations in bfloat16 or as two 8 bit digits
    fp16   float16, for a GPU (there bf16 likewise)    half activations; on a GPU int8 gives bfloat16
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jukebox import resources
from jukebox.errors import UsageError

Form = Literal["fp32", "fp16", "bf16", "int8"]

if torch.backends.mkldnn.is_available():  # not on every kind of machine
    _linear = torch.ops.mkldnn._linear_pointwise.default  # the overload by name: looking it up costs 6 us a call
_qlinear = torch.ops.onednn.qlinear_pointwise.default


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


class OneDNN(Packed):
    """float32 or bfloat16 weights in the blocked order of oneDNN: up to 2 x the speed of `F.linear` for few rows.

    rows: how many are multiplied in a step. In float32 the order for 1 row saves a tenth there and costs 1.7 x the time
    for 4; otherwise, and in a prefill, the order makes no difference (measured for 1 to 1,024 rows).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
        super().__init__(weight, bias)
        self.dtype, self.itemsize = dtype, dtype.itemsize
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), rows)
        self.inside = self.bias if dtype == torch.float32 else None  # else it is added in float32

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _linear(x.to(self.dtype), self.weight, self.inside, "none", [], "")
        if self.dtype == torch.float32:
            return y
        return y.float() if self.bias is None else y + self.bias


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[n_out, n_in]` as int8 with one scale per output channel, symmetric."""
    weight = weight.detach().float().contiguous()
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round_().to(torch.int8), scale


class Int8(Packed):
    """8 bit weights; for a few rows of narrow layers with bfloat16 activations, else with those of two 8 bit digits.

    A few rows, narrow: `_weight_int8pack_mm` costs 1 us beside its work, but computes at 8 GB/s a core.
    A few rows, wide: FBGEMM reads 15 GB/s a core; a row x becomes multiples of 1/127 of its largest value and 127 x what is
    left, two rows of one 8 bit product, 25 us beside its work. 0.6 x the time for 1920 x 1920.
    Many rows: a row becomes the integers q = 256 h + l, 16 bits over its span; h and l are two rows of one oneDNN product
    with exact 32 bit sums. Against bfloat16 rows that takes 0.7 x the time for 4, 0.4 x for 16, 0.16 x in a prefill.
    Two orders of the weights are kept side by side: 16 bits a weight in memory, 8 are read.
    """

    FEW = 3
    FEW_ON_GPU = 16
    WIDE = 1536  # inputs
    LANES = 16  # the kernel for a few rows reads inputs by so many, also behind the end
    SPAN = 32512  # 127 * 256, so that the high digit fits
    OFFSET = 32896.5  # makes q positive (32768), the low digit signed (128), and the cast to integers a rounding (0.5)

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.weight, self.scale = _quantised(weight)
        self.scale_few = self.scale.to(torch.bfloat16)
        self.few = sys.maxsize  # rows that are few
        self.wide, self.on_gpu = None, weight.is_cuda
        if self.on_gpu:
            self.few = self.FEW_ON_GPU if self._has_kernel() else 0
            self.result = torch.float32 if bias is None else torch.bfloat16
        elif _int8_is_exact():
            self.few = 0 if self.n_in % self.LANES else self.FEW
            self.ordered = torch.ops.onednn.qlinear_prepack(self.weight, None)
            self.zeros = torch.zeros(self.n_out, dtype=torch.int32)
            self.offset, self.least = torch.tensor(self.OFFSET), torch.tensor(1e-30)
            if self.few and self.n_in >= self.WIDE and _wide_is_exact():
                self.wide = _wide_pack(self.weight, self.scale)
                self.weight = self.weight.new_empty(0)

    def product(self, x: Tensor) -> Tensor:
        if len(x) > self.few:
            return self._widened(x).to(self.result) if self.on_gpu else self._digits(x)
        if self.wide is not None:
            return self._few_wide_rows(x)
        y = self._few_rows(x)
        return y.to(self.result) if self.bias is None else (y + self.bias).to(self.result)

    def _few_rows(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale_few)

    def _few_wide_rows(self, x: Tensor) -> Tensor:
        m, largest = len(x), torch.linalg.vector_norm(x, torch.inf, -1, True).clamp_min_(1e-30)
        x = x / largest
        rest = torch.fmod(x, 1 / 127)
        y = _wide_product()(torch.cat((x - rest, rest * 127)), 1 / 127, 128, self.wide)
        y = torch.add(y[:m], y[m:], alpha=1 / 127)
        return y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)

    def _widened(self, x: Tensor) -> Tensor:
        """On a GPU, where many rows pay for it: every weight is made bfloat16, which 8 bits are exactly."""
        y = F.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16)).float()
        return y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)

    def _has_kernel(self) -> bool:
        """Whether this GPU multiplies 8 bit weights of this shape, by trying it."""
        x = torch.ones(1, self.n_in, device=self.weight.device)
        try:
            found, expected = self._few_rows(x).float(), self._widened(x)
            expected = expected if self.bias is None else expected - self.bias
            return bool((found - expected).abs().max() <= 0.02 * expected.abs().max())
        except RuntimeError:
            return False

    def _digits(self, x: Tensor) -> Tensor:
        m = len(x)
        step = torch.add(self.least, x.abs().amax(1, keepdim=True), alpha=1 / self.SPAN)
        q = torch.addcdiv(self.offset, x, step).to(torch.int32)
        digits = q.view(torch.uint8).view(m, self.n_in, 4)[..., :2]
        digits = digits.permute(2, 0, 1).reshape(2 * m, self.n_in)  # all low digits, then all high ones
        y = _qlinear(
            digits, 1.0, 128, self.ordered, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = torch.add(y[:m], y[m:], alpha=256)
        return y.mul_(step) if self.bias is None else torch.addcmul(self.bias, y, step)


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
def _int8_is_exact() -> bool:
    """Whether oneDNN's 8 bit product is there and does not saturate (it may without VNNI)."""
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), -127, dtype=torch.int8), None)
        x = torch.full((2, 64), 255, dtype=torch.uint8)
        scale, zero = torch.ones(16), torch.zeros(16, dtype=torch.int32)
        y = _qlinear(x, 1.0, 128, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return bool((y == -127 * 127 * 64).all())


def _wide_pack(weight: Tensor, scale: Tensor) -> object:
    """8 bit weights and their scales as FBGEMM wants them."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings(action="ignore"):  # a later torch may be without it; then the others compute
            given = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(given, None)
    finally:
        torch.backends.quantized.engine = before


@cache
def _wide_product() -> Callable[..., Tensor]:
    """Rows of multiples of a step -> their product with what `_wide_pack` gave, in float32."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default  # type: ignore[no-any-return]


@cache
def _wide_is_exact() -> bool:
    """Whether FBGEMM's 8 bit product is there and does not saturate (it does without VNNI)."""
    try:
        packed = _wide_pack(torch.full((16, 64), -127, dtype=torch.int8), torch.ones(16))
        y = _wide_product()(torch.ones(2, 64), 1 / 127, 128, packed)
    except (RuntimeError, AttributeError):
        return False
    return bool(torch.allclose(y, torch.full((2, 16), -127.0 * 64), rtol=1e-6, atol=0))


def forms(device: str) -> tuple[Form, ...]:
    """The forms a device computes well in, most bytes per weight first."""
    if torch.device(device).type != "cpu":
        return "fp32", "fp16", "bf16", "int8"
    if not torch.backends.mkldnn.is_available():
        return ("fp32",)
    return ("fp32", "bf16", "int8") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("fp32", "int8")


def fastest_first(device: str, rows: int = 1, width: int = Int8.WIDE) -> list[Form]:
    """The forms below float32 for so many songs at once in a net of that width: on a CPU by their bytes, but for more
    than a few songs in a narrow net bfloat16 is ahead of int8 (measured, 1.3 x); on a GPU those first that its matrix
    units compute in."""
    below: list[Form] = [form for form in forms(device) if form != "fp32"]
    many = rows > Int8.FEW and width < Int8.WIDE
    return below if many or torch.device(device).type != "cpu" else below[::-1]


def check(form: Form, device: str) -> None:
    """Raises UsageError for a form that the device does not compute in."""
    kind = torch.device(device).type
    if form not in forms(device):
        raise UsageError(f"--dtype={form} is not for this {kind}; it computes in {', '.join(forms(device))}.")


def _packed(layer: Linear | Head, form: Form, rows: int = 16) -> nn.Module:
    weight = layer.weight.t() if isinstance(layer, Linear) else layer.weight  # [n_out, n_in]
    bias = layer.bias if isinstance(layer, Linear) else None
    if weight.is_cuda:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
        return Int8(weight, bias) if form == "int8" else Half(weight, bias, half[form])
    if form == "int8" and (_int8_is_exact() or weight.shape[1] % Int8.LANES == 0):
        return Int8(weight, bias)
    if form != "bf16" and not torch.backends.mkldnn.is_available():
        return layer
    return OneDNN(weight, bias, torch.bfloat16 if form == "bf16" else torch.float32, rows)


def pack(net: nn.Module, form: Form, rows: int = 16, device: str | None = None) -> None:
    """Replace every `Linear` and `Head` inside `net` by its packed form, for decoding. Each is freed as it is replaced,
    so that both forms of a large net are never in memory together, unless `way_back` keeps the plain one.

    rows: songs that are sampled together. device: where the packed layers go, one by one, and then all else; None = they
    stay. Raises UsageError for a form the device does not compute in.
    """
    check(form, device or next(net.parameters()).device.type)
    packed: dict[int, nn.Module] = {}  # by layer: one that stands in two places is packed once
    freed = 0
    for module, name in [(module, name) for module, name, _ in _plain(net)]:
        child = getattr(module, name)
        if id(child) not in packed:
            freed += child.weight.nbytes
            packed[id(child)] = _packed(child.to(device) if device else child, form, rows)
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
    kind = torch.device(device).type
    each = {"fp32": 4, "int8": 2 if kind == "cpu" and _int8_is_exact() else 1}.get(form, 2)
    if isinstance(layer, Head) and kind != "cpu" and form != "int8":
        each = 4
    return layer.weight.numel() * each + (4 * len(layer.bias) if isinstance(layer, Linear) else 0)


def result_dtype(net: nn.Module) -> torch.dtype:
    """What the packed products of a net give, and so what keys and values are kept in: half numbers on a GPU only."""
    results = {module.result for module in net.modules() if isinstance(module, Packed)}
    return next(iter(results - {torch.float32}), torch.float32)
