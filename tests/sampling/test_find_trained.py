"""A head that training made: small priors learn to read lyrics in a minute, and the same head is found with any songs."""

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.labels.ids import Alphabet, LabelIds
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller
from jukebox.models import build
from jukebox.parallel.comm import SoloComm
from jukebox.sampling.find_run import Heard, chosen, scores
from jukebox.sampling.head_score import LEAST

LETTERS, CHARACTERS, CODES, HOP, SR = "abcdefgh", 12, 36, 16, 8000
KINDS = {
    "in front": dict(single_enc_dec=True, attn_order=0, prior_depth=3),
    "beside": dict(attn_order=6, prior_depth=4, prime_width=64, prime_depth=1, prime_m_attn=1.0, prime_heads=2),
}


def prior_of(kind):
    hps = settings.from_presets(
        "teeny", levels=1, downs_t=(2,), strides_t=(4,), l_bins=len(LETTERS), sr=SR, prior=True, level=0, n_ctx=CODES,
        prior_width=64, m_attn=1.0, heads=2, blocks=4, labels=True, labels_v3=True, y_bins=(1, 1), t_bins=4,
        max_bow_genre_size=1, max_duration=9.0, use_tokens=True, n_tokens=CHARACTERS, n_vocab=79, **KINDS[kind],
    )  # fmt: skip
    return build.build_prior(hps)


def song(rng):
    """A text of letters, and codes that sing each of them for 2 to 4 codes."""
    text = rng.choice(list(LETTERS), CHARACTERS)
    codes = np.repeat([LETTERS.index(c) for c in text], rng.integers(2, 5, CHARACTERS))
    return Heard(np.pad(codes, (0, CODES), mode="edge")[:CODES], SongMeta(lyrics="".join(text)), 0, CODES * HOP)


@pytest.mark.slow  # trains for minutes
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_head_with_any_songs(kind, seed):
    torch.manual_seed(seed)
    rng, prior = np.random.default_rng(seed), prior_of(kind)
    labeller = Labeller(
        LabelIds.open(), Alphabet.open(), max_genre_words=1, n_tokens=CHARACTERS, sample_length=CODES * HOP, sr_hz=SR
    )

    def found(songs_seed):
        songs = np.random.default_rng(songs_seed)
        return scores(prior.eval(), labeller, [song(songs) for _ in range(32)], songs_seed, SoloComm())

    assert max(figures.score for figures in found(100).values()) < 0.02, "untrained"
    optimiser = torch.optim.AdamW(prior.train().parameters(), lr=3e-3, betas=(0.9, 0.98))
    for step in range(900):
        songs = [song(rng) for _ in range(32)]
        y = torch.tensor(np.stack([labeller.label(s.song, s.total_samples, 0) for s in songs]))
        y[:, 3:5] = 0
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 100)
        optimiser.zero_grad()
        prior(torch.tensor(np.stack([s.codes for s in songs])), None, y).loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()
    trained = [found(seed) for seed in (101, 102, 103)]
    heads = {chosen(figures) for figures in trained}
    assert len(heads) == 1 and trained[0][heads.pop()].score > 2 * LEAST, trained
