"""Packed products against plain ones, on every shape a prior has; the gate at the published head widths."""

import pytest
import torch

from jukebox.errors import UsageError
from jukebox.nn import linear
from jukebox.nn.linear import Head, Int8, Linear, OneDNN, pack
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
def test_int8_rounds_the_weights_alone_and_many_rows_know_no_neighbours():
    plain = layer(480, 200)
    packed = linear._packed(plain, "int8")
    if packed.few > Int8.FEW:
        pytest.skip("no exact 8 bit product on this machine")
    x = torch.randn(9, 480)
    x[3] = 0  # the first row of a window may see nothing
    exact = x.double() @ (packed.weight * packed.scale[:, None].double()).t() + plain.bias.double()
    torch.testing.assert_close(packed(x).double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(packed(x[2:7]), packed(x)[2:7])
    few = packed(x[: Int8.FEW])
    assert ((few - exact[: Int8.FEW]).norm() / exact[: Int8.FEW].norm()) < 0.01


@torch.inference_mode()
def test_int8_of_a_few_rows_of_wide_layers_rounds_the_weights_alone(recwarn):
    plain = layer(Int8.WIDE, 200)
    packed = linear._packed(plain, "int8")
    assert not recwarn.list
    if packed.wide is None:
        pytest.skip("no exact 8 bit product of FBGEMM on this machine")
    x = torch.randn(3, Int8.WIDE) * torch.tensor([[0.01], [0.0], [100.0]])
    x[2, 5] = 1e4  # one value far beyond the others
    weight, scale = linear._quantised(plain.weight.t())
    exact = x.double() @ (weight * scale[:, None].double()).t() + plain.bias.double()
    assert ((packed(x) - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-3
    assert len(packed.weight) == 0, "two orders of the weights are kept, not three"
    for row in range(3):
        assert torch.equal(packed(x[row : row + 1])[0], packed(x)[row]), "a row knows no neighbours"


@torch.inference_mode()
def test_where_no_wide_8_bit_product_is_to_be_had(monkeypatch):
    monkeypatch.setattr(linear, "_wide_is_exact", lambda: False)
    plain, x = layer(Int8.WIDE, 24), torch.randn(1, Int8.WIDE)
    packed = linear._packed(plain, "int8")
    assert packed.wide is None and (packed(x) - plain(x)).norm() < 0.01 * plain(x).norm()


@torch.inference_mode()
def test_where_the_exact_8_bit_product_is_not_to_be_had(monkeypatch):
    monkeypatch.setattr(linear, "_int8_is_exact", lambda: False)
    plain = layer(64, 96)
    packed = linear._packed(plain, "int8")
    assert isinstance(packed, Int8) and isinstance(linear._packed(layer(7, 9), "int8"), OneDNN)
    x = torch.randn(9, 64)
    assert (packed(x) - plain(x)).abs().max() < 0.05 * plain(x).std()


@torch.inference_mode()
def test_int8_as_a_gpu_multiplies_it():
    """Its two ways, run on the CPU: 8 bit weights made bfloat16, and the kernel, which a trial compares with them."""
    plain, x = layer(480, 96), torch.randn(40, 480)
    packed = linear._packed(plain, "int8")
    assert packed._has_kernel()
    exact = x @ (packed.weight * packed.scale[:, None]).t() + plain.bias
    assert ((packed._widened(x) - exact).norm() / exact.norm()) < 0.005
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
    assert isinstance(net["a"], OneDNN) and isinstance(net["b"]["head"], OneDNN)
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


def test_the_fastest_form_depends_on_songs_and_width():
    below = [form for form in FORMS if form != "fp32"]
    assert linear.fastest_first("cpu", 1, 1024) == linear.fastest_first("cpu", 16, 1920) == below[::-1]
    assert linear.fastest_first("cpu", 4, 1024) == below
