"""Sampling errors by bootstrap over sequences: rows of one sequence are not independent, sequences are.

Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 6.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
Array = NDArray[np.float64]


def standard_errors(sums: Array, metrics: Callable[[Array], dict[str, Array]], *, seed: int = 0) -> dict[str, float]:
    """Standard deviation of metrics over resamples of the sequences. Of a single sequence nothing is known: no errors.

    Args:
        sums: what each sequence adds, (sequences, quantities).
        metrics: from totals (resamples, quantities) to metrics by name, each (resamples,).
        seed: of the resampling.
    """
    num_sequences = len(sums)
    if num_sequences < 2:
        return {}
    counts = np.random.default_rng(seed).multinomial(
        num_sequences, np.full(num_sequences, 1 / num_sequences), NUM_RESAMPLES
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = metrics(counts.astype(np.float64) @ sums)
        errors = {name: float(np.std(values, ddof=1)) for name, values in found.items()}
    return {name: error for name, error in errors.items() if np.isfinite(error)}
