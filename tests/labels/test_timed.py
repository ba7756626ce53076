"""Times of lyrics: three formats read, two written, and the window that follows them."""

import json

import pytest

from jukebox.errors import DataError
from jukebox.labels import timed, vector
from jukebox.labels.ids import Alphabet, LabelIds
from jukebox.labels.song import SongMeta
from jukebox.labels.vector import Labeller


@pytest.fixture
def read(tmp_path):
    def make(content: str | bytes, name: str):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        lyrics, times = timed.read(path)
        assert len(lyrics) == len(times)
        flat = [t for pair in times for t in pair]
        assert flat == sorted(flat)
        return lyrics, times

    return make


def test_lrc(read):
    text = "[ar:Somebody]\n[offset:+500]\n[00:01.50]abcd\n[00:20.5][00:05.50]xy\n[00:03.50]\n"
    lyrics, times = read("\ufeff" + text.replace("\n", "\r\n"), "a.lrc")
    assert lyrics == "abcd\nxy\nxy"
    assert times[:4] == ((1.0, 1.5), (1.5, 2.0), (2.0, 2.5), (2.5, 3.0))  # sooner by the offset, up to the empty line
    assert times[4] == (3.0, 5.0)
    assert times[5:7] == ((5.0, 6.0), (6.0, 7.0))  # 15 s to the next line: the rest is a break
    assert times[8:] == ((20.0, 21.0), (21.0, 22.0))


def test_lrc_words(read):
    lyrics, times = read("[00:01.00]<00:01.00>ab <00:02.00>cd<00:03.00>\n[00:04:00]e\n", "a.lrc")
    assert lyrics == "ab cd\ne"
    assert [t[0] for t in times] == pytest.approx([1, 1 + 1 / 3, 1 + 2 / 3, 2, 2.5, 3, 4])


def test_vtt(read):
    text = (
        "WEBVTT title\n\nNOTE --\nskip me\n\nSTYLE\n::cue{}\n\n1\n00:01.000 --> 00:02.000 align:start\n<v Ann>a&amp;<b>b</b>\n"
        "\n01:00:03.000 --> 01:00:05.000\ncd\nef\n\n00:00:02.500 --> 00:00:04.500\ng<00:00:03.500>h\n"
    )
    lyrics, times = read(text, "a.vtt")
    assert lyrics == "a&b\ngh\ncd\nef"
    assert times[0][0] == 1.0 and times[2][1] == 2.0 and times[3] == (2.0, 2.5)
    assert times[4:6] == ((2.5, 3.5), (3.5, 4.5))
    assert times[7] == (3603.0, 3603.4) and times[-1][1] == pytest.approx(3605.0)


