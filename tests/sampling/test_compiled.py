"""The compiled step against passes over all positions: every attention kind, every form, any threads, any neighbours."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from jukebox.nn import linear
from jukebox.nn.transformer import TransformerShape
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling import compiled
from jukebox.sampling.compiled import CompiledStep
from jukebox.sampling.decode import prefill, stepper

N, BINS = 48, 37  # no multiple of what the step pads to
LIMIT = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}  # of the span of the logits; these nets amplify on purpose


def prior_of(order: int, **changes) -> Prior:
    torch.manual_seed(order)
    shape = TransformerShape(
        n=N, width=36, depth=16 if order in (11, 12) else 6, heads=3, attn_order=order, blocks=4, spread=2, lyric_len=9,
        encoder_len=5, m_attn=0.5, init_scale=4.0, **changes,
    )  # fmt: skip
    prior = Prior(PriorShape(0, hops=(4,), bins=BINS, n_ctx=N, transformer=shape)).eval().requires_grad_(False)
    for name, tensor in prior.named_parameters():
        if "norm" in name:
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return prior


def begin(prior: Prior, codes: torch.Tensor, given: int, songs: slice = slice(None)):
    """A state after a prefill of so many codes of some songs, and the steps behind it."""
    codes = codes[songs]
    cond, state = prior.condition(None, None), prior.new_state(len(codes))
    numbers = torch.Generator().manual_seed(1)
    encoded = torch.randn(5, 5, 36, generator=numbers)[songs]
    if any(layer.attn.pattern.kind == 6 for layer in prior.net.transformer.layers):
        prior.net.transformer.encode(encoded, state)
    if given:
        prefill(prior, codes[:, :given], cond, state)
    return state, cond, encoded


@torch.inference_mode()
def run(prior: Prior, codes: torch.Tensor, given: int, songs: slice = slice(None)) -> torch.Tensor:
    state, cond, _ = begin(prior, codes, given, songs)
    step = stepper(prior, state, cond)
    assert isinstance(step, CompiledStep)
    first = [] if given else [step(codes[songs, :0]).clone()]
    return torch.stack([*first, *(step(codes[songs, t : t + 1]).clone() for t in range(given, N - 1))], 1)


@pytest.fixture
def shared(monkeypatch):
    """Every step is shared by the threads torch has, two at first; afterwards it has as many as before."""
    monkeypatch.setattr(compiled, "_WORTH_SHARING", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("order", [0, 2, 3, 4, 6, 9, 12])
@torch.inference_mode()
def test_every_attention_kind_in_every_form(order):
    prior, codes = prior_of(order, res_scale=order == 9), torch.randint(BINS, (5, N))
    _, _, encoded = begin(prior, codes, 0)
    expected = prior.net.out(prior.net(torch.cat([codes, codes[:, :1]], 1)[:, :N], None, None, encoded))
    for form in linear.forms("cpu"):
        back = linear.way_back(prior)
        linear.pack(prior, form)
        for given in (0, 3, 29):  # from 0 on the start vector is the first step
            found = run(prior, codes, given)
            wanted = expected[:, given + 1 if given else 0 :]
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() < LIMIT[form] * (wanted.max() - wanted.min()), (form, given)
        back()


@pytest.mark.parametrize("form", linear.forms("cpu"))
def test_a_song_knows_neither_threads_nor_neighbours(form, shared):
    """Bit by bit: one to three threads, alone or with four others (which are multiplied four and one together)."""
    prior, codes = prior_of(6), torch.randint(BINS, (5, N))
    linear.pack(prior, form)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run(prior, codes, 0))
        assert torch.equal(found[0], found[-1])
    for song in (0, 4):
        assert torch.equal(run(prior, codes, 0, slice(song, song + 1)), found[0][song : song + 1])


def test_without_a_compiler_steps_go_layer_by_layer(monkeypatch, caplog):
    prior, codes = prior_of(2), torch.randint(BINS, (2, N))
    linear.pack(prior, "fp32")
    expected = run(prior, codes, 7)
    monkeypatch.setitem(__import__("sys").modules, "jukebox.sampling.compiled", None)
    with torch.inference_mode():
        state, cond, _ = begin(prior, codes, 7)
        step = stepper(prior, state, cond)
        found = torch.stack([step(codes[:, t : t + 1]).clone() for t in range(7, N - 1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "not compiled" in caplog.text


def test_a_step_that_is_interrupted_leaves_nobody_waiting(shared, monkeypatch):
    """Ctrl-C between handing out the shares and taking one's own: the other thread gives up, and the next step works."""
    prior, codes = prior_of(2), torch.randint(BINS, (2, N))
    linear.pack(prior, "fp32")
    with torch.inference_mode():
        state, cond, _ = begin(prior, codes, 7)
        step = stepper(prior, state, cond)
        position, expected = state.position, step(codes[:, 7:8]).clone()
        state.position = position
        real = compiled.kernels.step

        def interrupted(thread, *given):
            if thread == 0:
                raise KeyboardInterrupt
            real(thread, *given)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(compiled.kernels, "step", interrupted)
            step(codes[:, 7:8])
        compiled._team(2).submit(lambda: None).result(timeout=20)  # the thread is free again
        assert torch.equal(step(codes[:, 7:8]), expected)


def test_two_songs_at_once_in_one_process(shared):
    """Each from a thread of its own: the threads of a step serve one after the other, and both songs come out right."""
    prior, codes = prior_of(2), torch.randint(BINS, (4, N))
    linear.pack(prior, "int8")
    expected = [run(prior, codes, 0, slice(i, i + 2)) for i in (0, 2)]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(2,)) as singers:
        waiting = [singers.submit(run, prior, codes, 0, slice(i, i + 2)) for i in (0, 2) * 3]
        found = [future.result(timeout=60) for future in waiting]
    assert all(torch.equal(song, expected[i % 2]) for i, song in enumerate(found))


def test_a_window_that_is_full_is_said():
    prior, codes = prior_of(2), torch.randint(BINS, (1, N))
    linear.pack(prior, "fp32")
    with torch.inference_mode():
        state, cond, _ = begin(prior, codes, N - 1)
        with pytest.raises(ValueError, match="48 positions is full"):
            stepper(prior, state, cond)(codes[:, :1])
