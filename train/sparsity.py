"""A sparsity coefficient that is not given but found: the one with which an SAE ends at a wanted L0.

At step t of T, with u = (t + 1) / T and Lbar the moving average (rate 0.1) of the log of the batch's L0,

    log l1 <- log l1 + (GAIN / T) * clip(Lbar - log ref(u), -1, 1)     from u = BEGINS on
    ref(u)  = target * (1 + OVER * min(1, (1 - u) / decay)) * (L0 at u = BEGINS / target)^max(0, 1 - u / ANNEAL)

with `decay` the share of the run over which the learning rate falls. ref comes down from where L0 begins: an SAE that
is too sparse early, and is let go again, explains less, and one that becomes sparse slowly does not. L0 still falls a
little while the learning rate decays, hence OVER.

jumprelu's L0 answers late: its thresholds move by about the learning rate in a step, whatever the coefficient, and L0
would fall far below the target before they come to rest. There Lbar - log ref is taken as it would be LOOK_AHEAD of the
run later, at its present slope: Lbar - log ref + LOOK_AHEAD * d(Lbar - log ref)/du.

Torch is not imported here: settings are read without waiting for it.
"""

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Discriminator, Tag

from store.record import Record
from train.checks import NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor

GAIN = 18.0
ANNEAL = 0.5
OVER = 0.04
BEGINS = 0.02
RATE = 0.1
"""Of the moving average."""
RANGE = (1.0e-3, 100.0)
"""A coefficient stays within it, so that a target out of reach cannot overflow it."""
FEWEST_STEPS = 600
"""In shorter runs L0 oscillates around the target."""
LEAST_L0 = 1.0e-2
"""An L0 of 0 counts as this: its logarithm has to be finite."""
LOOK_AHEAD = 0.15
"""Of the run, for jumprelu."""
USUAL_DECAY = 0.2
"""Taken for `decay` in runs whose learning rate does not fall."""


class TargetL0(Record):
    """In place of a coefficient: the L0 that the SAE shall have at the end of training."""

    target_l0: Positive
    """Latents above zero per training row. On held-out rows it is a little lower."""
    start: Positive = 0.3
    """Coefficient before the first step: best about a fifth of where it ends, and never above."""


def _form(value: object) -> str:
    return "target" if isinstance(value, (dict, TargetL0)) else "number"


FORMS = ("number", "target")
"""What pydantic calls the two forms of a coefficient where it says what is wrong with one."""
Coefficient = Annotated[
    Annotated[NotNegative, Tag("number")] | Annotated[TargetL0, Tag("target")], Discriminator(_form)
]
"""A sparsity coefficient: given, or found."""


def reference_log_l0(u: float, first: "Tensor", *, target: "Tensor", decay: "Tensor") -> "Tensor":
    """log ref(u), (n,), of n variants whose log L0 was `first` (n,) at u = BEGINS; see the top."""
    over = (OVER * ((1.0 - u) / decay).clamp(max=1.0)).log1p()
    return target.log() + over + max(0.0, 1.0 - u / ANNEAL) * (first - target.log())


def log_coefficient_step(log_l1: "Tensor", average: "Tensor", reference: "Tensor", *, num_steps: int) -> "Tensor":
    """The new log l1, (n,), of the moving average of log L0 (n,) and log ref (n,)."""
    low, high = (math.log(bound) for bound in RANGE)
    return (log_l1 + (GAIN / num_steps) * (average - reference).clamp(-1.0, 1.0)).clamp(low, high)
