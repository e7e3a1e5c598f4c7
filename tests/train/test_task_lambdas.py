"""Lambdas that answer to the task: each formula by hand, and against autograd of what it is the derivative of."""

import math

import pytest
import torch
from torch import Tensor

from train.lambdas import DUAL_RANGE
from train.task_lambdas import (
    HYPERGRADIENT_EPS,
    LEAST_SHARE,
    gradnorm_derivative,
    gradnorm_step,
    hypergradient_step,
    uncertainty_step,
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO, ONE = column(0.0), column(1.0)


def test_the_first_hypergradient_step_moves_by_the_rate_against_the_cosine() -> None:
    # After one cosine of 0.1 mean and root mean square are both 0.1: s = 0 - 0.05 * 0.1 / (0.1 + 0.02)
    s, first, second = hypergradient_step(ZERO, column(0.1), (ONE, ONE), ZERO, ZERO, count=1, rate=column(0.05))
    assert HYPERGRADIENT_EPS == 0.02
    assert float(s) == pytest.approx(-0.05 * 0.1 / 0.12, rel=1e-12)
    assert float(first) == pytest.approx((1.0 - math.exp(-0.1)) * 0.1, rel=1e-12)
    assert float(second) == pytest.approx((1.0 - math.exp(-0.1)) * 0.01, rel=1e-12)


def moved(cosines: list[float], rate: float = 0.01) -> float:
    s, first, second = ZERO, ZERO, ZERO
    for count, cosine in enumerate(cosines, start=1):
        norms = (column(1e-9), ONE)  # the penalty's share stays large
        s, first, second = hypergradient_step(s, column(cosine), norms, first, second, count=count, rate=column(rate))
    return float(s)


@pytest.mark.parametrize("size", [1.0, 0.2])
def test_cosines_of_one_sign_move_lambda_at_the_rate_and_those_that_alternate_hardly(size: float) -> None:
    steady, alternating = moved([size] * 200), moved([size, -size] * 100)
    assert steady == pytest.approx(-200 * 0.01 * size / (size + 0.02), rel=1e-9)
    assert abs(alternating) < 0.02 * abs(steady)


def test_a_hypergradient_lambda_falls_no_further_where_its_penalty_is_a_hundredth_of_the_task() -> None:
    # |dL/dW| = 2, |dP/dW| = 40: the share is 0.01 at lambda = 0.01 * 2 / 40 = 0.0005
    assert LEAST_SHARE == 0.01
    norms, s = (column(2.0), column(40.0)), column(math.log(1e-3))
    first = second = ZERO
    for count in range(1, 101):
        s, first, second = hypergradient_step(s, ONE, norms, first, second, count=count, rate=column(0.05))
    assert float(s.exp()) == pytest.approx(5e-4, rel=1e-12)
    # A lambda that is below is not pushed up, and one whose cosine is negative rises.
    low = column(math.log(1e-4))
    assert float(hypergradient_step(low, ONE, norms, ZERO, ZERO, count=1, rate=column(0.05))[0]) == float(low)
    risen = hypergradient_step(low, -ONE, norms, ZERO, ZERO, count=1, rate=column(0.05))[0]
    assert float(risen) == pytest.approx(float(low) + 0.05 / 1.02, rel=1e-12)
    # Before the first penalty there is nothing to go by.
    assert float(hypergradient_step(low, ZERO, (ONE, ZERO), ZERO, ZERO, count=1, rate=column(0.05))[0]) == float(low)


def test_the_gradnorm_derivative_by_hand() -> None:
    # lambda 1: both weights 1. Lengths 3 and 1, mean 2. Paces 0.2 and 0.6, mean 0.4, r = 0.5 and 1.5. With alpha 1 the
    # targets are 1 and 3: the task's gradient is too long, the penalty's too short. dL/ds = 1 * 1 / 2 * (-1 - 3) = -2
    got = gradnorm_derivative(ZERO, norms=(column(3.0), ONE), paces=(column(0.2), column(0.6)), asymmetry=ONE)
    assert float(got) == pytest.approx(-2.0, rel=1e-12)


@pytest.mark.parametrize("lam", [1e-3, 0.3, 40.0])
@pytest.mark.parametrize("asymmetry", [0.0, 0.12, 1.5])
@pytest.mark.parametrize(("task", "penalty"), [((0.3, 5.0), (1.7, 80.0)), ((0.9, 20.0), (0.4, 0.1))])
def test_the_gradnorm_derivative_is_that_of_the_published_loss(
    lam: float, asymmetry: float, task: tuple[float, float], penalty: tuple[float, float]
) -> None:
    s = column(math.log(lam)).requires_grad_()
    raw = torch.cat([ONE, s.exp()])
    lengths = (2.0 * raw / raw.sum()) * torch.tensor([task[1], penalty[1]])  # weights that sum to the number of tasks
    paces = torch.tensor([task[0], penalty[0]], dtype=torch.float64)
    targets = (lengths.mean() * (paces / paces.mean()) ** asymmetry).detach()
    (expected,) = torch.autograd.grad((lengths - targets).abs().sum(), s)
    got = gradnorm_derivative(
        s.detach(),
        norms=(column(task[1]), column(penalty[1])),
        paces=(column(task[0]), column(penalty[0])),
        asymmetry=column(asymmetry),
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_gradnorm_lambda_without_asymmetry_makes_both_gradients_equally_long() -> None:
    # |dL/dW| = 6 and |dP/dW| = 40: lambda = 0.15, from both sides, and then within one step of the rate.
    for start in (1e-3, 10.0):
        s = column(math.log(start))
        for _ in range(600):
            s = gradnorm_step(s, (ONE, ONE), (column(6.0), column(40.0)), (ONE, ONE), asymmetry=ZERO, rate=column(0.01))
        assert float(s) == pytest.approx(math.log(0.15), abs=0.0101)


def test_a_gradnorm_lambda_gives_more_to_the_task_that_has_fallen_less() -> None:
    # L has fallen to a half, P not at all: r = 2/3 and 4/3; with alpha 1 lengths come to be as 1 to 2.
    s = ZERO
    for _ in range(600):
        s = gradnorm_step(s, (ONE, ONE), (ONE, ONE), (2 * ONE, ONE), asymmetry=ONE, rate=column(0.01))
    assert float(s) == pytest.approx(math.log(2.0), abs=0.0101)


def test_the_first_uncertainty_step_by_hand() -> None:
    # v_L = L = 4: its g is 0. v_P = v_L / lambda = 4 / 0.5 = 8 and P = 40: g = (1 - 40 / 8) / 2 = -2,
    # log v_P rises by 0.1 * 2 / 2.5 = 0.08, and s = log v_L - log v_P falls by it.
    s, log_variance = uncertainty_step(
        column(math.log(0.5)), (column(4.0), column(40.0)), column(math.log(4.0)), rate=column(0.1)
    )
    assert float(log_variance) == pytest.approx(math.log(4.0), rel=1e-12)
    assert float(s) == pytest.approx(math.log(0.5) - 0.08, rel=1e-12)


def test_uncertainty_descends_on_the_published_loss() -> None:
    e = column(0.3, -1.2).requires_grad_()  # log v_L and log v_P
    losses = column(2.0, 90.0)
    (losses / (2.0 * e.exp()) + e / 2.0).sum().backward()  # L / (2 v_L) + P / (2 v_P) + (log v_L + log v_P) / 2
    assert e.grad is not None
    steps = -0.01 * e.grad / (e.grad.abs() + 0.5)
    before = e.detach()
    s, log_variance = uncertainty_step(
        (before[:1] - before[1:]), (losses[:1], losses[1:]), before[:1], rate=column(0.01)
    )
    torch.testing.assert_close(log_variance, before[:1] + steps[:1], rtol=1e-12, atol=0)
    torch.testing.assert_close(s, before[:1] - before[1:] + steps[:1] - steps[1:], rtol=1e-12, atol=0)


@pytest.mark.parametrize("start", [1e-3, 0.1, 10.0])
def test_an_uncertainty_lambda_ends_at_the_ratio_of_the_losses_from_every_start(start: float) -> None:
    # L = 60, P = 1200: lambda = 0.05
    s, log_variance = column(math.log(start)), column(math.log(60.0))
    for _ in range(1000):
        s, log_variance = uncertainty_step(s, (column(60.0), column(1200.0)), log_variance, rate=column(0.046))
    assert float(s.exp()) == pytest.approx(0.05, rel=1e-6)


def test_a_penalty_that_vanishes_cannot_make_lambda_overflow() -> None:
    s, log_variance = ZERO, ZERO
    for _ in range(300):
        s, log_variance = uncertainty_step(s, (ONE, ZERO), log_variance, rate=column(0.5))
    assert float(s.exp()) == pytest.approx(DUAL_RANGE[1])