@pytest.mark.parametrize(
    ("value", "lyrics", "starts"),
    [
        ([{"text": "ab", "start": 1, "end": 2}, {"text": "c", "start": 4}], "ab\nc", [1, 1.5, 2, 4]),
        ({"lines": [{"line": "ab", "start": 0, "end": 2}]}, "ab", [0, 1]),
        ({"words": [{"word": "ab", "start": 0, "end": 1}, {"word": "c", "start": 1, "end": 2}]}, "ab c", [0, 0.5, 1, 1]),
        ([{"char": "a", "start": 0, "end": 1}, {"char": " ", "start": 1}, {"char": "b", "start": 3}], "a b", [0, 1, 3]),
        ({"lyrics": "ab", "times": [[0, 1], [1, 2]]}, "ab", [0, 1]),
        (
            {"segments": [{"start": 0, "end": 2, "text": " a b", "words": [{"word": " a", "start": 0, "end": 1}, {"word": " b", "start": 1, "end": 2}]}]},
            "a b",
            [0, 1, 1.5],
        ),
    ],
)  # fmt: skip
def test_json(read, value, lyrics, starts):
    found, times = read(json.dumps(value), "a.json")
    assert found == lyrics and [t[0] for t in times] == pytest.approx(starts)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[00:01]a\nplain\n", "a.lrc", "line 2: 'plain' has no"),
        ("[offset:x]\n[00:01]a", "a.lrc", "line 1: .*milliseconds"),
        ("", "a.lrc", "no timed text"),
        ("[00:01]  \n", "a.lrc", "no timed text"),
        (b"[00:01]\xe9", "a.lrc", "line 1: not UTF-8"),
        ("1\n00:01.000 --> 00:02.000\na", "a.vtt", "begins with WEBVTT"),
        ("WEBVTT\n\n1 --> 2\na", "a.vtt", "is not a cue"),
        ("WEBVTT\n\n00:03.000 --> 00:02.000\na", "a.vtt", "ends before"),
        ("{", "a.json", "not JSON"),
        ("3", "a.json", "neither a list"),
        ('[{"start": 1}]', "a.json", "entry 1: has no text"),
        ('[{"text": "a", "start": "x"}]', "a.json", "start must be a time"),
        ('[{"text": "a", "start": NaN}]', "a.json", "start must be a time"),
        ('{"lyrics": "ab", "times": [[0, 1]]}', "a.json", "1 times for 2 characters"),
        ('{"lyrics": "a", "times": [1]}', "a.json", "start_sec, end_sec"),
        ("a", "a.txt", ".lrc, .vtt and .json"),
    ],
)
def test_broken_files(read, content, name, message):
    with pytest.raises(DataError, match=message):
        read(content, name)


def test_a_file_too_large_and_utf16(read, monkeypatch):
    assert read("[00:01.00]é".encode("utf-16"), "a.lrc")[0] == "é"
    monkeypatch.setattr(timed, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="too much for lyrics"):
        read("[00:01.00]" + "a" * 99, "a.lrc")


def test_written_files_are_read_back(read):
    lyrics = "one <two>\n\nthree"
    times = tuple((60 * i / 4, 60 * (i + 1) / 4) for i in range(len(lyrics)))
    back, vtt_times = read(timed.vtt_text(lyrics, times), "a.vtt")
    assert back == "one <two>\nthree"
    assert (vtt_times[0][0], vtt_times[-1][1]) == pytest.approx((times[0][0], times[-1][1]))
    back, lrc_times = read(timed.lrc_text(lyrics, times), "a.lrc")
    assert back == "one <two>\nthree" and lrc_times[0][0] == times[0][0]


def test_even_times_give_the_linear_window():
    characters, total = 3001, 7938000
    times = [(i * 180.0 / characters, (i + 1) * 180.0 / characters) for i in range(characters)]
    for offset in range(0, total, 99_991):
        linear = vector.lyric_window(characters, 512, total, offset, 1048576)
        start = offset / 44100
        follows = vector.timed_lyric_window(times, 512, start, start + 1048576 / 44100)
        assert abs(linear[0] - follows[0]) <= (0 if offset + 1048576 > total else 1) or follows[0] == characters - 512


def test_the_window_follows_what_is_sung():
    lyrics = "a" * 40 + "b" * 40
    times = tuple((10 + i / 10, 10.1 + i / 10) for i in range(40)) + tuple(
        (90 + i / 10, 90.1 + i / 10) for i in range(40)
    )
    labeller = Labeller(
        LabelIds.open(version=3),
        Alphabet.open(version=3),
        max_genre_words=1,
        n_tokens=20,
        sample_length=1000,
        sr_hz=100,
    )
    song = SongMeta(lyrics=lyrics, times=times)
    described = {
        offset: labeller.describe(labeller.label(song, 10_000, offset))["lyrics"] for offset in (0, 1200, 4000, 9000)
    }
    assert described == {0: "a" * 20, 1200: "a" * 20, 4000: "a" * 10 + "b" * 10, 9000: "b" * 20}
    assert labeller.at(labeller.full(song, 10_000, 0), 9000, 1000)[1] == list(range(50, 70))
