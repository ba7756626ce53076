"""The songs are what they say they are, and pleasant: loudness, balance, no clicks."""

import json

import numpy as np
import pytest

from jukebox.audio import io
from jukebox.corpus import collection, synth
from jukebox.corpus.run import main
from jukebox.errors import DataError, UsageError, WriteFailed


def db(audio):
    return 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-20)


@pytest.fixture(scope="module")
def songs():
    return [one.make() for one in collection.order(16, seed=1, min_sec=6, max_sec=9)]


def test_same_seed_same_song_other_seed_other_words(songs):
    again = [one.make() for one in collection.order(16, seed=1, min_sec=6, max_sec=9)]
    for a, b in zip(songs, again, strict=True):
        assert a.meta == b.meta
        np.testing.assert_array_equal(a.audio, b.audio)
    words = {w for s in songs for w in s.meta.lyrics.split() if len(w) > 3}
    others = {
        w
        for s in map(collection.Order.make, collection.order(16, seed=2, min_sec=6, max_sec=9))
        for w in s.meta.lyrics.split()
    }
    assert len(words & others) < 0.05 * len(words)


def test_what_shall_be_asked_for_later_is_not_sung(tmp_path):
    """--unlike: no word and no four characters in a row, which songs of the same seed have without it."""
    asked = [s.meta.lyrics for s in map(collection.Order.make, collection.order(12, seed=3, min_sec=6, max_sec=6))]
    table = tmp_path / "asked.jsonl"
    table.write_text("".join(json.dumps({"lyrics": text}) + "\n" for text in asked))
    flags = ["--songs=12", "--seed=3", "--min_sec=6", "--max_sec=6"]
    assert main([f"--out={tmp_path / 'songs'}", f"--unlike={table}", *flags]) == 0
    sung = [json.loads(line)["lyrics"] for line in (tmp_path / "songs" / "metadata.jsonl").read_text().splitlines()]
    runs = {text[i : i + 4] for text in asked for i in range(len(text) - 3)}
    words = {word for text in asked for word in text.split()}
    assert len(sung) == 12 and not any(text[i : i + 4] in runs for text in sung for i in range(len(text) - 3))
    assert not words & {word for text in sung for word in text.split()}
    for content, said in (("[1]", "no list of songs"), ("{", "no list of songs"), (None, "No such file")):
        if content is not None:
            table.write_text(content)
        with pytest.raises(UsageError, match=f"--unlike=.*{said}"):
            main([f"--out={tmp_path / 'more'}", f"--unlike={table if content else tmp_path / 'none'}", *flags])


def test_every_character_has_its_own_sound():
    assert len(synth.ALPHABET) == len(set(synth.ALPHABET)) == 27
    assert len(set(synth.CODES.values())) == 27


def test_truth_is_consistent(songs):
    for s in songs:
        m = s.meta
        starts, ends = np.array(m.times).T
        np.testing.assert_allclose(ends[:-1], starts[1:])
        ticks = (ends - starts) / m.tick_sec
        np.testing.assert_allclose(ticks, ticks.round(), atol=1e-4)
        assert set(ticks.round()) <= {1, 2, 3}
        on_grid = (np.array(m.onsets) - synth.LEAD_SEC) / m.tick_sec
        np.testing.assert_allclose(on_grid, on_grid.round(), atol=1e-4)
        assert set(starts) <= set(m.onsets)
        assert len(m.lyrics) == len(m.times) and set(m.lyrics) <= set(synth.ALPHABET)
        assert "  " not in m.lyrics and m.lyrics == m.lyrics.strip()
        assert len(s.audio) == pytest.approx((ends[-1] + synth.TAIL_SEC) * s.sr_hz, abs=1)
        assert 60 <= m.tempo_bpm <= 140


def test_lengths_of_characters_vary_three_to_one(songs):
    lengths = np.concatenate([np.diff(np.array(s.meta.times), axis=1)[:, 0] / s.meta.tick_sec for s in songs])
    shares = [np.mean(np.isclose(lengths, n)) for n in (1, 2, 3)]
    assert min(shares) > 0.05 and sum(shares) == pytest.approx(1)


def test_labels_are_evenly_spread(songs):
    assert {(s.meta.artist, s.meta.genre) for s in songs} == {(a, g) for a in synth.ARTISTS for g in synth.GENRES}


def test_loudness_and_no_clicks(songs):
    for s in songs:
        assert -20 < db(s.audio) < -16
        assert np.abs(s.audio).max() < 0.95
        spectrum = np.abs(np.fft.rfft(s.audio)) ** 2
        hz = np.fft.rfftfreq(len(s.audio), 1 / s.sr_hz)
        assert spectrum[hz > 3600].sum() < 1e-3 * spectrum.sum()
        assert spectrum[hz > 5000].sum() < 1e-6 * spectrum.sum()  # a click would reach everywhere


@pytest.mark.parametrize("genre", synth.GENRES)
def test_accompaniment_is_6_db_below_the_voice(genre):
    audio = synth.song(5, genre=genre, seconds=20, channels=2).audio.astype(np.float64)
    accompaniment = (audio[:, 0] - audio[:, 1]) / 0.4
    voice = audio.mean(axis=1) - accompaniment
    assert db(accompaniment) - db(voice) == pytest.approx(-6, abs=0.7)


