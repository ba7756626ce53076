"""Autoencoders trained as people train them: by a model config and a data set config, alone, resumed, on two ranks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jukebox import settings
from jukebox.audio import io
from jukebox.autoencoder import config as C
from jukebox.autoencoder.discriminators import build_discriminator
from jukebox.autoencoder.hps import UnwrapHps
from jukebox.autoencoder.model import Autoencoder
from jukebox.autoencoder.schema import check
from jukebox.data.loaders import Batch
from jukebox.errors import CheckpointError, HparamsError, UsageError
from jukebox.models import checkpoint
from jukebox.models.autoencoder_files import read_weights
from jukebox.models.unwrap import unwrap
from jukebox.parallel.comm import SoloComm
from jukebox.parallel.world import job
from jukebox.training import asked, autoencoder_build
from jukebox.training.autoencoder_task import MOST_GUILTY, AutoencoderTask, Diverged
from jukebox.training.hps import OptimiserHps
from jukebox.training.run import main
from jukebox.training.tasks import Clips

SR = 8000
DISCRIMINATOR = {
    "type": "encodec", "config": {"filters": 2, "n_ffts": [64], "hop_lengths": [16], "win_lengths": [64]},
    "weights": {"adversarial": 0.1, "feature_matching": 5.0},
}  # fmt: skip
SPECTRAL = {
    "type": "mrstft", "config": {"fft_sizes": [64], "hop_sizes": [16], "win_lengths": [64]}, "weights": {"mrstft": 1.0},
}  # fmt: skip
RVQ = {"type": "rvq", "config": {"dim": 4, "num_quantizers": 2, "codebook_size": 8, "kmeans_iters": 2}}


def tree(*, channels=1, into=None, bottleneck=RVQ, encoded=4, discriminator=True, **training):
    levels = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
    into = into or channels
    return {
        "model_type": "autoencoder", "sample_rate": SR, "sample_size": 1024, "audio_channels": channels,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": into, "latent_dim": encoded, **levels}},
            "decoder": {"type": "oobleck", "config": {"out_channels": channels, "latent_dim": 4, **levels}},
            "bottleneck": bottleneck, "latent_dim": 4, "downsampling_ratio": 8, "io_channels": channels,
            "in_channels": into, "out_channels": channels,
        },
        "training": {
            "learning_rate": 1e-3, "use_ema": True, "demo": {"demo_every": 4}, "eval_loss_configs": {"sisdr": {}},
            "loss_configs": {
                **({"discriminator": DISCRIMINATOR} if discriminator else {}), "spectral": SPECTRAL,
                "time": {"weights": {"l1": 0.1}},
            },
            **training,
        },
    }  # fmt: skip


def task(description, precision="32"):
    config, comm = check(C.ModelConfig, description, "test"), SoloComm()
    torch.manual_seed(0)
    net, part = Autoencoder(config.model).train(), config.training.losses.discriminator
    judge = build_discriminator(part, config.model.channels_out) if part else None
    players = autoencoder_build.build_players(net, judge, config.training, precision, comm, OptimiserHps())
    return AutoencoderTask(
        net=net, players=players, comm=comm, clips=Clips(1, 0.1, SR), config=config, config_text=json.dumps(description),
        discriminator=judge, dtype=autoencoder_build.PRECISION[precision],
    )  # fmt: skip


def batch(B=2, T=1024, seed=0):
    rng = np.random.default_rng(seed)
    audio = torch.from_numpy((rng.standard_normal((B, T, 2)) * 0.2).astype(np.float32))
    zeros = torch.zeros(B, dtype=torch.int64)
    return Batch(audio, torch.full((B,), 0.5), [], zeros, zeros, zeros, [], 0, 0, 0)


def steps(made, count, first=0):
    made.prepare(batch())
    found = []
    for step in range(first, first + count):
        out = made.loss(batch(seed=step), step)
        stepped = made.players[out.player].step(out.loss)
        made.accept(out, stepped)
        found.append((out, stepped))
    return found


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def differs(module, before):
    return {
        name.partition(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }


def test_turns_and_warm_up():
    made = task(tree(warmup_steps=3))
    found = [out for out, _ in steps(made, 5)]
    assert [out.player for out in found] == ["main", "discriminator", "main", "discriminator", "main"]
    assert [float(out.metrics["loss_adv"]) != 0 for out in found[::2]] == [False, False, True]


def test_a_step_moves_only_whose_turn_it_is():
    made = task(tree(bottleneck={"type": "tanh"}))
    before, judge = copied(made.net), copied(made.discriminator)
    steps(made, 1)
    assert differs(made.net, before) == {"encoder", "decoder"} and not differs(made.discriminator, judge)
    before = copied(made.net)
    steps(made, 1, first=1)
    assert not differs(made.net, before) and differs(made.discriminator, judge)


def test_a_frozen_encoder_stands_still_after_the_warm_up():
    made = task(tree(warmup_steps=2, encoder_freeze_on_warmup=True, bottleneck={"type": "vae"}, encoded=8))
    steps(made, 2)
    before = copied(made.net)
    steps(made, 3, first=2)
    assert differs(made.net, before) == {"decoder"}


@pytest.mark.parametrize(
    "description",
    [
        tree(channels=2, into=1, force_input_mono=True),
        tree(latent_mask_ratio=0.3, bottleneck={"type": "wasserstein", "config": {"noise_augment_dim": 0}}),
        tree(bottleneck={"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 2, "codebook_size": 8, "codebook_dim": 2}}),
        tree(discriminator=False),
        tree(optimizer_configs={
            name: {
                "optimizer": {"type": kind, "config": {"lr": 0.01}},
                "scheduler": {"type": "ExponentialLR", "config": {"gamma": 0.5}},
            }
            for name, kind in (("autoencoder", "SGD"), ("discriminator", "FusedAdam"))
        }),
    ],
    ids=["mono in, stereo out", "masked wasserstein", "dac", "no discriminator", "named optimisers"],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_every_recipe_steps(description, precision):
    made = task(description, precision)
    made.prepare(batch())
    before, step, skipped = copied(made.net), 0, 0
    while step < 4:
        out = made.loss(batch(seed=step), step)
        stepped = made.players[out.player].step(out.loss)
        made.accept(out, stepped)
        step += stepped.done
        skipped += not stepped.done
        assert skipped <= (16 if precision == "16-mixed" else 0)  # until the loss scale fits
        assert stepped.done or step or not differs(made.net, before)
    scaler = made.players["main"].scaler
    assert scaler is None if precision != "16-mixed" else scaler.scale < 2**16 or not skipped
    assert differs(made.net, before) and all(torch.isfinite(p).all() for p in made.net.parameters())
    made.net.eval()
    figures, items = made.measure(batch())
    assert items == 2 and "sisdr" in figures and all(torch.isfinite(value) for value in figures.values())


def test_latents_are_masked_in_training_only():
    made, seen = task(tree(latent_mask_ratio=0.4, bottleneck={"type": "tanh"})), []
    made.net.decoder.register_forward_pre_hook(lambda _, given: seen.append(float((given[0] == 0).float().mean())))
    made.loss(batch(), 0)
    made.net.eval()
    made.measure(batch())
    assert seen == [pytest.approx(0.4, abs=0.06), 0.0]


def test_named_schedules_move_per_own_step():
    scheduler = {"type": "ExponentialLR", "config": {"gamma": 0.5}}
    both = {
        n: {"optimizer": {"type": "SGD", "config": {"lr": 1.0}}, "scheduler": scheduler}
        for n in ("autoencoder", "discriminator")
    }
    made = task(tree(optimizer_configs=both))
    for _ in range(3):
        made.players["main"].steps += 1
    assert made.players["main"].lr == 0.125 and made.players["discriminator"].lr == 1.0


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"optimizer": {"type": "Adamm"}}, "optimizer: .*Adamm"),
        ({"optimizer": {"type": "AdamW", "config": {"lrr": 1}}}, "optimizer: .*lrr"),
        ({"optimizer": {"type": "LBFGS"}}, "optimizer: .*LBFGS"),
        ({"optimizer": {"type": "AdamW"}, "scheduler": {"type": "StepLR", "config": {"step": 1}}}, "scheduler: .*step"),
    ],
)  # fmt: skip
def test_unknown_optimisers_are_named(choice, text):
    with pytest.raises(HparamsError, match=f"^training.optimizer_configs.autoencoder.{text}"):
        task(tree(discriminator=False, optimizer_configs={"autoencoder": choice}))


def test_a_wrong_optimiser_is_shown_with_its_file(workplace):
    described = tree(discriminator=False, optimizer_configs={"autoencoder": {"optimizer": {"type": "Adamm"}}})
    (workplace / "model.json").write_text(json.dumps(described))
    with pytest.raises(HparamsError, match="^model.json: training.optimizer_configs.autoencoder.optimizer: .*Adamm"):
        train("--name=x", "--steps=1")
    (workplace / "model.json").write_text(json.dumps(tree(bottleneck={"type": "tanh"}, loss_configs={})))
    with pytest.raises(HparamsError, match="^model.json: training.loss_configs: nothing to train on"):
        train("--name=x", "--steps=1")


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    described = tree(bottleneck={"type": "tanh"})
    for name in ("encoder", "decoder"):
        described["model"][name]["requires_grad"] = False
    with pytest.raises(HparamsError, match="^model: requires_grad is false for everything that could learn"):
        task(described)


def test_only_a_discriminator_to_please():
    """Nothing is compared: the loss is what the discriminator says, and on held-out audio 0."""
    made = task(tree(bottleneck={"type": "tanh"}, loss_configs={"discriminator": DISCRIMINATOR}))
    before = copied(made.net)
    assert set(steps(made, 1)[0][0].metrics) == {"loss_adv", "feature_matching_loss", "latent_std", "data_std"}
    assert differs(made.net, before)
    made.net.eval()
    assert made.measure(batch())[0]["loss"] == 0


def test_a_teacher_adds_its_terms():
    made = task(tree(bottleneck={"type": "tanh"}))
    made.teacher = task(tree(bottleneck={"type": "tanh"})).net.eval()
    terms = made.loss(batch(), 0).metrics
    assert {"latent_distill_loss", "mrstft_loss_distill", "mrstft_loss_teacher_latents_own"} <= set(terms)


def test_stereo_is_learnt_from_mono():
    """One channel in, two out: the sides of a song that is louder on the left come apart as they should."""
    losses = {"time": {"weights": {"l1": 1.0}}}
    made = task(tree(channels=2, into=1, force_input_mono=True, bottleneck={"type": "tanh"}, loss_configs=losses))
    music = batch(B=4)
    tone = torch.sin(torch.arange(1024) * 0.07)[:, None] * torch.tensor([0.6, 0.2])
    music.audio[:] = tone * torch.tensor([1.0, 0.7, 0.4, 0.9])[:, None, None]
    first = float(_trained(made, music, 100)[0][0].loss.detach())
    made.net.eval()
    heard = music.audio.mean(2)[:, None]
    with torch.no_grad():
        made_of_it = made.net.decode(made.net.encode(heard)[0])
        left, right = made_of_it.square().mean((0, 2)).sqrt()
    assert float((made_of_it.mT - music.audio).abs().mean()) < first / 3
    assert float(left / right) == pytest.approx(3.0, rel=0.3)


def _trained(made, music, count):
    found = []
    for step in range(count):
        out = made.loss(music, step)
        stepped = made.players[out.player].step(out.loss)
        made.accept(out, stepped)
        found.append((out, stepped))
    return found


def test_a_guilty_discriminator_is_named(caplog):
    made = task(tree(bottleneck={"type": "tanh"}))
    bad = batch()
    bad.audio[0, 0] = float("inf")
    out = made.loss(bad, 1)
    made.accept(out, made.players[out.player].step(out.loss))
    assert "discriminator_loss is not finite" in caplog.text


def test_the_guilty_term_is_named_and_nothing_moves(caplog):
    made = task(tree(bottleneck={"type": "tanh"}))
    steps(made, 2)
    before = copied(made.net)
    bad = batch()
    bad.audio[0, 0] = float("nan")
    with pytest.raises(Diverged, match="mrstft_loss"):
        for _ in range(MOST_GUILTY):
            out = made.loss(bad, 2)
            made.accept(out, made.players[out.player].step(out.loss))
    assert "l1_time_loss" in caplog.text and not differs(made.net, before)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with two folders of music and their configs."""
    monkeypatch.chdir(tmp_path)
    t = np.arange(SR) / SR
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(3):
            io.write(
                tmp_path / name / f"{n}.wav", 0.3 * np.sin(2 * np.pi * (200 + 70 * n) * t)[:, None].repeat(2, 1), SR
            )
    folders = [{"id": name, "path": str(tmp_path / name)} for name in ("a", "b")]
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": folders}))
    (tmp_path / "model.json").write_text(json.dumps(tree()))
    return tmp_path


