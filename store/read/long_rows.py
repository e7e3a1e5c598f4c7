"""Rows that are left out of batches because of their norm.

They are found where chunks are decoded, in the threads and while the rows are at hand, and the gaps that they leave in
the pool are closed with its last rows: its order is random, so any row may stand anywhere. Batches stay full, and stay
views of the pool; what is computed with them knows nothing of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from store.codec.bf16_planes import Numbers, Rows
from store.codec.row_norms import squared_norms


class RowsWithin(NamedTuple):
    """Only rows of a smaller squared norm are handed out."""

    squared_norm: float
    """||x||^2 as store.codec.row_norms defines it; rows that have as much are left out."""
    num_rows: int
    """Rows of the split that are handed out, as the manifest counts them."""


def slots_above(pool: Rows, slots: Numbers, squared_norm: float) -> Numbers:
    """Those of the `slots` of a pool (n, d) whose rows have at least this squared norm."""
    return slots[squared_norms(pool, slots) >= squared_norm]


def close_gaps(pools: Sequence[Rows], above: Numbers, num_rows: int) -> int:
    """Overwrites the rows `above` of the first `num_rows` with the last ones, in all pools; how many are left."""
    num_left = num_rows - len(above)
    gaps = np.sort(above[above < num_left])
    moved = np.setdiff1d(np.arange(num_left, num_rows), above)
    for pool in pools:
        pool[gaps] = pool[moved]
    return num_left
