"""Requests: files of songs, blends, times of lyrics, lengths and settings per song; every mistake is named before loading."""

import json

import numpy as np
import pytest
import soundfile
import torch

import jukebox
from jukebox import settings
from jukebox.errors import DataError, HparamsError, UsageError, UserError
from jukebox.models import model_set, restricted
from jukebox.sampling.hps import DrawHps, SampleHps, SongHps
from jukebox.sampling.requests import Request, requests_of

LRC = "[00:00.00]I met a traveller\n[00:00.08]from an antique land\n"


def asked(*flags, n=None, seed=0):
    song = settings.parse("sample", [f"--{key}={value}" for key, value in flags]).section(SongHps)
    return requests_of(song, seed, n)


def test_toml(tmp_path):
    (tmp_path / "words.lrc").write_text(LRC)
    (tmp_path / "songs.toml").write_text(
        "[[songs]]\n"
        'artist = { "Mira Vale" = 3, "Otto Fern" = 1 }\ngenre = "folk"\nlyrics_file = "words.lrc"\nseed = 7\n'
        "temp = [0.99, 0.98]\ntop_k = 5\nsample_length_in_seconds = 12\nn_samples = 2\n"
        "[[songs]]\n"
        'lyrics = "la\\nla"\naudio_file = "a.wav"\nprompt_length_in_seconds = 5\n'
    )
    first, again, second = asked(("requests", tmp_path / "songs.toml"), seed=3)
    assert [first.item, again.item, second.item] == [0, 1, 2]
    assert first.song.artist == "75% Mira Vale + 25% Otto Fern" and first.song.genre == "folk"
    assert [(blend.kind, blend.parts) for blend in first.blends] == [
        ("artist", (("Mira Vale", 0.75), ("Otto Fern", 0.25)))
    ]
    assert first.song.lyrics == "I met a traveller\nfrom an antique land" and first.song.times[0][0] == 0.0
    assert (first.seed, second.seed) == (7, 3)
    assert first.draw == {"temp": (0.99, 0.98), "top_k": (5.0,)} and first.length_sec == 12
    assert second.prompt == str(tmp_path / "a.wav") and second.prompt_sec == 5
    for request in (first, second):
        assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_what_a_song_does_not_say_is_as_the_flags_say(tmp_path):
    (tmp_path / "words.lrc").write_text(LRC)
    entries = [
        {"artist": "Otto Fern"},
        {"genre": "folk", "lyrics": ""},
        {"lyrics": "own"},
        {"lyrics_file": "words.lrc"},
    ]
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, entries)))
    flags = ("requests", tmp_path / "songs.jsonl"), ("artist", "Mira Vale"), ("genre", "jazz"), ("lyrics", "la la")
    found = [(one.song.artist, one.song.genre, one.song.lyrics.split("\n")[0]) for one in asked(*flags)]
    assert found == [
        ("Otto Fern", "jazz", "la la"), ("Mira Vale", "folk", ""), ("Mira Vale", "jazz", "own"),
        ("Mira Vale", "jazz", "I met a traveller"),
    ]  # fmt: skip
    timed = asked(("requests", tmp_path / "songs.jsonl"), ("lyric_times", tmp_path / "words.lrc"))
    assert [one.song.times is not None for one in timed] == [True, False, False, True]


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"codes_file": "x"}, "--codes_file is read with --mode=continue or --mode=upsample, not with ancestral"),
        (
            {"codes_file": "x", "mode": "primed", "audio_file": "a.wav", "prompt_length_in_seconds": 1},
            "not with primed",
        ),
        ({"audio_file": "a.wav"}, "--audio_file is read with --mode=primed, not with ancestral"),
        ({"audio_file": "a.wav", "mode": "upsample", "codes_file": "x"}, "not with upsample"),
        ({"prompt_length_in_seconds": 5}, "--prompt_length_in_seconds is of what a song begins with"),
        ({"mode": "continue"}, "--mode=continue needs --codes_file"),
        ({"mode": "primed", "audio_file": "a.wav"}, "needs --prompt_length_in_seconds"),
    ],
)
def test_a_flag_that_its_mode_does_not_read_is_a_mistake(flags, message):
    words = [f"--{key}={value}" for key, value in flags.items()]
    with pytest.raises(HparamsError, match=message):
        settings.parse("sample", ["--model=x", "--name=y", *words]).section(SampleHps)