COMMAND = (
    "--model-config=model.json", "--dataset-config=data.json", "--log_steps=1", "--nworkers=0", "--threads=1", "--bs=2",
    "--quiet", "--max_len=0.1",
)  # fmt: skip


def train(*words):
    job.comm = None  # each as a program of its own
    return main(asked.check(settings.parse("train", [*COMMAND, *words])))


def test_a_run_goes_on_exactly_where_it_was(workplace):
    assert train("--name=whole", "--steps=5", "--eval_iters=3") == 0
    train("--name=parts", "--steps=3")
    train("--name=parts", "--steps=5")
    whole, parts = (checkpoint.read(workplace / "logs" / name) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts.model[name]) for name, tensor in whole.model.items())
    assert list(whole.model)[0].startswith("bottleneck.")
    assert (workplace / "logs/whole/media/recon_00000004.wav").exists()
    rows = [json.loads(line) for line in (workplace / "logs/whole/metrics.jsonl").read_text().splitlines()]
    odd = next(row for row in rows if row["step"] == 2 and "discriminator_loss" in row)
    assert "loss" not in odd and "discriminator_lr" in odd


def test_demos_and_figures_reach_tensorboard(workplace, events):
    train("--name=shown", "--steps=4", "--eval_iters=4")
    found, tags = events(SimpleNamespace(folder=workplace / "logs" / "shown")), {}
    for kind in ("audio", "images", "scalars"):
        tags[kind] = set(found.Tags()[kind])
    assert "recon" in tags["audio"] and "train_latents" in tags["images"]
    assert {"train_latents_std", "test_sisdr", "test_latent_std", "latent_std", "data_std"} <= tags["scalars"]
    heard = io.read(workplace / "logs/shown/media/recon_00000004.wav")
    assert len(heard) == 2 * 2 * 1024  # two items, each beside its reconstruction


