"""The VQ-VAE, its codebook and its losses against golden files."""

import dataclasses

import pytest
import torch

from jukebox import settings
from jukebox.audio import spectral
from jukebox.data.bandwidth import bandwidth_items, bandwidth_of
from jukebox.models import build, checkpoint
from jukebox.nn.codebook import Codebook, draw_candidates
from jukebox.vqvae.hps import VQVAEHps
from jukebox.vqvae.losses import Bandwidth, SpectralLosses, sample_loss, vqvae_loss
from jukebox.vqvae.model import VQVAE, quantise


def close(found, expected, *, rtol=1e-4, atol=1e-5, what=""):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(
        torch.as_tensor(found).to(expected.dtype), expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def same_numbers(found: dict, expected: dict, rtol: float = 1e-5):
    """The expected scalars, all of them."""
    assert set(expected) <= set(found), set(expected) - set(found)
    for name, value in expected.items():
        close(torch.as_tensor(found[name]).detach(), value, rtol=rtol, atol=1e-7, what=name)


def bandwidth_in(hps: dict) -> Bandwidth:
    return Bandwidth(**hps["bandwidth"]) if "bandwidth" in hps else Bandwidth()


class Net:
    """The net, the table of names and the loss that a golden file describes."""

    def __init__(self, golden):
        self.hps = settings.from_values(golden.info["hps"], "golden")
        self.net: VQVAE = build.build_vqvae(self.hps)
        self.table = build.vqvae_names(self.hps)
        checkpoint.load_into(self.net, golden.group("sd."), self.table)
        self.shape, self.bandwidth = build.build_loss(self.hps), bandwidth_in(golden.info["hps"])

    def loss(self, x, outputs, **changes):
        shape = dataclasses.replace(self.shape, **changes)
        return vqvae_loss(x, [o.estimate for o in outputs], [o.commit for o in outputs], shape, self.bandwidth)

    def train_pass(self, x, candidates):
        """Forward, backward and a codebook update, as a step of training does them; loss, metrics and bottom estimate."""
        self.net.zero_grad()
        outputs = self.net(x)
        loss, metrics = self.loss(x, outputs)
        loss.backward()
        learnt = []
        v = self.hps.section(VQVAEHps)
        for level, out in enumerate(outputs):
            book = self.net.codebook(level)
            sums, counts = book.statistics(out.rows, out.codes.flatten())
            found = book.update(sums, counts, candidates[level], mu=v.l_mu, threshold=v.revival_threshold)
            learnt.append(found | {"fit": out.distance, "pn": out.prenorm})
        metrics |= {name: torch.stack([level[name] for level in learnt]).mean() for name in learnt[0]}
        return loss, metrics, outputs[0].estimate

    def check_codebooks(self, arrays, prefix):
        """They are as recorded, and from here on exactly so: a rounding of 1e-7 can switch a ReLU of the next pass."""
        for level in range(self.net.levels):
            book = self.net.codebook(level)
            for name, tensor in (("k", book.vectors), ("k_sum", book.sums), ("k_elem", book.counts)):
                recorded = arrays[f"{prefix}{name}_{level}"]
                close(tensor, recorded, what=f"{prefix}{name}_{level}")
                tensor.copy_(recorded)


@pytest.mark.golden("vqvae")
def test_shapes(golden):
    it, info = Net(golden), golden.info
    length = golden.info["hps"]["sample_length"]
    assert [[length // hop] for hop in it.net.hops] == info["z_shapes"]
    hops = (1, *it.net.hops)
    assert [hops[level + 1] // hops[level] for level in range(it.net.levels)] == info["downsamples"]
    assert list(it.hps.section(VQVAEHps).hvqvae_multipliers or [1] * it.net.levels) == info["multipliers"]


@pytest.mark.golden("vqvae")
def test_codes_and_audio(golden):
    it, arrays = Net(golden).net.eval(), golden.arrays
    x = arrays["x"]
    codes = it.encode(x)
    assert len(codes) == it.levels
    for level in range(it.levels):
        close(it.embed(x, level), arrays[f"enc_{level}"], what=f"enc_{level}")
        assert torch.equal(codes[level], arrays[f"z_{level}"])
        assert torch.equal(it.encode(x, level, level + 1, bs_chunks=len(x))[0], arrays[f"z_{level}"])
        close(it.decode(codes[level:], level), arrays[f"dec_{level}"], what=f"dec_{level}")
        random = [arrays[f"zrand_{upper}"] for upper in range(level, it.levels)]
        close(it.decode(random, level, bs_chunks=len(x)), arrays[f"decrand_{level}"], what=f"decrand_{level}")


@pytest.mark.golden("vqvae")
def test_losses_without_learning(golden):
    it = Net(golden)
    it.net.eval()
    x = golden.arrays["x"]
    outputs = it.net(x)
    close(outputs[0].estimate, golden.arrays["eval_x_out"], what="eval_x_out")
    for kind, expected in golden.info["metrics_eval_by_loss_fn"].items():
        loss, metrics = it.loss(x, outputs, loss_fn=kind)
        same_numbers(metrics | {"loss": loss}, expected)


@pytest.mark.golden("vqvae")
def test_training_passes(golden):
    it, arrays = Net(golden), golden.arrays
    it.net.train()
    for level in range(it.net.levels):
        it.net.codebook(level).start(arrays[f"train0.k_rand_init_{level}"])
    named = dict(it.net.named_parameters())
    ours = {entry.published: entry.ours for entry in it.table}
    for step, expected in enumerate(golden.info["train_passes"]):
        prefix = f"train{step}."
        x, candidates = arrays[f"{prefix}x"], [arrays[f"{prefix}k_rand_update_{i}"] for i in range(it.net.levels)]
        loss, metrics, estimate = it.train_pass(x, candidates)
        same_numbers(metrics | {"loss": loss}, {"loss": expected["loss"], **expected["metrics"]})
        close(estimate, arrays[f"{prefix}x_out"], what=f"{prefix}x_out")
        it.check_codebooks(arrays, prefix)
        assert set(expected["grad_norms"]) == {entry.published for entry in it.table if entry.parameter}
        for name, norm in expected["grad_norms"].items():
            close(named[ours[name]].grad.norm(), norm, rtol=1e-4, what=f"{prefix}{name}")
        for name, gradient in golden.group(f"{prefix}grad.").items():
            close(named[ours[name]].grad, gradient, atol=1e-5 * float(gradient.abs().max()), what=f"{prefix}{name}")


@pytest.mark.golden("vqvae")
def test_learning_goes_on_from_a_checkpoint(golden):
    it, arrays, expected = Net(golden), golden.arrays, golden.info["restore"]
    it.net.train()
    v = it.hps.section(VQVAEHps)
    assert v.revival_threshold == expected["threshold"]
    for level, tokens in enumerate(expected["num_tokens"]):
        it.net.codebook(level).restore(tokens / v.l_bins)
    candidates = [arrays[f"restore.k_rand_update_{level}"] for level in range(it.net.levels)]
    loss, metrics, _ = it.train_pass(arrays["x"], candidates)
    named = metrics | {"loss": loss}
    same_numbers(named, {"loss": expected["loss"]})
    if isinstance(expected["metrics"], dict):
        same_numbers(named, expected["metrics"])
    else:
        assert set(expected["metrics"]) <= set(named)
    it.check_codebooks(arrays, "restore.")


@pytest.mark.golden("bottleneck")
def test_codebook(golden):
    info, arrays = golden.info, golden.arrays
    book = Codebook(info["k_bins"], info["emb_width"])
    x0 = arrays["x_0"]
    noise = (
        [arrays[f"tile_noise_{s}_{int(s == 0)}"] for s in range(len(info["steps"]))]
        if "tile_noise_0_0" in arrays
        else None
    )
    rows = x0.transpose(1, 2).flatten(0, 1)
    first = drawn(rows, arrays["init_perm"], book, noise and arrays["tile_noise_0_0"])
    assert torch.equal(first, arrays["init_k_rand"])
    book.start(first)
    for step, expected in enumerate(info["steps"]):
        x = arrays[f"x_{step}"]
        vectors, out = quantise(book, x)
        assert torch.equal(out.codes, arrays[f"x_l_{step}"])
        close(vectors, arrays[f"x_d_{step}"], what=f"x_d_{step}")
        candidates = drawn(out.rows, arrays[f"perm_{step}"], book, noise and noise[step])
        assert torch.equal(candidates, arrays[f"k_rand_{step}"])
        sums, counts = book.statistics(out.rows, out.codes.flatten())
        metrics = book.update(sums, counts, candidates, mu=info["mu"], threshold=info["threshold"])
        metrics |= {"fit": out.distance, "pn": out.prenorm}
        # A distance that is the difference of large numbers carries their rounding.
        scale = float((out.rows**2).sum(1).mean())
        for name, value in {"commit_loss": expected["commit_loss"], **expected["metrics"]}.items():
            found = float(out.commit if name == "commit_loss" else metrics[name])
            close(found, value, rtol=1e-5, atol=1e-6 * scale if name in ("fit", "commit_loss") else 1e-7, what=name)
        for name, tensor in (("k", book.vectors), ("k_sum", book.sums), ("k_elem", book.counts)):
            close(tensor, arrays[f"{name}_{step}"], what=f"{name}_{step}")


def drawn(rows, order, book, noise):
    return draw_candidates(rows, torch.arange(len(rows)), len(rows), order, book.bins, noise)


@pytest.mark.golden("bottleneck")
def test_codebook_folds_an_input_of_twice_its_width(golden):
    if "x_double" not in golden.arrays:
        pytest.skip("this file has no double input")
    info, arrays = golden.info, golden.arrays
    book = Codebook(info["k_bins"], info["emb_width"])
    book.start(arrays[f"k_{len(info['steps']) - 1}"])
    vectors, out = quantise(book, arrays["x_double"])
    assert torch.equal(out.codes, arrays["x_double_l"])
    close(vectors, arrays["x_double_d"], what="x_double_d")
    found = {"fit": out.distance, "pn": out.prenorm}
    same_numbers(found | {"commit_loss": out.commit}, {"commit_loss": info["double"]["commit_loss"]})
    same_numbers(found, {k: v for k, v in info["double"]["metrics"].items() if k in found})


@pytest.mark.golden("audio_losses")
def test_audio_losses(golden):
    shape = build.build_loss(settings.from_values(golden.info["hps"], "golden"))
    bandwidth = bandwidth_in(golden.info["hps"])
    for channels, expected in golden.info["values"].items():
        n = channels.removeprefix("C=")
        target, estimate = golden.arrays[f"x_in_{n}"], golden.arrays[f"x_out_{n}"].requires_grad_()
        magnitudes = [spectral.PUBLISHED.magnitude(spectral.mono(x)) for x in (target, estimate)]
        losses = SpectralLosses(target, shape, Bandwidth())  # recorded before they are divided
        found = {
            "spectral_loss": losses.spectral(estimate),
            "multispectral_loss": losses.multispectral(estimate),
            "spectral_convergence": losses.convergence(estimate),
            "log_magnitude_loss": spectral.log_magnitude_distance(*magnitudes),
            "norm_of_x": spectral.mono(target).norm(dim=-1),
        }
        for kind in ("l1", "l2", "linf", "lmix"):
            found[f"_loss_fn_{kind}"] = sample_loss(kind, target, estimate, bandwidth, shape)
        for name, value in expected.items():
            close(found[name].detach(), torch.tensor(value), rtol=1e-5, what=f"{name} of {channels}")
        for name, gradient in golden.arrays.items():
            if name.startswith("grad_") and name.endswith(f"_{n}"):
                kind = name.removeprefix("grad_").removesuffix(f"_{n}")
                value = found[kind] if kind in found else found[f"_loss_fn_{kind}"]
                (ours,) = torch.autograd.grad(value.sum(), estimate, retain_graph=True)
                scale = float(gradient.abs().max())
                close(ours / scale, gradient / scale, what=name)
    for name, array in golden.arrays.items():
        if name.startswith("spec_default_"):
            x = golden.arrays[name.removeprefix("spec_default_")][1:2]
            close(spectral.PUBLISHED.magnitude(spectral.mono(x)), array, what=name)


@pytest.mark.golden("audio_losses")
def test_bandwidth(golden):
    for case in golden.info["bandwidth"].values():
        items = [golden.arrays[f"bw_item_{index}"].numpy() for index in case["indices_read"]]
        found = bandwidth_of(items)
        for name, rtol in (("bandwidth_without_dist", 1e-7), ("bandwidth", 1e-6)):
            for key, value in case[name].items():
                assert getattr(found, key) == pytest.approx(value, rel=1e-5 if key == "spec" else rtol), (name, key)
        wanted = sum(item.size for item in items)
        assert bandwidth_items(10_000, items[0].size, wanted) == case["indices_read"]
