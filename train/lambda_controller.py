"""The lambda controllers of all variants of a group side by side, without a synchronisation per step.

The formulas stand in lambdas.py; here is who follows which, and what they keep. Shape suffixes: V variants, n those of
one kind.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from train.config import VariantSettings
from train.lambdas import (
    NO_PENALTY,
    DualLambda,
    FixedLambda,
    LearnedLambda,
    default_lambda_lr,
    dual_lambda_step,
    lambda_of_log,
    literal_lambda_step,
    log_lambda_step,
)

Moved = tuple[Tensor, Tensor, Tensor]
Follow = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor], Moved]
"""(theta, first, second, measured, count, lr_factor), each (n,), to the new theta, first and second."""


class LambdaController:
    """Lambda of each variant at each step; `state` is what lasts."""

    def __init__(self, settings: Sequence[VariantSettings], *, num_steps: int, device: torch.device) -> None:
        self._settings = list(settings)
        self._num_steps = num_steps
        self._device = device
        kinds = [_following(each) for each in settings]
        self._literal = self._where([kind == "literal" for kind in kinds])
        self._follows = self._where([kind is not None for kind in kinds])
        self.any_follows = any(kind is not None for kind in kinds)
        """Whether any lambda depends on what training does."""
        self.learned = self._where([isinstance(each.schedule, LearnedLambda) for each in settings])
        """(V,) which lambdas descend on the loss, and so have a regulariser in it."""
        self.regularizer = self._column([each.lambda_regularizer for each in settings])
        """(V,) c."""
        self.penalised = [index for index, each in enumerate(settings) if each.schedule != NO_PENALTY]
        """The variants whose loss holds the penalty at all."""
        self._followers = [
            (
                self._index(kinds, kind),
                self._follow(kind, [s for s, k in zip(settings, kinds, strict=True) if k == kind]),
            )
            for kind in ("log", "literal", "dual")
            if kind in kinds
        ]
        self._dual = self._where([kind == "dual" for kind in kinds])
        self._pairs = self._column([float(each.d_sae) * (each.d_sae - 1) for each in settings])
        self._divisors = self._column([penalty_divisor(each) for each in settings])
        self._changes = any(
            kind is None and not isinstance(s.schedule, FixedLambda) for s, kind in zip(settings, kinds, strict=True)
        )
        self._scheduled = self._scheduled_at(0)
        self.theta = torch.where(self._literal, self._scheduled, self._scheduled.clamp_min(1.0e-6).log())
        """(V,) what moves: log lambda, or lambda where literal; without meaning where lambda is scheduled."""
        self.first = torch.zeros_like(self.theta)
        self.second = torch.zeros_like(self.theta)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self._device)

    def _where(self, flags: Sequence[bool]) -> Tensor:
        return torch.tensor(list(flags), device=self._device)

    def _index(self, kinds: Sequence[str | None], kind: str) -> Tensor:
        return torch.tensor([i for i, each in enumerate(kinds) if each == kind], device=self._device)

    def _follow(self, kind: str, members: Sequence[VariantSettings]) -> Follow:
        """The step of one kind, with its members' constants as (n,)."""
        regularizer = self._column([each.lambda_regularizer for each in members])
        if kind == "dual":
            duals = [each.schedule for each in members if isinstance(each.schedule, DualLambda)]
            target, eta = self._column([each.target for each in duals]), self._column([each.rate for each in duals])
            return lambda theta, first, second, measured, count, factor: (
                dual_lambda_step(theta, measured, target=target, rate=eta), first, second
            )  # fmt: skip
        if kind == "log":
            default = default_lambda_lr(self._num_steps)
            rate = self._column([default if each.lambda_lr is None else each.lambda_lr for each in members])
            return lambda theta, first, second, measured, count, factor: log_lambda_step(
                theta, measured, first, second, count=count, regularizer=regularizer, rate=rate
            )
        lr, eps = self._column([each.lr for each in members]), self._column([each.adam_eps for each in members])
        beta1 = self._column([each.adam_beta1 for each in members])
        beta2 = self._column([each.adam_beta2 for each in members])
        return lambda theta, first, second, measured, count, factor: literal_lambda_step(
            theta, measured, first, second,
            count=count, regularizer=regularizer, rate=lr * factor, beta1=beta1, beta2=beta2, eps=eps,
        )  # fmt: skip

    def _scheduled_at(self, step: int) -> Tensor:
        progress = step / max(self._num_steps - 1, 1)
        return self._column([each.schedule.at(progress) for each in self._settings])

    def at(self, step: int) -> Tensor:
        """(V,) lambdas that the loss of `step` is weighted with."""
        if self._changes:
            self._scheduled = self._scheduled_at(step)
        if not self.any_follows:
            return self._scheduled
        following = torch.where(
            self._literal, self.theta, torch.where(self._dual, self.theta.exp(), lambda_of_log(self.theta))
        )
        return torch.where(self._follows, following, self._scheduled)

    def update(self, scaled_penalty: Tensor, *, step: int, lr_factors: Sequence[float]) -> None:
        """One step of the lambdas that follow training, given P (V,) of `step`, scaled as in the loss."""
        if not self.any_follows:
            return
        scaled_penalty = scaled_penalty.to(torch.float64)
        measured = torch.where(self._dual, scaled_penalty * self._divisors / self._pairs, scaled_penalty)
        factors = self._column(lr_factors)
        for index, follow in self._followers:
            old = (self.theta[index], self.first[index], self.second[index])
            new = follow(*old, measured[index], step + 1, factors[index])
            for whole, part in zip((self.theta, self.first, self.second), new, strict=True):
                whole[index] = part

    def clear(self, index: int) -> None:
        """A variant that is trained no further: its lambda can no longer be anything but finite."""
        self.theta[index] = 1.0 if bool(self._literal[index]) else 0.0
        self.first[index] = self.second[index] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What lasts from step to step, by name."""
        return {"lambda.theta": self.theta, "lambda.first": self.first, "lambda.second": self.second}


def _following(settings: VariantSettings) -> str | None:
    """What lambda follows: `log`, `literal`, `dual`, or nothing but the schedule."""
    if isinstance(settings.schedule, LearnedLambda):
        return settings.schedule.parametrisation
    return "dual" if isinstance(settings.schedule, DualLambda) else None


def penalty_divisor(settings: VariantSettings) -> float:
    """What P is divided by in the loss: 1 for `sum`, d_sae for `per_latent`."""
    return 1.0 if settings.penalty_scale == "sum" else float(settings.d_sae)
