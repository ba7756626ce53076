"""Residual stacks and transposed convolutions as rows against the plain layers."""

import json
from pathlib import Path

import pytest
import torch

from jukebox.nn import conv
from jukebox.nn.conv import DecoderBlock, EncoderBlock, ResidualStack
from jukebox.nn.tiles import Span


def plain(net, x):
    """Through the layers of training."""
    with torch.enable_grad():
        return net(x).detach()


@pytest.mark.parametrize("res_scale", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_stacks_write_over_what_they_have_read(monkeypatch, batch, res_scale):
    """Tiles much shorter than the reach, in several groups, whose last tile is cut off."""
    torch.manual_seed(0)
    stack = ResidualStack(8, 6, growth_rate=3, res_scale=res_scale)
    x = torch.randn(batch, 8, 1500)
    expected = plain(stack, x)
    for tile in (33, 200, 1024, 4096):
        monkeypatch.setattr(conv, "TILE_VALUES", tile * 8 * batch)
        with torch.inference_mode():
            kept = x.clone()
            found = conv.as_before(stack(conv.as_rows(x)), x)
        assert torch.allclose(found, expected, atol=1e-5), tile
        assert torch.equal(x, kept), "the input stays"


@pytest.mark.parametrize("stride", [2, 4, 6, 64])
def test_a_transposed_convolution_as_pairs_of_inputs(stride):
    torch.manual_seed(0)
    layer = torch.nn.ConvTranspose1d(5, 7, 2 * stride, stride, stride // 2)
    for batch, length in ((1, 1), (1, 9), (2, 30)):
        x = torch.randn(batch, 5, length)
        with torch.inference_mode():
            assert torch.allclose(conv.conv_up(layer, conv.as_rows(x)).squeeze(2), layer(x), atol=1e-5)


@pytest.mark.parametrize("want", [Span(0, 0), Span(0, 9), Span(37, 37), Span(11, 40), Span(50, 63), Span(0, 63)])
@pytest.mark.parametrize("down", [True, False])
def test_only_what_is_wanted_is_what_all_of_it_is(want, down):
    torch.manual_seed(0)
    stacks = [ResidualStack(6, 2, growth_rate=3) for _ in range(2)]
    net = EncoderBlock(3, 6, 4, 4, stacks) if down else DecoderBlock(3, 6, 4, 2, stacks)
    x = torch.randn(2, 3, 1024 if down else 16)
    expected = plain(net, x)[..., want.first : want.last + 1]
    with torch.inference_mode():
        assert torch.allclose(net(x, want), expected, atol=1e-5)
    assert torch.allclose(net(x, want), expected, atol=1e-5), "with gradients"


def test_without_one_dnn(run_mpi):
    """Where torch was built without it, the same numbers come from plain products."""
    program = Path(__file__).with_name("without_onednn.py")
    done = run_mpi(0, [program], timeout=120)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"forms": ["fp32", "int8"], "stack": True, "packed": True}
