"""Lyrics and time of a run: which songs are to be aligned, and what was found, kept in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jukebox import runlog
from jukebox.prior.model import Prior
from jukebox.sampling import alignment
from jukebox.sampling.levels import Song
from jukebox.sampling.prepare import Level
from jukebox.sampling.save import Aligned, RunFolder


@dataclass(frozen=True)
class LyricTimes:
    """known: the top level, None when the model has no prior of it."""

    folder: RunFolder
    known: Level | None
    sr_hz: int

    @property
    def _is_able(self) -> bool:
        known = self.known
        return known is not None and known.labeller is not None and not alignment.why_not(known.shape)

    def with_lyrics(self, songs: Sequence[Song]) -> list[Song]:
        """The songs that have something to sing."""
        if self.known is None or self.known.labeller is None:
            return []
        alphabet = self.known.labeller.alphabet
        return [song for song in songs if alphabet.clean(song.request.song.lyrics)[0]]

    def due(self, songs: Sequence[Song]) -> list[Song]:
        """Songs with lyrics whose top level is whole and of which no alignment is stored yet."""
        if self.known is None or not self._is_able:
            return []
        plan = self.known.plan
        whole = [song for song in songs if song.have(plan.level) >= plan.total(song.length_samples)]
        return [song for song in self.with_lyrics(whole) if self.folder.load_alignment(song.request.item) is None]

    def align(self, prior: Prior, dtype: torch.dtype, songs: Sequence[Song]) -> None:
        """Align songs and store what was found."""
        assert self.known is not None and self.known.labeller is not None
        with runlog.Progress(len(songs), "song", "aligning") as bar:
            for song in songs:
                (weights,) = alignment.align(prior, self.known.labeller, self.known.plan, [song], dtype=dtype)
                self.folder.save_alignment(song.request.item, weights)
                bar.update()

    def found(self, songs: Sequence[Song]) -> dict[int, Aligned]:
        """The stored alignments by item, with the times of words."""
        if self.known is None or self.known.labeller is None or not self._is_able:
            return {}
        code_sec, alphabet = self.known.plan.samples_per_code / self.sr_hz, self.known.labeller.alphabet
        found = {}
        for song in songs:
            weights, lyrics = self.folder.load_alignment(song.request.item), song.request.song.lyrics
            if weights is not None:
                words = alignment.word_times(weights, lyrics, alphabet, code_sec)
                found[song.request.item] = Aligned(weights, alphabet.clean(lyrics)[0], tuple(words))
        return found
