"""The labeller that a prior's hyperparameters ask for."""

from __future__ import annotations

from typing import Protocol

from jukebox.data.hps import AudioHps
from jukebox.hparams.resolve import Resolved
from jukebox.labels.ids import Alphabet, LabelIds
from jukebox.labels.vector import Labeller
from jukebox.prior.hps import LabelHps


class Windowed(Protocol):
    """A prior or its shape: n_tokens, lyric characters of a window, and sample_length, its samples."""

    @property
    def n_tokens(self) -> int:
        """Lyric characters of a window."""

    @property
    def sample_length(self) -> int:
        """Samples of a window."""


def build_labeller(
    hps: Resolved, prior: Windowed, *, ids_dir: str = "", strict: bool = False, text_compat: str = "anyascii",
    timed: bool = True, aloud: bool = True,
) -> Labeller | None:  # fmt: skip
    """None for an unlabelled prior. timed: lyric windows follow the times of lyrics, where there are any.
    aloud: whether this process says which names are unknown.

    Raises HparamsError when the id tables or the alphabet do not fit the prior.
    """
    label = hps.section(LabelHps)
    if not label.labelled:
        return None
    version = 3 if label.labels_v3 else 2
    ids = LabelIds.open(ids_dir, version, strict=strict, aloud=aloud)
    genres, artists = label.y_bins
    ids.check((genres, artists))
    alphabet = Alphabet.open(ids_dir, version, text_compat=text_compat)
    if prior.n_tokens:
        alphabet.check(label.n_vocab)
    return Labeller(
        ids, alphabet, max_genre_words=label.max_bow_genre_size or 1, n_tokens=prior.n_tokens,
        sample_length=prior.sample_length, sr_hz=hps.section(AudioHps).sr, timed=timed,
    )  # fmt: skip
