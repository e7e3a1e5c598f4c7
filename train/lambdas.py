"""How lambda, the weight of the orthogonality penalty, is set at each step: controllers as pure functions.

Scheduled lambdas are functions of progress alone. A learned lambda follows the gradient of the loss it stands in,

    L(lambda) = ... + lambda * P + c * (log lambda)^2,    kept >= LAMBDA_FLOOR,

with P the (scaled) penalty. Two parametrisations:

* log: descend on s = log lambda, dL/ds = lambda * P + 2 c s. The stationary point is unique, lambda * P = -2 c log
  lambda, because dL/ds grows with s; it lies below the floor when P > -2 c log(floor) / floor, 1381.6 at c = 0.1.
* literal: descend on lambda itself at the model's rate, dL/dlambda = P + 2 c log(lambda) / lambda, clamp after the
  step.

Adam divides a gradient by the root of its mean square, so that a rate is a distance per step. P depends on the weights
only and carries no noise of a batch, so for s the momentum is 0 (it would only overshoot). The gradient falls like
lambda itself while s falls, hence the mean square must forget faster than s moves: beta2 = exp(-8 rate). Epsilon is 2
c, the slope of the regulariser per unit of s, times max(1, 8 rate): near the curve dL/ds has slope 2 c (1 - s) <= 16
c, so that the last approach is an exponential one at every rate, where a plain Adam would end in a limit cycle.

A new kind is a record in train/config.py and a function here. Scalars are float64, (V,) for V variants.
"""

import math
from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from train.config import LAMBDA_FLOOR, FixedLambda, LambdaSchedule, LearnedLambda, LinearLambda

CROSSING = (1.0e-3, 10.0)
"""The range that a learned lambda can cross within the first quarter of a run at the derived rate."""
NEAR_CURVE = 0.1
"""A lambda within about 10 % of the stationary value for its P is on its curve..."""
SETTLED = 0.2
"""...if it also moved by less than about 20 % during the last tenth of the run."""

LambdaState = Literal["on its curve", "on the floor", "still moving"]


def linear_lambda(step: int, *, num_steps: int, start: float, end: float) -> float:
    """start + (end - start) * step / (num_steps - 1): `start` at step 0, `end` at the last step."""
    return start + (end - start) * (step / max(num_steps - 1, 1))


def default_lambda_lr(num_steps: int) -> float:
    """The rate of s = log lambda per step, 5 log(10 / 1e-3) / num_steps.

    At full speed lambda crosses `CROSSING` in a fifth of the run, which leaves a quarter of that time for Adam's first
    and last steps, when it moves at less than its rate.
    """
    return 5.0 * math.log(CROSSING[1] / CROSSING[0]) / num_steps


def lambda_residual(lam: float, penalty: float, *, regularizer: float) -> float:
    """lambda * P + 2 c log(lambda) = dL/d(log lambda): 0 on the curve, positive where lambda is pushed down."""
    return lam * penalty + 2.0 * regularizer * math.log(lam)


def judge_lambda(*, lam: float, penalty: float, regularizer: float, moved: float) -> LambdaState:
    """Where a learned lambda ended.

    Args:
        lam: lambda after the last step.
        penalty: P of the final decoder, scaled as in the loss.
        regularizer: c.
        moved: largest minus smallest log(lambda) over the last tenth of the run.

    "on the floor": at the floor, and pushed down or held there. "on its curve": one Newton step of the stationary
    equation, in log lambda, is at most `NEAR_CURVE`, and `moved` is at most `SETTLED`. "still moving": neither.
    """
    residual = lambda_residual(lam, penalty, regularizer=regularizer)
    if lam <= LAMBDA_FLOOR:
        return "on the floor" if residual >= 0.0 else "still moving"
    distance = abs(residual) / (lam * penalty + 2.0 * regularizer)
    return "on its curve" if distance <= NEAR_CURVE and moved <= SETTLED else "still moving"