def test_a_recording_shorter_than_its_prompt(tiny, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    with pytest.raises(DataError, match=r"--audio_file=.*a.wav has 0.10 s, less than --prompt_length_in_seconds=1"):
        sing(tiny, tmp_path, [{}], mode="primed", audio_file=tmp_path / "a.wav", prompt_length_in_seconds=1)


def test_deals_by_turns(tmp_path):
    (tmp_path / "songs.jsonl").write_text("".join(json.dumps({"artist": name}) + "\n" for name in "abc"))
    found = asked(("requests", tmp_path / "songs.jsonl"), n=7)
    assert [request.song.artist for request in found] == list("abcabca")
    assert [request.item for request in found] == list(range(7))
    assert len(asked(("artist", "x"), n=4)) == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{"artst": "x"}', "line 1.*unknown key 'artst'"),
        ('{"artist": "x"', "line 1.*not JSON"),
        ("[1]", "must be a table"),
        ('{"temp": 0}', "temp must be above 0"),
        ('{"top_k": 1.5}', "top_k must be whole"),
        ('{"top_p": [0.5, 2]}', "top_p must be from 0 to 1"),
        ('{"seed": -1}', "seed must be a whole number"),
        ('{"artist": {"a": 0}}', "blend of nothing"),
        ('{"artist": {"a": "b"}}', "must be a number"),
        ('{"audio_file": "a.wav"}', "prompt_length_in_seconds"),
        ('{"lyrics": "a", "lyrics_file": "b.txt"}', "not both"),
        ('{"lyrics_file": "missing.txt"}', "missing.txt"),
        ('{"lyrics_file": 3}', "name of a file"),
        ('{"lyrics": 3.5, "times": []}', "times"),
        ('{"n_samples": 0}', "n_samples = 0"),
        ('{"n_samples": 1000000000}', "n_samples = 1000000000 is more than the 100000 songs"),
        ("", "no songs"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, entry, message):
    path = tmp_path / "songs.jsonl"
    path.write_text(entry)
    with pytest.raises(DataError, match=message) as raised:
        asked(("requests", path))
    assert "songs.jsonl" in str(raised.value) or "missing.txt" in str(raised.value)


def test_lyrics_from_files(tmp_path):
    bom = tmp_path / "bom.txt"
    bom.write_bytes("\N{BOM}Über\r\nalles".encode())
    assert asked(("lyrics", bom))[0].song.lyrics == "Über\nalles"
    bad = tmp_path / "latin.txt"
    bad.write_bytes("eins\nz\xfcei".encode("latin-1"))
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        asked(("lyrics", bad))
    (tmp_path / "timed.lrc").write_text(LRC)
    timed = asked(("lyric_times", tmp_path / "timed.lrc"))[0].song
    assert timed == asked(("lyrics", tmp_path / "timed.lrc"))[0].song and timed.times is not None
    with pytest.raises(UsageError, match="--lyric_times"):
        asked(("lyric_times", tmp_path / "timed.lrc"), ("lyrics", "other"))
    assert len(asked(("lyrics", "x" * 1_000_000))[0].song.lyrics) == 1_000_000


# ------------------------------------------------------------------------------------------------- through the sampler


def sing(tiny, path, entries, **flags):
    """Top level alone, as short as it can be: partial windows of 10 codes."""
    (path / "songs.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    model = tiny.model.split(",")[0]
    common = dict(
        model=model, mask_lyric_codes=True, hop_fraction="1,1,0.25", sample_length=160, requests=path / "songs.jsonl"
    )
    assert tiny.sing(tiny.flags(path / "out", **{**common, **flags})) == 0
    return restricted.load(path / "out/level_2/data.pth.tar")


def test_a_song_is_the_same_alone_and_among_others(tiny, tmp_path):
    first, second = {"artist": "prince", "seed": 5, "temp": 1.0}, {"genre": "jazz", "lyrics": "hey", "top_k": 3}
    for folder in ("both", "one"):
        (tmp_path / folder).mkdir()
    both = sing(tiny, tmp_path / "both", [first, second], top_k=None)["zs"][2]
    alone = sing(tiny, tmp_path / "one", [first], top_k=None)["zs"][2]
    assert both[0].any() and torch.equal(both[0], alone[0]) and not torch.equal(both[0], both[1])


def test_blend_is_the_mean_of_vectors(tiny, tmp_path):
    runs = tiny.model.split(",")
    models = model_set.find(runs[0])
    _, vqvae = model_set.load_vqvae(models.vqvae)
    prior, _ = model_set.load_prior(models.priors[2], vqvae, 2)
    before = prior.labels.artist.weight.clone()
    id_ = prior.labels.add("artist", [([1], 0.25), ([3], 0.75)])
    assert id_ == len(before)
    torch.testing.assert_close(prior.labels.artist.weight[id_], 0.25 * before[1] + 0.75 * before[3])
    y = sing(tiny, tmp_path, [{"artist": {"alan jackson": 1, "prince": 1}, "genre": {"pop rock": 1, "jazz": 2}}])[
        "labels"
    ][2]
    assert y["y"][0, 3] == 15 and y["y"][0, 4] == 9 and y["info"][0]["artist"] == "50% alan jackson + 50% prince"


def test_blend_of_one_is_that_one(tiny, tmp_path):
    for folder in ("plain", "blend"):
        (tmp_path / folder).mkdir()
    plain = sing(tiny, tmp_path / "plain", [{"artist": "alan jackson", "genre": "country"}])["zs"][2]
    blend = sing(tiny, tmp_path / "blend", [{"artist": {"alan jackson": 2}, "genre": {"country": 1}}])["zs"][2]
    assert torch.equal(plain, blend)


def test_lengths_of_each_song(tiny, tmp_path):
    entries = [{"lyrics": "la la"}, {"sample_length_in_seconds": 0.04}]
    found = sing(tiny, tmp_path, entries)
    assert found["zs"][2].shape == (2, 10) and found["x"].shape == (2, 160, 1)
    sizes = [(tmp_path / f"out/level_2/item_{item}.wav").stat().st_size for item in (0, 1)]
    assert sizes[1] - sizes[0] == 2 * 160  # 16 bits, 20 codes instead of 10


def test_a_model_set_says_how_long_its_songs_are(tiny, tmp_path):
    top = tiny.model.split(",")[0]
    vqvae = f'[vqvae]\ncheckpoint = "{top[:-1].removesuffix("level")}vqvae"\n'
    priors = "[[priors]]\ncheckpoint = ''\n" * 2 + f'[[priors]]\ncheckpoint = "{top}"\n'
    model = tmp_path / "short.toml"
    model.write_text(f"sample_length_in_seconds = 0.04\n{vqvae}{priors}")
    entries, usual = [{}, {"sample_length_in_seconds": 0.02}], {"model": model, "sample_length": None}
    sing(tiny, tmp_path, entries, **usual)
    codes = [np.load(tmp_path / f"out/progress/item_000{item}_level_2.npy") for item in (0, 1)]
    assert [len(code) for code in codes] == [20, 10]  # 16 samples a code at 8000 Hz
    found = sing(tiny, tmp_path, [{}], **usual, sample_length_in_seconds=0.03)
    assert found["zs"][2].shape == (1, 15)
    assert jukebox.load(model).songs()[0].length_samples == 320
    model.write_text(f"sample_length_in_seconds = 'long'\n{vqvae}{priors}")
    with pytest.raises(UsageError, match="'long' should be a number above 0"):
        sing(tiny, tmp_path, [{}], **usual)


def test_a_song_beyond_what_the_model_knows_names_the_flag_for_its_length(tiny, tmp_path):
    with pytest.raises(UserError, match=r"^--sample_length_in_seconds=40: this model knows songs of 0.05 to 30 s"):
        sing(tiny, tmp_path, [{}], sample_length=None, sample_length_in_seconds=40, total_sample_length_in_seconds=None)


@pytest.mark.parametrize(
    ("entries", "flags", "message"),
    [
        ([{"total_sample_length_in_seconds": 31}], {}, "0.05 to 30 s"),
        ([{"total_sample_length_in_seconds": 0.01}], {}, "cannot be shorter"),
        ([{"artist": "prinze"}], {"strict_labels": True}, "prinze"),
        ([{"temp": [1, 1]}], {}, "one for each of 3 levels"),
        ([{"top_k": 2, "top_p": 0.5}], {}, "both"),
        ([{}], {"sample_length": 8}, "less than one top code"),
        ([{}], {"sr": 16000}, "--sr=16000"),
        ([{}], {"hop_fraction": "0.5"}, "--hop_fraction has 1"),
    ],
)
def test_windows_are_checked_before_a_prior_is_loaded(tiny, tmp_path, monkeypatch, entries, flags, message):
    monkeypatch.setattr(model_set, "load_prior", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        sing(tiny, tmp_path, entries, **flags)


def test_notices(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    sing(tiny, tmp_path, [{"lyrics": "la la la"}, {}])
    assert "1 of 2 songs have no lyrics" in caplog.text
    assert (tmp_path / "out/level_2/item_0/align.json").exists()
    assert not (tmp_path / "out/level_2/item_1/align.json").exists()
    caplog.clear()
    (tmp_path / "none").mkdir()
    sing(tiny, tmp_path / "none", [{}])
    assert "1 of 1 songs have no lyrics; they are sampled without." in caplog.text
    assert (tmp_path / "none/out/level_2/item_0/lyrics.json").exists(), "and shown all the same"


def test_settings_of_a_request_win():
    from jukebox.models.model_set import ModelSet, Part
    from jukebox.sampling.requests import settings_of

    draw = settings.parse("sample", ["--temp=0.9", "--top_p=0.5"]).section(DrawHps)
    part = Part("x", "", {"temp": 0.8, "max_batch_size": 3})
    request = Request(0, asked(("artist", "x"))[0].song, 0, draw={"temp": (0.7, 0.6)})
    found = settings_of(draw, ModelSet("x", part, (part, None)), 2, request)
    assert [found[level].knobs.temp for level in (0, 1)] == [0.7, 0.6]
    assert [found[level].max_batch_size for level in (0, 1)] == [3, 16]
    with pytest.raises(HparamsError):
        settings.parse("sample", ["--temp=0"])
    with pytest.raises(HparamsError, match="--n_samples=1000000000"):
        settings.parse("sample", ["--n_samples=1000000000"])


def test_shipped_example(jukebox_root):
    found = asked(("requests", jukebox_root / "docs" / "songs.toml"))
    assert len(found) == 3 and all(request.song.lyrics for request in found) and found[1].blends
