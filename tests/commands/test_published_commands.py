"""The 25 commands of the first implementation's README (tests/hparams/commands.txt), from beginning to end under
`mpiexec -n 2` with only sizes, paths and a budget of steps changed; and each in its full size, built without memory.

Of the five that install, the README says what they are now; `python -m http.server` and `tensorboard` show what the others
made.
"""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from jukebox import settings
from jukebox.data.hps import AudioHps
from jukebox.hparams import presets
from jukebox.models import build, model_set, restricted
from jukebox.prior.hps import PriorHps
from jukebox.sampling import plan
from jukebox.sampling.hps import SampleHps
from jukebox.training.hps import RunHps
from jukebox.vqvae.hps import VQVAEHps

LINES = (Path(__file__).parent.parent / "hparams" / "commands.txt").read_text().splitlines()
COMMANDS = [line for line in LINES if line and not line.startswith("#")]
SAMPLING = [line for line in COMMANDS if "jukebox/sample.py" in line]
TRAINING = [line for line in COMMANDS if "jukebox/train.py" in line]


def command(*parts: str) -> str:
    """The first command that has all these parts."""
    return next(line for line in COMMANDS if all(part in line for part in parts)).replace("{ngpus}", "2")


def parsed(line: str):
    filled = line.replace("{already_trained_steps}", "1000").replace("{decay_steps_as_needed}", "500")
    words = shlex.split(filled.replace("{ngpus}", "2"))
    at = next(i for i, word in enumerate(words) if word.startswith("jukebox/"))
    return settings.parse(Path(words[at]).stem, words[at + 1 :])


# ------------------------------------------------------------------------------------------------------------ full size


def test_all_are_there():
    assert len(COMMANDS) == 25 and len(SAMPLING) == 9 and len(TRAINING) == 9


@pytest.mark.parametrize("line", TRAINING, ids=range(len(TRAINING)))
def test_full_size_training(line):
    hps = parsed(line)
    with torch.device("meta"):
        vqvae = build.build_vqvae(hps)
        if not hps.section(RunHps).prior:
            assert hps.section(AudioHps).sample_length == 262144 and vqvae.hops == (32, 256)
            return
        prior = build.build_prior(hps)
    assert prior.sample_length == prior.n_ctx * hps.section(VQVAEHps).hops[hps.section(PriorHps).level]
    assert {entry.ours for entry in build.prior_names(hps)} <= set(prior.state_dict())
    assert sum(p.numel() for p in prior.parameters()) > 50e6


@cache
def published_nets(model):
    """The hyperparameters of a published set's VQ-VAE, and its priors in full size, without memory."""
    models = model_set.find(model)
    vqvae = settings.from_presets(models.vqvae.hps)
    with torch.device("meta"):
        return vqvae, [build.build_prior(model_set.prior_hps(p, vqvae, level)) for level, p in enumerate(models.priors)]


@pytest.mark.parametrize("line", SAMPLING[:-1], ids=range(len(SAMPLING) - 1))
def test_full_size_sampling(line, monkeypatch, tmp_path):
    """Lengths, windows and labels of the request fit the published nets."""
    sample = parsed(line).section(SampleHps)
    monkeypatch.setattr(model_set, "_check_here", lambda models: None)
    monkeypatch.setenv("JUKEBOX_CACHE", str(tmp_path))
    vqvae, priors = published_nets(sample.model)
    hops, sr_hz = vqvae.section(VQVAEHps).hops, vqvae.section(AudioHps).sr
    assert sample.sr == sr_hz == 44100 and sample.levels == (len(hops),)
    length = plan.whole_length(sample.sample_length_in_seconds, 0, sr_hz, hops[-1])
    assert length == {20: 881920, 40: 1763968}[sample.sample_length_in_seconds]
    for level, prior in enumerate(priors):
        hop, rounded = plan.hop_codes(sample.hop_fraction[level], prior.n_ctx, prior.ratio)
        assert not rounded and hop == int(sample.hop_fraction[level] * prior.n_ctx)
        plan.LevelPlan(level, prior.n_ctx, hop, hops[level], prior.ratio).check(length, sr_hz)
        label = prior.shape.labels
        assert not label.timing or label.min_duration < sample.total_sample_length_in_seconds < label.max_duration


# ----------------------------------------------------------------------------------------------------------- installing


