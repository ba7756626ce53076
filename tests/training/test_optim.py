"""A player's step: what is skipped, clipped and summed, and that a restart goes on as if nothing had happened."""

import copy
import math

import pytest
import torch
from torch import nn

from jukebox.errors import UserError
from jukebox.parallel.comm import SoloComm
from jukebox.training.ema import EMA
from jukebox.training.optim import FP16FusedAdam, FusedAdam, LossScaler
from jukebox.training.player import MOST_SKIPPED, Player
from jukebox.training.schedule import Schedule


def make(optimiser=FusedAdam, ema="plain", half=False, lr=0.01, warmup=0.0, seed=0, **changes):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    if half:
        net[0].weight.data = net[0].weight.data.half()
    params = list(net.parameters())
    player = Player(
        net.named_parameters(), optimiser(params, lr=lr, weight_decay=0.1), Schedule(lr, lr_warmup=warmup), SoloComm(),
        ema=EMA(params, 0.9, ema, 3) if ema else None, **changes,
    )  # fmt: skip
    return net, player


def loss_of(net, x):
    y = torch.tanh(x @ net[0].weight.float().t() + net[0].bias)
    return net[2](y).square().mean()


def weights(net):
    return torch.cat([p.detach().float().flatten() for p in net.parameters()])


def data(n, seed=1):
    return torch.randn(n, 6, 4, generator=torch.Generator().manual_seed(seed)).unbind()


# ----------------------------------------------------------------------------------------------------------------- steps


def test_a_loss_that_is_not_finite_moves_nothing():
    net, player = make()
    before, x = weights(net), data(1)[0]
    for bad in (math.nan, math.inf):
        stepped = player.step(loss_of(net, x) * bad)
        assert not stepped.done and torch.equal(weights(net), before) and player.steps == 0
        assert all(p.grad is None for p in net.parameters())
        assert torch.equal(torch.cat([e.flatten() for e in player.ema.averages]), before)
        assert all(state["step"] == 0 for state in player.optimiser.state.values())
    assert player.step(loss_of(net, x)).done and player.skipped == 0 and not torch.equal(weights(net), before)


def test_too_many_in_a_row_end_the_run():
    net, player = make()
    for _ in range(MOST_SKIPPED - 1):
        player.step(loss_of(net, data(1)[0]) * math.nan)
    with pytest.raises(UserError, match="not finite"):
        player.step(loss_of(net, data(1)[0]) * math.nan)


def test_clipping_is_a_division_of_the_gradients():
    x = data(1)[0]
    net, player = make(clip=1e9)
    loud, other = make(clip=0.01)
    norm = player.step(loss_of(net, x)).grad_norm
    assert loud.state_dict().keys() == net.state_dict().keys()
    stepped = other.step(loss_of(loud, x))
    assert stepped.grad_norm == pytest.approx(norm) and norm > 0.01
    for ours, clipped in zip(player.optimiser.state.values(), other.optimiser.state.values(), strict=True):
        torch.testing.assert_close(clipped["exp_avg"], ours["exp_avg"] * (0.01 / norm))
    quiet, third = make(clip=norm * 2)
    third.step(loss_of(quiet, x))
    assert torch.equal(weights(quiet), weights(net))


def test_norms_beyond_a_limit_are_left_out():
    net, player = make(ignore_grad_norm=1e-6)
    before = weights(net)
    stepped = player.step(loss_of(net, data(1)[0]))
    assert not stepped.done and stepped.grad_norm > 1e-6 and torch.equal(weights(net), before)


@pytest.mark.parametrize("parts", [2, 4])
def test_summed_batches_are_one_large_batch(parts):
    whole, one = make()
    pieces, other = make(accumulate=parts)
    for step in range(5):
        x = torch.cat(data(parts, step))
        one.step(loss_of(whole, x))
        found = [other.step(loss_of(pieces, part)) for part in x.chunk(parts)]
        assert found[:-1] == [None] * (parts - 1) and found[-1].done
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=1e-5, atol=1e-6)
    assert other.steps == one.steps == 5


def test_a_bad_part_spoils_its_whole_batch_only():
    net, player = make(accumulate=2)
    before, (a, b, *_) = weights(net), data(2)
    assert player.step(loss_of(net, a) * math.nan) is None
    assert not player.step(loss_of(net, b)).done and torch.equal(weights(net), before)
    fresh, other = make(accumulate=2)
    for n, p in ((net, player), (fresh, other)):
        p.step(loss_of(n, a))
        p.step(loss_of(n, b))
    assert torch.equal(weights(net), weights(fresh))


def test_loss_scaling_changes_nothing_but_the_scale():
    plain, one = make()
    scaled, other = make(scaler=LossScaler(window=10.0, start=2.0**10))
    for x in data(6):
        one.step(loss_of(plain, x))
        other.step(loss_of(scaled, x))
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)
    assert other.scaler.scale == pytest.approx(2.0**10 * 2 ** (6 / 10))


def test_overflow_halves_the_scale_and_bad_losses_do_not():
    net, player = make(scaler=LossScaler(start=2.0**10))
    x = data(1)[0]
    loss = loss_of(net, x)
    loss.register_hook(lambda gradient: gradient * math.inf)  # half gradients overflow, the loss itself does not
    assert not player.step(loss).done and player.scaler.scale == 2.0**9
    assert not player.step(loss_of(net, x) * math.inf).done and player.scaler.scale == 2.0**9
    assert player.step(loss_of(net, x)).log2_scale == 9.0


