"""Songs of any length through chunks with a halo: the same codes and the same sound as one pass."""

import math

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.models import build
from jukebox.models.codec import VQVAECodec
from jukebox.nn.tiles import chunks, even_chunks
from jukebox.vqvae.encdec import Decoder, Encoder

NETS = {
    "three levels, wide dilations": {
        "levels": 3, "downs_t": (2, 1, 1), "strides_t": (2, 2, 2), "depth": 3, "dilation_growth_rate": 3,
        "hvqvae_multipliers": (2, 1, 1),
    },
    "stride of four": {"levels": 2, "downs_t": (1, 2), "strides_t": (4, 2), "depth": 2, "dilation_growth_rate": 2},
    "dilations in cycles": {
        "levels": 1, "downs_t": (3,), "strides_t": (2,), "depth": 5, "dilation_growth_rate": 4, "dilation_cycle": 2,
        "vqvae_reverse_decoder_dilation": False,
    },
}  # fmt: skip


def make(name: str, chunk_samples: int = 256):
    torch.manual_seed(1)
    hps = settings.from_values({"width": 4, "emb_width": 4, "l_bins": 32, **NETS[name]}, "test")
    vqvae = build.build_vqvae(hps).eval()
    x = torch.randn(1, 60 * vqvae.hops[-1], 1)
    with torch.no_grad():
        for level in range(vqvae.levels):
            rows = vqvae.embed(x, level)[0].t()
            vqvae.codebook(level).start(rows[torch.randperm(len(rows))[:32]])
    return VQVAECodec(vqvae, 8000, chunk_samples)


# ---------------------------------------------------------------------------------------------------------------- halos


def positive(net: torch.nn.Module) -> torch.nn.Module:
    """All weights positive: no ReLU closes and no two ways cancel, so every input that can matter does."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.abs() + 0.1)
    return net


def reach(net: torch.nn.Module, x: torch.Tensor, first: int, last: int) -> tuple[int, int]:
    """First and last input position that the outputs first ... last depend on."""
    x = x.double().requires_grad_()
    y = net.double()(x)[..., first : last + 1]
    (gradient,) = torch.autograd.grad((y / y.detach().abs().max()).sum(), x)
    touched = (gradient[0].abs().sum(0) > 0).nonzero().flatten()
    return int(touched[0]), int(touched[-1])


@pytest.mark.parametrize("name", NETS)
def test_halo_is_the_receptive_field(name):
    vqvae = make(name).vqvae
    for encoder, decoder in zip(vqvae.encoders, vqvae.decoders, strict=True):
        assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
        hop, (before, after) = encoder.hop, encoder.halo()
        code = before // hop + 2
        length = (code + 3) * hop + after // hop * hop + hop
        first, last = reach(positive(encoder), torch.ones(1, 1, length), code, code)
        assert (code * hop - first, last - (code * hop + hop - 1)) == (before, after)
        before, after = decoder.halo()
        code = before + 2
        x = torch.ones(1, 4, code + after + 3)
        assert reach(positive(decoder), x, code * hop, code * hop + hop - 1) == (code - before, code + after)


def test_published_receptive_fields():
    with torch.device("meta"):
        vqvae = build.build_vqvae(settings.from_presets("vqvae"))
    assert [encoder.halo() for encoder in vqvae.encoders] == [
        (45935, 45942 - 7),
        (2551, 2582 - 31),
        (10455, 10582 - 127),
    ]
    assert [decoder.halo() for decoder in vqvae.decoders] == [(5742, 5742), (80, 80), (82, 82)]


# --------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("cut", [chunks, even_chunks])
@pytest.mark.parametrize("unit", [1, 4, 6])
@pytest.mark.parametrize("halo", [(0, 0), (5, 9), (12, 3)])
@pytest.mark.parametrize("whole", [1, 7, 20, 21, 22, 53, 100])
def test_chunks_cover_everything_once_in_one_shape(cut, unit, halo, whole):
    length, size = whole * unit, 20 * unit + 3
    before, after = halo
    pieces = list(cut(length, size, halo, unit))
    kept = [(piece.keep_start, piece.keep_stop) for piece in pieces]
    assert kept[0][0] == 0 and kept[-1][1] == length
    assert all(stop == start for (_, stop), (start, _) in zip(kept, kept[1:], strict=False))
    assert all(start < stop for start, stop in kept)
    assert len({piece.stop - piece.start for piece in pieces}) == 1
    for piece in pieces:
        assert 0 <= piece.start <= piece.keep_start and piece.keep_stop <= piece.stop <= length
        assert piece.start % unit == piece.keep_start % unit == 0
        assert piece.start == 0 or piece.keep_start - piece.start >= before
        assert piece.stop == length or piece.stop - piece.keep_stop >= after


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="leaves nothing"):
        list(chunks(1000, 20, (8, 8), 8))
    with pytest.raises(ValueError, match="not whole units"):
        list(chunks(101, 40, (4, 4), 4))


# ---------------------------------------------------------------------------------------------------------------- codec


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_codes_in_chunks_are_those_of_one_pass(name, seconds, threads):
    codec = make(name)
    audio = np.random.default_rng(2).standard_normal(int(8000 * seconds) + 3).astype(np.float32)
    top = codec.geometry.top_hop
    x = np.pad(audio, (0, -len(audio) % top))
    expected = codec.vqvae.encode(torch.from_numpy(x)[None, :, None])
    assert (len(codec.pieces(len(audio))) > 1) == (seconds > 1)
    found = codec.encode(audio)
    assert list(found) == list(range(codec.vqvae.levels))
    for level, codes in found.items():
        assert codes.dtype == np.int64 and len(codes) == math.ceil(len(audio) / top) * top // codec.geometry.hops[level]
        assert np.array_equal(codes, expected[level][0].numpy())
    assert list(codec.encode(audio, [codec.vqvae.levels - 1])) == [codec.vqvae.levels - 1]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", NETS)
def test_sound_of_ranges_is_that_of_one_pass(name, threads):
    codec, rng = make(name), np.random.default_rng(3)
    for level, hop in enumerate(codec.geometry.hops):
        codes = rng.integers(0, 32, 24_000 // hop)
        z = [torch.from_numpy(codes)[None]] * (codec.vqvae.levels - level)
        expected = codec.vqvae.decode(z, level)[0, :, 0].numpy()
        whole = codec.decode(codes, level)
        assert np.abs(whole - expected).max() < 1e-5 and whole.dtype == np.float32
        for _ in range(2):
            start, stop = sorted(rng.integers(0, len(codes) + 1, 2))
            part = codec.decode(codes, level, int(start), int(stop))
            assert part.shape == ((stop - start) * hop,)
            assert not part.size or np.abs(part - expected[start * hop : stop * hop]).max() < 1e-5


def test_threads_and_what_came_before_change_no_bit():
    codec = make("dilations in cycles")
    audio = np.random.default_rng(4).standard_normal(9000).astype(np.float32)
    assert len(codec.pieces(len(audio))) > 3
    codes = codec.encode(audio)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = codec.encode(audio)
        assert all(np.array_equal(again[level], codes[level]) for level in codes)
        found.append(codec.decode(codes[0], 0))
    torch.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found)


def test_a_fingerprint_is_of_weights_and_codebooks():
    codec, same = make("stride of four"), make("stride of four")
    assert codec.fingerprint == same.fingerprint
    with torch.no_grad():
        same.vqvae.codebook(1).vectors[0, 0] += 1
    assert VQVAECodec(same.vqvae, 8000).fingerprint != codec.fingerprint
