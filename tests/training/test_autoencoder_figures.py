"""What a trained autoencoder is good for: it keeps the songs, a prior learns its tokens, a flow learns its latents.

Slow: one autoencoder for all parts, then a prior and a flow over it; any part can be asked for alone
(`pytest -m slow tests/training/test_autoencoder_figures.py -k flow`). JUKEBOX_TEST_EFFORT=0.001 runs all steps
in a minute, and then holds no figure against its bound.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jukebox import settings
from jukebox.audio import io
from jukebox.autoencoder.config import read_config
from jukebox.codestore.store import CodeStore
from jukebox.corpus import collection, listen, score, synth
from jukebox.encoding import choice
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.hparams import presets
from jukebox.models.autoencoder_codec import AutoencoderCodec, load_autoencoder
from jukebox.parallel.comm import SoloComm
from jukebox.parallel.world import job
from jukebox.sampling.run import main as sample_run
from jukebox.training import asked
from jukebox.training.run import main as train_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EFFORT = float(os.environ.get("JUKEBOX_TEST_EFFORT", "1"))
SR, TRAINED_ON = 8000, 200 if EFFORT >= 1 else 8  # Hz, songs
SHIPPED = presets.share_folder() / "hparams"
AUTOENCODER, FLOW = SHIPPED / "autoencoders/tiny_dac_rvq.json", SHIPPED / "flows/tiny_flow.json"
RUN = f"logs/{AUTOENCODER.stem}"  # where the flow's config expects it
SONGS = SHIPPED / "requests/corpus.toml"
LABELS = (
    "--labels", "--labels_v3", "--y_bins=5,5", "--max_bow_genre_size=1", "--t_bins=16", "--min_duration=2",
    "--max_duration=60",
)  # fmt: skip


def steps(count):
    return max(4, round(EFFORT * count))


def program(main, name, *words):
    job.comm = None  # each as a program of its own
    resolved = settings.parse(name, words)
    return main(asked.check(resolved) if name == "train" else resolved)


def pre_encode(store, *words):
    job.comm = None
    hps = settings.parse(
        "pre_encode", [f"--restore_vqvae={RUN}", "--audio_files_dir=train", f"--output-path={store}", *words]
    )
    codec, about = choice.load(choice.choose(hps), hps, "cpu")
    return encode_all(hps.section(EncodeHps), codec, about, SoloComm())


def held_out():
    """(audio [T], truth) of songs never trained on."""
    for line in Path("held_out/metadata.jsonl").read_text().splitlines():
        about = json.loads(line)
        yield io.read(f"held_out/{about['file']}", sr_hz=SR, channels=1)[:, 0], about


def kept(codec, audio):
    """The song [T] through tokens and back."""
    return codec.decode(codec.encode(audio)[0], 0)[: len(audio)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder where everything happens: songs to train on, others to measure with, and the trained autoencoder."""
    folder, before = tmp_path_factory.mktemp("autoencoders"), os.getcwd()
    os.chdir(folder)
    collection.write_corpus(folder / "train", TRAINED_ON, 0, min_sec=6, max_sec=9)
    collection.write_corpus(folder / "held_out", 6, 1000, min_sec=6, max_sec=9)
    # Windows one after the other: the corpus has a grid of 32 ms, and so have the frames.
    described = {"dataset_type": "audio_dir", "random_crop": False, "datasets": [{"id": "corpus", "path": "train"}]}
    Path("audio.json").write_text(json.dumps(described))
    words = (
        f"--model-config={AUTOENCODER}", "--dataset-config=audio.json", "--bs=4", "--nworkers=0", "--save_iters=500",
        f"--steps={steps(4000)}",
    )  # fmt: skip
    assert program(train_run, "train", *words) == 0
    yield folder
    os.chdir(before)


def codec_of_run(**how):
    return AutoencoderCodec(*load_autoencoder(RUN), "stream", **how)


def test_songs_are_kept(trained):
    """Held-out songs through 2 kbit/s of tokens: as sound, and as read by the ear."""
    codec, figures, heard = codec_of_run(), [], []
    for audio, about in held_out():
        made = kept(codec, audio)
        figures.append((score.si_sdr_db(audio, made), score.spectral_convergence_db(audio, made)))
        heard.append(score.sung(listen.listen(made, SR), about["lyrics"], about["artist"], about["genre"]))
    sdr, convergence = np.mean(figures, axis=0)
    read = 1 - score.error_rate(heard)
    print(f"SI-SDR {sdr:.2f} dB, spectral convergence {convergence:.2f} dB, {read:.1%} of the characters read")
    if EFFORT >= 1:
        assert (sdr >= 5 or convergence <= -10) and read >= 0.9


