"""Errors from the test material (sequences, tasks) that SAEs are measured on, by leaving each unit out once.

Rows of one sequence are not independent, sequences are. SAEs measured on the same units have errors in common, which
cancel in a difference: the values without each unit are kept with a result, and a difference of two metrics, or a mean
of such differences over seeds, has the difference, or the mean, of their values without each unit. Quenouille's and
Tukey's jackknife (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 11): no resampling, no seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_UNITS = 5
"""From fewer units an error is not estimated: that of two tasks would itself be uncertain by a factor."""
PREFIX = "without_one/"
"""Of the names of the arrays that hold a metric's values without each unit."""
Array = NDArray[np.float64]


def without_one(sums: Array, metrics: Callable[[Array], dict[str, Array]]) -> dict[str, Array]:
    """Every metric without each of the units, (units,); nothing where there are fewer than `LEAST_UNITS`.

    Args:
        sums: what each unit adds, (units, quantities).
        metrics: from totals (n, quantities) to metrics by name, each (n,). One that is not finite without some unit
            is left out.
    """
    if len(sums) < LEAST_UNITS:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        found = metrics(sums.sum(axis=0) - sums)
    return {name: values for name, values in found.items() if np.isfinite(values).all()}


def without_one_task(by_set: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Array]:
    """The same for metrics that are means over tasks and then over data sets.

    Args:
        by_set: by data set, by task, by metric. A data set of one task has no mean without it, so that nothing is
            given then, nor where there are fewer than `LEAST_UNITS` tasks in all.
    """
    tasks = [(number, task) for number, found in enumerate(by_set) for task in found]
    if len(tasks) < LEAST_UNITS or (len(by_set) > 1 and any(len(found) < 2 for found in by_set)):
        return {}

    def mean(metric: str, left_out: tuple[int, str]) -> float:
        means = []
        for number, found in enumerate(by_set):
            values = [scores[metric] for task, scores in found.items() if (number, task) != left_out]
            means.append(math.fsum(values) / len(values))
        return math.fsum(means) / len(means)

    first = next(iter(by_set[0].values()))
    shared = [name for name in first if all(name in scores for found in by_set for scores in found.values())]
    return {name: np.array([mean(name, task) for task in tasks]) for name in shared}


def standard_error(values: Array) -> float:
    """Standard error of whatever has these `values` (units,) without each of its units."""
    num_units = len(values)
    return float(np.sqrt((num_units - 1) / num_units * np.square(values - values.mean()).sum()))


def standard_errors(values: Mapping[str, Array]) -> dict[str, float]:
    """Standard errors of metrics, from their values without each unit."""
    return {name: standard_error(found) for name, found in values.items()}


def as_arrays(values: Mapping[str, Array]) -> dict[str, Array]:
    """The values under the names by which they are kept with a result."""
    return {PREFIX + name: found for name, found in values.items()}


def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
    """The values by metric, from the arrays of a result."""
    return {
        name.removeprefix(PREFIX): np.asarray(found, dtype=np.float64)
        for name, found in arrays.items()
        if name.startswith(PREFIX)
    }
