"""How lambda, the weight of the penalty, is set at each step. A new kind is a record with one method here.

Scheduled kinds are functions of progress, from 0 at the first step to 1 at the last. The others follow what training
does; they keep one number theta per variant and Adam's two moments, all float64 (n,) for n variants side by side.

A learned lambda descends on the loss it stands in,

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

The kinds that answer to the task (hypergradient, gradnorm, uncertainty) have their formulas in task_lambdas.py.
Torch is not imported here: settings are read without waiting for it.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from store.record import Record
from store.sae.stationary_lambda import LAMBDA_FLOOR
from train.checks import NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor

CROSSING = (1.0e-3, 10.0)
"""The range that a learned lambda can cross within the first quarter of a run at the derived rate."""
DUAL_RANGE = (1.0e-6, 1.0e6)
"""A lambda that follows training and has no floor of its own stays within it, so that it cannot overflow."""


class FixedLambda(Record):
    """The same lambda at every step."""

    kind: Literal["fixed"]
    value: NotNegative
    """Lambda, the weight of the orthogonality penalty; 0 is a plain SAE."""

    def at(self, progress: float) -> float:
        """value."""
        del progress
        return self.value


class LinearLambda(Record):
    """Lambda on a straight line over the run."""

    kind: Literal["linear"]
    start: NotNegative
    """Lambda at the first step."""
    end: NotNegative
    """Lambda at the last step."""

    def at(self, progress: float) -> float:
        """start + (end - start) * progress."""
        return self.start + (self.end - self.start) * progress


class CosineLambda(Record):
    """Lambda on half a cosine over the run: flat at both ends."""

    kind: Literal["cosine"]
    start: NotNegative
    """Lambda at the first step."""
    end: NotNegative
    """Lambda at the last step."""

    def at(self, progress: float) -> float:
        """start + (end - start) * (1 - cos(pi * progress)) / 2."""
        return self.start + (self.end - self.start) * (1.0 - math.cos(math.pi * progress)) / 2.0


class ExponentialLambda(Record):
    """Lambda multiplied by the same factor at every step."""

    kind: Literal["exponential"]
    start: Positive
    """Lambda at the first step."""
    end: Positive
    """Lambda at the last step."""

    def at(self, progress: float) -> float:
        """start * (end / start)^progress."""
        return self.start * (self.end / self.start) ** progress


def _points(points: list[list[float]]) -> list[list[float]]:
    fractions = [point[0] for point in points if len(point) == 2]
    if len(fractions) != len(points) or not points:
        raise ValueError(f"expected a list of [fraction, value] pairs, got {points}. Write [[0.0, 1.0], [0.5, 10.0]]")
    if fractions != sorted(set(fractions)) or fractions[0] < 0.0 or fractions[-1] > 1.0:
        raise ValueError(f"expected fractions that rise within 0 to 1, got {fractions}. Sort them, each once")
    if min(point[1] for point in points) < 0.0:
        raise ValueError(f"expected values >= 0, got {points}. Remove the minus sign")
    return points


class PiecewiseLambda(Record):
    """Lambda on straight lines through given points, level before the first and after the last."""

    kind: Literal["piecewise"]
    points: Annotated[list[list[float]], AfterValidator(_points)]
    """[fraction of the run, lambda] pairs, fractions rising."""

    def at(self, progress: float) -> float:
        """Linear interpolation between the two points around `progress`."""
        before = [point for point in self.points if point[0] <= progress]
        after = [point for point in self.points if point[0] > progress]
        if not before or not after:
            return (before[-1] if before else after[0])[1]
        (x0, y0), (x1, y1) = before[-1], after[0]
        return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


def _above_the_floor(value: float) -> float:
    if value < LAMBDA_FLOOR:
        raise ValueError(
            f"expected a learned lambda to start at {LAMBDA_FLOOR:g} (its floor) or above, got {value}. "
            "Raise `start`, or use `kind: fixed` for a smaller value"
        )
    return value


class LearnedLambda(Record):
    """Lambda by gradient descent on the loss, which then holds c (log lambda)^2 as well."""

    kind: Literal["learned"]
    start: Annotated[float, AfterValidator(_above_the_floor)]
    """Lambda before the first step."""
    parametrisation: Literal["log", "literal"] = "log"
    """`log` descends on log(lambda) at `lambda_lr`; `literal` on lambda itself at the model's lr, then clamps it."""

    def at(self, progress: float) -> float:
        """Where it begins."""
        del progress
        return self.start


class DualLambda(Record):
    """Lambda by multiplicative dual ascent towards a coherence: it rises while the decoder is too coherent."""

    kind: Literal["dual"]
    start: Positive
    """Lambda before the first step."""
    target: Positive
    """Wanted mean squared cosine between different latents, P / (F (F - 1)) with the gram penalty's P."""
    rate: Positive
    """eta in lambda <- lambda * exp(eta * (coherence / target - 1)), per step."""

    def at(self, progress: float) -> float:
        """Where it begins."""
        del progress
        return self.start


class HypergradientLambda(Record):
    """Lambda against the derivative of the next batch's loss by it, through the optimiser's last step."""

    kind: Literal["hypergradient"]
    start: Positive
    """Lambda before the first step; where it ends hardly depends on it."""

    def at(self, progress: float) -> float:
        """Where it begins."""
        del progress
        return self.start


