"""Bins of norms, and what is read from their counts; numbers by hand."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harvest.moments import shard_sums
from store.cache.moments import ShardSums, combine_moments
from store.cache.norms import (
    NormCounts,
    bin_of,
    combine_norms,
    first_edge_from,
    lower_edge,
    median_norm,
    quantile_share,
)


def sums_of(rows: list[list[float]]) -> ShardSums:
    bits = torch.tensor(rows, dtype=torch.bfloat16).view(torch.uint16).numpy()
    return shard_sums(bits, hook="rows", first_sequence=0, rows_per_sequence=1)


def norms_of(rows: list[list[float]]) -> NormCounts:
    norms = sums_of(rows).norms
    assert norms is not None
    return norms


def test_there_are_16_bins_between_a_squared_norm_and_twice_it_and_edges_are_exact() -> None:
    assert bin_of(2.0) - bin_of(1.0) == 16
    assert lower_edge(bin_of(1.0)) == 1.0
    assert lower_edge(bin_of(1.0) + 1) == 1.0625
    assert [bin_of(value) - bin_of(1.0) for value in (1.0624, 1.0625, 1.99)] == [0, 1, 15]
    assert bin_of(0.0) == 0


def test_a_bin_is_at_most_3_1_percent_of_the_norm_wide() -> None:
    widths = [math.sqrt(lower_edge(number + 1) / lower_edge(number)) for number in range(bin_of(1e-3), bin_of(1e6))]
    assert max(widths) == pytest.approx(math.sqrt(17 / 16))
    assert max(widths) < 1.031


def test_the_first_edge_from_an_edge_is_itself_and_from_above_it_the_next() -> None:
    assert first_edge_from(1.0625) == bin_of(1.0625)
    assert first_edge_from(1.063) == bin_of(1.0625) + 1


def test_rows_are_counted_by_bin_and_the_long_ones_summed() -> None:
    # Norms 5, 5, 5 (median) and 13, which is over twice 5: ||x||^2 = 25, 25, 25, 169.
    norms = norms_of([[3.0, 4.0], [4.0, 3.0], [-5.0, 0.0], [5.0, 12.0]])
    assert norms.bins == [bin_of(25.0), bin_of(169.0)]
    assert norms.counts == [3, 1]
    assert norms.squared_norms == [75.0, 169.0]
    assert lower_edge(norms.tail_from) == 100.0
    assert norms.tail_sums == [[5.0, 12.0]]
    assert median_norm(norms.bins, norms.counts, norms.squared_norms) == 5.0
    assert quantile_share(norms, 0.25) == pytest.approx(169 / 244)
    assert quantile_share(norms, 0.5) == pytest.approx(194 / 244)


def test_shards_add_up_and_sums_are_kept_from_the_highest_of_their_thresholds_on() -> None:
    first, second = norms_of([[3.0, 4.0]] * 3 + [[0.0, 13.0]]), norms_of([[6.0, 8.0]] * 3 + [[0.0, 26.0], [13.0, 0.0]])
    both = combine_norms([first, second])
    assert both.counts == [3, 3, 2, 1]
    assert both.squared_norms == [75.0, 300.0, 338.0, 676.0]
    # Twice the medians 5 and 10: of norm 13, the sum is known of the first shard alone, and left out.
    assert lower_edge(both.tail_from) == 400.0
    assert both.tail_sums == [[0.0, 26.0]]
    assert both.num_rows == 9


def test_the_counts_of_many_rows_are_those_of_numpy() -> None:
    values = torch.randn(4000, 24, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    values[::50] *= 9
    norms = norms_of(values.float().tolist())
    squared = values.double().square().sum(dim=1).numpy()
    numbers, counts = np.unique([bin_of(value) for value in squared], return_counts=True)
    assert norms.bins == numbers.tolist()
    assert norms.counts == counts.tolist()
    assert median_norm(norms.bins, norms.counts, norms.squared_norms) == pytest.approx(
        math.sqrt(np.median(squared)), rel=0.031
    )


def test_moments_know_norms_where_every_shard_does() -> None:
    counted = sums_of([[3.0, 4.0], [0.0, 5.0]])
    uncounted = counted.model_copy(update={"norms": None})
    norms = combine_moments([counted, counted]).norms
    assert norms is not None
    assert norms.counts == [4]
    assert combine_moments([counted, uncounted]).norms is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [3]}, "expected a count and a sum of squared norms for each bin"),
        ({"bins": [20, 10]}, "expected bins of norms that ascend, each with a row"),
        ({"counts": [3, 0]}, "expected bins of norms that ascend, each with a row"),
        ({"tail_sums": []}, "expected a sum of rows for each bin of norms from 20 on"),
    ],
)
def test_counts_that_contradict_themselves_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {"bins": [10, 20], "counts": [3, 1], "squared_norms": [1.0, 2.0], "tail_from": 20, "tail_sums": [[1.0]]}
    NormCounts.model_validate(fields)
    with pytest.raises(ValidationError, match=message):
        NormCounts.model_validate(fields | changes)


def test_norms_of_another_number_of_rows_or_channels_are_refused() -> None:
    sums = sums_of([[3.0, 4.0], [3.0, 4.0], [0.0, 13.0]])
    for changes, message in (({"num_rows": 4}, "norms of 4 rows, got those of 3"), ({"sum": [1.0]}, "1 channels")):
        with pytest.raises(ValidationError, match=message):
            ShardSums.model_validate(sums.model_dump() | changes)
