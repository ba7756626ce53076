"""Keys that do not make a prior are refused by name, before a net is built."""

import pytest

from jukebox import settings
from jukebox.errors import HparamsError
from jukebox.models import build

SIZES = dict(
    levels=2, downs_t=(1, 2), strides_t=(2, 2), l_bins=8, n_ctx=16, prior_width=8, prior_depth=10, blocks=2, prior=True
)
SUNG = dict(
    labels=True, y_bins=(2, 2), max_duration=9, use_tokens=True, n_tokens=4, n_vocab=9, prime_width=8, prime_blocks=2
)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(level=1, attn_order=8), "--attn_order=8 has layers that read lyrics from an encoder of their own"),
        (dict(level=1, attn_order=6, single_enc_dec=True, **SUNG), "without --single_enc_dec"),
        (dict(level=0, n_ctx=18), "--n_ctx=18 of level 0 is no whole number of codes of the level above, of 4 each"),
        (dict(level=2), "--level=2: the levels are 0 to 1"),
    ],
)
def test_refused(more, message):
    with pytest.raises(HparamsError, match=message):
        build.prior_shape(settings.from_values({**SIZES, **more}, "test"))


def test_a_separate_encoder_is_read():
    hps = settings.from_values({**SIZES, **SUNG, "level": 1, "attn_order": 8}, "test")
    assert build.build_prior(hps).lyric_encoder is not None
