"""Priors of every sort, untrained and tiny: what they see, what they refuse, and decoding against the full pass."""

import pytest
import torch

from jukebox import settings
from jukebox.errors import HparamsError
from jukebox.models import build
from jukebox.sampling.decode import decode_window

B, N = 3, 24
BASE = {
    "levels": 3, "downs_t": (2, 1, 1), "strides_t": (2, 2, 2), "l_bins": 16, "sr": 8000, "emb_width": 4, "width": 4,
    "n_ctx": N, "prior_width": 16, "prior_depth": 6, "heads": 2, "blocks": 4, "attn_order": 2, "init_scale": 20.0,
}  # fmt: skip
LABELS = {
    "labels": True, "y_bins": (5, 7), "t_bins": 6, "max_bow_genre_size": 2, "min_duration": 0.05, "max_duration": 20.0,
}  # fmt: skip
LYRICS = {"use_tokens": True, "n_tokens": 8, "n_vocab": 12, "prime_loss_fraction": 0.4}
SORTS = {
    "top": {"level": 2},
    "upsampler": {"level": 0, "cond_width": 6, "cond_depth": 2},
    "labelled top": {"level": 2, **LABELS},
    "labelled upsampler": {"level": 1, "cond_width": 6, "cond_depth": 2, **LABELS},
    "merged": {"level": 2, "merged_decoder": True, **LABELS},
    "one sequence": {
        "level": 2, "single_enc_dec": True, "attn_order": 12, "prior_depth": 16, "alignment_layer": 15, **LABELS, **LYRICS
    },
    "encoder": {
        "level": 2, "attn_order": 8, "prior_depth": 10, "prime_width": 8, "prime_depth": 2, "prime_heads": 1,
        "prime_blocks": 2, "prime_attn_order": 2, **LABELS, **LYRICS,
    },
}  # fmt: skip


class Case:
    def __init__(self, sort: str, **changes):
        torch.manual_seed(4)
        self.prior = build.build_prior(settings.from_values(BASE | SORTS[sort] | changes, "test")).eval()
        with torch.no_grad():
            for name, parameter in self.prior.named_parameters():
                if "out.weight" in name and not parameter.any():  # layers of kind 6 begin at zero
                    torch.nn.init.normal_(parameter, std=0.4)
        prior = self.prior
        self.codes = torch.randint(16, (B, N))
        self.upper = torch.randint(16, (B, N // prior.ratio)) if prior.ratio else None
        self.y = None
        if prior.labelled:
            self.y = torch.zeros(B, 6 + prior.n_tokens, dtype=torch.int64)
            self.y[:, :4] = torch.tensor(
                [[9000, 0, N * prior.hop, 2], [9000, 700, N * prior.hop, 6], [5000, 40, 96, 0]]
            )
            self.y[:, 4:6] = torch.tensor([[1, -1], [0, 4], [3, 2]])
            self.y[:, 6:] = torch.randint(12, (B, prior.n_tokens))

    def out(self, **changes):
        told = {"codes": self.codes, "upper": self.upper, "y": self.y} | changes
        with torch.no_grad():
            return self.prior(**told)


@pytest.fixture(params=SORTS)
def case(request) -> Case:
    return Case(request.param)


def test_items_are_alone(case):
    whole = case.out()
    for i in range(B):
        part = {k: None if v is None else v[i : i + 1] for k, v in vars(case).items() if k in ("codes", "upper", "y")}
        torch.testing.assert_close(case.out(**part).logits[0], whole.logits[i], rtol=1e-4, atol=1e-4)


def test_a_code_is_predicted_from_those_before_it(case):
    whole, prefix = case.out().logits, case.prior.prefix
    for place in (0, 5, N - 1):
        codes = case.codes.clone()
        codes[:, place:] = (codes[:, place:] + 1) % 16
        changed = case.out(codes=codes).logits
        assert torch.equal(changed[:, : prefix + place + 1], whole[:, : prefix + place + 1])
        assert place == N - 1 or not torch.equal(changed, whole)


def test_everything_told_is_heard(case):
    told = case.out()
    if case.upper is not None:
        assert not torch.equal(case.out(upper=(case.upper + 1) % 16).logits, told.logits)
    for column in range(0 if case.y is None else case.y.shape[1]):
        if column < 3 and not case.prior.labels.shape.timing:
            continue
        y = case.y.clone()
        y[:, column] = torch.tensor([90_000, 3000, 6000, 1, 2, 3] + [11] * 99)[column]
        found = case.out(y=y)
        # The last character is known to no encoder state, since inputs are shifted; it is a target only.
        last = case.prior.shape.lyric_encoder is not None and column == y.shape[1] - 1
        assert not torch.equal(found.prime_loss if last else found.logits, told.prime_loss if last else told.logits), (
            column
        )


@pytest.mark.parametrize("given, length, chunk", [(0, N, None), (7, N, 3), (N - 1, N, None), (5, 11, 1), (12, 13, 40)])
def test_decoding_is_the_full_pass(case, given, length, chunk):
    """Logits seen while decoding are those of the full pass over the result; what was given stays."""
    seen, counted = [], []

    def choose(logits, place):
        assert place == given + len(seen)
        seen.append(logits.clone())
        shifted = logits[:, case.prior.shift :]
        return shifted.argmax(-1) + case.prior.shift

    found = decode_window(
        case.prior, case.codes[:, :given], length, choose, upper=case.upper, y=case.y, chunk_size=chunk,
        on_code=lambda: counted.append(1),
    )  # fmt: skip
    assert found.shape == (B, length) and torch.equal(found[:, :given], case.codes[:, :given])
    assert len(seen) == len(counted) == length - given
    full = case.out(codes=torch.cat([found, case.codes[:, length:]], 1)).logits[:, case.prior.prefix :]
    torch.testing.assert_close(torch.stack(seen, 1), full[:, given:length], rtol=1e-3, atol=1e-3)


def test_lyric_characters_among_the_codes():
    case = Case("one sequence")
    drawn = decode_window(case.prior, case.codes[:, :0], N, lambda logits, _: torch.full((B,), 3), y=case.y)
    assert not drawn.any()  # a character counts as code 0
    seen = []
    decode_window(
        case.prior, case.codes[:, :0], 4, lambda logits, _: (seen.append(logits), logits.argmax(-1))[1], y=case.y,
        mask_lyric_codes=True,
    )  # fmt: skip
    assert all((logits[:, :12] == -torch.inf).all() and (logits[:, 12:] > -torch.inf).all() for logits in seen)
    told = case.prior.condition(None, case.y)
    tokens = case.prior.tokens(case.codes, told)
    assert tokens.shape == (B, 8 + N) and torch.equal(case.prior.codes(tokens), case.codes)
    assert not told.x_cond[:, :8].any()


def test_every_sort_trains_at_any_batch_size(case):
    case.prior.train()
    for n in (1, B):
        case.prior.zero_grad()
        told = {k: None if v is None else v[:n] for k, v in (("upper", case.upper), ("y", case.y))}
        out = case.prior(case.codes[:n], **told)
        out.loss.backward()
        assert torch.isfinite(out.loss) and all(p.grad is not None for p in case.prior.parameters())
    total, n_tokens = N + case.prior.n_tokens, case.prior.n_tokens
    expected = (0.4 * out.prime_loss * n_tokens + out.gen_loss * N) / total
    torch.testing.assert_close(out.loss, expected)
    assert bool(out.prime_loss > 0) == bool(n_tokens)


def test_losses_are_bits():
    case = Case("top", init_scale=1e-6)
    assert float(case.out().gen_loss) == pytest.approx(4.0, abs=1e-3)  # 16 codes, nothing known


def test_attention_weights_of_lyrics():
    case = Case("one sequence", alignment_layer=15)
    weights = case.prior.attention_weights({15, 0}, case.codes, None, case.y)
    assert weights[15].shape == (B, 2, N, 8) and weights[0].shape == (B * 4, 2, 8, 8)
    assert (weights[15] >= 0).all() and (weights[15].sum(-1) <= 1 + 1e-5).all()
    case = Case("encoder")
    weights = case.prior.attention_weights({9}, case.codes, None, case.y)[9]
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, 2, N))


