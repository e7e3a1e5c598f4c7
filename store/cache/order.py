"""Where rows lie and in which order they are read: pure functions of sizes, seeds and epochs.

Rows have two orders. In sequence order, row = sequence * rows_per_sequence + position - num_excluded_positions (the
first positions, BOS as a rule, are not stored). On disk, the rows of each shard are permuted by a fixed permutation
keyed by the shard's number, so that neighbours on disk come from different sequences; a shuffle pool of consecutive
chunks is then already well mixed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from store.cache.split import SPLITS, Split
from store.codec.bf16_planes import Numbers
from store.codec.compiled import compiled


@compiled
def _splitmix64(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _shuffle(state: np.uint64, items: Numbers) -> None:
    for last in range(len(items) - 1, 0, -1):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        random = _splitmix64(state) >> np.uint64(32)
        other = np.int64((random * np.uint64(last + 1)) >> np.uint64(32))
        items[last], items[other] = items[other], items[last]


def keyed_permutation(num_items: int, *key: int) -> Numbers:
    """A permutation of range(num_items), at most 2^31, that depends on nothing but the key, on any machine.

    A Fisher-Yates shuffle with random numbers of splitmix64 that starts from a hash of the key. The numbers are of 32
    bits, so that one of n places is chosen with a probability off by at most n / 2^32 of itself.
    """
    if not 0 <= num_items <= 2**31:
        raise ValueError(f"expected 0 to 2^31 items to permute, got {num_items}")
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = int(_splitmix64(np.uint64((state ^ part) & (2**64 - 1))))
    items = np.arange(num_items, dtype=np.int64)
    _shuffle(np.uint64(state), items)
    return items


def disk_order(shard: int, num_rows: int, *, split: Split = "training") -> Numbers:
    """For each row of a shard as stored, its number in sequence order within the shard: (num_rows,)."""
    return keyed_permutation(num_rows, 1, SPLITS.index(split), shard)


def inverse(permutation: Numbers) -> Numbers:
    """The permutation that undoes `permutation`."""
    undone = np.empty_like(permutation)
    undone[permutation] = np.arange(len(permutation))
    return undone


@dataclass(frozen=True)
class EpochPlan:
    """The order in which one epoch reads a split: which chunks fill which pool, and to which slots their rows go.

    A pure function of its fields. Chunks are numbered through all shards; only the last one can be partial. All ranks
    agree on one order of all chunks; rank r takes every num_ranks-th of them from the r-th on, so that ranks never
    share a row.
    """

    num_rows: int
    """Rows of the split."""
    rows_per_chunk: int
    chunks_per_pool: int
    seed: int
    epoch: int
    rank: int = 0
    num_ranks: int = 1

    @property
    def num_chunks(self) -> int:
        """Chunks of the split."""
        return -(-self.num_rows // self.rows_per_chunk)

    def chunk_rows(self, chunk: int) -> int:
        """Rows of a chunk."""
        return min(self.rows_per_chunk, self.num_rows - chunk * self.rows_per_chunk)

    def chunks(self) -> Numbers:
        """This rank's chunks in the order in which they are read."""
        return keyed_permutation(self.num_chunks, 2, self.seed, self.epoch)[self.rank :: self.num_ranks]

    def pools(self) -> list[Numbers]:
        """This rank's chunks, pool by pool."""
        chunks = self.chunks()
        return [chunks[at : at + self.chunks_per_pool] for at in range(0, len(chunks), self.chunks_per_pool)]

    def slots(self, pool: int, chunks: Numbers) -> Iterator[tuple[int, Numbers]]:
        """For each of the chunks of a pool, its number and the slots of the pool that its rows go to."""
        num_rows = [self.chunk_rows(int(chunk)) for chunk in chunks]
        order = keyed_permutation(sum(num_rows), 3, self.seed, self.epoch, self.rank, pool)
        begin = 0
        for chunk, count in zip(chunks, num_rows, strict=True):
            yield int(chunk), order[begin : begin + count]
            begin += count

    def batches_per_epoch(self, batch_rows: int) -> int:
        """Whole batches of an epoch, the same for every rank and epoch: those of the least that a rank can get."""
        missing_from_last = self.num_chunks * self.rows_per_chunk - self.num_rows
        least = self.num_chunks // self.num_ranks * self.rows_per_chunk - missing_from_last
        return max(0, least) // batch_rows