def test_installing(jukebox_root):
    """Two lines work as they stand; three have a row that says what is there instead of what they installed."""
    readme = (jukebox_root / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", readme, re.MULTILINE))
    lines = [line for line in COMMANDS if line.startswith("pip install")]
    assert len(lines) == 5
    for line in lines:
        (now,) = (
            now for then, now in rows.items() if f"`{line}`" in then or (line.endswith("./apex") and "./apex" in then)
        )
        path = line.split()[-1]
        works = path in (".", "requirements.txt")
        assert works == (now == "the same") and works == (jukebox_root / path).exists()


# ------------------------------------------------------------------------------------------------------------- training

VQVAE = dict(width=4, depth=1, emb_width=8, l_bins=16)
SMALL = VQVAE | dict(bs=1, audio_files_dir="music", steps=2, nworkers=0, device="cpu")
TINY_PRIOR = SMALL | dict(n_ctx=32, prior_width=16, prior_depth=3, blocks=4)
PRETRAINED = TINY_PRIOR | dict(restore_vqvae="weights/vqvae", hvqvae_multipliers="1,1,1", m_attn=1.0)
LABELLED = PRETRAINED | dict(y_bins="5,5", min_duration=1, max_duration=10)


@pytest.fixture(scope="session")
def small_vqvae(run, workspace):
    run(command("--name=small_vqvae "), **SMALL | dict(sample_length=8192))
    assert (workspace.root / "logs/small_vqvae/checkpoint_latest.pth.tar").exists()
    return workspace


@pytest.mark.slow
def test_train_vqvae(small_vqvae):
    assert list((small_vqvae.root / "logs/small_vqvae/logs").glob("events*"))


@pytest.mark.slow
def test_train_prior_and_upsampler_then_anneal_then_sample(small_vqvae, run):
    """`checkpoint_latest` of a VQ-VAE, which the first implementation never wrote, is there for them to restore."""
    root = small_vqvae.root
    for name, more in (("small_prior", {}), ("small_upsampler", dict(cond_width=8, cond_depth=1, n_ctx=32))):
        run(command(f"--name={name} ", "--restore_vqvae"), **TINY_PRIOR | more)
        assert (root / f"logs/{name}/checkpoint_step_2.pth.tar").exists()
        anneal = command(f"--name={name} ", "--lr_use_linear_decay")
        anneal = anneal.replace("{already_trained_steps}", "2").replace("{decay_steps_as_needed}", "2")
        run(anneal, **TINY_PRIOR | more | dict(restore_prior=f"logs/{name}", steps=10))
        found = restricted.load(root / f"logs/{name}/checkpoint_latest.pth.tar")
        assert found["step"] == 4  # the rate reached 0 there
    (root / "hps/models/my_model.toml").write_text(
        f'[vqvae]\ncheckpoint = "{root}/logs/small_vqvae"\n'
        f'[[priors]]\ncheckpoint = "{root}/logs/small_upsampler"\n[[priors]]\ncheckpoint = "{root}/logs/small_prior"\n'
    )
    run(command("--model=my_model"), **SHORT | dict(sample_length_in_seconds=0.5))
    assert len(list((root / "sample_my_model/level_0").glob("item_*.wav"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("pretrained_vqvae_small_prior ", PRETRAINED),
        ("pretrained_vqvae_small_prior_labels ", LABELLED),
        ("small_single_enc_dec_prior_labels ", LABELLED | dict(n_tokens=8, heads=2, prior_depth=16)),
    ],
)
def test_train_on_the_published_vqvae(workspace, run, name, sizes):
    line = command(name)
    run(line, **sizes)
    folder = next(word for word in line.split() if word.startswith("--name=")).removeprefix("--name=")
    found = restricted.load(workspace.root / "logs" / folder / "checkpoint_latest.pth.tar")
    assert found["step"] == 2 and found["hps"]["sample_length"] == 32 * 128


@pytest.mark.slow
def test_fine_tune(workspace, run):
    """It could not run as written: the length of a chunk is not the model's window. Ours takes the window, and says so."""
    sizes = dict(
        n_ctx=64, prior_depth=64, heads=4, blocks=8, n_tokens=16, t_bins=8, restore_prior="weights/prior_1b_lyrics"
    )
    said = run(command("--name=finetuned"), **LABELLED | sizes | dict(steps=3))
    assert "that is taken" in said
    found = restricted.load(workspace.root / "logs/finetuned/checkpoint_latest.pth.tar")
    assert found["step"] == 3 and found["hps"]["sample_length"] == 64 * 128


# ------------------------------------------------------------------------------------------------------------- sampling

SHORT = dict(sample_length_in_seconds=0.1, device="cpu")


@pytest.fixture(scope="session")
def sample_5b(run, workspace):
    run(command("mpiexec", "sample.py", "--model=5b_lyrics"), **SHORT)
    return workspace.root / "sample_5b"


def codes(folder, level=0):
    return restricted.load(folder / f"level_{level}/data.pth.tar")["zs"]


def test_sample(sample_5b):
    assert [z.shape for z in codes(sample_5b)] == [(6, 544), (6, 136), (6, 34)]
    assert (sample_5b / "index.html").exists()


def test_http_server(sample_5b, workspace):
    """`python -m http.server` in the folder of the runs shows pages, and what they fetch."""
    with listening("-m", "http.server", "--bind=127.0.0.1", "{port}", cwd=workspace.root) as address:
        assert b"<html" in fetched(f"{address}/sample_5b/index.html").lower()
        assert b"<audio" in fetched(f"{address}/sample_5b/level_0/index.html").lower()
        assert fetched(f"{address}/sample_5b/level_0/item_0.wav").startswith(b"RIFF")


@pytest.mark.slow
def test_tensorboard(small_vqvae):
    """`tensorboard --logdir logs` finds the run."""
    pytest.importorskip("tensorboard")
    flags = ("--logdir=logs", "--host=127.0.0.1", "--port={port}")
    with listening("-m", "tensorboard.main", *flags, cwd=small_vqvae.root) as address:
        deadline = time.monotonic() + 60
        while not (runs := json.loads(fetched(f"{address}/data/runs"))) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "small_vqvae/logs" in runs


@contextmanager
def listening(*words, cwd):
    """The address of a server while it runs; `{port}` in its words is a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *(word.format(port=port) for word in words)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def fetched(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


@pytest.mark.slow
def test_continue_twice_then_upsample(sample_5b, run):
    top = codes(sample_5b)[2]
    run(command("--mode=continue", "level_0"), **SHORT | dict(sample_length_in_seconds=0.2))
    longer = codes(sample_5b)
    assert [z.shape for z in longer] == [(6, 1088), (6, 272), (6, 68)] and torch.equal(longer[2][:, :34], top)
    run(command("--mode=continue", "level_2"), **SHORT | dict(sample_length_in_seconds=0.25))
    longest = codes(sample_5b)
    assert longest[2].shape == (6, 86) and torch.equal(longest[2][:, :68], longer[2])
    run(command("--mode=upsample"), **SHORT | dict(sample_length_in_seconds=0.2))
    again = codes(sample_5b)
    assert [z.shape[1] for z in again] == [1088, 272, 68] and torch.equal(again[2], longest[2][:, :68])


@pytest.mark.slow
def test_a_fine_tuned_prior_in_a_model_of_ones_own(workspace, run):
    """Own artists for a published prior: an id renamed, one added; my_model is one file in hparams/models, no source."""
    root = workspace.root
    tables = {
        "artist": ("unknown", "Otto Fern", "Nora Quill", *map(str, range(3))),
        "genre": ("unknown", "night drive"),
    }
    (root / "my_ids").mkdir()
    for kind, names in tables.items():
        text = "".join(f"{name};{id_}\n" for id_, name in enumerate(names))
        (root / f"my_ids/v3_{kind}_ids.txt").write_text(text)
    sizes = dict(
        n_ctx=64,
        prior_depth=64,
        heads=4,
        blocks=8,
        n_tokens=16,
        t_bins=8,
        restore_prior="weights/prior_1b_lyrics",
        ids_dir="my_ids",
        y_bins="3,7",
        name="tuned",
    )
    run(command("--name=finetuned"), **LABELLED | sizes | dict(steps=3))
    before = restricted.load(root / "weights/prior_1b_lyrics/checkpoint_latest.pth.tar")["model"]
    after = restricted.load(root / "logs/tuned/checkpoint_latest.pth.tar")["model"]
    name = "y_emb.artist_emb.emb.weight"
    assert len(before[name]) == 5 and len(after[name]) == 7
    torch.testing.assert_close(after[name][:5], before[name], atol=2e-3, rtol=0)
    torch.testing.assert_close(after[name][5:], before[name][:1].expand(2, -1), atol=2e-3, rtol=0)
    (root / "hps/models/my_tuned.toml").write_text(
        f'[vqvae]\ncheckpoint = "{root}/weights/vqvae"\n'
        f'[[priors]]\ncheckpoint = "{root}/weights/upsampler_level_0"\n'
        f'[[priors]]\ncheckpoint = "{root}/weights/upsampler_level_1"\n[[priors]]\ncheckpoint = "{root}/logs/tuned"\n'
    )
    sizes = SHORT | dict(
        name="sample_tuned", n_samples=2, artist="Nora Quill", genre="night drive", lyrics="la la la la la"
    )
    sizes |= dict(total_sample_length_in_seconds=5)  # the songs it was tuned on are short
    said = run(command("--model=1b_lyrics ").replace("--model=1b_lyrics", "--model=my_tuned"), **sizes)
    labels = restricted.load(root / "sample_tuned/level_0/data.pth.tar")["labels"]
    assert labels[2]["y"][:, 3].tolist() == [2, 2] and "Nora Quill" in str(labels[2]["info"])
    assert (root / "sample_tuned/level_0/item_0/align.json").exists(), said


@pytest.mark.slow
@pytest.mark.parametrize("model", ["1b_lyrics", "5b"])
def test_sample_other_models(workspace, run, model):
    line = command(f"--model={model} ")
    run(line, **SHORT | dict(name=f"sample_{model}_alone", n_samples=2, lyrics="la la la"))
    assert len(codes(workspace.root / f"sample_{model}_alone")[0]) == 2


@pytest.mark.slow
def test_primed(workspace, run):
    run(command("--mode=primed"), **SHORT | dict(prompt_length_in_seconds=0.05))
    found = codes(workspace.root / "sample_5b_prompted")
    assert [z.shape for z in found] == [(6, 544), (6, 136), (6, 34)]  # as long at the top as below
    prompts = found[0][:, :272]  # four recordings by turns
    assert torch.equal(prompts[0], prompts[4]) and not torch.equal(prompts[0], prompts[1])


def test_presets_of_the_commands_are_shipped():
    assert {"5b", "5b_lyrics", "1b_lyrics"} <= set(presets.model_sets())
