"""Optimisers, schedules, averages, the mapping of data and whole checkpoints against golden files."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from jukebox import settings
from jukebox.data.admission import Entry, Index
from jukebox.data.audio_dataset import AudioDataset, chunk_table, duration_range, locate
from jukebox.data.hps import DataHps
from jukebox.data.loaders import Batch
from jukebox.labels.song import SongMeta
from jukebox.models import checkpoint
from jukebox.parallel.comm import SoloComm
from jukebox.training.ema import EMA, default_mu
from jukebox.training.hps import EmaHps, OptimiserHps, RunHps
from jukebox.training.optim import FP16FusedAdam, FusedAdam, LossScaler
from jukebox.training.player import Player
from jukebox.training.run import build_task
from jukebox.training.schedule import Schedule
from jukebox.vqvae.losses import Bandwidth


def close(found, expected, *, rtol=1e-6, atol=1e-7, what=""):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def approx(value, rtol=1e-6):
    return pytest.approx(value, rel=rtol, abs=1e-12)


@dataclass(frozen=True)
class Recorded(Schedule):
    """The rates of a trace; behind its end the last."""

    rates: tuple[float, ...] = ()

    def __call__(self, step: int) -> float:
        return self.rates[min(step, len(self.rates) - 1)]


def parameters(arrays: dict, like: str = "") -> list[nn.Parameter]:
    """The initial parameters, in the types of the recorded ones."""
    count = sum(name.startswith("init.") for name in arrays)
    types = [arrays[f"{like}{i}.0"].dtype if like else torch.float32 for i in range(count)]
    return [nn.Parameter(arrays[f"init.{i}"].clone().to(dtype)) for i, dtype in enumerate(types)]


# ------------------------------------------------------------------------------------------------------------ optimiser

ADAMS = {"fused": FusedAdam, "fp16": FP16FusedAdam}


@pytest.mark.golden("optim")
def test_adam_of_every_sort(golden):
    """Through a Player: gradients that were recorded, its clipping, its norm, its loss scale."""
    config, arrays = golden.info["config"], golden.arrays
    traces = {name: trace for name, trace in golden.info.items() if isinstance(trace, dict) and "rows" in trace}
    assert traces
    for name, trace in traces.items():
        params, rows = parameters(arrays, f"{name}.p"), trace["rows"]
        optimiser = ADAMS[name.split("_")[0]](
            params, lr=config["lr"], betas=(config["beta1"], config["beta2"]), eps=config["eps"],
            weight_decay=config["weight_decay"],
        )  # fmt: skip
        loss_scale = round(rows[0]["scale"] / max(1.0, rows[0]["grad_norm"] / config["clip"]), 3)
        rates = (*(row["lr"] for row in rows), trace["param_group_keys"]["lr"])
        player = Player(
            [(str(i), p) for i, p in enumerate(params)], optimiser, Recorded(config["lr"], rates=rates), SoloComm(),
            ema=None, clip=config["clip"], scaler=LossScaler(loss_scale) if loss_scale != 1 else None,
        )  # fmt: skip
        half = any(p.dtype == torch.float16 for p in params)
        for step, row in enumerate(rows):
            loss = torch.stack([(p.float() * arrays[f"grad.{step}.{i}"]).sum() for i, p in enumerate(params)]).sum()
            stepped = player.step(loss)
            assert stepped.done and stepped.lr == row["lr"]
            assert stepped.grad_norm == approx(row["grad_norm"])
            assert stepped.loss_scale * max(1.0, stepped.grad_norm / config["clip"]) == approx(row["scale"])
            for i, p in enumerate(params):
                close(p.detach(), arrays[f"{name}.p{i}.{step}"], what=f"{name}.p{i}.{step}")
        for i, p in enumerate(params):
            state = optimiser.state[p]
            assert state["step"] == trace["final_step"]
            for key, recorded in golden.group(f"{name}.state{i}.").items():
                close(state[key], recorded, what=f"{name}.state{i}.{key}", atol=1e-12)
        assert set(optimiser.state[params[0]]) == set(trace["state_keys"])
        if half:
            scales = [optimiser.state[params[0]][f"scale_{key}"] for key in ("exp_avg", "exp_avg_sq")]
            assert scales == approx(trace["final_scales_0"])
        (group,) = optimiser.state_dict()["param_groups"]
        recorded = trace["param_group_keys"]
        expected = {**recorded, "params": list(range(recorded["params"])), "betas": tuple(recorded["betas"])}
        assert {key: group[key] for key in expected} == expected and group["initial_lr"] == config["lr"]


@pytest.mark.golden("optim")
def test_schedules(golden):
    for name, case in golden.info["schedules"].items():
        schedule = Schedule(case["base_lr"], **case["hps"])
        for step, used, following in case["trace_step_lrused_nextlr"]:
            assert (schedule(step), schedule(step + 1)) == (approx(used), approx(following)), (name, step)
        for key, rate in case.items():
            if found := re.fullmatch(r"lr_after_restore_at_step_(\d+)", key):
                assert schedule(int(found[1])) == approx(rate), (name, key)


@pytest.mark.golden("optim")
def test_loss_scale(golden):
    cases = dict(golden.info["loss_scalar"])
    assert cases.pop("cap") == LossScaler.MOST
    names = {"loss_scale": "fixed", "scale_factor": "factor", "scale_window": "every", "init_scale": "start"}
    for name, case in cases.items():
        scaler = LossScaler(**{names[key]: value for key, value in case["kwargs"].items()})
        for row, (overflow, scale, _) in enumerate(case["trace_overflow_scale_unskipped"]):
            scaler.update(bool(overflow))
            assert scaler.scale == approx(scale), (name, row)


@pytest.mark.golden("optim")
@pytest.mark.parametrize("kind", ["EMA", "CPUEMA", "FusedEMA"])
def test_moving_averages(golden, kind):
    arrays, facts = golden.arrays, golden.info["ema"]
    families = sorted({name.split(".")[1] for name in arrays if name.startswith(f"{kind}.")})
    assert families
    for family in families:
        prefix = f"{kind}.{family}."
        params = parameters(arrays, f"{prefix}ema")
        ema = EMA(
            params, facts["mu"], {"EMA": "plain", "CPUEMA": "cpu", "FusedEMA": "fused"}[kind], facts["cpu_ema_freq"]
        )
        steps = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("delta."))
        for step in range(steps):
            with torch.no_grad():
                for i, p in enumerate(params):
                    p += arrays[f"delta.{step}.{i}"].to(p.dtype)
            ema.step()
            with ema:
                for i, p in enumerate(params):
                    close(p.detach(), _recorded(arrays, kind, family, f"ema{i}.{step}"), what=f"{prefix}ema{i}.{step}")
        for i, p in enumerate(params):
            close(p.detach(), _recorded(arrays, kind, family, f"final_param{i}"), what=f"{prefix}final_param{i}")


def _recorded(arrays, kind, family, name):
    """What was recorded. The fused average of the first implementation was the weight itself where that was the only
    float32 one, and lost its own steps (tests/golden/DEFECTS.md): there the plain one is what it should have been."""
    finals = [array for key, array in arrays.items() if key.startswith(f"{kind}.{family}.final_param")]
    recorded = arrays[f"{kind}.{family}.{name}"]
    alone = sum(array.dtype == torch.float32 for array in finals) == 1
    return (
        arrays[f"EMA.{family}.{name}"] if kind == "FusedEMA" and alone and recorded.dtype == torch.float32 else recorded
    )


@pytest.mark.golden("optim")
def test_default_factor(golden):
    for name, mu in golden.info["get_ema_mu"].items():
        bs, ranks = map(int, re.fullmatch(r"bs=(\d+),ngpus=(\d+)", name).groups())
        assert default_mu(bs, ranks) == approx(mu, 1e-12)


# ----------------------------------------------------------------------------------------------------------------- data


@pytest.mark.golden("dataset")
def test_where_items_lie(golden):
    for case in golden.info["cases"]:
        lengths, length, ends = case["durations"], case["config"]["L"], case["cumsum"]
        assert len(chunk_table(lengths, length)) == case["length"]
        for n, shift, file, offset in case["items"] + case["extreme_items"]:
            found = locate(n, shift, ends, length)
            if file is None:  # an assertion of the first implementation (tests/golden/DEFECTS.md)
                assert length % 2 and 0 <= found[1] <= lengths[found[0]] - length, (n, shift)
            else:
                assert found == (file, offset), (n, shift)
            one_shifted = [shift if i == n else 0 for i in range(case["length"])]
            assert chunk_table(lengths, length, one_shifted)[n] == found


def entry_of(name: str, seconds: float, sr_hz: int) -> Entry:
    """A file of so many seconds, whose whole samples are counted as the first implementation did."""
    whole = int(seconds * sr_hz)
    fine = min(max(round(seconds * sr_hz * 1000), whole * 1000), whole * 1000 + 999)
    return Entry(name, 1, 1, sr_hz=sr_hz * 1000, channels=2, length_samples=fine)


@pytest.mark.golden("dataset")
def test_songs_kept_and_dealt(golden, tmp_path):
    for case in golden.info["cases"]:
        c = case["config"]
        entries = (entry_of(f"song_{i}.wav", seconds, c["sr"]) for i, seconds in enumerate(c["durs"]))
        index = Index(tmp_path, tuple(entries))
        assert duration_range(c["L"], c["sr"], c["min_d"], c["max_d"])[0] == case["min_duration_used"]

        def dataset(part, share, index=index, c=c):
            return AudioDataset(
                index, sr_hz=c["sr"], sample_length=c["L"], part=part, split="chunk", train_test_split=share,
                min_duration=c["min_d"], max_duration=c["max_d"],
            )  # fmt: skip

        whole = dataset("all", 0.9)
        assert [file.entry.file for file in whole.files] == case["kept_files"]
        assert [file.length_samples for file in whole.files] == case["durations"]
        table = chunk_table(case["durations"], c["L"])
        assert [whole.place(i) for i in range(len(whole))] == table
        for share, parts in case["split"].items():
            for part, (start, stop) in parts.items():
                found = dataset(part, float(share))
                assert [found.place(i) for i in range(len(found))] == table[start:stop], (share, part)


# ---------------------------------------------------------------------------------------------------------- checkpoints


class Saved:
    """The checkpoint that a golden file describes, and the training task its hyperparameters make."""

    def __init__(self, golden, name: str = "file"):
        self.info, self.golden = golden.info, golden
        self.file = checkpoint.read(golden.path.with_name(golden.info[name]))
        self.hps = settings.from_values(golden.info["hps"], "golden")
        values = golden.info["hps"].get("bandwidth")
        self.task = build_task(self.hps, SoloComm(), Bandwidth(**values) if values else Bandwidth())
        self.net, self.table, self.player = self.task.net, self.task.table, self.task.players["main"]

    def load(self, tensors=None):
        checkpoint.load_into(self.net, dict(self.file.model if tensors is None else tensors), self.table)

    def load_optimiser(self):
        state = checkpoint.opt_from_published(self.file.opt, self.player.names, self.table)
        self.player.optimiser.load_state_dict(state)

    def first_weights(self) -> dict:
        """The weights before the first of three steps, worked out from those after, their average and the moments.

        The first step has rate 0. The last is undone with the saved moments, the average e3 of p0, p0, p2, p3 gives p0.
        """
        o, data = self.hps.section(OptimiserHps), self.hps.section(DataHps)
        mu = self.hps.section(EmaHps).mu or default_mu(data.bs, 1)
        rate = self.info["losses"][2]["lr"] * (1 - o.beta2**3) ** 0.5 / (1 - o.beta1**3)
        first = {}
        for i, entry in enumerate(e for e in self.table if e.parameter):
            p3, state = self.golden.arrays[f"raw.{entry.published}"].double(), self.file.opt["state"][i]
            move = state["exp_avg"].double() / (state["exp_avg_sq"].double().sqrt() + o.eps)
            p2 = (p3 + rate * move) / (1 - rate * o.weight_decay)
            e2 = (self.file.model[entry.published].double() - (1 - mu) * p3) / mu
            first[entry.published] = ((e2 - (1 - mu) * p2) / mu).float()
        ours = {e.ours: e.published for e in self.table}
        rest = {e.published: first[ours[e.tied_to]] if e.tied_to else None for e in self.table}
        return {name: first.get(name, rest[name]) for name in rest}


def plain(value):
    """As JSON would have it: tuples are lists."""
    return json.loads(json.dumps(value))


@pytest.mark.golden("ckpt")
@pytest.mark.parametrize("name", ["file", "module_variant"])
def test_checkpoint_contents(golden, name):
    it, info = Saved(golden, name), golden.info
    assert it.file.step == info["step"] == info["restored_step"]
    assert plain(it.file.hps) == info["hps"] and not set(info["hps_keys_not_saved"]) & set(it.file.hps)
    assert set(torch.load(it.file.path, weights_only=True)) == set(info["top_level_keys"])
    for array, tensor in golden.group("model.").items():
        assert torch.equal(it.file.model[array], tensor)
    assert it.file.model.keys() == golden.group("model.").keys()
    it.load()
    back = checkpoint.published_state(it.net, it.table)
    assert list(back) == list(it.file.model)
    assert all(torch.equal(back[key], tensor) for key, tensor in it.file.model.items())


@pytest.mark.golden("ckpt")
def test_checkpoint_optimiser(golden):
    """Its state goes in, comes out as it was, and the schedule goes on where it stood."""
    it, info = Saved(golden), golden.info
    assert list(it.file.opt) == info["opt_keys"] and plain(it.file.opt["param_groups"]) == info["opt_param_groups"]
    first = it.file.opt["state"][0]
    assert {key: list(getattr(value, "shape", ())) or value for key, value in first.items()} == info["opt_state0"]
    it.load_optimiser()
    it.player.steps = it.file.step
    assert it.player.lr == approx(it.file.opt["param_groups"][0]["lr"])
    back = checkpoint.opt_to_published(it.player.optimiser.state_dict(), it.player.names, it.table)
    assert plain(back["param_groups"]) == info["opt_param_groups"]
    assert list(back["state"]) == list(it.file.opt["state"])
    for index, state in it.file.opt["state"].items():
        assert all(
            torch.equal(torch.as_tensor(back["state"][index][key]), torch.as_tensor(v)) for key, v in state.items()
        )
    trained = [row for row in info["losses"] if "lr" in row]
    assert [it.player.schedule(step) for step in range(len(trained))] == approx([row["lr"] for row in trained])


@pytest.mark.golden("ckpt")
def test_checkpoint_probes(golden):
    it, arrays = Saved(golden), golden.arrays
    it.load()
    it.net.eval()
    if it.hps.section(RunHps).prior:
        out = it.net(arrays["probe_z"])
        (loss,) = (row["probe_loss"] for row in golden.info["losses"] if "probe_loss" in row)
        close(out.loss.detach(), torch.tensor(loss), rtol=1e-5, what="probe_loss")
        probe = arrays["probe_preds"]
        close(out.logits[:, : probe.shape[1]], probe, rtol=1e-4, atol=1e-5, what="probe_preds")
    else:
        codes = it.net.encode(arrays[f"x_{len(golden.info['losses']) - 1}"])
        for level, found in enumerate(codes):
            assert torch.equal(found, arrays[f"probe_z{level}"])
        for level in (i for i in range(len(codes)) if f"probe_dec{i}" in arrays):
            close(
                it.net.decode(codes[level:], level), arrays[f"probe_dec{level}"], rtol=1e-4, atol=1e-5, what="probe_dec"
            )


@pytest.mark.golden("ckpt")
def test_checkpoint_training_again(golden):
    """The recorded steps, taken by our task and player from the weights they began with.

    Neither the first codebooks nor the rows that revived codes are in the file, nor the VQ-VAE of a prior. With the last
    codebooks losses and norms are the recorded ones within 1e-3, and weights move as they did within 10 %.
    """
    it, arrays, info = Saved(golden), golden.arrays, golden.info
    trained = [row for row in info["losses"] if "lr" in row]
    if it.hps.section(RunHps).prior:
        pytest.skip("the codes that this prior was trained on are not in the file")
    if len(trained) != 3 or trained[0]["lr"] != 0:
        pytest.skip("the first weights follow from three steps of which the first has rate 0")
    first = it.first_weights()
    it.load({name: it.file.model[name] if tensor is None else tensor for name, tensor in first.items()})
    for level in range(it.net.levels):
        it.net.codebook(level).restore(arrays["x_0"].shape[:2].numel() / it.net.hops[level] / it.net.bins)
    for step, row in enumerate(trained):
        out = it.task.loss(batch_of(arrays[f"x_{step}"], step), step)
        stepped = it.player.step(out.loss)
        it.task.accept(out, stepped)
        assert stepped.done and stepped.lr == approx(row["lr"])
        assert float(out.loss.detach()) == approx(row["loss"], 1e-3) and stepped.grad_norm == approx(row["gn"], 1e-3)
    now = checkpoint.published_state(it.net, it.table)
    moved, apart = (
        torch.cat([(a[name] - b[name]).flatten() for name, start in first.items() if start is not None]).norm()
        for a, b in ((golden.group("raw."), first), (now, golden.group("raw.")))
    )
    assert apart < 0.1 * moved


def batch_of(x: torch.Tensor, step: int) -> Batch:
    """Mono audio `[B, T, 1]` as a batch of the loader."""
    nothing = torch.zeros(len(x), dtype=torch.int64)
    songs = [SongMeta()] * len(x)
    return Batch(
        x.expand(-1, -1, 2), torch.full((len(x),), 0.5), songs, nothing, nothing, nothing, [""] * len(x), step, 0, 0
    )
