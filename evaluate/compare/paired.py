"""A treatment's difference from another on the same seeds and the same test material, and how uncertain it is.

Variants of one seed start from the same weights and see the same batches: the difference at each seed is taken, and the
mean over seeds. Two things are uncertain about it.

* Other seeds would give other differences. The variance of the mean is that of the differences over their number.
* Other text would too, and all seeds share the text, so that their spread does not show it. The variance comes from
  leaving each unit of the test material (sequence, task) out of the mean difference; see evaluate/jackknife.py.

Their sum is the variance of the mean difference, a little too large: what text and seed do together is in both. A
t interval with one degree of freedom less than seeds follows. Satterthwaite's degrees of freedom are not used: with
three seeds, and the error of the text a third of that of the seeds, they would call 2.7 % of no differences one at a
level of 0.625 % (simulated); those here call at most as many as the level says. With one seed only the text is known:
what is found holds for that pair of SAEs, and not for the treatments. Where SAEs are measured on things of their own
(latents chosen from each), the sampling error is independent, and part of the spread over seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluate.jackknife import standard_error

LEVEL = 0.05
"""Share of families of no differences in which one is called all the same."""
Key = TypeVar("Key")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A mean paired difference."""

    value: float
    num_seeds: int
    standard_error: float | None
    """None where nothing is known: one seed and no error of the text."""
    degrees_of_freedom: float
    """Of the t distribution; 0 where nothing is known, infinite where the error's own is not."""
    knows_text: bool
    """Whether the error of the text is part of it."""

    @property
    def p_value(self) -> float | None:
        """Of no difference, two-sided. None where nothing is known, or where every seed differs by just as much, which
        a count can do by chance."""
        if self.standard_error is None:
            return None
        if self.standard_error <= 1e-12 * abs(self.value):
            return 1.0 if self.value == 0.0 else None
        return float(2.0 * stats.t.sf(abs(self.value) / self.standard_error, self.degrees_of_freedom))

    def half_width(self, level: float = LEVEL) -> float | None:
        """Of the interval around the value that holds the true difference in 1 - `level` of cases."""
        if self.standard_error is None:
            return None
        return self.standard_error * critical_t(self.degrees_of_freedom, level)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """That interval."""
        half = self.half_width(level)
        return None if half is None else (self.value - half, self.value + half)


def critical_t(degrees_of_freedom: float, level: float = LEVEL) -> float:
    """How many standard errors the two-sided interval reaches."""
    return float(stats.t.isf(level / 2.0, degrees_of_freedom))


def paired_difference(
    values: Sequence[tuple[float, float]],
    *,
    without_one: Sequence[tuple[Array, Array]] | None = None,
    own_errors: Sequence[tuple[float, float]] | None = None,
) -> Difference:
    """The mean of first minus second over pairs, one pair for each seed.

    Args:
        values: (first, second) of a metric at each seed.
        without_one: the same without each unit of the test material that all share, (units,) each.
        own_errors: where there is no such thing, the standard errors of both, as independent; they count with a single
            seed alone, being part of the spread over several.
    """
    differences = [first - second for first, second in values]
    num_seeds = len(differences)
    variance = 0.0
    known = num_seeds > 1
    if num_seeds > 1:
        variance += statistics.variance(differences) / num_seeds
    num_units = 0
    if without_one is not None:
        mean = np.mean([first - second for first, second in without_one], axis=0)
        variance += standard_error(mean) ** 2
        known, num_units = True, len(mean)
    elif own_errors is not None and num_seeds == 1:
        variance += math.fsum(error**2 for error in own_errors[0])
        known = True
    freedom = num_seeds - 1 or (num_units - 1 if num_units else math.inf)
    return Difference(
        value=math.fsum(differences) / num_seeds,
        num_seeds=num_seeds,
        standard_error=math.sqrt(variance) if known else None,
        degrees_of_freedom=freedom if known else 0.0,
        knows_text=without_one is not None or (own_errors is not None and num_seeds == 1),
    )


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for their number (Holm 1979): below a level in at most that share of families of nothing."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    corrected, largest = {}, 0.0
    for index, (key, value) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - index) * value))
        corrected[key] = largest
    return {key: corrected[key] for key in p_values}
