"""What a labeller says about lyrics that it cannot write."""

import logging

from jukebox.labels.ids import Alphabet, LabelIds
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller


def labeller(n_tokens, **more):
    return Labeller(LabelIds.open(), Alphabet.open(), max_genre_words=1, n_tokens=n_tokens, sample_length=100, **more)


def test_times_can_be_left_aside():
    """All is sung in the first tenth; without the times it is spread over the song."""
    text = "abcdefghij"
    song = SongMeta(lyrics=text, times=tuple((i / 10, (i + 1) / 10) for i in range(10)))
    found = {
        timed: reads.describe(reads.full(song, 1000, 500).y)["lyrics"]
        for timed in (True, False)
        for reads in [labeller(4, sr_hz=100, timed=timed)]
    }
    assert found == {True: "ghij", False: "defg"}


def test_characters_outside_the_alphabet_are_told_once(caplog):
    song = SongMeta(lyrics="\ufeffla\r\nla \u266b\u266b \u00e9t\u00e9 \u0000")
    with caplog.at_level(logging.WARNING):
        labeller(0).full(song, 200, 0)
        assert not caplog.messages  # a prior that reads no lyrics loses nothing
        reads = labeller(4)
        assert reads.full(song, 200, 0).lyrics == "la\nla  ete "
        reads.full(song, 200, 50)
        reads.full(SongMeta(lyrics="la \u266b \u266a"), 200, 0)
    assert [message.partition(": ")[2] for message in caplog.messages] == ["'\\x00', '\u266b'", "'\u266a'"]
