"""The Python face: what sample.py does, one window at a time; choosing, going on, upsampling later; mistakes."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import jukebox
from jukebox.errors import DataError, UserError
from jukebox.labels.song import SongMeta
from jukebox.models import restricted

NOISE = np.random.default_rng(0).normal(0, 0.2, (3000, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tiny):
    return jukebox.load(
        tiny.model, ids_dir=str(tiny.ids_dir), device="cpu", hop_fraction=tuple(tiny.info["hop_fraction"])
    )


def golden_songs(model, tiny, **asked):
    length = {"seconds": 960.5 / 8000, "total_seconds": 2880.5 / 8000} | asked
    songs = [
        model.songs(artist=m["artist"], genre=m["genre"], lyrics=m["lyrics"], **length)[0] for m in tiny.info["metas"]
    ]
    songs[1].request = replace(songs[1].request, item=1)
    return songs


def sing(model, songs, **how):
    return list(model.sample(songs, top_k=1, **how))


def test_it_costs_nothing_to_import_and_needs_no_mpi():
    program = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import jukebox; assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "assert callable(jukebox.load) and jukebox.Model and 'torch' in sys.modules\n"
        "import torch.distributed; assert not torch.distributed.is_initialized()\n"
        "try: jukebox.nothing\nexcept AttributeError: print('good')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "good\n", done.stderr


def test_the_golden_songs(model, tiny):
    songs = golden_songs(model, tiny)
    windows = sing(model, songs, finest_first=False)
    assert [window.level for window in windows] == sorted((window.level for window in windows), reverse=True)
    for level in range(3):
        for item, song in enumerate(songs):
            assert song.codes[level].tolist() == tiny.arrays[f"ancestral.z_{level}"][item].tolist()
            parts = [w.codes[w.songs.index(song)] for w in windows if w.level == level and song in w.songs]
            assert np.concatenate(parts).tolist() == song.codes[level].tolist()
    last = windows[-1]
    assert last.stop_sec == pytest.approx(960 / 8000) and last.start_sec < last.stop_sec
    whole = model.audio(last.songs[0])
    np.testing.assert_allclose(last.audio()[0], whole[round(last.start_sec * 8000) :], atol=1e-5)
    np.testing.assert_allclose(whole, tiny.arrays["ancestral.x_0"][last.songs[0].request.item, :, 0], atol=1e-4)


def test_levels_and_windows_in_any_order_give_the_same_songs(model, tiny):
    songs = golden_songs(model, tiny)
    first = next(model.sample(songs, levels=[2], top_k=1))  # and left there
    assert first.level == 2 and songs[0].have(2) == 36 and not songs[0].have(1)
    sing(model, songs, until_seconds=0.06)
    assert 0 < songs[0].have(0) < 240
    order = [window.level for window in sing(model, songs)]
    assert order != sorted(order, reverse=True)  # a finer window begins before the upper level is finished
    for level in range(3):
        assert songs[1].codes[level].tolist() == tiny.arrays[f"ancestral.z_{level}"][1].tolist()


def test_composing_together(model, tmp_path):
    """Takes of a beginning, one of them chosen, takes of what follows it, and only the last upsampled."""
    takes = model.songs(artist="Alan Jackson", lyrics="la la", seconds=0.05, total_seconds=1, n=3, seed=5)
    list(model.sample(takes, levels=[2], temp=200.0, mask_lyric_codes=True))
    assert len({song.codes[2].tobytes() for song in takes}) == 3
    assert len(model.audio(takes[0])) == takes[0].length_samples == 400
    chosen = takes[1]
    more = model.takes(chosen, n=3, seconds=0.1, keep_seconds=0.03)
    list(model.sample(more, levels=[2], temp=200.0, mask_lyric_codes=True))
    assert chosen.have(2) == 25 and all(song.have(2) == 50 for song in more)
    assert all(song.codes[2][:15].tolist() == chosen.codes[2][:15].tolist() for song in more)
    assert len({song.codes[2][:25].tobytes() for song in [*more, chosen]}) == 4
    with pytest.raises(UserError, match="codes of level 1 end after 0.00 s: sample level 1 first"):
        model.sample(more[2], levels=[0])
    before = more[2].codes[2].copy()
    levels = {window.level for window in model.sample(more[2], levels=[1, 0])}
    assert levels == {1, 0} and more[2].codes[2].tolist() == before.tolist() and len(model.audio(more[2])) == 800

    (short,) = model.takes(more[2], seconds=0.03)
    assert [short.have(level) for level in range(3)] == [60, 30, 15] and not list(model.sample(short, levels=[2]))

    model.save_codes(tmp_path / "piece.pth.tar", more[2])
    zs = restricted.load(tmp_path / "piece.pth.tar")
    assert [tuple(z.shape) for z in zs] == [(1, 200), (1, 100), (1, 50)]
    (again,) = model.songs(given=model.load_codes(tmp_path / "piece.pth.tar"))
    assert again.length_samples == 800 and again.codes[0].tolist() == more[2].codes[0].tolist()
    model.write(tmp_path / "piece.flac", again)
    assert soundfile.info(tmp_path / "piece.flac").frames == 800


def test_prompts_and_rates(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", NOISE, 8000)
    mono = NOISE.mean(axis=1)
    codes = model.encode(mono)
    assert {level: len(found) for level, found in codes.items()} == {0: 752, 1: 376, 2: 188}
    stored = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    for audio in (tmp_path / "a.wav", stored, torch.from_numpy(stored.copy())):
        assert model.encode(audio, levels=[2])[2].tolist() == model.encode(stored.mean(axis=1))[2].tolist()
    assert len(model.encode(mono, sr_hz=16000)[2]) == 94
    for prompt in (tmp_path / "a.wav", stored):
        (song,) = model.songs(prompt=prompt, prompt_seconds=0.1, seconds=0.15)
        assert song.codes[2].tolist() == model.encode(stored[:800])[2].tolist() and song.length_samples == 1200
    sound = model.decode(codes[1], 1)
    assert sound.shape == (3008,) and sound.dtype == np.float32
    np.testing.assert_allclose(model.decode(codes[1], 1, 50, 60), sound[400:480], atol=1e-5)
    assert not len(model.decode(codes[1], 1, 3, 3))


def test_voices_between(model):
    """Blends are known to all songs that follow, and do not change the others."""
    (plain,) = model.songs(artist="Alan Jackson", seconds=0.05, total_seconds=1)
    sing(model, plain, levels=[2])
    (blend,) = model.songs(artist={"Alan Jackson": 3, "unknown": 1}, seconds=0.05, total_seconds=1)
    (other,) = model.songs(genre={"country": 1, "pop": 1}, seconds=0.05, total_seconds=1)
    (same,) = model.songs(artist="Alan Jackson", seconds=0.05, total_seconds=1)
    for song in (blend, other, same):
        sing(model, song, levels=[2])
    assert same.codes[2].tolist() == plain.codes[2].tolist()
    assert blend.request.song.artist == "75% Alan Jackson + 25% unknown"


def test_features(model, tmp_path):
    prior = model.prior(2)
    mean = model.features(NOISE, layers=[0, 16])
    assert {layer: states.shape for layer, states in mean.items()} == {0: (24,), 16: (24,)}
    assert list(model.features(NOISE)) == [8]  # the middle one
    frames = model.features(NOISE, layers=[3], pool=40.0, level=0)[3]
    assert frames.shape == (15, 24)
    told = model.features(NOISE, layers=[16], song=SongMeta(artist="Alan Jackson", lyrics="la la"))
    assert not np.allclose(told[16], mean[16])
    clips = [NOISE, NOISE[:100], NOISE[:2000]]
    for clip, found in zip(clips, model.features_of(clips, layers=[2]), strict=True):
        np.testing.assert_allclose(found[2], model.features(clip, layers=[2])[2], rtol=1e-4, atol=1e-5)
    assert model.prior(2) is prior
    model.release()
    assert model.prior(2) is not prior


def test_a_vqvae_alone_and_a_run_by_its_name(tiny, tmp_path, monkeypatch):
    folder = tiny.ids_dir.parent
    vqvae = jukebox.load(folder / "vqvae")
    assert vqvae.levels == () and "priors of levels none" in repr(vqvae)
    assert len(vqvae.encode(NOISE)[0]) == 752
    with pytest.raises(UserError, match="has priors of levels none"):
        vqvae.sample(vqvae.songs())
    with pytest.raises(UserError, match="it has those of levels none"):
        vqvae.features(NOISE)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/mine").symlink_to(folder / "vqvae")
    monkeypatch.chdir(tmp_path)
    assert jukebox.load("mine").geometry == vqvae.geometry


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda m: jukebox.load("nowhere"), UserError, "neither a model set"),
        (lambda m: jukebox.load("1b_lyrics"), UserError, "fetch.py 1b_lyrics"),
        (lambda m: m.encode(np.zeros((2, 2, 2), np.float32)), DataError, r"\[T\] or \[T, C\]"),
        (lambda m: m.encode(np.zeros(9, np.int16)), DataError, "not int16"),
        (lambda m: m.encode(np.array([np.nan])), DataError, "is finite floats"),
        (lambda m: m.encode("nothing.wav"), UserError, "nothing.wav"),
        (lambda m: m.encode("nothing.wav", sr_hz=8000), UserError, "sr_hz is for arrays"),
        (
            lambda m: m.save_codes("x.pth.tar", [m.songs(given=[{2: [1] * n}])[0] for n in (1, 2)]),
            DataError,
            "one by one",
        ),
        (lambda m: m.encode(NOISE, levels=[3]), UserError, "this model has levels 0 to 2"),
        (lambda m: m.decode(np.array([16]), 0), DataError, "its codes are 0 to 15"),
        (lambda m: m.decode(np.array([0.5]), 0), DataError, "codes are whole numbers"),
        (lambda m: m.decode(np.array([1]), 0, 2), UserError, "there are 1 codes"),
        (lambda m: m.sample([]), UserError, "there are no songs"),
        (lambda m: m.sample(m.songs(), levels=[7]), UserError, r"levels=\[7\]: .* has priors of levels 2, 1, 0"),
        (lambda m: m.sample(m.songs(seconds=1, total_seconds=9), temp=0), UserError, "temp"),
        (lambda m: m.sample(m.songs(seconds=1), top_k=1, top_p=0.5), UserError, "both --top_k and --top_p"),
        (lambda m: m.sample(m.songs(seconds=1) * 2), UserError, "the same number"),
        (lambda m: m.sample(m.songs(seconds=99)), UserError, "this model knows songs of"),
        (lambda m: m.songs(seconds=-1), UserError, "a length of -1 s is none"),
        (lambda m: m.songs(seconds=float("nan")), UserError, "a length of nan s"),
        (lambda m: m.takes(m.songs(seconds=1)[0], keep_seconds=-1), UserError, "keep_seconds=-1"),
        (lambda m: m.songs(prompt=NOISE, prompt_seconds=float("inf")), UserError, "prompt_seconds=inf"),
        (lambda m: m.features(NOISE[:0]), DataError, "audio is finite floats"),
        (lambda m: m.songs(artist={}), DataError, "a blend of nothing"),
        (lambda m: m.songs(prompt=NOISE, prompt_seconds=9), UserError, "the prompt has 0.38 s"),
        (lambda m: m.audio(m.songs()[0]), UserError, "codes of levels none"),
        (lambda m: m.features(NOISE, layers=[99]), UserError, "0 .* to 16"),
        (lambda m: m.features(NOISE, hop_fraction=0), UserError, "hop_fraction=0"),
    ],
)
def test_mistakes_say_how_to_mend_them(model, use, error, message):
    with pytest.raises(error, match=message):
        use(model)
