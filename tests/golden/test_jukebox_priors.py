"""Attention, the operations of sampling, and priors of every sort against golden files."""

import re

import pytest
import torch

from jukebox import settings
from jukebox.interop.published import Entry
from jukebox.models import build, checkpoint
from jukebox.nn.attention import Attention
from jukebox.nn.cache import LayerCache
from jukebox.nn.patterns import ENCODER, PREVIOUS_ROW, SUMMARY, SUMMARY_SPREAD, Pattern, layer_kind
from jukebox.nn.transformer import quick_gelu
from jukebox.sampling.decode import decode_window
from jukebox.sampling.logits import Knobs, draw, filter_logits


def close(found, expected, *, rtol=1e-4, atol=1e-5, what=""):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def close_gradient(found, expected, what):
    """A gradient is as exact as its largest entry allows."""
    close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), what=what)


# ------------------------------------------------------------------------------------------------------------ attention


class Layer:
    """One attention layer of a factored_attention file, its input and what was recorded."""

    def __init__(self, golden, kind: str):
        c = golden.info["config"]
        self.recorded, self.config = golden.group(f"f{kind}."), c
        self.pattern = Pattern(int(kind), c["n_ctx"], c["blocks"], c["spread"], c["prime"], c["enc"])
        self.attention = Attention(c["n_in"], c["n_state"], c["n_head"], self.pattern)
        weights = {name: tensor for name, tensor in self.recorded.items() if name.startswith("c_")}
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        to = {"c_attn": "q" if self.pattern.kind == ENCODER else "qkv", "c_enc_kv": "kv", "c_proj": "out"}
        ends = {"w": "weight", "b": "bias"}
        table = [
            Entry(name, f"{to[part]}.{ends[end]}", shapes[name]) for name in weights for part, end in [name.split(".")]
        ]
        checkpoint.load_into(self.attention, weights, table)
        self.x, self.encoded = self.recorded["x"], self.recorded.get("encoder_kv")

    def extend(self, sizes) -> torch.Tensor:
        cache = LayerCache(self.pattern, len(self.x), self.config["n_state"], torch.float32, "cpu")
        if self.encoded is not None:
            self.attention.encode(self.encoded, cache)
        parts, start = [], 0
        with torch.no_grad():
            for part in self.x.split(list(sizes), 1):
                parts.append(self.attention.extend(part, start, cache))
                start += part.shape[1]
        return torch.cat(parts, 1)


@pytest.mark.golden("factored_attention")
def test_attention_over_all_positions(golden):
    for kind in golden.info["funcs"]:
        layer = Layer(golden, kind)
        x = layer.x.clone().requires_grad_()
        y = layer.attention(x, layer.encoded)
        close(y, layer.recorded["y_forward"], what=f"f{kind}.y_forward")
        if layer.pattern.kind in (PREVIOUS_ROW, ENCODER) and "y_forward_nomask" in layer.recorded:
            close(y, layer.recorded["y_forward_nomask"], what=f"f{kind}.y_forward_nomask")
        weights: list[torch.Tensor] = []
        close(layer.attention(layer.x, layer.encoded, weights), y, what=f"f{kind} with weights")
        close(weights[0], layer.recorded["w"], what=f"f{kind}.w")
        (y * torch.linspace(-1, 1, x.shape[1])[:, None]).sum().backward()
        close_gradient(x.grad, layer.recorded["grad_x"], f"f{kind}.grad_x")


