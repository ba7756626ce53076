"""Adam as published: decoupled weight decay inside the bias-corrected step, and a variant with half moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jukebox.errors import HparamsError, UsageError


class FusedAdam(torch.optim.Optimizer):
    """Adam with `p -= s * (m / (sqrt(v) + eps) + weight_decay * p)`, s = lr * sqrt(1 - b2^t) / (1 - b1^t).

    eps is added to the uncorrected root and weight decay is scaled by the bias correction (arXiv:1412.6980 sec. 2, last
    paragraph, with arXiv:1711.05101's decoupling). The update is computed in float32 and stored in p's dtype. State per
    parameter: step (int), exp_avg, exp_avg_sq (float32); it exists from construction.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "bias_correction": True, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = self._new_state(p)

    def _new_state(self, p: nn.Parameter) -> dict[str, Any]:
        zeros = torch.zeros_like(p, dtype=torch.float32)
        return {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, scale: float = 1.0) -> None:  # type: ignore[override]
        """One update with gradients divided by `scale`, which is loss scale times clipping in one."""
        assert closure is None, "closures are not used"
        for group in self.param_groups:
            by_step: dict[int, list[nn.Parameter]] = {}  # a parameter without a gradient stands still, its count too
            for p in group["params"]:
                if p.grad is not None:
                    by_step.setdefault(self.state[p]["step"], []).append(p)
            for params in by_step.values():
                self._update(group, params, scale)

    def _update(self, group: dict[str, Any], params: list[nn.Parameter], scale: float) -> None:
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in params]
        for state in states:
            state["step"] += 1
        t = states[0]["step"]
        size = group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        grads = [p.grad.float() for p in params if p.grad is not None]
        if scale != 1.0:
            grads = list(torch._foreach_div(grads, scale))
        m, v = self._moments(states)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grads, alpha=1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        update = torch._foreach_sqrt(v)
        torch._foreach_add_(update, group["eps"])
        update = torch._foreach_div(m, update)
        if group["weight_decay"]:
            torch._foreach_add_(update, [p.float() for p in params], alpha=group["weight_decay"])
        if all(p.dtype == torch.float32 for p in params):
            torch._foreach_add_(list(params), update, alpha=-size)
        else:
            for p, u in zip(params, update, strict=True):
                p.copy_(p.float() - size * u)
        self._keep(states, m, v)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what either of the two optimisers here saved. Moments keep the type they are stored in, where torch
        would cast them to that of their parameter."""
        super().load_state_dict(state_dict)
        saved = [state_dict["state"].get(i, {}) for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for p, entry in zip(params, saved, strict=True):
            self.state[p] = self._restored(p, entry)

    def _restored(self, p: nn.Parameter, saved: dict[str, Any]) -> dict[str, Any]:
        state = self._new_state(p)
        state["step"] = int(saved.get("step", 0))
        for name in saved.keys() & {"exp_avg", "exp_avg_sq"}:
            state[name] = (saved[name].to(p.device).float() * saved.get(f"scale_{name}", 1.0)).clone()
        return state

    def _moments(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        return [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]

    def _keep(self, states: list[dict[str, Any]], m: list[Tensor], v: list[Tensor]) -> None:
        """Store moments that were changed in place: nothing to do."""


class FP16FusedAdam(FusedAdam):
    """FusedAdam whose moments of half parameters are stored half, each with a scale: value = stored * scale.

    State keys of half parameters: step, exp_avg, exp_avg_sq (float16), scale_exp_avg, scale_exp_avg_sq.
    """

    def _new_state(self, p: nn.Parameter) -> dict[str, Any]:
        state = super()._new_state(p)
        if p.dtype == torch.float16:
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].half()
                state[f"scale_{name}"] = 1.0
        return state

    def _restored(self, p: nn.Parameter, saved: dict[str, Any]) -> dict[str, Any]:
        state = super()._restored(p, saved)
        for name in saved.keys() & {"exp_avg", "exp_avg_sq"} if p.dtype == torch.float16 else ():
            if f"scale_{name}" in saved:
                state |= {name: saved[name].to(p.device).clone(), f"scale_{name}": saved[f"scale_{name}"]}
            else:
                self._scale(state, name, state[name])
        return state

    def _moments(self, states: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        def read(name: str) -> list[Tensor]:
            return [s[name].float() * s[f"scale_{name}"] if f"scale_{name}" in s else s[name] for s in states]

        return read("exp_avg"), read("exp_avg_sq")

    def _keep(self, states: list[dict[str, Any]], m: list[Tensor], v: list[Tensor]) -> None:
        for name, moments in (("exp_avg", m), ("exp_avg_sq", v)):
            for state, moment in zip(states, moments, strict=True):
                if f"scale_{name}" in state:
                    self._scale(state, name, moment)

    @staticmethod
    def _scale(state: dict[str, Any], name: str, moment: Tensor) -> None:
        scale = 1e-8 + float(moment.abs().max()) / 65504.0  # the largest half number
        state |= {name: (moment / scale).half(), f"scale_{name}": scale}


def apex_adam(
    params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """NVIDIA Apex's FusedAdam, doing what `FusedAdam` does.

    Apex adds eps to the corrected root and decays by lr alone; with eps / sqrt(1 - b2^t) and weight_decay *
    sqrt(1 - b2^t) / (1 - b1^t) given anew at every step its update is the published one. Raises UsageError where
    `apex.optimizers` has no FusedAdam (the `apex` on PyPI is another package).
    """
    try:
        from apex.optimizers import FusedAdam as Apex
    except ImportError:
        raise UsageError(
            "--optimizer=apex: apex.optimizers has no FusedAdam here. apex_optional/README.md says how to build NVIDIA "
            "Apex (the package called apex on PyPI is another one); --optimizer=fused gives the same results."
        ) from None

    class ApexAdam(Apex):  # type: ignore[misc]
        taken = 0  # steps

        def step(self, closure: Callable[[], float] | None = None, scale: float = 1.0) -> None:
            """One update with gradients divided by `scale`."""
            assert closure is None, "closures are not used"
            self.taken += 1
            for group in self.param_groups:
                grads = [p.grad for p in group["params"] if p.grad is not None]
                if scale != 1.0 and grads:
                    torch._foreach_div_(grads, scale)
            asked = [(group["eps"], group["weight_decay"]) for group in self.param_groups]
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                root = (1 - beta2**self.taken) ** 0.5
                group["eps"] /= root
                group["weight_decay"] *= root / (1 - beta1**self.taken)
            super().step()
            for group, (eps, decay) in zip(self.param_groups, asked, strict=True):
                group |= {"eps": eps, "weight_decay": decay}

        def state_dict(self) -> dict[str, Any]:
            """In the form of FusedAdam, which can go on from it: steps counted per parameter."""
            found = super().state_dict()
            for state in found["state"].values():
                state["step"] = self.taken
            groups = [{k: v for k, v in group.items() if k != "step"} for group in found["param_groups"]]
            return {"state": found["state"], "param_groups": groups}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Go on from either of the two."""
            super().load_state_dict(state_dict)
            self.taken = max((int(state["step"]) for state in state_dict["state"].values()), default=0)
            for group in self.param_groups:
                group["step"] = self.taken  # where Apex counts

    return ApexAdam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adam_w_mode=True)  # type: ignore[no-any-return]


