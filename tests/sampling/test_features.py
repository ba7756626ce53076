"""Features: the states that the prior has, wherever windows, batches and songs end; the folder program survives kills."""

import json

import numpy as np
import pytest
import soundfile
import torch

from jukebox import settings
from jukebox.errors import DataError, UsageError
from jukebox.labels.song import SongMeta
from jukebox.models import model_set
from jukebox.models.autoencoder_codec import load_codec
from jukebox.parallel.comm import SoloComm
from jukebox.sampling import features, features_run, prepare
from jukebox.sampling.features import Extractor
from jukebox.sampling.features_run import Folder
from jukebox.sampling.hps import FeaturesHps, SampleHps, SongHps
from jukebox.sampling.plan import window_starts

LENGTHS = (1000, 3210, 1, 576, 2000)  # samples; a top window of the tiny model has 576


class Heard:
    """The tiny model, songs of noise with their codes, and what one of its priors hears in them."""

    def __init__(self, tiny, level):
        models = model_set.find(tiny.model)
        self.codec, vqvae = load_codec(models.vqvae)
        hops = SampleHps(hop_fraction=(0.5, 0.5, 0.25))
        known = prepare.levels_of(hops, SongHps(ids_dir=str(tiny.ids_dir)), models, vqvae, self.codec.geometry)
        self.known = known[level]
        self.prior, _ = model_set.load_prior(models.priors[level], vqvae, level)
        metas = [SongMeta(artist=m["artist"], genre=m["genre"], lyrics=m["lyrics"]) for m in tiny.info["metas"]]
        self.songs = [
            features.encoded(noise(length), self.codec, self.known.shape, metas[i % 2])
            for i, length in enumerate(LENGTHS)
        ]

    def hear(self, pool="mean", layers=(2,), batch_size=4):
        extractor = Extractor(
            self.prior, self.known.plan, 8000, layers, pool, self.known.labeller, batch_size
        )  # fmt: skip
        return list(extractor.hear(self.songs))


def noise(length):
    return np.random.default_rng(length).normal(0, 0.2, length).astype(np.float32)


