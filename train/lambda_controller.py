"""The lambda controllers of all variants of a group side by side, without a synchronisation per step.

The formulas stand in lambdas.py and task_lambdas.py; here is which variants use which, and what they keep. A lambda is
adaptive where it depends on what training does, and scheduled where it depends on the step alone.

Shape suffixes: V variants, n those of one kind.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from train.config import VariantSettings
from train.lambdas import (
    NO_PENALTY,
    TASK_LAMBDAS,
    DualLambda,
    FixedLambda,
    GradNormLambda,
    LearnedLambda,
    default_lambda_lr,
    dual_lambda_step,
    lambda_of_log,
    literal_lambda_step,
    log_lambda_step,
)
from train.penalty_term import penalty_divisor
from train.task_gradients import Measured
from train.task_lambdas import gradnorm_step, hypergradient_step, uncertainty_step

LambdaStep = Callable[[Tensor, Tensor, Tensor, Measured, int, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(theta, first, second, measured, count, lr_factor), each (n,), to the new theta, first and second."""
ADAPTIVE_KINDS = ("log", "literal", "dual", "hypergradient", "gradnorm", "uncertainty")


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
            for kind in ADAPTIVE_KINDS
            if kind in kinds
        ]
        self._with_floor = self._where([kind == "log" for kind in kinds])
        self.hypergradient = self._where([kind == "hypergradient" for kind in kinds])
        """(V,) which lambdas are led by the derivative of the next loss."""
        self.needs_losses = any(kind in ("gradnorm", "uncertainty") for kind in kinds)
        """Whether any lambda looks at the loss itself in each step."""
        self._changes = any(
            kind is None and not isinstance(s.schedule, FixedLambda) for s, kind in zip(settings, kinds, strict=True)
        )
        self._scheduled = self._scheduled_at(0)
        self.theta = torch.where(self._literal, self._scheduled, self._scheduled.clamp_min(1.0e-6).log())
        """(V,) log lambda, or lambda where literal, of adaptive lambdas; not used where lambda is scheduled."""
        self.first = torch.zeros_like(self.theta)
        self.second = torch.zeros_like(self.theta)
        """(V,) what a kind keeps beside theta: moments; for gradnorm the first L and P; for uncertainty log v_L."""
        self.total = torch.zeros_like(self.theta)
        """(V,) sum of the lambdas of all steps."""

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
            pairs = self._column([penalty_divisor(v) / (v.d_sae * (v.d_sae - 1.0)) for v in members])
            return lambda theta, first, second, measured, count, factor: (
                dual_lambda_step(theta, measured.scaled_penalty * pairs, target=target, rate=eta), first, second
            )  # fmt: skip
        if kind != "literal":
            default = default_lambda_lr(self._num_steps)
            rate = self._column([default if variant.lambda_lr is None else variant.lambda_lr for variant in members])
            if kind != "log":
                return self._task_step(kind, members, rate)
            return lambda theta, first, second, measured, count, factor: log_lambda_step(
                theta, measured.scaled_penalty, first, second, count=count, regularizer=regularizer, rate=rate
            )
        lr, eps = (
            self._column([variant.lr for variant in members]),
            self._column([variant.adam_eps for variant in members]),
        )
        beta1 = self._column([variant.adam_beta1 for variant in members])
        beta2 = self._column([variant.adam_beta2 for variant in members])
        return lambda theta, first, second, measured, count, factor: literal_lambda_step(
            theta, measured.scaled_penalty, first, second,
            count=count, regularizer=regularizer, rate=lr * factor, beta1=beta1, beta2=beta2, eps=eps,
        )  # fmt: skip

    def _task_step(self, kind: str, members: Sequence[VariantSettings], rate: Tensor) -> LambdaStep:
        """The step of a kind of task_lambdas.py."""
        if kind == "hypergradient":  # in the first step there is no step before it, and no cosine
            return lambda theta, first, second, measured, count, factor: hypergradient_step(
                theta, measured.cosine, (measured.task_norm, measured.penalty_norm), first, second,
                count=max(count - 1, 1), rate=rate,
            )  # fmt: skip
        if kind == "uncertainty":

            def uncertainty(
                s: Tensor, first: Tensor, second: Tensor, measured: Measured, count: int, factor: Tensor
            ) -> tuple[Tensor, Tensor, Tensor]:
                del factor
                losses = (measured.task_loss, measured.scaled_penalty)
                log_variance = losses[0].log() if count == 1 else first
                s, log_variance = uncertainty_step(s, losses, log_variance, rate=rate)
                return s, log_variance, second

            return uncertainty
        kinds = [variant.schedule for variant in members if isinstance(variant.schedule, GradNormLambda)]
        asymmetry = self._column([schedule.asymmetry for schedule in kinds])

        def gradnorm(
            s: Tensor, first: Tensor, second: Tensor, measured: Measured, count: int, factor: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            losses = (measured.task_loss, measured.scaled_penalty)
            begins = losses if count == 1 else (first, second)
            norms = (measured.task_norm, measured.penalty_norm)
            return gradnorm_step(s, losses, norms, begins, asymmetry=asymmetry, rate=rate * factor), *begins

        return gradnorm

    def _scheduled_at(self, step: int) -> Tensor:
        progress = step / max(self._num_steps - 1, 1)
        return self._column([variant.schedule.at(progress) for variant in self._settings])

    def at(self, step: int) -> Tensor:
        """(V,) lambdas that the loss of `step` is weighted with."""
        if self._changes:
            self._scheduled = self._scheduled_at(step)
        if not self.any_adaptive:
            return self._scheduled
        exponential = torch.where(self._with_floor, lambda_of_log(self.theta), self.theta.exp())
        adaptive = torch.where(self._literal, self.theta, exponential)
        return torch.where(self._adaptive, adaptive, self._scheduled)

    def update(self, measured: Measured, *, lambda_V: Tensor, step: int, lr_factors: Sequence[float]) -> None:
        """One step of the adaptive lambdas, given what `step` came to with lambdas `lambda_V`."""
        if not self.any_adaptive:
            return
        self.total += lambda_V
        factors = self._column(lr_factors)
        for index, lambda_step in self._adaptive_steps:
            old = (self.theta[index], self.first[index], self.second[index])
            own = Measured(*(values[index].to(torch.float64) for values in measured))
            new = lambda_step(*old, own, step + 1, factors[index])
            for whole, part in zip((self.theta, self.first, self.second), new, strict=True):
                whole[index] = part

    def clear(self, index: int) -> None:
        """A variant that is trained no further: its lambda can no longer be anything but finite."""
        self.theta[index] = 1.0 if bool(self._literal[index]) else 0.0
        self.first[index] = self.second[index] = self.total[index] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What lasts from step to step, by name."""
        return {
            "lambda.theta": self.theta,
            "lambda.first": self.first,
            "lambda.second": self.second,
            "lambda.total": self.total,
        }


def adaptive_kind(settings: VariantSettings) -> str | None:
    """One of ADAPTIVE_KINDS where lambda is adaptive; None where it is scheduled."""
    schedule = settings.schedule
    if isinstance(schedule, LearnedLambda):
        return schedule.parametrisation
    return schedule.kind if isinstance(schedule, (DualLambda, *TASK_LAMBDAS)) else None
