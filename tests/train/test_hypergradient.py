"""The derivative of a step by lambda against autograd through torch's own Adam, and the lambdas of a whole training.

The reference is a plain SAE in float64, one at a time, with nothing of the fused step in it. D 6, F 9 latents, B 16.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam

from train.config import VariantSettings
from train.group import VariantGroup
from train.hypergradient import derivative_by_lambda, on_unit_rows_
from train.metrics import COLUMNS
from train.schedule import lr_factor
from train.steps.analytic import AnalyticStep
from train.steps.initialise import StackedWeights

Resolved = Callable[..., VariantSettings]
D, F, B, NUM_STEPS = 6, 9, 16, 40


def test_the_derivative_of_one_number_by_hand() -> None:
    # First step from m = v = 0: g / (|g| + eps) is a sign, which does not depend on lambda while eps is 0.
    one = torch.ones(1, 1, dtype=torch.float64)
    first, second = 0.1 * 2.0 * one, 0.001 * 4.0 * one  # g = 2
    fixed: dict[str, Any] = {"lr": 0.5, "beta1": 0.9, "beta2": 0.999, "eps": 0.0}
    start = derivative_by_lambda(3.0 * one, gradient_FD=2.0 * one, first_FD=first, second_FD=second, count=1, **fixed)
    assert float(start) == pytest.approx(0.0, abs=1e-12)
    # With beta2 = 0 and no bias left, w = w - lr m / |g|: m = 0.4 and g = 2, dm = 0.1 * 3, d|g| = 3, so that
    # dw = -0.5 * (0.3 / 2 - 0.4 * 3 / 4) = 0.075
    later = derivative_by_lambda(
        3.0 * one, gradient_FD=2.0 * one, first_FD=0.4 * one, second_FD=4.0 * one,
        lr=0.5, beta1=0.9, beta2=0.0, eps=0.0, count=10_000,
    )  # fmt: skip
    assert float(later) == pytest.approx(0.075, rel=1e-12)


def test_on_unit_rows_only_the_part_across_counts_divided_by_the_length() -> None:
    # w = (3, 4), length 5; dw = (1, 0): across is (1, 0) - 3/25 (3, 4) = (0.64, -0.48), over 5 (0.128, -0.096)
    got = on_unit_rows_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.128, -0.096], [0.0, 0.0]]))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def across(gradient: Tensor, rows: Tensor) -> Tensor:
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


def start() -> StackedWeights:
    return StackedWeights(
        W_enc=draw(1, F, D, seed=1), b_enc=0.3 * draw(1, F, seed=2), W_dec=unit(draw(F, D, seed=3))[None],
        b_dec=0.1 * draw(1, D, seed=4),
    )  # fmt: skip


def batches() -> list[NDArray[np.uint16]]:
    rows = draw(NUM_STEPS, B, D, seed=5).to(torch.bfloat16)
    return [batch.numpy() for batch in rows.view(torch.uint16)]


class Seen(NamedTuple):
    """What one plain step saw, before its update."""

    lam: float
    task: float
    penalty: float
    task_norm: float
    penalty_norm: float
    slope: float
    """dL/dlambda of the step before, by autograd through its optimiser."""
    change_norm: float
    """Length of dW_dec/dlambda of the step before."""


def plain_training(settings: VariantSettings, follow: Callable[[Seen, int], float]) -> Iterator[Seen]:
    """A relu SAE by autograd, Adam by torch's own function; lambda of the next step is what `follow` says."""
    weights = start()
    p = {
        "W_enc": weights.W_enc[0].T, "b_enc": weights.b_enc[0], "W_dec": weights.W_dec[0], "b_dec": weights.b_dec[0]
    }  # fmt: skip
    moments = {name: [torch.zeros_like(w), torch.zeros_like(w)] for name, w in p.items()}
    norm_is_unit = settings.decoder_norm == "unit"
    lam_now = settings.schedule.at(0.0)
    lam_before = torch.tensor(lam_now, dtype=torch.float64, requires_grad=True)
    follows = 0.0 * lam_before + p["W_dec"]  # W_dec as a function of the lambda before
    for number, bits in enumerate(batches()):
        x = torch.from_numpy(bits).view(torch.bfloat16).double()
        leaves = {name: w.detach().requires_grad_() for name, w in p.items()} | {"W_dec": follows}
        a = torch.relu((x - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"])
        task = (x - a @ leaves["W_dec"] - leaves["b_dec"]).square().sum(1).mean()
        sparse = settings.l1 * (a * (1.0 if norm_is_unit else leaves["W_dec"].norm(dim=1))).sum(1).mean()
        U = leaves["W_dec"] / leaves["W_dec"].norm(dim=1, keepdim=True)
        penalty = (U @ U.T - torch.eye(F, dtype=torch.float64)).square().sum()
        g = dict(zip(leaves, torch.autograd.grad(task + sparse, list(leaves.values()), retain_graph=True), strict=True))
        (q,) = torch.autograd.grad(penalty, follows, retain_graph=True)
        now = follows.detach()
        g_task = across(g["W_dec"], now) if norm_is_unit else g["W_dec"]
        q = across(q, now) if norm_is_unit else q
        (slope,) = torch.autograd.grad(task + sparse, lam_before, retain_graph=True)
        probe = torch.zeros_like(now).requires_grad_()
        (along,) = torch.autograd.grad(follows, lam_before, grad_outputs=probe, create_graph=True)
        (change,) = torch.autograd.grad(along, probe)
        seen = Seen(
            lam_now, task.item(), penalty.item(), g_task.norm().item(),
            q.norm().item(), slope.item(), change.norm().item(),
        )  # fmt: skip
        yield seen
        lam = torch.tensor(seen.lam, dtype=torch.float64, requires_grad=True)
        g["W_dec"] = g_task + lam * q
        names = list(p)
        inputs = {name: p[name].detach().clone() for name in names}
        adam(
            list(inputs.values()), [g[name] if name == "W_dec" else g[name].detach() for name in names],
            [moments[name][0] for name in names], [moments[name][1] for name in names], [],
            [torch.tensor(float(number)) for _ in names], foreach=False, differentiable=True, fused=False,
            amsgrad=False, beta1=settings.adam_beta1, beta2=settings.adam_beta2,
            lr=settings.lr * factor(settings, number), weight_decay=0.0, eps=settings.adam_eps, maximize=False,
        )  # fmt: skip
        follows = unit(inputs["W_dec"]) if norm_is_unit else inputs["W_dec"]
        p = {name: w.detach() for name, w in inputs.items()} | {"W_dec": follows.detach()}
        moments = {name: [moment.detach() for moment in kept] for name, kept in moments.items()}
        lam_before, lam_now = lam, follow(seen, number)


def factor(settings: VariantSettings, number: int) -> float:
    return lr_factor(
        number,
        num_steps=NUM_STEPS,
        warm_up_fraction=settings.lr_warm_up_fraction,
        decay_fraction=settings.lr_decay_fraction,
    )


RATE = 0.03


class Hypergradient:
    """The formula at the top of task_lambdas.py in plain numbers."""

    def __init__(self, settings: VariantSettings) -> None:
        self.s = math.log(settings.schedule.at(0.0))
        self.cosines: list[float] = []

    def __call__(self, seen: Seen, number: int) -> float:
        if number > 0:
            self.cosines.append(seen.slope / (seen.task_norm * seen.change_norm))
            weights = [math.exp(-2.0 * RATE * age) for age in range(len(self.cosines))][::-1]
            mean = sum(w * c for w, c in zip(weights, self.cosines, strict=True)) / sum(weights)
            square = sum(w * c * c for w, c in zip(weights, self.cosines, strict=True)) / sum(weights)
            lowest = math.log(0.01 * seen.task_norm / seen.penalty_norm)
            self.s = max(self.s - RATE * mean / (math.sqrt(square) + 0.02), min(self.s, lowest))
        return math.exp(self.s)


class GradNorm:
    """The weights of Chen et al. 2018 themselves, summing to 2, and the sign of the derivative by autograd."""

    def __init__(self, settings: VariantSettings) -> None:
        self.settings, self.s = settings, math.log(settings.schedule.at(0.0))
        self.first: tuple[float, float] = (0.0, 0.0)

    def __call__(self, seen: Seen, number: int) -> float:
        self.first = (seen.task, seen.penalty) if number == 0 else self.first
        s = torch.tensor(self.s, dtype=torch.float64, requires_grad=True)
        weights = 2.0 * torch.softmax(torch.stack([torch.zeros_like(s), s]), dim=0)
        lengths = weights * torch.tensor([seen.task_norm, seen.penalty_norm], dtype=torch.float64)
        paces = torch.tensor([seen.task / self.first[0], seen.penalty / self.first[1]], dtype=torch.float64)
        targets = (lengths.mean() * (paces / paces.mean()) ** 1.5).detach()
        (derivative,) = torch.autograd.grad((lengths - targets).abs().sum(), s)
        self.s -= RATE * factor(self.settings, number) * torch.sign(derivative).item()
        return math.exp(self.s)


class Uncertainty:
    """Two log variances, each on its own."""

    def __init__(self, settings: VariantSettings) -> None:
        self.start, self.logs = settings.schedule.at(0.0), [0.0, 0.0]

    def __call__(self, seen: Seen, number: int) -> float:
        if number == 0:
            self.logs = [math.log(seen.task), math.log(seen.task / self.start)]
        for place, loss in enumerate((seen.task, seen.penalty)):
            slope = 0.5 - 0.5 * loss / math.exp(self.logs[place])
            self.logs[place] -= RATE * slope / (abs(slope) + 0.5)
        return math.exp(self.logs[0] - self.logs[1])


FOLLOWERS = {"hypergradient": Hypergradient, "gradnorm": GradNorm, "uncertainty": Uncertainty}


@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("lam", [0.01, 3.0])
@pytest.mark.parametrize("kind", list(FOLLOWERS))
def test_lambda_and_losses_are_those_of_a_plain_training_by_autograd(
    kind: str, lam: float, norm: str, resolved: Resolved
) -> None:
    settings = resolved(
        {"kind": kind, "start": lam}, d_sae=F, l1=0.2, lr=0.02, lambda_lr=RATE, decoder_norm=norm, adam_beta2=0.95
    )
    step = AnalyticStep(start(), [settings], batch_rows=B, product_dtype=torch.float64)
    group = VariantGroup(step, [settings], num_steps=NUM_STEPS, batch_rows=B, scale=1.0, mean=[0.0] * D)
    lambdas = []
    for number, (bits, seen) in enumerate(
        zip(batches(), plain_training(settings, FOLLOWERS[kind](settings)), strict=True)
    ):
        record = group.step(bits, log=True)
        assert record is not None
        got = dict(zip(COLUMNS, record[0].tolist(), strict=True))
        expected = {"lambda": seen.lam, "mse": seen.task, "scaled_penalty": seen.penalty}
        if kind == "hypergradient" and number > 0:
            expected["hypergradient_cosine"] = seen.slope / (seen.task_norm * seen.change_norm)
        # torch's fused Adam counts steps in float32, and its corrections differ in the eighth digit.
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7), number
        lambdas.append(seen.lam)
    assert max(lambdas) > 1.05 * min(lambdas)  # it has moved
