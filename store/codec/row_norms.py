"""Squared norms of stored rows: one definition, so that all who count rows by norm count the same ones.

||x||^2 is a float64 sum of exact squares, the upper half of the channels added to the lower one until one number is
left: the same bits on every machine and at any number of threads, and adds that a processor does many at a time.
"""

import numpy as np
from numpy.typing import NDArray

from store.codec.compiled import compiled


@compiled
def fold(squares: NDArray[np.float64]) -> float:
    """The sum of the numbers (d,), which are overwritten."""
    count = len(squares)
    while count > 1:
        half = (count + 1) // 2
        for channel in range(count - half):
            squares[channel] += squares[half + channel]
        count = half
    return squares[0]


@compiled
def squared_norms(rows: NDArray[np.uint16], numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """||x||^2, (m,), of the rows (n, d), bit patterns of bfloat16, that have these numbers (m,)."""
    d_model = rows.shape[1]
    norms = np.empty(len(numbers), dtype=np.float64)
    bits = np.empty(d_model, dtype=np.uint32)
    values = bits.view(np.float32)  # a bfloat16 is the upper half of a float32
    squares = np.empty(d_model, dtype=np.float64)
    for index in range(len(numbers)):
        row = numbers[index]
        for channel in range(d_model):
            bits[channel] = np.uint32(rows[row, channel]) << np.uint32(16)
        for channel in range(d_model):
            value = np.float64(values[channel])
            squares[channel] = value * value
        norms[index] = fold(squares)
    return norms
