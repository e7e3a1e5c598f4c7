"""The penalties of the variants that are trained together: their gradients, and what they came to.

Shape suffixes: V variants, D d_model, F latents. The formulas are in penalties.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.config import VariantSettings
from train.lambdas import NO_PENALTY
from train.task_gradients import led_by_gradients

_NUMBERS_AT_ONCE = 2**22


class PenaltyTerm:
    """lambda P of every variant, each with its own kind of penalty; nothing for those whose lambda is always 0."""

    def __init__(
        self,
        settings: Sequence[VariantSettings],
        *,
        d_model: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype`: of the decoders."""
        self._settings = list(settings)
        self._unit = settings[0].decoder_norm == "unit"
        self._slices = penalty_slices(settings, numbers_per_variant=min(settings[0].d_sae, d_model) ** 2)
        divisors = [penalty_divisor(variant) for variant in settings]
        self.divisors_V = torch.tensor(divisors, dtype=torch.float64, device=device)
        """What P is divided by in the loss."""
        self.scaled_V = torch.zeros(len(settings), dtype=torch.float64, device=device)
        """P as last computed, divided; 0 where there is no penalty."""
        self._led = [index for index, variant in enumerate(settings) if led_by_gradients(variant)]
        self.own_nFD = torch.zeros(len(self._led), settings[0].d_sae, d_model, dtype=dtype, device=device)
        """dP/dW_dec, divided, by itself, for the n variants that need it (task_gradients.py); 0 in steps without P."""

    def add_gradients_(self, W_dec_VFD: Tensor, gradient_VFD: Tensor, *, lambda_V: Tensor, step: int) -> None:
        """Adds lambda dP/dW_dec of step `step` to the gradients in place, and keeps P in `scaled_V`."""
        weight_V = lambda_V / self.divisors_V
        self.own_nFD.zero_()
        for members in self._slices:
            penalty = self._settings[members.start].penalty
            factor = penalty.factor(step)
            if factor == 0.0:
                continue
            own_nFD = self._own_of(members)
            penalty_V = penalty.add_gradients_(
                W_dec_VFD[members],
                gradient_VFD[members] if own_nFD is None else own_nFD,
                weight_V=(weight_V if own_nFD is None else 1.0 / self.divisors_V)[members] * factor,
                unit=self._unit,
                seeds=[variant.seed for variant in self._settings[members]],
                step=step,
            )
            if own_nFD is not None:
                gradient_VFD[members].addcmul_(own_nFD, lambda_V[members].to(own_nFD.dtype)[:, None, None])
            self.scaled_V[members] = penalty_V.to(torch.float64) / self.divisors_V[members]

    def _own_of(self, members: slice) -> Tensor | None:
        """Where the members' own gradients go; None where nobody asks for them."""
        if members.start not in self._led:
            return None
        first = self._led.index(members.start)
        return self.own_nFD[first : first + members.stop - members.start]


def penalty_divisor(settings: VariantSettings) -> float:
    """What P is divided by in the loss: 1 for `sum`, d_sae for `per_latent`."""
    return 1.0 if settings.penalty_scale == "sum" else float(settings.d_sae)


def penalty_slices(settings: Sequence[VariantSettings], *, numbers_per_variant: int) -> list[slice]:
    """Neighbouring variants with the same penalty, to be computed at once: few calls where decoders are small.

    `numbers_per_variant`: of the largest product of one variant; `_NUMBERS_AT_ONCE` may exist at once.
    """
    most = max(1, _NUMBERS_AT_ONCE // numbers_per_variant)
    slices: list[slice] = []
    for index, variant in enumerate(settings):
        if variant.schedule == NO_PENALTY:
            continue
        last = slices[-1] if slices else slice(0, 0)
        fits = last.stop == index > last.start and index - last.start < most
        alike = fits and led_by_gradients(settings[last.start]) == led_by_gradients(variant)
        if alike and settings[last.start].penalty == variant.penalty:
            slices[-1] = slice(last.start, index + 1)
        else:
            slices.append(slice(index, index + 1))
    return slices
