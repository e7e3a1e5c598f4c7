"""Rows above a limit in medians, and the moments of the others; numbers by hand."""

import pytest
import torch

from harvest.moments import shard_sums
from store.cache.moments import Moments, combine_moments
from store.cache.norm_limit import within_limit
from store.cache.norm_summary import norm_summary


def moments_of(rows: list[list[float]]) -> Moments:
    bits = torch.tensor(rows, dtype=torch.bfloat16).view(torch.uint16).numpy()
    return combine_moments([shard_sums(bits, hook="rows", first_sequence=0, rows_per_sequence=1)])


EIGHT = [[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [7.0, 0.0]]


def test_one_row_at_seven_times_the_median_is_above_and_leaves_the_moments_of_the_others() -> None:
    within = within_limit(moments_of(EIGHT), 5.0)
    limit = within.limit
    assert (limit.median, limit.num_rows, limit.num_rows_above, limit.num_rows_within) == (1.0, 8, 1, 7)
    # (5 * 1)^2 = 25 is an edge of a bin: 16 * (1 + 9 / 16).
    assert (limit.squared_norm, limit.norm) == (25.0, 5.0)
    assert within.mean == [1 / 7, 0.0]
    assert within.mean_squared_norm == 1.0
    # The mean of all is (1, 0): 36 of 0+... (1+1)*4 + 0*2 + 4*1 + 36 = 48.
    assert limit.variance_share_above == pytest.approx(36 / 48)
    assert str(limit) == ("1 of 8 rows (12.50%) has a norm over 5 times the median (1) and holds 75.0% of the variance")


def test_a_limit_between_edges_is_the_next_edge() -> None:
    # 5.1^2 = 26.01, and bins from 16 to 32 are 1 wide.
    assert within_limit(moments_of(EIGHT), 5.1).limit.squared_norm == 27.0


def test_where_no_row_is_above_the_moments_are_the_very_ones() -> None:
    moments = moments_of(EIGHT)
    within = within_limit(moments, 8.0)
    assert within.limit.num_rows_above == 0
    assert within.mean is moments.mean
    assert within.mean_squared_norm == moments.mean_squared_norm
    assert str(within.limit) == "none of 8 rows has a norm over 8 times the median"


def test_a_limit_that_cannot_be_had_is_refused_with_the_least_that_can() -> None:
    moments = moments_of(EIGHT)
    with pytest.raises(ValueError, match=r"expected max_norm.times_median of at least 2 .*, got 1.5. Raise it"):
        within_limit(moments, 1.5)
    with pytest.raises(ValueError, match="expected a cache that records the distribution of row norms"):
        within_limit(moments.model_copy(update={"norms": None}), 5.0)
    with pytest.raises(ValueError, match="expected a median norm above 0"):
        within_limit(moments_of([[0.0], [0.0], [1.0]]), 5.0)


def test_the_summary_of_eight_rows() -> None:
    summary = norm_summary(moments_of(EIGHT))
    assert summary is not None
    assert summary.median == 1.0
    assert summary.largest == pytest.approx(50**0.5)  # the upper edge of the bin that 49 is in
    assert summary.squared_norm_share_of_top_rows == pytest.approx(0.08 * 49 / 56)  # 1 % of 8 rows
    assert summary.variance_share_of_top_channel == pytest.approx((52 / 8 - 1) / (56 / 8 - 1))
    assert summary.above is not None
    assert summary.above.num_rows_above == 1
    assert str(summary).startswith("median norm 1, largest 7.071, 7.07 times that; the 1% of rows that are longest")
    assert norm_summary(moments_of(EIGHT).model_copy(update={"norms": None})) is None
