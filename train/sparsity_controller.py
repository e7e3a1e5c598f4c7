"""The sparsity coefficients of all variants of a group side by side, without a synchronisation per step.

Fixed ones rise over the warm-up; those with a target L0 follow what training does: see sparsity.py.

Shape suffixes: V variants, n those with a target.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.architectures import USES_L1, JumpReLU
from train.config import VariantSettings
from train.schedule import warm_up_factor
from train.sparsity import (
    BEGINS,
    LEAST_L0,
    LOOK_AHEAD,
    RATE,
    USUAL_DECAY,
    TargetL0,
    log_coefficient_step,
    reference_log_l0,
)


def sparsity_setting(settings: VariantSettings) -> float | TargetL0:
    """What the sparsity term is multiplied with: a number, or the L0 to be met; 0 for kinds that select k latents."""
    architecture = settings.architecture
    if isinstance(architecture, JumpReLU):
        return architecture.l0
    return settings.l1 if isinstance(architecture, USES_L1) else 0.0


class SparsityController:
    """The coefficient of each variant at each step; `state` is what lasts."""

    def __init__(self, settings: Sequence[VariantSettings], *, num_steps: int, device: torch.device) -> None:
        self._settings = list(settings)
        self._num_steps = num_steps
        self._device = device
        wanted = [sparsity_setting(variant) for variant in settings]
        targets = [(index, value) for index, value in enumerate(wanted) if isinstance(value, TargetL0)]
        self._fixed = [0.0 if isinstance(value, TargetL0) else value for value in wanted]
        self._fixed_now: list[float] = []
        self._fixed_V = self._column(self._fixed)
        self._index_n = torch.tensor([index for index, _ in targets], dtype=torch.int64, device=device)
        self.has_targets = bool(targets)
        """Whether any coefficient depends on L0."""
        self._target_n = self._column([value.target_l0 for _, value in targets])
        decays = [settings[index].lr_decay_fraction or USUAL_DECAY for index, _ in targets]
        self._decay_n = self._column(decays)
        late = [isinstance(settings[index].architecture, JumpReLU) for index, _ in targets]
        self._ahead_n = self._column([LOOK_AHEAD * answers_late for answers_late in late])
        self.log_coefficient = self._column([value.start for _, value in targets]).log()
        """(n,) of the variants with a target."""
        self.average = torch.zeros_like(self.log_coefficient)
        """(n,) moving average of log L0, not yet corrected for its beginning at 0."""
        self.first = torch.zeros_like(self.log_coefficient)
        """(n,) log L0 when the controller began to act."""

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self._device)

    def at(self, step: int) -> Tensor:
        """(V,) coefficients of a step, float64; written anew only where they change."""
        values = [
            value * warm_up_factor(step, num_steps=self._num_steps, fraction=variant.sparsity_warm_up_fraction)
            for value, variant in zip(self._fixed, self._settings, strict=True)
        ]
        if values != self._fixed_now:
            self._fixed_now, self._fixed_V = values, self._column(values)
        if not self.has_targets:
            return self._fixed_V
        return self._fixed_V.index_copy(0, self._index_n, self.log_coefficient.exp())

    def update(self, l0_V: Tensor, *, step: int) -> None:
        """Moves the coefficients with a target, given the L0 (V,) of the batch of `step`."""
        u, before = (step + 1) / self._num_steps, step / self._num_steps
        log_l0_n = l0_V[self._index_n].to(torch.float64).clamp_min(LEAST_L0).log()
        before_n = self.average / max(1.0 - (1.0 - RATE) ** step, RATE)
        self.average += RATE * (log_l0_n - self.average)
        corrected_n = self.average / (1.0 - (1.0 - RATE) ** (step + 1))
        if u < BEGINS:
            return
        if before < BEGINS:
            self.first.copy_(corrected_n)
        reference_n, reference_before_n = (
            reference_log_l0(at, self.first, target=self._target_n, decay=self._decay_n) for at in (u, before)
        )
        slope_n = ((corrected_n - before_n) - (reference_n - reference_before_n)) * (self._num_steps if step else 0)
        ahead_n = corrected_n + self._ahead_n * slope_n
        self.log_coefficient.copy_(
            log_coefficient_step(self.log_coefficient, ahead_n, reference_n, num_steps=self._num_steps)
        )

    def with_target(self) -> Tensor:
        """(V,) which coefficients follow L0."""
        none_V = torch.zeros(len(self._settings), dtype=torch.bool, device=self._device)
        return none_V.index_fill(0, self._index_n, True)

    def state(self) -> dict[str, Tensor]:
        """What lasts from step to step, by name."""
        return {
            "sparsity.log_coefficient": self.log_coefficient,
            "sparsity.average": self.average,
            "sparsity.first": self.first,
        }