@pytest.mark.golden("factored_attention")
def test_attention_step_by_step(golden):
    for kind, facts in golden.info["funcs"].items():
        layer = Layer(golden, kind)
        n, recorded = layer.pattern.n, layer.recorded
        if "y_sample" in recorded:
            close(layer.extend([1] * n), recorded["y_sample"], what=f"f{kind}.y_sample")
            close(layer.extend(golden.info["config"]["chunks"]), recorded["y_chunks"], what=f"f{kind}.y_chunks")
            close(layer.extend([n]), recorded["y_forward"], what=f"f{kind} at once")
            lengths = facts["cache_len_after_token"] + facts["cache_len_after_chunk"]
            slots = layer.pattern.cache_slots()
            assert slots == max(lengths) or (layer.pattern.blocks == 1 and slots > max(lengths)), (
                f"f{kind}: cache slots"
            )
        else:
            assert layer.pattern.kind in (SUMMARY, SUMMARY_SPREAD), f"f{kind} was not sampled"
            close(layer.extend([1] * n), recorded["y_forward"], what=f"f{kind} step by step")
        if "_prime_len" in facts:
            assert layer.pattern.seen_len == facts["_prime_len"]


# ----------------------------------------------------------------------------------------------------------- operations


@pytest.mark.golden("ops")
def test_layer_patterns(golden):
    (orders,) = (value for name, value in golden.info.items() if name.startswith("attn_func_of_layer"))
    for order, kinds in orders.items():
        assert [layer_kind(int(order), layer) for layer in range(len(kinds))] == kinds, f"attn_order {order}"


@pytest.mark.golden("ops")
def test_filtered_logits(golden):
    logits = golden.arrays["logits"]
    for name, expected in golden.group("filter_").items():
        k, p = re.fullmatch(r"k(\d+)_p([\d.e-]+)", name).groups()
        assert torch.equal(filter_logits(logits, int(k), float(p)), expected), name


@pytest.mark.golden("ops")
def test_activation(golden):
    x = golden.arrays["act_x"].requires_grad_()
    y = quick_gelu(x)
    close(y, golden.arrays["quick_gelu"], what="quick_gelu")
    y.sum().backward()
    close(x.grad, golden.arrays["quick_gelu_grad"], what="quick_gelu_grad")


# --------------------------------------------------------------------------------------------------------------- priors


class Net:
    """The prior of a golden file with its weights, its codes and what it is told."""

    def __init__(self, golden, **changes):
        self.hps = settings.from_values(golden.info["full_hps"], "golden").with_values("test", **changes)
        self.prior, self.table = build.build_prior(self.hps), build.prior_names(self.hps)
        checkpoint.load_into(self.prior, golden.group("sd."), self.table)
        arrays = golden.arrays
        self.codes, self.upper, self.y = arrays["z"], arrays.get("z_cond"), arrays.get("y")

    def output(self):
        return self.prior(self.codes, self.upper, self.y)


def same_losses(out, expected):
    found = {"loss": out.loss, **out.metrics(), "bpd": out.gen_loss}
    for name in found.keys() & expected.keys():
        close(found[name].detach(), torch.tensor(expected[name]), rtol=1e-5, what=name)
    assert {"loss", "bpd", "prime_loss"} <= expected.keys()