def named_optimiser(params: Iterable[nn.Parameter], kind: str, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """An optimiser of torch by its class name and arguments, as model configs name it; `step` takes `scale` too.

    DeepSpeed's FusedAdam is torch's AdamW without weight decay. Raises HparamsError.
    """
    if kind == "FusedAdam":
        kind, config = "AdamW", {"weight_decay": 0.0, **config}
    base = getattr(torch.optim, kind, None)
    if not isinstance(base, type) or not issubclass(base, torch.optim.Optimizer) or kind in ("Optimizer", "LBFGS"):
        raise HparamsError(f"optimizer type {kind!r:.60}: no optimiser of torch that steps by gradients alone")

    class Scaled(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], float] | None = None, scale: float = 1.0) -> None:
            """One update with gradients divided by `scale`."""
            assert closure is None, "closures are not used"
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            if scale != 1.0 and grads:
                torch._foreach_div_(grads, scale)
            super().step()

    try:
        made: torch.optim.Optimizer = Scaled(params, **config)
    except (TypeError, ValueError) as error:
        raise HparamsError(f"optimizer {kind}: {error}") from None
    return made


class LossScaler:
    """Keeps half gradients from underflowing (arXiv:1710.03740 sec. 3.2).

    Doubles in `window` good steps by growing a little after each (or by `factor` after every `every` good steps), at
    most to 2^24; halves after an overflow. A `fixed` scale never changes.
    """

    MOST = 2.0**24

    def __init__(
        self, fixed: float | None = None, window: float = 1000.0, *, factor: float | None = None, every: int = 1,
        start: float = 2.0**16,
    ) -> None:  # fmt: skip
        self.fixed, self.factor, self.every = fixed, factor or 2.0 ** (1.0 / window), every
        self.scale = fixed if fixed is not None else start
        self.good = 0

    def update(self, overflow: bool) -> None:
        """After a step whose gradients overflowed, or did not."""
        if overflow:
            self.good = 0
            self.scale = self.scale if self.fixed is not None else self.scale / 2
            return
        self.good += 1
        if self.fixed is None and self.good % self.every == 0:
            self.good = 0
            self.scale = min(self.MOST, self.scale * self.factor)

    def state_dict(self) -> dict[str, float]:
        """What a restart needs."""
        return {"scale": self.scale, "good": float(self.good)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where another left off; a fixed scale stays as asked."""
        if self.fixed is None:
            self.scale, self.good = float(state["scale"]), int(state["good"])