class GradNormLambda(Record):
    """Lambda that balances the gradients of reconstruction and penalty by the pace of both (GradNorm)."""

    kind: Literal["gradnorm"]
    start: Positive
    """Lambda before the first step."""
    asymmetry: NotNegative = 1.5
    """alpha: how much more gradient the task gets that has fallen less; 0 makes both gradients equally long. 1.5 is
    what GradNorm's authors chose for their large study."""

    def at(self, progress: float) -> float:
        """Where it begins."""
        del progress
        return self.start


class UncertaintyLambda(Record):
    """Lambda as the ratio of two learned variances, of reconstruction and penalty (uncertainty weighting)."""

    kind: Literal["uncertainty"]
    start: Positive
    """Lambda before the first step."""

    def at(self, progress: float) -> float:
        """Where it begins."""
        del progress
        return self.start


class MatchedLambda(Record):
    """A control: the same lambda at every step, which another variant's lambda came to."""

    kind: Literal["matched"]
    of: str
    """Name of a variant whose lambda follows training; see matched.py."""
    take: Literal["mean", "final"]
    """What is taken of its lambda: the mean over all steps, or the last value."""

    def at(self, progress: float) -> float:
        """Not known before the other variant is trained: ValueError."""
        raise ValueError(f"expected the {self.take} lambda of {self.of} to be filled in, at {progress} it is not")


LambdaSchedule = Annotated[
    FixedLambda
    | LinearLambda
    | CosineLambda
    | ExponentialLambda
    | PiecewiseLambda
    | LearnedLambda
    | DualLambda
    | HypergradientLambda
    | GradNormLambda
    | UncertaintyLambda
    | MatchedLambda,
    Field(discriminator="kind"),
]
TASK_LAMBDAS = (HypergradientLambda, GradNormLambda, UncertaintyLambda)
"""The kinds that answer to the task: see task_lambdas.py."""
FOLLOWS_TRAINING = (LearnedLambda, DualLambda, *TASK_LAMBDAS)
"""The kinds whose lambda depends on what training does."""
NO_PENALTY = FixedLambda(kind="fixed", value=0.0)
"""The one schedule that never weighs the penalty at all."""


def follows_lambda_lr(schedule: "LambdaSchedule") -> bool:
    """Whether `lambda_lr` is the rate of this kind of lambda."""
    if isinstance(schedule, LearnedLambda):
        return schedule.parametrisation == "log"
    return isinstance(schedule, TASK_LAMBDAS)


def default_lambda_lr(num_steps: int) -> float:
    """The rate of s = log lambda per step, 5 log(10 / 1e-3) / num_steps.

    At full speed lambda crosses `CROSSING` in a fifth of the run, which leaves a quarter of that time for Adam's first
    and last steps, when it moves at less than its rate.
    """
    return 5.0 * math.log(CROSSING[1] / CROSSING[0]) / num_steps


def least_coherence(d_sae: int, d_model: int) -> float:
    """The least mean squared cosine between different latents of any decoder, max(0, (F - d) / (d (F - 1)))."""
    return max(0.0, (d_sae - d_model) / (d_model * (d_sae - 1)))


def adam_direction(
    gradient: "Tensor",
    first: "Tensor",
    second: "Tensor",
    *,
    count: int,
    beta1: "Tensor",
    beta2: "Tensor",
    eps: "Tensor",
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Adam's bias-corrected m / (sqrt(v) + eps), and the new moments; `count` is 1 at first (Kingma & Ba 2015)."""
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * gradient.square()
    corrected = first / (1.0 - beta1**count)
    return corrected / ((second / (1.0 - beta2**count)).sqrt() + eps), first, second


def log_lambda_step(
    s: "Tensor", penalty: "Tensor", first: "Tensor", second: "Tensor",
    *, count: int, regularizer: "Tensor", rate: "Tensor",
) -> tuple["Tensor", "Tensor", "Tensor"]:  # fmt: skip
    """One descent step on s = log lambda, kept >= log(LAMBDA_FLOOR): the new s and Adam moments."""
    gradient = s.exp() * penalty + 2.0 * regularizer * s
    fast = 8.0 * rate
    direction, first, second = adam_direction(
        gradient, first, second,
        count=count, beta1=0.0 * rate, beta2=(-fast).exp(), eps=2.0 * regularizer * fast.clamp_min(1.0),
    )  # fmt: skip
    return (s - rate * direction).clamp_min(math.log(LAMBDA_FLOOR)), first, second


def literal_lambda_step(
    lam: "Tensor", penalty: "Tensor", first: "Tensor", second: "Tensor",
    *, count: int, regularizer: "Tensor", rate: "Tensor", beta1: "Tensor", beta2: "Tensor", eps: "Tensor",
) -> tuple["Tensor", "Tensor", "Tensor"]:  # fmt: skip
    """One descent step on lambda itself at the model's rate, then the clamp to LAMBDA_FLOOR."""
    gradient = penalty + 2.0 * regularizer * lam.log() / lam
    direction, first, second = adam_direction(gradient, first, second, count=count, beta1=beta1, beta2=beta2, eps=eps)
    return (lam - rate * direction).clamp_min(LAMBDA_FLOOR), first, second


def dual_lambda_step(s: "Tensor", coherence: "Tensor", *, target: "Tensor", rate: "Tensor") -> "Tensor":
    """s + eta * (coherence / target - 1) for s = log lambda, kept in DUAL_RANGE."""
    low, high = (math.log(bound) for bound in DUAL_RANGE)
    return (s + rate * (coherence / target - 1.0)).clamp(low, high)


def lambda_of_log(s: "Tensor") -> "Tensor":
    """exp(s), exactly LAMBDA_FLOOR where s is on the floor."""
    return s.exp().masked_fill(s == math.log(LAMBDA_FLOOR), LAMBDA_FLOOR)