# ------------------------------------------------------------------------------------------------------------- optimiser


def test_a_parameter_without_a_gradient_stands_still_and_counts_for_itself():
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
    r = nn.Parameter(q.detach().clone())
    late, alone = FusedAdam([p, q], lr=0.1), FusedAdam([r], lr=0.1)
    for step in range(4):
        p.grad = torch.randn(3)
        if step >= 2:
            q.grad = torch.randn(3)
            r.grad = q.grad.clone()
            alone.step()
        late.step()
    assert (late.state[p]["step"], late.state[q]["step"]) == (4, 2)
    torch.testing.assert_close(q, r)


def test_it_is_adam_where_adam_is():
    """With a negligible eps and no weight decay the published step is torch's."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5)), nn.Parameter(torch.zeros(5))
    theirs.data.copy_(ours.data)
    a, b = FusedAdam([ours], lr=0.01, eps=1e-30), torch.optim.Adam([theirs], lr=0.01, eps=1e-30)
    for _ in range(10):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("ema", ["plain", "fused", "cpu"])
@pytest.mark.parametrize("optimiser", [FusedAdam, FP16FusedAdam])
def test_a_restart_goes_on_bit_by_bit(optimiser, ema, half):
    def scaler():
        return {"scaler": LossScaler(window=5.0, start=64.0)} if half else {}

    net, player = make(optimiser, ema, half, warmup=4.0, **scaler())
    batches = data(8)
    for x in batches[:4]:
        player.step(loss_of(net, x))
    saved = copy.deepcopy((player.optimiser.state_dict(), player.state_dict()))
    again, other = make(optimiser, ema, half, warmup=4.0, seed=9, **scaler())
    other.optimiser.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for state, fresh in zip(player.optimiser.state.values(), other.optimiser.state.values(), strict=True):
        assert {k: getattr(v, "dtype", type(v)) for k, v in state.items()} == {
            k: getattr(v, "dtype", type(v)) for k, v in fresh.items()
        }
    for x in batches[4:]:
        one, two = player.step(loss_of(net, x)), other.step(loss_of(again, x))
        assert one == two
    assert torch.equal(weights(net), weights(again))
    assert all(torch.equal(a, b) for a, b in zip(player.ema.averages, other.ema.averages, strict=True))


def test_half_moments_and_float_moments_read_each_other():
    net, player = make(FusedAdam, None, half=True)
    for x in data(3):
        player.step(loss_of(net, x))
    exact = player.optimiser.state[net[0].weight]
    small, other = make(FP16FusedAdam, None, half=True)
    other.optimiser.load_state_dict(player.optimiser.state_dict())
    stored = other.optimiser.state[small[0].weight]
    assert stored["exp_avg"].dtype == torch.float16 and stored["step"] == 3
    for key in ("exp_avg", "exp_avg_sq"):
        value = stored[key].float() * stored[f"scale_{key}"]
        torch.testing.assert_close(value, exact[key], rtol=1e-3, atol=1e-3 * float(exact[key].abs().max()))
    back, third = make(FusedAdam, None, half=True)
    third.optimiser.load_state_dict(other.optimiser.state_dict())
    again = third.optimiser.state[back[0].weight]
    assert again["exp_avg"].dtype == torch.float32 and set(again) == set(exact)
    torch.testing.assert_close(again["exp_avg"], exact["exp_avg"], rtol=1e-3, atol=1e-6)


# -------------------------------------------------------------------------------------------------- schedules, averages


def test_a_schedule_that_ends_ends_the_run():
    net, player = make(lr=0.1)
    player.schedule = Schedule(0.1, lr_warmup=0.0, lr_use_linear_decay=True, lr_decay=3.0)
    rates = []
    while not player.finished:
        rates.append(player.step(loss_of(net, data(1)[0])).lr)
    assert rates == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


def test_cosine_decay():
    schedule = Schedule(2.0, lr_warmup=0.0, lr_use_cosine_decay=True, lr_start_linear_decay=10, lr_decay=20.0)
    assert [schedule(s) for s in (0, 10, 20, 30, 99)] == pytest.approx([2.0, 2.0, 1.0, 0.0, 0.0])
    assert schedule.ends and not Schedule(1.0).ends and Schedule(1.0)(0) == 0.0


@pytest.mark.parametrize("kind", ["plain", "fused", "cpu"])
def test_averages(kind):
    p, q = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[3.0]]))
    ema = EMA([p, q], 0.5, kind, every=2)
    with torch.no_grad():
        p += 4.0
    ema.step()
    ema.step()
    # cpu: once in two steps with 0.5^2; the others at each step: the same while the weights stand still
    torch.testing.assert_close(ema.averages[0], torch.tensor([4.0, 5.0]))
    with ema:
        assert p.tolist() == [4.0, 5.0] and q.tolist() == [[3.0]]
    assert p.tolist() == [5.0, 6.0] and ema.averages[0].tolist() == [4.0, 5.0]
    assert not any(e.data_ptr() == w.data_ptr() for e, w in zip(ema.averages, (p, q), strict=True))
