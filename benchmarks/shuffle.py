"""How well batches are mixed: distinct sequences per batch, against uniform sampling over the whole cache.

    python benchmarks/shuffle.py [--d-model 2304] [--pools 100] [--json]

Only row numbers are needed, so that no activations are made: the order of a cache that is many pools large is computed
as the reader would (store/cache/order.py), at several pool sizes. Peers: a pool of consecutive windows of rows in
sequence order, shuffled inside, which is what a buffer over an unpermuted cache gives; and uniform sampling.
"""

import argparse
from typing import Any

import numpy as np
from bench import finish, machine, spec_for, table
from numpy.typing import NDArray

from store.cache.order import EpochPlan, disk_order, keyed_permutation
from store.cache.spec import CacheSpec
from store.read.batches import DEFAULT_POOL_BYTES, chunks_per_pool

BATCHES = 40  # measured per pool size, from the middle of an epoch


def main() -> None:
    """Parses the command line, measures, prints."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--d-model", type=int, default=2304, help="channels (%(default)s, gemma-2-2b)")
    arguments.add_argument("--sequences-per-chunk", type=int, default=8, help="(%(default)s, the gemma-2-2b profile)")
    arguments.add_argument("--chunks-per-shard", type=int, default=64, help="(%(default)s, the gemma-2-2b profile)")
    arguments.add_argument("--batch-rows", type=int, default=4096, help="(%(default)s)")
    arguments.add_argument("--pools", type=int, default=100, help="size of the cache in default pools (%(default)s)")
    arguments.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = arguments.parse_args()
    figures = measure(options)
    figures["machine"] = machine("numpy")
    print(
        f"{figures['num_rows']:,} rows of {options.d_model} channels ({figures['num_sequences']:,} sequences), batches "
        f"of {options.batch_rows}; uniform sampling gives {figures['uniform']:.0f} distinct sequences"
    )
    table(
        ("pool MiB", "distinct sequences", "of uniform", "windows without permutation"),
        [
            (f"{point['pool_mib']:g}", point["distinct"], point["share"], point["windows_share"])
            for point in figures["curve"]
        ],
    )
    finish(figures, options)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The curve over pool sizes on a cache of `pools` default pools."""
    spec = spec_for(options.d_model, sequences_per_chunk=options.sequences_per_chunk)
    spec = spec.model_copy(update={"chunks_per_shard": options.chunks_per_shard})
    rows = options.pools * DEFAULT_POOL_BYTES // (2 * options.d_model)
    num_sequences = -(-rows // spec.rows_per_sequence)
    uniform = uniform_distinct(num_sequences, spec, options.batch_rows)
    curve = []
    for pool_bytes in [DEFAULT_POOL_BYTES * 2**power // 32 for power in range(9)]:
        distinct = reader_distinct(spec, num_sequences, pool_bytes=pool_bytes, batch_rows=options.batch_rows)
        windows = window_distinct(spec, num_sequences, pool_bytes=pool_bytes, batch_rows=options.batch_rows)
        curve.append(
            {
                "pool_mib": pool_bytes / 2**20,
                "default": pool_bytes == DEFAULT_POOL_BYTES,
                "distinct": distinct,
                "share": distinct / uniform,
                "windows_share": windows / uniform,
            }
        )
    return {
        "num_rows": num_sequences * spec.rows_per_sequence,
        "num_sequences": num_sequences,
        "uniform": uniform,
        "curve": curve,
        "share_at_default": next(point["share"] for point in curve if point["default"]),
    }


def reader_distinct(spec: CacheSpec, num_sequences: int, *, pool_bytes: int, batch_rows: int) -> float:
    """Mean number of distinct sequences per batch, of batches cut from pools in the middle of an epoch."""
    plan = EpochPlan(
        num_rows=num_sequences * spec.rows_per_sequence, rows_per_chunk=spec.rows_per_chunk,
        chunks_per_pool=chunks_per_pool(pool_bytes, spec, num_hooks=1), seed=0, epoch=0,
    )  # fmt: skip
    pools = plan.pools()
    read: list[NDArray[np.int64]] = []  # batches run on across pools
    for number in range(len(pools) // 2, len(pools)):
        sequences = np.empty(sum(plan.chunk_rows(int(chunk)) for chunk in pools[number]), dtype=np.int64)
        for chunk, slots in plan.slots(number, pools[number]):
            sequences[slots] = chunk_rows(spec, chunk, num_sequences)[: len(slots)] // spec.rows_per_sequence
        read.append(sequences)
        if sum(map(len, read)) >= BATCHES * batch_rows:
            break
    return mean_distinct(read, batch_rows)


def chunk_rows(spec: CacheSpec, chunk: int, num_sequences: int) -> NDArray[np.int64]:
    """The rows of a chunk as stored, by number in sequence order."""
    shard, inside = divmod(chunk, spec.chunks_per_shard)
    first = shard * spec.rows_per_shard
    order = disk_order(shard, min(spec.rows_per_shard, num_sequences * spec.rows_per_sequence - first))
    return first + order[inside * spec.rows_per_chunk : (inside + 1) * spec.rows_per_chunk]


def window_distinct(spec: CacheSpec, num_sequences: int, *, pool_bytes: int, batch_rows: int) -> float:
    """The same for a pool of as many consecutive rows in sequence order."""
    num_rows = num_sequences * spec.rows_per_sequence
    in_pool = min(num_rows, pool_bytes // 2 // (2 * spec.model.d_model))
    read: list[NDArray[np.int64]] = []
    for pool in range(-(-BATCHES * batch_rows // in_pool)):
        start = (num_rows // 2 + pool * in_pool) % max(1, num_rows - in_pool)
        read.append((start + keyed_permutation(in_pool, pool)) // spec.rows_per_sequence)
    return mean_distinct(read, batch_rows)


def mean_distinct(read: list[NDArray[np.int64]], batch_rows: int) -> float:
    """Mean number of distinct sequences in the whole batches of rows that were read one after another."""
    sequences = np.concatenate(read)
    stops = range(batch_rows, min(len(sequences), BATCHES * batch_rows) + 1, batch_rows)
    return float(np.mean([len(np.unique(sequences[stop - batch_rows : stop])) for stop in stops]))


def uniform_distinct(num_sequences: int, spec: CacheSpec, batch_rows: int) -> float:
    """Mean number of distinct sequences among `batch_rows` rows drawn without replacement from the whole cache."""
    random = np.random.default_rng(0)
    drawn = (
        random.choice(num_sequences * spec.rows_per_sequence, batch_rows, replace=False) // spec.rows_per_sequence
        for _ in range(BATCHES)
    )
    return float(np.mean([len(np.unique(rows)) for rows in drawn]))


if __name__ == "__main__":
    main()
