"""Rectified flow: solvers against a known path, masks, labels, windows that begin with given latents; trained as people do."""

import json
import tarfile

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.audio import io
from jukebox.errors import DataError, HparamsError
from jukebox.hparams import presets
from jukebox.models import checkpoint
from jukebox.models.latent_model import load_flow, noise_for, read_flow_config
from jukebox.parallel.world import job
from jukebox.prior.conditioners import LabelShape
from jukebox.prior.latent_flow import FlowShape, LatentFlow, draw_times, integrate, pad_window, sample
from jukebox.sampling.run import main as sing_songs
from jukebox.training import asked
from jukebox.training.run import main as train_run

LABELS = LabelShape(
    width=16, genres=3, artists=3, genre_slots=1, n_ctx=12, t_bins=4, sr_hz=100, max_duration=10.0, timing=True
)


def flow(labels=LABELS, n_tokens=0):
    torch.manual_seed(0)
    shape = FlowShape(
        latent_dim=3, frames=12, hop=10, width=16, depth=2, heads=2, labels=labels, n_tokens=n_tokens, n_vocab=9
    )
    net = LatentFlow(shape)
    for layer in (net.after, *net.shifts, *(block.attn.out for block in net.layers)):
        torch.nn.init.normal_(layer.weight, std=0.2)  # as if trained: they start at zero
    return net.eval()