def test_a_term_that_explodes_ends_the_run_with_the_last_good_state(workplace):
    """The weight of l1 grows by 1e39 a step: infinite from the second step of the autoencoder on."""
    losses = {"spectral": SPECTRAL, "time": {"weights": {"l1": 1e-39}, "decay": 1e39}}
    described = tree(bottleneck={"type": "tanh"}, loss_configs=losses)
    (workplace / "model.json").write_text(json.dumps(described))
    with pytest.raises(Diverged, match="l1_time_loss was not finite.*last good state"):
        train("--name=bad", "--steps=9", "--save_iters=9")
    left = checkpoint.read(workplace / "logs/bad")
    assert left.step == 1 and all(torch.isfinite(tensor).all() for tensor in left.model.values())
    (workplace / "model.json").write_text(
        json.dumps(tree(bottleneck={"type": "tanh"}, loss_configs={"spectral": SPECTRAL}))
    )
    assert train("--name=bad", "--steps=3") == 0 and checkpoint.read(workplace / "logs/bad").step == 3


def test_a_teacher_from_its_config_and_checkpoint(workplace):
    """It is loaded, adds its terms, and is neither trained nor saved; a checkpoint of something else is refused."""
    described = tree(bottleneck={"type": "tanh"}, discriminator=False)
    (workplace / "model.json").write_text(json.dumps(described))
    train("--name=teacher", "--steps=1")
    taught = tree(
        bottleneck={"type": "tanh"}, discriminator=False, teacher_model=described, teacher_model_ckpt="logs/teacher"
    )
    (workplace / "model.json").write_text(json.dumps(taught))
    train("--name=pupil", "--steps=2")
    rows = [json.loads(line) for line in (workplace / "logs/pupil/metrics.jsonl").read_text().splitlines()]
    assert any(row.get("latent_distill_loss", 0) > 0 for row in rows)
    teacher, pupil = (checkpoint.read(workplace / "logs" / name).model for name in ("teacher", "pupil"))
    assert teacher.keys() == pupil.keys()
    torch.save({"state_dict": {"other": torch.zeros(2)}}, workplace / "other.ckpt")
    (workplace / "model.json").write_text(
        json.dumps(tree(**{**taught["training"], "teacher_model_ckpt": "other.ckpt"}))
    )
    with pytest.raises(CheckpointError, match="other.ckpt"):
        train("--name=lost", "--steps=1")