@pytest.mark.golden("prior")
def test_prior_geometry(golden):
    prior, info = Net(golden).prior, golden.info
    assert (prior.n_ctx, prior.sample_length, prior.hop) == (
        info["n_ctx"], info["sample_length"], info["raw_to_tokens"],
    )  # fmt: skip
    assert prior.ratio == info["cond_downsample"]
    assert [[prior.sample_length // hop] for hop in prior.shape.hops] == info["z_shapes"]
    shape = prior.net.transformer.shape
    assert [shape.pattern(layer).kind for layer in range(shape.depth)] == info["attn_funcs"]
    dims = (prior.n_tokens, prior.n_ctx, prior.n_tokens + prior.n_ctx)
    assert dims == (info["prime_loss_dims"], info["gen_loss_dims"], info["total_loss_dims"])


@pytest.mark.golden("prior")
def test_prior_of_a_full_window(golden):
    it, arrays = Net(golden), golden.arrays
    it.prior.eval()
    out = it.output()
    close(out.logits, arrays["preds"], what="preds")
    same_losses(out, golden.info["results"]["eval"])
    told = it.prior.condition(it.upper, it.y)
    found = {
        "x_cond": None if told.x_cond is None else told.x_cond[:, it.prior.prefix :],
        "y_cond": told.start,
        "encoder_kv": told.encoded,
    }
    for name, tensor in found.items():
        assert (tensor is None) == (name not in arrays), name
        if tensor is not None:
            close(tensor, arrays[name], what=name)
    recorded = {int(layer): weights for layer, weights in golden.group("attn_w.").items()}
    if recorded:
        weights = it.prior.attention_weights(set(recorded), it.codes, it.upper, it.y)
        for layer, expected in recorded.items():
            close(weights[layer], expected, what=f"attn_w.{layer}")


@pytest.mark.golden("prior")
def test_prior_states(golden):
    """Behind all layers, through the output matrix, they are the recorded logits; also of the beginning of a window."""
    it = Net(golden)
    it.prior.eval()
    prior, (lyrics, shift) = it.prior, (it.prior.prefix, it.prior.shift)
    layers, ran = prior.net.transformer.layers, []
    for at, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, at=at: ran.append(at))
    for m in (prior.n_ctx, prior.n_ctx // 2 + 1):
        ran.clear()
        found = prior.states({0, 1, len(layers)}, it.codes[:, :m], it.upper, it.y)
        assert ran == list(range(len(layers)))
        logits = prior.net.out(found[len(layers)]).detach()
        close(logits, golden.arrays["preds"][:, lyrics : lyrics + m], what=f"logits of {m} codes")
        assert logits.shape[-1] == prior.shape.bins + shift
        ran.clear()
        for layer, states in prior.states((0, 1), it.codes[:, :m], it.upper, it.y).items():
            close(states, found[layer], what=f"layer {layer}")
        assert ran == [0]


@pytest.mark.golden("prior")
@pytest.mark.parametrize(
    "again",
    [{}, {"c_res": 1, "cond_c_res": 1, "prime_c_res": 1}, {"c_attn": 1, "c_mlp": 1}],
    ids=["", "blocks", "parts"],
)
def test_prior_gradients(golden, again):
    """Without and with activations computed again in the backward pass."""
    it = Net(golden, **again)
    it.prior.train()
    out = it.output()
    out.loss.backward()
    results = golden.info["results"]
    same_losses(out, results["train"])
    close(out.loss.detach(), torch.tensor(results["train_checkpointed"]["loss"]), rtol=1e-5, what="recomputed loss")
    named = dict(it.prior.named_parameters())
    ours = {name: entry.ours for entry in it.table for name in (entry.published, *entry.aliases)}
    assert {ours[name] for name in results["train"]["grad_norms"]} == set(named)
    for name, norm in results["train"]["grad_norms"].items():
        close(named[ours[name]].grad.norm(), torch.tensor(norm), what=name)
    for name, gradient in golden.group("grad.").items():
        close_gradient(named[ours[name]].grad, gradient, name)


@pytest.mark.golden("prior")
def test_prior_samples(golden):
    """Greedy codes of every run, exactly, for the chunk size of the run and for the whole prompt at once. Files of orders
    that the first implementation could not sample from have none."""
    it = Net(golden)
    it.prior.eval()
    for name, run in golden.info.get("sampling_runs", {}).items():
        expected = golden.arrays[f"sample.{name}"]
        given = it.codes[:, : run["given_tokens"]]
        assert expected.shape[1] == run.get("sample_tokens", it.prior.n_ctx)
        for chunk_size in {run.get("chunk_size"), None}:
            seen: list[torch.Tensor] = []

            def greedy(logits, place, seen=seen):
                seen.append(logits.clone())
                return draw(logits, Knobs(top_k=1), torch.zeros_like(logits))

            found = decode_window(
                it.prior, given, expected.shape[1], greedy, upper=it.upper, y=it.y, chunk_size=chunk_size
            )  # fmt: skip
            assert torch.equal(found, expected), (name, chunk_size)
            assert len(seen) == run["n_steps"]
            if f"logits.{name}" in golden.arrays:
                close(torch.stack(seen, 1), golden.arrays[f"logits.{name}"], what=f"logits.{name}")
