"""Packed products against plain ones, on every shape a prior has; the gate at the published head widths."""

import pytest
import torch

from jukebox.errors import UsageError
from jukebox.nn import linear
from jukebox.nn.linear import Head, Int8OnGPU, Linear, Rows, pack
from jukebox.nn.transformer import Transformer, TransformerShape

FORMS = linear.forms("cpu")
LIMIT = {"fp32": 2e-6, "bf16": 8e-3, "int8": 1e-2}  # of the spread of a row


def layer(n_in: int, n_out: int) -> Linear:
    torch.manual_seed(n_in)
    made = Linear(n_in, n_out)
    torch.nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 2, 4, 16, 67])
@pytest.mark.parametrize("sizes", [(150, 450), (480, 1920), (7, 13)])
@torch.inference_mode()
def test_near_the_exact_product(form, rows, sizes):
    plain, packed = layer(*sizes), linear._packed(layer(*sizes), form)
    x = torch.randn(rows, 1, sizes[0]) * torch.logspace(-3, 3, rows)[:, None, None]
    exact = x.double() @ plain.weight.double() + plain.bias.double()
    y = packed(x)
    assert y.shape == exact.shape and y.dtype == torch.float32
    assert ((y - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < LIMIT[form]


@torch.inference_mode()
def test_int8_rounds_the_weights_alone():
    plain = layer(480, 200)
    packed, x = linear._packed(plain, "int8"), torch.randn(9, 480)
    weight = packed.weight[:200, :480] * packed.scale[:200, None].double()
    exact = x.to(torch.bfloat16).double() @ weight.t() + plain.bias.double()
    assert ((packed(x) - exact).norm() / exact.norm()) < 2**-8, "and sums, to bfloat16"


@torch.inference_mode()
def test_int8_as_a_gpu_multiplies_it():
    """Its two ways, run on the CPU: 8 bit weights made bfloat16, and the kernel, which a trial compares with them."""
    plain, x = layer(480, 96), torch.randn(40, 480)
    packed = Int8OnGPU(plain.weight.t(), plain.bias)
    assert packed._has_kernel() and packed.few == Int8OnGPU.FEW
    exact = x @ (packed.weight * packed.scale[:, None]).t() + plain.bias
    assert ((packed(x).float() - exact).norm() / exact.norm()) < 0.005
    assert ((packed(x[:3]).float() - exact[:3]).norm() / exact[:3].norm()) < 0.01
    packed.weight = packed.weight.flip(0)
    packed._few_rows = lambda x: torch.zeros(len(x), packed.n_out)
    assert not packed._has_kernel(), "a kernel that computes something else is not used"


@torch.inference_mode()
def test_a_net_is_packed_and_gets_its_plain_weights_back():
    net = torch.nn.ModuleDict({"a": layer(8, 8), "b": torch.nn.ModuleDict({"head": Head(8, 11)})})
    x, before = torch.randn(2, 8), dict(net.state_dict())
    expected = net["b"]["head"](net["a"](x))
    back = linear.way_back(net)
    pack(net, "fp32")
    assert isinstance(net["a"], Rows) and isinstance(net["b"]["head"], Rows)
    torch.testing.assert_close(net["b"]["head"](net["a"](x)), expected)
    back()
    assert list(net.state_dict()) == list(before)
    assert all(tensor is before[name] or torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_half_numbers_are_for_a_gpu():
    with pytest.raises(UsageError, match="--dtype=fp16"):
        linear.check("fp16", "cpu")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("width", "heads"), [(600, 1), (1920, 1), (2048, 2)], ids=["150", "480", "256"])
@torch.inference_mode()
def test_layers_at_the_published_head_widths(form, width, heads):
    """Head widths 150, 480 and 256, all steps and a prefill, row, column and previous row."""
    torch.manual_seed(0)
    shape = TransformerShape(n=12, width=width, depth=3, heads=heads, attn_order=2, blocks=3, init_scale=1.0)
    net = Transformer(shape).eval().requires_grad_(False)
    assert int(shape.m_attn * width) // heads in (150, 480, 256)
    x = torch.randn(2, shape.n, width)
    expected = net(x)
    pack(net, form)
    state = net.new_state(2)
    found = torch.cat([net.extend(part, state) for part in x.split([5, 1, 1, 1, 4], 1)], 1)
    relative = (found - expected).norm() / expected.norm()
    assert relative < {"fp32": 1e-6, "bf16": 0.01, "int8": 0.02}[form]


def test_the_fastest_form_has_the_fewest_bytes():
    assert linear.fastest_first("cpu") == [form for form in FORMS if form != "fp32"][::-1]
