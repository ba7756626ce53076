"""What a trained autoencoder is good for: it keeps the songs, priors learn its tokens, a flow learns its latents.

Slow: two trainings of about fifteen minutes on two cores. JUKEBOX_TEST_EFFORT=0.01 runs all steps in a minute or two, and
then holds no figure against its bound.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jukebox import settings
from jukebox.audio import io
from jukebox.codestore.store import CodeStore
from jukebox.corpus import listen, score, synth
from jukebox.encoding import choice
from jukebox.encoding.hps import EncodeHps
from jukebox.encoding.run import encode_all
from jukebox.models.autoencoder_codec import load_codec
from jukebox.models.model_set import Part
from jukebox.parallel.comm import SoloComm
from jukebox.parallel.world import job
from jukebox.sampling.run import main as sample_run
from jukebox.training import asked
from jukebox.training.run import main as train_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EFFORT = float(os.environ.get("JUKEBOX_TEST_EFFORT", "1"))
SR = 8000
LABELS = (
    "--labels",
    "--labels_v3",
    "--y_bins=5,5",
    "--max_bow_genre_size=1",
    "--t_bins=16",
    "--min_duration=2",
    "--max_duration=60",
)


def steps(count):
    return f"--steps={max(4, round(EFFORT * count))}"


def program(main, name, *words):
    job.comm = None  # each as a program of its own
    resolved = settings.parse(name, words)
    return main(asked.check(resolved) if name == "train" else resolved)


def autoencoder(bottleneck):
    levels = {"channels": 24, "c_mults": [1, 2, 4], "strides": [4, 4, 4], "use_snake": True}
    sizes = [1024, 512, 128]
    return {
        "model_type": "autoencoder", "sample_rate": SR, "sample_size": SR // 64 * 64, "audio_channels": 1,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 1, "latent_dim": 16, **levels}},
            "decoder": {"type": "oobleck", "config": {"out_channels": 1, "latent_dim": 16, "final_tanh": False, **levels}},
            "bottleneck": bottleneck, "latent_dim": 16, "downsampling_ratio": 64, "io_channels": 1,
        },
        "training": {
            "learning_rate": 0.001, "use_ema": True, "demo": {"demo_every": 100000},
            "loss_configs": {
                "spectral": {
                    "config": {"fft_sizes": sizes, "hop_sizes": [s // 4 for s in sizes], "win_lengths": sizes},
                    "weights": {"mrstft": 1.0},
                },
                "time": {"weights": {"l1": 20.0}},
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Songs to train on and others to measure with, in the folder where everything happens."""
    folder = tmp_path_factory.mktemp("autoencoders")
    before = os.getcwd()
    os.chdir(folder)
    synth.write_corpus(folder / "train", 64, 0, min_sec=6, max_sec=12)
    synth.write_corpus(folder / "held_out", 6, 1, min_sec=6, max_sec=10)
    (folder / "audio.json").write_text(
        json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "corpus", "path": "train"}]})
    )
    yield folder
    os.chdir(before)


def train_autoencoder(name, bottleneck):
    Path(f"{name}.json").write_text(json.dumps(autoencoder(bottleneck)))
    words = (
        f"--model-config={name}.json",
        "--dataset-config=audio.json",
        f"--name={name}",
        "--bs=4",
        "--nworkers=0",
        "--save_iters=500",
    )
    assert program(train_run, "train", *words, steps(1500)) == 0


def pre_encode(name, store, *words):
    job.comm = None
    hps = settings.parse(
        "pre_encode", [f"--restore_vqvae=logs/{name}", "--audio_files_dir=train", f"--output-path={store}", *words]
    )
    codec, about = choice.load(choice.choose(hps), hps, "cpu")
    return encode_all(hps.section(EncodeHps), codec, about, SoloComm())


def held_out():
    """(audio [T], truth) of songs never trained on."""
    for line in Path("held_out/metadata.jsonl").read_text().splitlines():
        about = json.loads(line)
        yield io.read(f"held_out/{about['file']}", sr_hz=SR, channels=1)[:, 0], about