def test_a_steady_note_repeats_itself_every_frame():
    s = synth.song(0, lyrics="a", artist="The Salt Harps", genre="Paper Lilt", sr_hz=16000, channels=2)
    note = slice(1024 + 512 * 3, 1024 + 512 * 4)
    voice = s.audio @ np.array([-2.0, 3.0], dtype=np.float32)  # the accompaniment cancels
    decay = np.exp(-0.032 / 1.5)
    np.testing.assert_allclose(voice[note.start + 512 : note.stop + 512], decay * voice[note], atol=1e-5)


def test_ask_for_words_labels_and_length():
    s = synth.song(3, artist="Otto Fern", genre="Moss Waltz", lyrics="two fat owls", seconds=9, sr_hz=22050, channels=2)
    assert (s.meta.artist, s.meta.genre, s.meta.lyrics) == ("Otto Fern", "Moss Waltz", "two fat owls")
    assert s.audio.shape[1] == 2 and 9 - s.meta.tick_sec < len(s.audio) / 22050 <= 9
    assert s.meta.times[-1][1] == pytest.approx(9 - synth.TAIL_SEC, abs=s.meta.tick_sec)
    alone = synth.song(3, lyrics="two fat owls")
    assert alone.meta.times[-1][1] == pytest.approx(len(alone.audio) / 16000 - synth.TAIL_SEC, abs=1e-3)
    assert synth.song(3, lyrics="a", seconds=20).meta.onsets[-1] > 18  # an outro


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"artist": "Nobody"}, "Mira Vale"),
        ({"genre": "polka"}, "Moss Waltz"),
        ({"lyrics": "Ärger"}, "Ä"),
        ({"lyrics": "a" * 100, "seconds": 5}, "100 characters"),
        ({"seconds": 0.3}, "too short"),
    ],
)
def test_what_cannot_be_sung_is_said(wrong, says):
    with pytest.raises(DataError, match=says):
        synth.song(0, **wrong)


def test_lyrics_unlike_those_learned(songs):
    learned = [s.meta.lyrics for s in songs]
    for length in (1, 2, 5, 40):
        text = synth.made_up_lyrics(7, length, unlike=learned)
        assert len(text) == length
        assert not set(text.split()) & {w for t in learned for w in t.split()}
        assert not any(text[i : i + 4] in t for i in range(length - 3) for t in learned)
    with pytest.raises(DataError, match="new words"):
        synth.made_up_lyrics(0, 2, unlike=[c + v for c in "bcdfghjklmnpqrstvwxyz" for v in "aeiou"])


def test_the_command_writes_all_formats_and_their_truth(tmp_path, capsys):
    main(["--out", str(tmp_path), "--songs", "10", "--seed", "4", "--min_sec=2", "--max_sec=4"])
    assert "metadata.jsonl" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert {line["file"].split(".")[1] for line in lines} == {"wav", "flac", "mp3", "ogg", "m4a"}
    assert {line["sr_hz"] for line in lines} == {16000, 22050, 44100}
    for line in lines:
        info = io.probe(tmp_path / line["file"])
        assert info.sr_hz == line["sr_hz"]
        audio = io.read(tmp_path / line["file"])
        assert info.length_samples == line["length_samples"]
        tail = 1023 if line["file"].endswith("m4a") else 0  # the AAC decoder may play its last frame to the end
        assert 0 <= len(audio) - line["length_samples"] <= tail
        assert len(line["times"]) == len(line["lyrics"])
        assert 2 - 0.4 < len(audio) / info.sr_hz <= 4
    assert {io.probe(tmp_path / line["file"]).channels for line in lines} == {1, 2}


def test_the_command_wants_a_folder():
    with pytest.raises(UsageError, match="--out"):
        main([])


def test_impossible_corpora_are_refused(tmp_path):
    with pytest.raises(DataError, match="--songs"):
        collection.write_corpus(tmp_path, 0, 0)
    with pytest.raises(DataError, match="--min_sec"):
        collection.write_corpus(tmp_path, 1, 0, min_sec=9, max_sec=8)
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_the_same_for_any_number_of_cores(tmp_path, monkeypatch):
    for cores in (1, 3):
        monkeypatch.setattr(collection, "cores", lambda cores=cores: cores)
        collection.write_corpus(tmp_path / str(cores), 96, 4, min_sec=2, max_sec=2.5)
    one, three = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("1", "3"))
    assert len(one) == 97 and one == three
    assert [json.loads(line)["file"] for line in one["metadata.jsonl"].splitlines()] == sorted(
        one.keys() - {"metadata.jsonl"}
    )


def test_a_corpus_that_cannot_be_written_says_which_file(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "cores", lambda: 2)
    (tmp_path / "song_40.wav").mkdir()
    with pytest.raises(WriteFailed, match=r"song_40\.wav"):
        collection.write_corpus(tmp_path, 64, 4, min_sec=2, max_sec=2.5)
    assert not (tmp_path / "metadata.jsonl").exists()
