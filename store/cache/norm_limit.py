"""Rows above a limit that is given in medians: how many, what they hold, and the moments of the others."""

import math
from dataclasses import dataclass

import numpy as np

from store.cache.moments import Moments
from store.cache.norms import TAIL_TIMES_MEDIAN, first_edge_from, lower_edge, median_norm
from store.record import Record


class NormLimit(Record):
    """A limit of the norm, and how many training rows are above it; part of the card of what is trained within it."""

    times_median: float
    """As it was asked for."""
    median: float
    """Of the norms of all training rows, as store.cache.norms.median_norm gives it."""
    squared_norm: float
    """Rows with at least this ||x||^2 are above the limit: the first edge of a bin from (times_median * median)^2 on,
    so at most 3.1 % of the norm more than what was asked for."""
    num_rows: int
    """Training rows."""
    num_rows_above: int
    variance_share_above: float
    """What these hold of the summed squared deviation of all training rows from their mean."""

    @property
    def norm(self) -> float:
        return math.sqrt(self.squared_norm)

    @property
    def num_rows_within(self) -> int:
        return self.num_rows - self.num_rows_above

    def __str__(self) -> str:
        if not self.num_rows_above:
            return f"none of {self.num_rows:,} rows has a norm over {self.times_median:g} times the median"
        have, hold = ("has", "holds") if self.num_rows_above == 1 else ("have", "hold")
        return (
            f"{self.num_rows_above:,} of {self.num_rows:,} rows ({self.num_rows_above / self.num_rows:.2%}) {have} a "
            f"norm over {self.times_median:g} times the median ({self.median:,.4g}) and {hold} "
            f"{self.variance_share_above:.1%} of the variance"
        )


@dataclass(frozen=True)
class WithinLimit:
    """A limit, and the moments of the rows within it."""

    limit: NormLimit
    mean: list[float]
    """(d_model,)."""
    mean_squared_norm: float


def within_limit(moments: Moments, times_median: float) -> WithinLimit:
    """The limit of `times_median` times the median norm; where no row is above it, the moments are those given.

    ValueError where the cache does not record norms, where the limit is lower than it recorded sums for, or where the
    median is 0.
    """
    norms = moments.norms
    if norms is None:
        raise ValueError(
            "expected a cache that records the distribution of row norms for max_norm, got one whose producer did not "
            "count. Harvest it again, or set max_norm: null"
        )
    median = median_norm(norms.bins, norms.counts, norms.squared_norms)
    if median == 0.0:
        raise ValueError("expected a median norm above 0 for max_norm, got 0. Set max_norm: null")
    limit_bin = first_edge_from((times_median * median) ** 2)
    if limit_bin < norms.tail_from:
        least = math.sqrt(lower_edge(norms.tail_from)) / median
        raise ValueError(
            f"expected max_norm.times_median of at least {math.ceil(least * 100) / 100:g} (from {TAIL_TIMES_MEDIAN:g} "
            f"times the median of each shard on the cache keeps what rows add up to), got {times_median:g}. Raise it, "
            "or set max_norm: null"
        )
    above = [index for index, number in enumerate(norms.bins) if number >= limit_bin]
    num_above = sum(norms.counts[index] for index in above)
    mean, share = moments.mean, 0.0
    mean_squared_norm = moments.mean_squared_norm
    if num_above:
        first_tail = len(norms.bins) - len(norms.tail_sums)
        row_sum = np.sum([np.asarray(norms.tail_sums[index - first_tail]) for index in above], axis=0)
        squares = math.fsum(norms.squared_norms[index] for index in above)
        num_within = moments.num_rows - num_above
        centre = np.asarray(moments.mean)
        held = squares - 2.0 * float(row_sum @ centre) + num_above * float(centre @ centre)
        total = moments.num_rows * (moments.mean_squared_norm - float(centre @ centre))
        share = min(1.0, max(0.0, held / total)) if total > 0.0 else 0.0
        mean = ((centre * moments.num_rows - row_sum) / num_within).tolist()
        within = norms.squared_norms[: len(norms.bins) - len(above)]
        mean_squared_norm = math.fsum(within) / num_within
    limit = NormLimit(
        times_median=times_median,
        median=median,
        squared_norm=lower_edge(limit_bin),
        num_rows=moments.num_rows,
        num_rows_above=num_above,
        variance_share_above=share,
    )
    return WithinLimit(limit, mean, mean_squared_norm)
