"""The lambda controllers of all variants of a group side by side, without a synchronisation per step.

The formulas stand in lambdas.py; here is which variants use which, and what they keep. A lambda is adaptive where it
depends on what training does (learned, dual), and scheduled where it depends on the step alone.

Shape suffixes: V variants, n those of one kind.
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
from train.penalty_term import penalty_divisor

LambdaStep = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(theta, first, second, measured, count, lr_factor), each (n,), to the new theta, first and second."""


class LambdaController:
    """Lambda of each variant at each step; `state` is what lasts."""

    def __init__(self, settings: Sequence[VariantSettings], *, num_steps: int, device: torch.device) -> None:
        self._settings = list(settings)
        self._num_steps = num_steps
        self._device = device
        kinds = [adaptive_kind(variant) for variant in settings]
        self._literal = self._where([kind == "literal" for kind in kinds])
        self._adaptive = self._where([kind is not None for kind in kinds])
        self.any_adaptive = any(kind is not None for kind in kinds)
        """Whether any lambda depends on what training does."""
        self.learned = self._where([isinstance(variant.schedule, LearnedLambda) for variant in settings])
        """(V,) which lambdas descend on the loss, and so have a regulariser in it."""
        self.regularizer = self._column([variant.lambda_regularizer for variant in settings])
        """(V,) c."""
        self.penalised = [index for index, variant in enumerate(settings) if variant.schedule != NO_PENALTY]
        """The variants whose loss holds the penalty at all."""
        self._adaptive_steps = [
            (
                self._index(kinds, kind),
                self._step_of(kind, [s for s, k in zip(settings, kinds, strict=True) if k == kind]),
            )
            for kind in ("log", "literal", "dual")
            if kind in kinds
        ]
        self._dual = self._where([kind == "dual" for kind in kinds])
        self._pairs = self._column([float(variant.d_sae) * (variant.d_sae - 1) for variant in settings])
        self._divisors = self._column([penalty_divisor(variant) for variant in settings])
        self._changes = any(
            kind is None and not isinstance(s.schedule, FixedLambda) for s, kind in zip(settings, kinds, strict=True)
        )
        self._scheduled = self._scheduled_at(0)
        self.theta = torch.where(self._literal, self._scheduled, self._scheduled.clamp_min(1.0e-6).log())
        """(V,) log lambda, or lambda where literal, of adaptive lambdas; not used where lambda is scheduled."""
        self.first = torch.zeros_like(self.theta)
        self.second = torch.zeros_like(self.theta)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self._device)

    def _where(self, flags: Sequence[bool]) -> Tensor:
        return torch.tensor(list(flags), device=self._device)

    def _index(self, kinds: Sequence[str | None], kind: str) -> Tensor:
        return torch.tensor([index for index, found in enumerate(kinds) if found == kind], device=self._device)

    def _step_of(self, kind: str, members: Sequence[VariantSettings]) -> LambdaStep:
        """The step of one kind, with its members' constants as (n,)."""
        regularizer = self._column([variant.lambda_regularizer for variant in members])
        if kind == "dual":
            duals = [variant.schedule for variant in members if isinstance(variant.schedule, DualLambda)]
            target, eta = self._column([dual.target for dual in duals]), self._column([dual.rate for dual in duals])
            return lambda theta, first, second, measured, count, factor: (
                dual_lambda_step(theta, measured, target=target, rate=eta), first, second
            )  # fmt: skip
        if kind == "log":
            default = default_lambda_lr(self._num_steps)
            rate = self._column([default if variant.lambda_lr is None else variant.lambda_lr for variant in members])
            return lambda theta, first, second, measured, count, factor: log_lambda_step(
                theta, measured, first, second, count=count, regularizer=regularizer, rate=rate
            )
        lr, eps = (
            self._column([variant.lr for variant in members]),
            self._column([variant.adam_eps for variant in members]),
        )
        beta1 = self._column([variant.adam_beta1 for variant in members])
        beta2 = self._column([variant.adam_beta2 for variant in members])
        return lambda theta, first, second, measured, count, factor: literal_lambda_step(
            theta, measured, first, second,
            count=count, regularizer=regularizer, rate=lr * factor, beta1=beta1, beta2=beta2, eps=eps,
        )  # fmt: skip

    def _scheduled_at(self, step: int) -> Tensor:
        progress = step / max(self._num_steps - 1, 1)
        return self._column([variant.schedule.at(progress) for variant in self._settings])

    def at(self, step: int) -> Tensor:
        """(V,) lambdas that the loss of `step` is weighted with."""
        if self._changes:
            self._scheduled = self._scheduled_at(step)
        if not self.any_adaptive:
            return self._scheduled
        adaptive = torch.where(
            self._literal, self.theta, torch.where(self._dual, self.theta.exp(), lambda_of_log(self.theta))
        )
        return torch.where(self._adaptive, adaptive, self._scheduled)

    def update(self, scaled_penalty: Tensor, *, step: int, lr_factors: Sequence[float]) -> None:
        """One step of the adaptive lambdas, given P (V,) of `step`, scaled as in the loss."""
        if not self.any_adaptive:
            return
        scaled_penalty = scaled_penalty.to(torch.float64)
        measured = torch.where(self._dual, scaled_penalty * self._divisors / self._pairs, scaled_penalty)
        factors = self._column(lr_factors)
        for index, lambda_step in self._adaptive_steps:
            old = (self.theta[index], self.first[index], self.second[index])
            new = lambda_step(*old, measured[index], step + 1, factors[index])
            for whole, part in zip((self.theta, self.first, self.second), new, strict=True):
                whole[index] = part

    def clear(self, index: int) -> None:
        """A variant that is trained no further: its lambda can no longer be anything but finite."""
        self.theta[index] = 1.0 if bool(self._literal[index]) else 0.0
        self.first[index] = self.second[index] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What lasts from step to step, by name."""
        return {"lambda.theta": self.theta, "lambda.first": self.first, "lambda.second": self.second}


def adaptive_kind(settings: VariantSettings) -> str | None:
    """`log`, `literal` or `dual` where lambda is adaptive; None where it is scheduled."""
    if isinstance(settings.schedule, LearnedLambda):
        return settings.schedule.parametrisation
    return "dual" if isinstance(settings.schedule, DualLambda) else None
