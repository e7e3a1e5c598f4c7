"""Where rows lie and in which order they are read: pure functions of sizes, seeds and epochs.

Rows have two orders. In sequence order, row = sequence * rows_per_sequence + position - 1 (position 0 is BOS, which is
not stored). On disk, the rows of each shard are permuted by a fixed permutation keyed by the shard's number, so that
neighbours on disk come from different sequences; a shuffle pool of consecutive chunks is then already well mixed.
"""

import numpy as np
from numpy.typing import NDArray


def keyed_permutation(num_items: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(num_items) that depends on nothing but the key, on any machine and version.

    Items are sorted by the splitmix64 hash of (key, item); equal hashes keep their order.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(0x9E3779B97F4A7C15)
        for part in key:
            state = _splitmix64(np.asarray([state ^ np.uint64(part)], dtype=np.uint64))[0]
        hashes = _splitmix64(np.arange(num_items, dtype=np.uint64) + state)
    return np.argsort(hashes, kind="stable")


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def disk_order(shard: int, num_rows: int) -> NDArray[np.int64]:
    """For each row of a shard as stored, its number in sequence order within the shard: (num_rows,)."""
    return keyed_permutation(num_rows, 1, shard)


def chunk_order(num_chunks: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch reads the chunks of all shards: (num_chunks,)."""
    return keyed_permutation(num_chunks, 2, seed, epoch)


def pool_order(num_rows: int, *, seed: int, epoch: int, pool: int) -> NDArray[np.int64]:
    """Slots of the shuffle pool for its rows as they are decoded, chunk after chunk: (num_rows,)."""
    return keyed_permutation(num_rows, 3, seed, epoch, pool)