def adam_direction(
    gradient: Tensor, first: Tensor, second: Tensor, *, count: int, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's bias-corrected m / (sqrt(v) + eps), and the new moments; `count` is 1 at first (Kingma & Ba 2015)."""
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * gradient.square()
    corrected = first / (1.0 - beta1**count)
    return corrected / ((second / (1.0 - beta2**count)).sqrt() + eps), first, second


def log_lambda_step(
    s: Tensor, penalty: Tensor, first: Tensor, second: Tensor, *, count: int, regularizer: float, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One descent step on s = log lambda, (V,), kept >= log(LAMBDA_FLOOR): the new s and Adam moments."""
    gradient = s.exp() * penalty + 2.0 * regularizer * s
    eps = 2.0 * regularizer * max(1.0, 8.0 * rate)
    direction, first, second = adam_direction(
        gradient, first, second, count=count, beta1=0.0, beta2=math.exp(-8.0 * rate), eps=eps
    )
    return (s - rate * direction).clamp_min(math.log(LAMBDA_FLOOR)), first, second


def literal_lambda_step(
    lam: Tensor,
    penalty: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    count: int,
    regularizer: float,
    rate: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One descent step on lambda itself, (V,), with the model's Adam and rates (V,), clamped at the floor after it."""
    gradient = penalty + 2.0 * regularizer * lam.log() / lam
    direction, first, second = adam_direction(
        gradient, first, second, count=count, beta1=betas[0], beta2=betas[1], eps=eps
    )
    return (lam - rate * direction).clamp_min(LAMBDA_FLOOR), first, second


def lambda_of_log(s: Tensor) -> Tensor:
    """exp(s), exactly LAMBDA_FLOOR where s is on the floor."""
    return torch.where(s <= math.log(LAMBDA_FLOOR), torch.full_like(s, LAMBDA_FLOOR), s.exp())


def scheduled_lambda(schedule: LambdaSchedule, step: int, *, num_steps: int) -> float:
    """Lambda at `step` (0-based) where it is a function of progress; where it is learned, its start."""
    match schedule:
        case FixedLambda():
            return schedule.value
        case LinearLambda():
            return linear_lambda(step, num_steps=num_steps, start=schedule.start, end=schedule.end)
        case LearnedLambda():
            return schedule.start
        case _:
            assert_never(schedule)


class Lambdas:
    """The controllers of V variants side by side, on one device, without a synchronisation per step."""

    def __init__(
        self,
        schedules: Sequence[LambdaSchedule],
        *,
        num_steps: int,
        regularizer: float,
        log_rate: float,
        model_lrs: Tensor,
        model_betas: tuple[float, float],
        model_eps: float,
    ) -> None:
        """`model_lrs` (V,) float64, betas and eps are those of the weights: the literal parametrisation uses them."""
        device = model_lrs.device
        self._schedules = list(schedules)
        self._num_steps = num_steps
        self._regularizer = regularizer
        self._log_rate = log_rate
        self._model_lrs = model_lrs
        self._model_betas = model_betas
        self._model_eps = model_eps
        learned = [isinstance(schedule, LearnedLambda) for schedule in schedules]
        literal = [
            isinstance(schedule, LearnedLambda) and schedule.parametrisation == "literal" for schedule in schedules
        ]
        self.any_learned = any(learned)
        self.learned = torch.tensor(learned, device=device)
        """(V,) which lambdas follow a gradient."""
        self.penalised = [index for index, schedule in enumerate(schedules) if schedule != _NO_PENALTY]
        """The variants whose loss holds the penalty at all."""
        self._literal = torch.tensor(literal, device=device)
        self._changes = any(isinstance(schedule, LinearLambda) for schedule in schedules)
        self._scheduled = self._scheduled_at(0)
        self.theta = torch.where(self._literal, self._scheduled, self._scheduled.clamp_min(LAMBDA_FLOOR).log())
        """(V,) what is descended on: log lambda, or lambda where literal; without meaning where not learned."""
        self.first = torch.zeros_like(self.theta)
        self.second = torch.zeros_like(self.theta)

    def _scheduled_at(self, step: int) -> Tensor:
        values = [scheduled_lambda(schedule, step, num_steps=self._num_steps) for schedule in self._schedules]
        return torch.tensor(values, dtype=torch.float64).to(self._model_lrs.device)

    def at(self, step: int) -> Tensor:
        """(V,) lambdas that the loss of `step` is weighted with."""
        if self._changes:
            self._scheduled = self._scheduled_at(step)
        if not self.any_learned:
            return self._scheduled
        learned = torch.where(self._literal, self.theta, lambda_of_log(self.theta))
        return torch.where(self.learned, learned, self._scheduled)

    def update(self, penalty: Tensor, *, step: int, lr_factor: float) -> None:
        """One descent step of the learned lambdas, given P (V,), scaled as in the loss, of the weights at `step`."""
        if not self.any_learned:
            return
        count, penalty = step + 1, penalty.to(torch.float64)
        by_log = log_lambda_step(
            self.theta, penalty, self.first, self.second,
            count=count, regularizer=self._regularizer, rate=self._log_rate,
        )  # fmt: skip
        by_value = literal_lambda_step(
            self.theta.clamp_min(LAMBDA_FLOOR), penalty, self.first, self.second,
            count=count, regularizer=self._regularizer, rate=self._model_lrs * lr_factor,
            betas=self._model_betas, eps=self._model_eps,
        )  # fmt: skip
        self.theta, self.first, self.second = (
            torch.where(self._literal, value, log) for value, log in zip(by_value, by_log, strict=True)
        )


_NO_PENALTY = FixedLambda(kind="fixed", value=0.0)