@pytest.fixture(scope="module", params=[0, 1, 2])
def heard(tiny, request):
    return Heard(tiny, request.param)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_states_are_those_of_the_first_window_that_holds_a_code(heard):
    prior, plan, song = heard.prior, heard.known.plan, heard.songs[1]
    codes = torch.from_numpy(song.codes[plan.level])[None]
    label = heard.known.labeller.full(song.request.song, song.total_samples, 0)
    expected = np.zeros((codes.shape[1], prior.net.transformer.shape.width), np.float32)
    for start in reversed(window_starts(codes.shape[1], plan.n_ctx, plan.hop)):
        y = torch.from_numpy(heard.known.labeller.at(label, start * prior.hop, prior.sample_length)[0])[None]
        upper = None
        if plan.ratio:
            above = song.codes[plan.level + 1][start // plan.ratio : (start + plan.n_ctx) // plan.ratio]
            upper = torch.from_numpy(above)[None]
        states = prior.states([2], codes[:, start : start + plan.n_ctx], upper, y)[2]
        expected[start : start + plan.n_ctx] = states[0].numpy()
    found = heard.hear("all")[1][2]
    assert len(found) == -(-song.length_samples // prior.hop)
    close(found, expected[: len(found)])


def test_the_last_layer_predicts_the_codes(heard):
    """Its states, through the output matrix, are the teacher-forced logits that sampling would see."""
    prior, depth, song = heard.prior, len(heard.prior.net.transformer.layers), heard.songs[3]
    states = heard.hear("all", (depth,))[3][depth][: prior.n_ctx]
    plan, label = heard.known.plan, heard.known.label(song)
    codes = torch.from_numpy(song.codes[plan.level][: plan.n_ctx])[None]
    upper = torch.from_numpy(song.codes[plan.level + 1][: plan.n_ctx // plan.ratio])[None] if plan.ratio else None
    with torch.no_grad():
        y = torch.from_numpy(heard.known.labeller.at(label, 0, prior.sample_length)[0])[None]
        logits = prior(codes, upper, y).logits[0, prior.prefix :]
        close(prior.net.out(torch.from_numpy(states)).numpy(), logits.numpy())


def test_pooling_and_batches(heard):
    whole = heard.hear("all", (0, 2))
    rate = 8000 / heard.prior.hop / 3.5  # frames of 3 and 4 codes
    for batch_size in (1, 3, 50):
        means, frames = heard.hear("mean", (0, 2), batch_size), heard.hear(rate, (0, 2), batch_size)
        for song in range(len(LENGTHS)):
            for layer in (0, 2):
                codes = whole[song][layer]
                close(means[song][layer], codes.mean(0))
                frame_of = np.floor(np.arange(len(codes)) / 3.5).astype(int)
                assert len(frames[song][layer]) == frame_of[-1] + 1
                close(frames[song][layer], [codes[frame_of == f].mean(0) for f in range(frame_of[-1] + 1)])


def test_songs_longer_and_shorter_than_the_prior_knows(tiny):
    top = Heard(tiny, 2)
    assert top.songs[2].total_samples == 400  # min_duration is 0.05 s
    long = features.encoded(noise(30 * 8000 + 999), top.codec, top.known.shape, SongMeta(lyrics="la " * 20))
    assert long.total_samples == 30 * 8000 - 1
    top.songs = [long]
    (found,) = top.hear(10.0, batch_size=64)
    assert found[2].shape == (302, 24) and np.isfinite(found[2]).all()
    with pytest.raises(DataError, match="no sound"):
        features.encoded(noise(0), top.codec, top.known.shape, SongMeta())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers=17"], r"--layers=17: give the number of layers .* 0 .* to 16"),
        (["--pool=often"], "--pool=often: say mean, all, or a number"),
        (["--pool=501"], "level 2 has 500 codes per second"),
        (["--level=3"], "no prior of level 3; it has those of levels 0, 1, 2"),
        (["--metadata=songs.csv"], "--metadata is read with --labelled only"),
        (["--dtype=fp16"], "--dtype=fp16 is not for this cpu"),
    ],
)
def test_mistakes_are_said_before_a_prior_is_loaded(tiny, flags, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        folder_of(tiny, tmp_path, *flags)


def folder_of(tiny, root, *flags):
    common = [f"--model={tiny.model}", f"--ids_dir={tiny.ids_dir}", f"--output_path={root}"]
    asked = settings.parse("features", [*common, *flags]).section(FeaturesHps)
    root.mkdir(exist_ok=True)
    return Folder(asked, model_set.find(asked.model), SoloComm())


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    for i, length in enumerate((3000, 12_000, 900, 5000, 7000, 2500)):
        path = folder / ("sub" if i % 2 else ".") / f"song {i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(length), 8000)
    (folder / "metadata.jsonl").write_text('{"file": "song 0.wav", "artist": "Alan Jackson", "lyrics": "la la"}\n')
    return folder


def arrays(root):
    return {
        str(path.relative_to(root)): {name: values for name, values in np.load(path).items()}
        for path in sorted(root.rglob("*.npz"))
    }


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([(0, "features.after_song:2"), (2, None)], id="killed"),
        pytest.param(
            [(2, "publish.before_replace:3:rank=1"), (1, "features.after_song:1"), (3, "publish.after_replace:2"), (0, None)],
            id="killed often", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_killed_and_started_again_with_other_ranks(ways, tiny, music, tmp_path, run_mpi, jukebox_root):
    """Real processes, seconds each: no finished song is heard again, and all are heard in the end."""
    flags = [f"--audio_files_dir={music}", "--layers=0,5", "--pool=20", "--labelled"]
    assert folder_of(tiny, tmp_path / "whole", *flags).run() == 0
    root, finished = tmp_path / "out", {}
    common = [f"--model={tiny.model}", f"--ids_dir={tiny.ids_dir}", f"--output_path={root}", "--device=cpu"]
    for ranks, fault in ways:
        words = [jukebox_root / "jukebox/features.py", *common, *flags]
        done = run_mpi(ranks, words, timeout=200, env={"JUKEBOX_FAULT": fault})
        assert (done.code == 0) is (fault is None), done.err
        for path in root.rglob("song*.json"):
            state = tuple((p.stat().st_ino, p.stat().st_mtime_ns) for p in (path, path.with_suffix(".npz")))
            assert finished.setdefault(path, state) == state, f"{path.name} was heard again"
    assert "of 6 songs are done already" in done.err
    found, expected = arrays(root), arrays(tmp_path / "whole")
    assert len(found) == 6 and found.keys() == expected.keys()
    for name, by_layer in expected.items():
        assert set(by_layer) == {"layer_0", "layer_5"}
        for layer, values in by_layer.items():
            close(found[name][layer], values)
    facts = json.loads((root / "song 0.wav.json").read_text())
    assert facts["song"]["artist"] == "Alan Jackson" and facts["shapes"]["layer_5"] == [8, 24]
    assert not list(root.rglob(".tmp-*"))


def test_the_folder_of_the_music_is_not_written_to(music):
    flags = ["--model=x", f"--audio_files_dir={music}", f"--output_path={music / 'sub'}"]
    with pytest.raises(UsageError, match="never written to"):
        features_run.main(settings.parse("features", flags))


def test_another_question_needs_another_folder(tiny, music, tmp_path):
    assert folder_of(tiny, tmp_path, f"--audio_files_dir={music}").run() == 0
    with pytest.raises(UsageError, match=r"(?s)holds other features.*layers \[8\] there, \[3\] asked for"):
        folder_of(tiny, tmp_path, f"--audio_files_dir={music}", "--layers=3").run()
