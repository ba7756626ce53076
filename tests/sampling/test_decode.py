"""Decoding a window: packed weights, chunks, steps of fixed shape; and the gate of the forms below float32."""

import json

import pytest
import torch
from small_priors import SHAPES, B, N

from jukebox.nn import linear
from jukebox.nn.patterns import NAMES, Pattern
from jukebox.prior.model import Prior
from jukebox.sampling import graphs, precision
from jukebox.sampling.decode import decode_window

FORMS = linear.forms("cpu")


def make(kind: str) -> tuple[Prior, precision.Example]:
    torch.manual_seed(0)
    prior = Prior(SHAPES[kind]()).eval().requires_grad_(False)
    return prior, precision.example(prior, B, N)


def greedy(prior: Prior, piece: precision.Example, given: int, **how) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, place: int) -> torch.Tensor:
        assert place == given + len(seen)
        seen.append(logits.clone())
        return logits.argmax(-1)

    codes = decode_window(prior, piece.codes[:, :given], N, choose, upper=piece.upper, y=piece.y, **how)
    return codes, torch.stack(seen, 1)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("given", [0, 7, N - 1])
def test_every_way_draws_the_same_codes(kind, given):
    prior, piece = make(kind)
    codes, logits = greedy(prior, piece, given)
    ways = [{"fixed": True}, {"chunk_size": 1}, {"chunk_size": 5}]
    found = [greedy(prior, piece, given, **way) for way in ways]
    linear.pack(prior, "fp32")
    found += [greedy(prior, piece, given)]
    for again, scores in found:
        assert torch.equal(again, codes)
        torch.testing.assert_close(scores, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_recording_is_used_again(kind, monkeypatch):
    prior, piece = make(kind)
    other = precision.example(prior, B, N)
    other.codes, other.upper = other.codes.flip(0), None if other.upper is None else other.upper.flip(0)
    expected = [greedy(prior, part, given)[0] for part, given in ((piece, 3), (other, 9))]
    made = []
    monkeypatch.setattr(
        graphs.FixedStep, "_run", lambda self, run=graphs.FixedStep._run: (made.append(self), run(self))
    )
    steps = graphs.Steps()
    found = [greedy(prior, part, n, fixed=True, steps=steps)[0] for part, n in ((piece, 3), (other, 9), (piece, 3))]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and torch.equal(found[2], found[0])
    assert len(set(map(id, made))) == 1, "one recording"
    one = precision.Example(piece.codes[:1], *(None if t is None else t[:1] for t in (piece.upper, piece.y)))
    assert torch.equal(greedy(prior, one, 3, fixed=True, steps=steps)[0], expected[0][:1])
    assert len(set(map(id, made))) == 2, "another batch size, another recording"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_steps_of_fixed_shape_in_every_form(kind, form):
    prior, piece = make(kind)
    linear.pack(prior, form)
    codes, logits = greedy(prior, piece, 3)
    again, scores = greedy(prior, piece, 3, fixed=True)
    torch.testing.assert_close(scores[:, 0], logits[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(again, codes) or form != "fp32"


@pytest.mark.parametrize("kind", range(8), ids=NAMES)
def test_a_place_on_the_device_is_the_place_in_numbers(kind):
    pattern = Pattern(kind, 24, 4, spread=2, lyric_len=7, encoder_len=5)
    for t in range(pattern.n):
        place, fixed = pattern.place(t), pattern.place(torch.tensor([t]))
        assert int(fixed.slot) == place.slot < pattern.pages * pattern.page_slots and int(fixed.look) == place.look
        seen = fixed.seen.sum() if isinstance(fixed.seen, torch.Tensor) else fixed.seen
        assert int(seen) == place.seen <= pattern.page_slots


# ---------------------------------------------------------------------------------------------------------- the gate


@pytest.mark.parametrize("kind", SHAPES)
def test_bits_per_code_of_packed_forms(kind):
    prior, piece = make(kind)
    reference = piece.logits(prior)
    for form in FORMS:
        verdict, back = precision.measure(prior, form, piece, reference)
        assert abs(verdict.bits) < 0.05 and verdict.agreement > 0.8
        assert form != "fp32" or (verdict.passes and verdict.agreement == 1)
        back()
    torch.testing.assert_close(piece.logits(prior), reference, rtol=0, atol=0)


def test_teacher_forcing_is_what_the_steps_see():
    prior, piece = make("lyrics in front")
    piece.codes, stepwise = greedy(prior, piece, 0, mask_lyric_codes=True)
    stepwise[..., : prior.shift] = piece.logits(prior)[..., : prior.shift]  # -inf there
    torch.testing.assert_close(piece.logits(prior), stepwise, rtol=1e-4, atol=1e-4)


def test_auto_takes_what_passes_and_remembers(tmp_path, monkeypatch):
    record = tmp_path / "precision.json"
    prior, _ = make("upsampler")
    monkeypatch.setattr(precision, "LIMIT_BITS", dict.fromkeys(FORMS, 1.0))
    assert precision.pack(prior, "auto", record) == torch.float32
    assert json.loads(record.read_text())["0"]["form"] == FORMS[-1]

    monkeypatch.setattr(precision, "LIMIT_BITS", dict.fromkeys(FORMS, -1.0))
    prior, _ = make("upsampler")
    precision.pack(prior, "auto", record)
    assert type(prior.net.out) is type(linear._packed(make("upsampler")[0].net.out, FORMS[-1])), "as the record says"
    prior, _ = make("upsampler")
    precision.pack(prior, "auto")
    assert isinstance(prior.net.out, linear.Rows) and prior.net.out.form == "fp32"