def label(artist=1, n_tokens=0, B=2):
    return torch.tensor([[500, 0, 120, artist, 1, *range(1, n_tokens + 1)]] * B)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_have_their_order(solver, order):
    """dx/dt = x, from t = 1 to 0, ends at x / e; halving the step divides the error by 2 or 4."""
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    errors = [abs(float(integrate(lambda x, t: x, x, n, solver)) - np.exp(-1)) for n in (64, 128)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_straight_lines_are_walked_exactly(solver):
    aim, noise = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    found = integrate(lambda x, t: noise - aim, noise, 3, solver)
    torch.testing.assert_close(found, aim)


def test_every_frame_sees_every_frame_and_the_lyrics():
    net, y = flow(n_tokens=4), label(n_tokens=4)
    x = torch.randn(2, 3, 12, requires_grad=True)
    out = net(x, torch.full((2,), 0.3), net.told(y, 2))
    (gradient,) = torch.autograd.grad(out[0, :, 0].sum(), x, retain_graph=True)
    assert (gradient[0].abs().sum(0) > 0).all() and not gradient[1].any()
    other = label(n_tokens=4)
    other[:, -1] = 7
    with torch.no_grad():
        assert not torch.allclose(out, net(x, torch.full((2,), 0.3), net.told(other, 2)))


def test_only_real_frames_count():
    net, y = flow(), label()
    x, mask = torch.randn(2, 3, 12), torch.ones(2, 12)
    mask[:, 8:] = 0
    noise, t = torch.randn(2, 3, 12), torch.tensor([0.2, 0.9])
    told = net.told(y, 2)
    at = t[:, None, None]
    error = (net((1 - at) * x + at * noise, t, told) - (noise - x)).square().mean(1)
    torch.testing.assert_close(net.loss(x, mask, told, t, noise), error[:, :8].mean())


def test_dropped_labels_are_nobodys():
    net = flow(n_tokens=2)
    everyone = torch.ones(2, dtype=torch.bool)
    one, other = (net.told(label(artist, 2), 2, everyone) for artist in (0, 2))
    assert torch.equal(one.added, other.added) and not one.lyrics.any()
    kept = net.told(label(0, 2), 2, torch.tensor([True, False]))
    assert not torch.equal(kept.added[0], kept.added[1])


def test_samples_begin_with_what_is_given():
    net, y = flow(), label()
    net.scale.fill_(2.0)
    noise = noise_for(net, [3, 4], [0, 0])
    given = torch.randn(2, 3, 5)
    found = sample(net, noise, y, steps=4, given=given, guidance=1.5)
    assert torch.equal(found[..., :5], given) and found.shape == (2, 3, 12)
    free = sample(net, noise, y, steps=4, guidance=1.5)
    assert not torch.allclose(found[..., 5:], free[..., 5:])
    alone = sample(net, noise[1:], y[1:], steps=4, guidance=1.5)
    torch.testing.assert_close(free[1:], alone, atol=1e-5, rtol=1e-5)


def test_times_and_padding():
    t = draw_times(torch.linspace(0, 1, 1001))
    assert float(t.min()) >= 0 and float(t.max()) <= 1 and float(t[500]) == pytest.approx(0.5)
    padded, mask = pad_window(torch.ones(2, 3), 5)
    assert padded.sum() == 6 and mask.tolist() == [1, 1, 1, 0, 0]


# --------------------------------------------------------------------------------------------------- from end to end

SR = 8000
FLAGS = (
    "--model-config=flow.json", "--dataset-config=latents.json", "--labels", "--labels_v3", "--y_bins=120,4111", "--t_bins=8",
    "--max_duration=20", "--min_duration=0", "--use_tokens", "--n_tokens=8", "--n_vocab=79", "--log_steps=1", "--bs=2",
    "--threads=1", "--quiet", "--max_len=0.1",
)  # fmt: skip


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Latents of two artists, high and low, as another program would have written them, and an autoencoder."""
    monkeypatch.chdir(tmp_path)
    levels = {"channels": 4, "c_mults": [1], "strides": [8]}
    model = {
        "model_type": "autoencoder", "sample_rate": SR, "sample_size": 1024, "audio_channels": 1,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 1, "latent_dim": 2, **levels}},
            "decoder": {"type": "oobleck", "config": {"out_channels": 1, "latent_dim": 2, **levels}},
            "latent_dim": 2, "downsampling_ratio": 8, "io_channels": 1,
        },
    }  # fmt: skip
    from jukebox.autoencoder.config import ModelConfig
    from jukebox.autoencoder.model import Autoencoder
    from jukebox.autoencoder.schema import check

    net = Autoencoder(check(ModelConfig, model, "m").model)
    torch.save({"state_dict": net.state_dict()}, "ae.ckpt")
    (tmp_path / "ae.json").write_text(json.dumps(model))
    (tmp_path / "flow.json").write_text(json.dumps({
        "model_type": "latent_flow",
        "model": {
            "pretransform": {"ckpt_path": "ae.ckpt", "model_config_path": "ae.json"}, "frames": 16, "width": 16, "depth": 1,
            "heads": 1,
        },
        "training": {"pre_encoded": True, "learning_rate": 0.003, "demo": {"demo_every": 3}},
    }))  # fmt: skip
    (tmp_path / "data" / "0").mkdir(parents=True)
    for n in range(6):
        latents = np.random.default_rng(n).standard_normal((2, 40)).astype(np.float32) * 0.1 + (3 if n % 2 else -3)
        np.save(tmp_path / "data" / "0" / f"{n:013}.npy", latents)
        facts = {
            "relpath": f"{n}.wav", "padding_mask": [1] * 36 + [0] * 4, "seconds_start": 0, "seconds_total": 1,
            "artist": "Mira Voss" if n % 2 else "unknown",
        }  # fmt: skip
        (tmp_path / "data" / "0" / f"{n:013}.json").write_text(json.dumps(facts))
    described = {"dataset_type": "pre_encoded", "random_crop": True, "datasets": [{"id": "x", "path": "data"}]}
    (tmp_path / "latents.json").write_text(json.dumps(described))
    return tmp_path


def train(*words):
    job.comm = None  # each as a program of its own
    return train_run(asked.check(settings.parse("train", [*FLAGS, *words])))


def test_trained_resumed_and_sung(workplace):
    assert train("--name=whole", "--steps=4", "--eval_iters=2") == 0
    train("--name=parts", "--steps=2")
    train("--name=parts", "--steps=4")
    whole, parts = (checkpoint.read(workplace / "logs" / name) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts.model[name]) for name, tensor in whole.model.items())
    assert float(load_flow("logs/whole").net.scale) == pytest.approx(3.0, abs=0.1)  # measured
    job.comm = None
    words = ["--model=logs/whole", "--name=sung", "--n_samples=2", "--sample_length=300", "--flow_steps=2", "--quiet"]
    assert sing_songs(settings.parse("sample", words)) == 0
    audio = io.read(workplace / "sung/level_0/item_1.wav")
    assert len(audio) == 296 and (workplace / "sung/index.html").exists()
    assert np.load(workplace / "sung/level_0/latents_0000.npy").shape == (2, 37)


def test_latents_in_tars_are_those_of_the_folder(workplace):
    """`wds` with `pre_encoded: true` trains to the same weights as the folder that the tar was made of."""
    with tarfile.open(workplace / "data" / "all.tar", "w") as tar:
        for path in sorted((workplace / "data" / "0").iterdir()):
            tar.add(path, path.name)
    train("--name=folder", "--steps=2")
    described = {"dataset_type": "wds", "pre_encoded": True, "datasets": [{"id": "x", "path": "data"}]}
    (workplace / "latents.json").write_text(json.dumps(described))
    train("--name=tars", "--steps=2")
    folder, tars = (checkpoint.read(workplace / "logs" / name).model for name in ("folder", "tars"))
    assert all(torch.equal(tensor, tars[name]) for name, tensor in folder.items())


def test_what_does_not_fit_is_said(workplace):
    tree = json.loads((workplace / "flow.json").read_text())
    (workplace / "flow.json").write_text(json.dumps(tree | {"training": {"pre_encoded": False}}))
    with pytest.raises(HparamsError, match="pre_encoded"):
        train("--name=x", "--steps=1")
    (workplace / "flow.json").write_text(json.dumps(tree))
    (workplace / "latents.json").write_text(
        json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "x", "path": "data"}]})
    )
    with pytest.raises(DataError, match="pre_encoded"):
        train("--name=x", "--steps=1")


def test_the_shipped_config_is_understood():
    shipped = list(presets.share_folder().glob("hparams/flows/*.json"))
    assert shipped and all(read_flow_config(str(path)).training.pre_encoded for path in shipped)
