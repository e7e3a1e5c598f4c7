"""Sums over the rows of a shard, and the moments of all training rows that they add up to."""

import math
from typing import Self

from pydantic import model_validator

from store.cache.norms import NormCounts, combine_norms
from store.identity import Count
from store.record import Record


class ShardSums(Record):
    """Exact float64 sums over the stored (bfloat16) rows of one hook in one shard."""

    num_rows: Count
    sum: list[float]
    """Per channel, (d_model,)."""
    sum_of_squares: list[float]
    """Per channel, (d_model,)."""
    norms: NormCounts | None = None
    """How long the rows are; None where the producer of the rows did not count."""

    @model_validator(mode="after")
    def check_norms(self) -> Self:
        _check_norms(self.norms, num_rows=self.num_rows, d_model=len(self.sum))
        return self


class Moments(Record):
    """Moments of one hook over all stored rows, combined in shard order."""

    num_rows: Count
    mean: list[float]
    """Per channel, (d_model,)."""
    mean_square: list[float]
    """Per channel, (d_model,)."""
    mean_squared_norm: float
    """E||x||^2, the sum of `mean_square`."""
    norms: NormCounts | None = None
    """How long the rows are; None where a shard does not say so."""

    @model_validator(mode="after")
    def check_sum(self) -> Self:
        if min(self.mean_square, default=0.0) < 0 or self.mean_squared_norm != math.fsum(self.mean_square):
            raise ValueError(f"expected mean_squared_norm to be the sum of mean_square, got {self.mean_squared_norm}")
        _check_norms(self.norms, num_rows=self.num_rows, d_model=len(self.mean))
        return self


def _check_norms(norms: NormCounts | None, *, num_rows: int, d_model: int) -> None:
    if norms is None:
        return
    if norms.num_rows != num_rows:
        raise ValueError(f"expected the norms of {num_rows} rows, got those of {norms.num_rows}")
    if any(len(row_sum) != d_model for row_sum in norms.tail_sums):
        raise ValueError(f"expected sums of long rows with {d_model} channels")


def combine_moments(shards: list[ShardSums]) -> Moments:
    """Adds the sums of all shards (correctly rounded, so that the order of addition cannot matter)."""
    num_rows = sum(shard.num_rows for shard in shards)
    mean = [math.fsum(channel) / num_rows for channel in zip(*(s.sum for s in shards), strict=True)]
    square = [math.fsum(channel) / num_rows for channel in zip(*(s.sum_of_squares for s in shards), strict=True)]
    norms = [shard.norms for shard in shards if shard.norms is not None]
    return Moments(
        num_rows=num_rows,
        mean=mean,
        mean_square=square,
        mean_squared_norm=math.fsum(square),
        norms=combine_norms(norms) if len(norms) == len(shards) else None,
    )