# --------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_missing_is_named():
    case = Case("labelled upsampler")
    with pytest.raises(ValueError, match="codes of the level above"):
        case.out(upper=None)
    with pytest.raises(ValueError, match="a window needs 12"):
        case.out(upper=case.upper[:, 1:])
    with pytest.raises(ValueError, match="labels of 6 columns"):
        case.out(y=None)
    with pytest.raises(ValueError, match="codes of the level above"):
        Case("top").out(upper=case.upper)
    top = Case("top")
    with pytest.raises(ValueError, match="codes given for a window"):
        decode_window(top.prior, top.codes, N, lambda logits, _: logits.argmax(-1))


@pytest.mark.parametrize(
    "column, value, text",
    [(3, 7, "artist id 7"), (3, -1, "artist id"), (4, 5, "genre id 5"), (4, -2, "genre id"), (0, 399, "total length"),
     (0, 160_000, "total length"), (1, 9000, "behind the end")],
)  # fmt: skip
def test_labels_outside_their_tables(column, value, text):
    case = Case("labelled top")
    case.y[0, column] = value
    with pytest.raises(ValueError, match=text):
        case.out()


def test_the_last_window_of_the_longest_song():
    """Its end lies behind max_duration: the end is clamped (spec 10.50)."""
    case = Case("labelled top")
    case.y[:, 0], case.y[:, 1], case.y[:, 2] = 159_999, 159_900, 50_000
    assert bool(torch.isfinite(case.out().logits).all())


@pytest.mark.parametrize(
    "changes, text",
    [({"level": 3}, "levels are 0 to 2"), ({"n_ctx": 25}, "not divisible by blocks"), ({"heads": 3}, "heads=3 must divide"),
     ({"use_tokens": True, "n_tokens": 8, "n_vocab": 9}, "needs labels"), ({"single_enc_dec": True}, "needs lyrics"),
     ({"copy_input": True}, "copy_input")],
)  # fmt: skip
def test_keys_that_make_no_prior(changes, text):
    with pytest.raises(HparamsError, match=text):
        build.build_prior(settings.from_values(BASE | {"level": 2} | changes, "test"))