def test_tokens(music):
    """rvq: held-out songs survive, also long ones; a prior learns the stream and sample.py sings it."""
    train_autoencoder("rvq", {"type": "rvq", "config": {"dim": 16, "num_quantizers": 4, "codebook_size": 128}})
    codec, _ = load_codec(Part("logs/rvq"))
    figures, heard = [], []
    for audio, about in held_out():
        made = codec.decode(codec.encode(audio)[0], 0)[: len(audio)]
        figures.append((score.si_sdr_db(audio, made), score.spectral_convergence_db(audio, made)))
        heard.append(score.sung(listen.listen(made, SR), about["lyrics"], about["artist"], about["genre"]))
    sdr, convergence = np.mean(figures, axis=0)
    read = 1 - score.error_rate(heard)
    print(f"SI-SDR {sdr:.2f} dB, spectral convergence {convergence:.2f} dB, {read:.1%} of the characters read")

    long = synth.song(5, seconds=45, sr_hz=SR).audio
    whole = codec.decode(codec.encode(long)[0], 0)[: len(long)]
    crops = [long[start : start + SR] for start in range(0, len(long) - SR + 1, SR)]
    short = np.concatenate([codec.decode(codec.encode(crop)[0], 0)[:SR] for crop in crops])
    length = len(short)
    apart = score.spectral_convergence_db(long[:length], whole[:length]) - score.spectral_convergence_db(
        long[:length], short
    )
    print(f"a 45 s song is {apart:+.2f} dB from its crops of 1 s")

    store = pre_encode("rvq", "tokens", "--is-discrete")
    assert store.geometry.frame == 4 and len(CodeStore.open("tokens")) == 64
    words = (
        "--hps=tiny_prior",
        "--prior",
        "--codes=tokens",
        "--name=prior",
        "--n_ctx=512",
        "--eval_iters=200",
        "--lr_decay=1200",
    )
    assert program(train_run, "train", *words, steps(1200)) == 0
    rows = [json.loads(line) for line in Path("logs/prior/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "test_bpd" in row][-1] if EFFORT >= 1 else {"test_bpd": 0.0, "test_unigram": 1.0}
    below = 1 - last["test_bpd"] / last["test_unigram"]
    print(f"the prior is {below:.1%} below the unigram entropy")
    words = ("--model=logs/rvq,logs/prior", "--name=sung", "--n_samples=1", "--sample_length_in_seconds=1.1")
    assert program(sample_run, "sample", *words) == 0
    audio = io.read("sung/level_0/item_0.wav")
    assert len(audio) == int(1.1 * SR) // 64 * 64
    if EFFORT >= 1:
        assert sdr >= 5 or convergence <= -10
        assert read >= 0.9 and abs(apart) <= 0.5 and below >= 0.15 and not score.levels(audio).silent


def test_latents(music):
    """tanh: a flow over its latents sings the artist asked for in at least 60 % of 16 songs."""
    train_autoencoder("tanh", {"type": "tanh", "config": {"scale": 4.0}})
    pre_encode("tanh", "latents")
    with open("latents.json", "w") as file:
        json.dump(
            {"dataset_type": "pre_encoded", "random_crop": True, "datasets": [{"id": "x", "path": "latents/level_0"}]},
            file,
        )
    flow = {
        "model_type": "latent_flow",
        "model": {"pretransform": {"ckpt_path": "logs/tanh"}, "frames": 256, "width": 192, "depth": 6, "heads": 4},
        "training": {"pre_encoded": True, "learning_rate": 0.0007, "demo": {"demo_every": 100000}},
    }  # fmt: skip
    Path("flow.json").write_text(json.dumps(flow))
    words = ("--model-config=flow.json", "--dataset-config=latents.json", "--name=flow", "--bs=8", "--save_iters=500")
    assert program(train_run, "train", *words, *LABELS, steps(2500)) == 0
    artists = [list(synth.ARTISTS)[i % len(synth.ARTISTS)] for i in range(16 if EFFORT >= 1 else 2)]
    with open("songs.jsonl", "w") as file:
        for i, artist in enumerate(artists):
            genre = list(synth.GENRES)[i % len(synth.GENRES)]
            file.write(json.dumps({"artist": artist, "genre": genre, "seed": i}) + "\n")
    words = (
        "--model=logs/flow",
        "--name=flown",
        "--requests=songs.jsonl",
        "--sample_length_in_seconds=4",
        "--total_sample_length_in_seconds=8",
    )
    assert program(sample_run, "sample", *words, f"--flow_steps={max(2, round(30 * min(1, EFFORT)))}") == 0
    heard = [listen.listen(io.read(f"flown/level_0/item_{i}.wav")[:, 0], SR).artist for i in range(len(artists))]
    right = float(np.mean([a == b for a, b in zip(artists, heard, strict=True)]))
    print(f"{right:.0%} of {len(artists)} songs have the artist asked for: {heard}")
    if EFFORT >= 1:
        assert right >= 0.6