def test_words_that_do_not_fit(workplace):
    with pytest.raises(UsageError, match="lr"):
        train("--lr=0.1")
    with pytest.raises(UsageError, match="16000"):
        train("--sr=16000")
    with pytest.raises(UsageError, match="both given"):
        train("--audio_files_dir=a")
    with pytest.raises(UsageError, match="prior"):
        train("--prior")


def test_codebooks_that_no_prior_can_learn_are_said_before_training(workplace, caplog):
    three = {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": 3, "codebook_size": 8, "codebook_dim": 2}}
    (workplace / "model.json").write_text(json.dumps(tree(bottleneck=three)))
    hps = autoencoder_build.complete(settings.parse("train", [*COMMAND, "--name=x"]))
    autoencoder_build.build_task(hps, SoloComm())
    assert "a frame of 8 samples cannot be dealt to 3 codebooks" in caplog.text


def test_pretrained_weights_are_where_it_begins(workplace):
    train("--name=first", "--steps=1")
    train("--name=second", "--steps=1", "--pretrained_ckpt_path=logs/first")
    hps = autoencoder_build.complete(
        settings.parse("train", [*COMMAND, "--name=x", "--pretrained_ckpt_path=logs/first"])
    )
    net = autoencoder_build.build_task(hps, SoloComm()).net
    first = checkpoint.read(workplace / "logs/first").model
    assert all(torch.equal(tensor, first[name]) for name, tensor in net.state_dict().items())


def test_a_run_is_unwrapped(workplace):
    train("--name=run", "--steps=2")
    words = ["--ckpt-path=logs/run", "--name=out", "--use-safetensors"]
    unwrap(settings.parse("unwrap", words).section(UnwrapHps))
    averaged, found = checkpoint.read(workplace / "logs/run").model, read_weights("out.safetensors")
    assert found.keys() == averaged.keys() and all(torch.equal(found[name], averaged[name]) for name in found)


def test_two_ranks_learn_what_one_does(workplace, run_mpi, jukebox_root):
    """By plain gradient descent, whose steps are as different as the gradients are; Adam's are of one size whatever comes."""
    plain = {"optimizer": {"type": "SGD", "config": {"lr": 0.01}}}
    described = tree(optimizer_configs={"autoencoder": plain, "discriminator": plain})
    (workplace / "model.json").write_text(json.dumps(described))
    fresh = task(described).net.state_dict()
    train("--name=one", "--steps=3")
    files = [f"--model-config={workplace / 'model.json'}", f"--dataset-config={workplace / 'data.json'}"]
    flags = [
        "--bs=1",
        "--name=two",
        "--steps=3",
        f"--local_logdir={workplace / 'logs'}",
        "--nworkers=0",
        "--threads=1",
        "--quiet",
    ]
    ran = run_mpi(2, [jukebox_root / "jukebox" / "train.py", *files, *flags])
    assert ran.code == 0, ran.err
    one, two = (checkpoint.read(workplace / "logs" / name).model for name in ("one", "two"))
    raw = [checkpoint.read(workplace / "logs" / name).extra["players"] for name in ("one", "two")]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    for player in ("main", "discriminator"):
        for name, tensor in raw[0][player]["raw"].items():
            torch.testing.assert_close(raw[1][player]["raw"][name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    moved = max(float((raw[0]["main"]["raw"][name] - fresh[name]).abs().max()) for name in raw[0]["main"]["raw"])
    assert moved > 1e-2, moved  # a hundred times the tolerance
