"""How unequal the rows of a hook are, in a few numbers and a sentence."""

import math

import numpy as np

from store.cache.moments import Moments
from store.cache.norm_limit import NormLimit, within_limit
from store.cache.norms import lower_edge, median_norm, quantile_share
from store.record import Record

TOP_SHARE = 0.01
"""Of the rows: those of largest norm, whose share of the summed squared norm is told."""
SHOWN_TIMES_MEDIAN = 5.0
"""Rows above so many times the median norm are counted, whatever training leaves out."""


class NormSummary(Record):
    """Of all training rows of one hook."""

    median: float
    """Norm of the middle row, at most 3.1 % off."""
    largest: float
    """No row has a larger norm; at most 3.1 % off."""
    squared_norm_share_of_top_rows: float
    """What the TOP_SHARE of rows with the largest norms hold of the summed squared norm (about zero, not the mean)."""
    variance_share_of_top_channel: float
    """What the channel of largest variance holds of the variance of all channels."""
    above: NormLimit | None
    """Rows above SHOWN_TIMES_MEDIAN times the median. None where they cannot be told apart: a median of 0, or shards
    whose medians differ by more than twice."""

    def __str__(self) -> str:
        times = f", {self.largest / self.median:,.3g} times that" if self.median > 0.0 else ""
        above = f"; {self.above}" if self.above is not None else ""
        return (
            f"median norm {self.median:,.4g}, largest {self.largest:,.4g}{times}; the {TOP_SHARE:.0%} of rows that are "
            f"longest hold {self.squared_norm_share_of_top_rows:.1%} of the summed squared norm, the top channel "
            f"{self.variance_share_of_top_channel:.1%} of the variance{above}"
        )


def norm_summary(moments: Moments) -> NormSummary | None:
    """The summary; None where the cache does not record norms, or has no rows."""
    norms = moments.norms
    if norms is None or not norms.bins:
        return None
    try:
        above = within_limit(moments, SHOWN_TIMES_MEDIAN).limit
    except ValueError:
        above = None
    mean, mean_square = np.asarray(moments.mean), np.asarray(moments.mean_square)
    variance = np.maximum(mean_square - mean**2, 0.0)
    total = float(variance.sum())
    return NormSummary(
        median=median_norm(norms.bins, norms.counts, norms.squared_norms),
        largest=math.sqrt(lower_edge(norms.bins[-1] + 1)),
        squared_norm_share_of_top_rows=quantile_share(norms, TOP_SHARE),
        variance_share_of_top_channel=float(variance.max()) / total if total > 0.0 else 0.0,
        above=above,
    )
