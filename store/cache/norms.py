"""The distribution of the norms of rows: exact counts in logarithmic bins, and what rows above a limit add up to.

A bin is what the upper 16 bits of ||x||^2, as float64, say: `BINS_PER_OCTAVE` bins per factor of 2 of the squared norm,
at most 3.1 % of the norm wide, with edges that are float64 numbers. A limit is an edge of a bin, so that the rows above
it are counted exactly.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import model_validator

from store.identity import Count
from store.record import Record

BINS_PER_OCTAVE = 16
"""Of ||x||^2."""
BIN_SHIFT = 52 - 4
"""Bits of a float64 below its bin: all of the mantissa but log2(BINS_PER_OCTAVE)."""
NUM_BINS = 2 ** (63 - BIN_SHIFT)
"""More than any row's bin: squared norms are not negative."""
TAIL_TIMES_MEDIAN = 2.0
"""The sums of rows are kept by bin from so many times the median of a shard on: no limit may be below."""


class NormCounts(Record):
    """Rows of one hook by the bin of their norm."""

    bins: list[Count]
    """Those with a row, ascending."""
    counts: list[Count]
    """Rows in each of them, (bins,)."""
    squared_norms: list[float]
    """Sum of ||x||^2 in each of them, (bins,)."""
    tail_from: Count
    """From this bin on `tail_sums` are kept: that of TAIL_TIMES_MEDIAN times the median of a shard, of the largest."""
    tail_sums: list[list[float]]
    """Per bin of `bins` from `tail_from` on, the sum of its rows, (tail bins, d_model)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.bins) == len(self.counts) == len(self.squared_norms):
            raise ValueError("expected a count and a sum of squared norms for each bin of norms")
        if any(low >= high for low, high in itertools.pairwise(self.bins)) or min(self.counts, default=1) < 1:
            raise ValueError("expected bins of norms that ascend, each with a row")
        if len(self.tail_sums) != sum(number >= self.tail_from for number in self.bins):
            raise ValueError(f"expected a sum of rows for each bin of norms from {self.tail_from} on")
        return self

    @property
    def num_rows(self) -> int:
        return sum(self.counts)


def bin_of(squared_norm: float) -> int:
    """The bin of a row."""
    bits: int = struct.unpack("<q", struct.pack("<d", squared_norm))[0]
    return bits >> BIN_SHIFT


def lower_edge(number: int) -> float:
    """The least ||x||^2 in a bin."""
    edge: float = struct.unpack("<d", struct.pack("<q", number << BIN_SHIFT))[0]
    return edge


def first_edge_from(squared_norm: float) -> int:
    """The first bin whose rows all have at least this squared norm."""
    number = bin_of(squared_norm)
    return number if lower_edge(number) == squared_norm else number + 1


def median_norm(bins: Sequence[int], counts: Sequence[int], squared_norms: Sequence[float]) -> float:
    """Root mean square of the norms in the bin of the middle row (the lower one of two): at most 3.1 % off."""
    middle, seen = (sum(counts) - 1) // 2, 0
    for index, count in enumerate(counts):
        seen += count
        if seen > middle:
            return math.sqrt(squared_norms[index] / count)
    raise ValueError(f"expected rows to take the median norm of, got none in {len(bins)} bins")


def quantile_share(norms: NormCounts, top: float) -> float:
    """What the `top` share of rows, those of largest norm, hold of the summed squared norm.

    Of the last bin that they reach into, they are taken to hold as much as others of it: at most 3.1 % of the norm off.
    """
    total, left, held = math.fsum(norms.squared_norms), top * norms.num_rows, 0.0
    for count, squares in zip(reversed(norms.counts), reversed(norms.squared_norms), strict=True):
        part = min(1.0, left / count)
        held += part * squares
        left -= part * count
        if left <= 0.0:
            break
    return held / total if total > 0.0 else 0.0


def combine_norms(shards: Sequence[NormCounts]) -> NormCounts:
    """Adds the counts of all shards, and their sums in the order of shards."""
    bins = sorted({number for shard in shards for number in shard.bins})
    place = {number: index for index, number in enumerate(bins)}
    counts = [0] * len(bins)
    squares: list[list[float]] = [[] for _ in bins]
    tail_from = max(shard.tail_from for shard in shards)
    tail: dict[int, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for shard in shards:
        for number, count, squared in zip(shard.bins, shard.counts, shard.squared_norms, strict=True):
            counts[place[number]] += count
            squares[place[number]].append(squared)
        own = [number for number in shard.bins if number >= shard.tail_from]
        for number, row_sum in zip(own, shard.tail_sums, strict=True):
            if number >= tail_from:
                tail[number] = tail[number] + np.asarray(row_sum) if number in tail else np.asarray(row_sum)
    return NormCounts(
        bins=bins,
        counts=counts,
        squared_norms=[math.fsum(parts) for parts in squares],
        tail_from=tail_from,
        tail_sums=[tail[number].tolist() for number in bins if number >= tail_from],
    )