def test_a_long_song_is_as_good_as_its_crops(trained):
    """45 s in one pass and in chunks, beside the same song cut into crops of the length of training."""
    size = read_config(AUTOENCODER).sample_size
    whole, chunked = codec_of_run(chunk_samples=1 << 20), codec_of_run(chunk_samples=SR)
    song = synth.song(5, seconds=45, sr_hz=SR).audio
    song = song[: len(song) // size * size]
    assert len(whole.pieces(len(song))) == 1 and len(chunked.pieces(len(song))) > 10
    crops = np.concatenate([kept(whole, crop) for crop in song.reshape(-1, size)])
    for measure in (score.si_sdr_db, score.spectral_convergence_db):
        short, *long = (measure(song, made) for made in (crops, kept(whole, song), kept(chunked, song)))
        print(f"{measure.__name__}: crops {short:.2f} dB, 45 s whole {long[0]:.2f}, in chunks {long[1]:.2f}")
        if EFFORT >= 1:
            assert max(abs(one - short) for one in long) <= 0.5


def test_a_prior_learns_the_tokens(trained):
    """The codes of a frame one after the other are a stream as any other, down to the same sample.py."""
    store = pre_encode("tokens", "--is-discrete")
    assert store.geometry.frame == 8 and len(CodeStore.open("tokens")) == TRAINED_ON
    half = steps(600) // 2
    words = (
        "--hps=tiny_prior", "--prior", "--codes=tokens", "--name=prior", "--n_ctx=384", f"--steps={steps(600)}",
        f"--eval_iters={steps(600)}", f"--save_iters={steps(600)}", f"--lr_start_linear_decay={half}",
        f"--lr_decay={half + 1}",
    )  # fmt: skip
    assert program(train_run, "train", *words) == 0
    rows = [json.loads(line) for line in Path("logs/prior/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "test_bpd" in row][-1]
    below = 1 - last["test_bpd"] / last["test_unigram"]
    print(f"the prior is {below:.1%} below the unigram entropy of {last['test_unigram']:.2f} bits")
    words = (f"--model={RUN},logs/prior", "--name=sung", "--n_samples=1", "--sample_length_in_seconds=2.1")
    assert program(sample_run, "sample", *words) == 0
    audio = io.read("sung/level_0/item_0.wav")
    assert len(audio) == int(2.1 * SR) // 256 * 256
    if EFFORT >= 1:
        assert below >= 0.15 and not score.levels(audio).silent


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_flow_sings_the_artist_asked_for(flow, solver):
    """Sixteen songs, every artist in every genre."""
    count = 16 if EFFORT >= 1 else 2
    words = (
        "--model=logs/flow", f"--name=flown_{solver}", f"--requests={SONGS}", f"--n_samples={count}",
        "--sample_length_in_seconds=4", "--total_sample_length_in_seconds=8", f"--flow_solver={solver}",
        f"--flow_steps={steps(24)}",
    )  # fmt: skip
    assert program(sample_run, "sample", *words) == 0
    artists = [list(synth.ARTISTS)[i % len(synth.ARTISTS)] for i in range(count)]
    heard = [listen.listen(io.read(f"flown_{solver}/level_0/item_{i}.wav")[:, 0], SR).artist for i in range(count)]
    right = float(np.mean([a == b for a, b in zip(artists, heard, strict=True)]))
    print(f"{solver}: {right:.0%} of {count} songs have the artist asked for: {heard}")
    if EFFORT >= 1:
        assert right >= 0.6


@pytest.fixture(scope="module")
def flow(trained):
    """A flow over the autoencoder's latents, in logs/flow."""
    pre_encode("latents")
    described = {
        "dataset_type": "pre_encoded", "random_crop": True, "datasets": [{"id": "corpus", "path": "latents/level_0"}],
    }  # fmt: skip
    Path("latents.json").write_text(json.dumps(described))
    words = (
        f"--model-config={FLOW}", "--dataset-config=latents.json", "--name=flow", "--bs=8", "--save_iters=500",
        f"--steps={steps(2500)}",
    )  # fmt: skip
    assert program(train_run, "train", *words, *LABELS) == 0
