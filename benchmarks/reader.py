"""Speed of shuffled batches against the codec alone and against zarr-python, from one cache, in one run.

    python benchmarks/reader.py [--input FILE.npy] [--threads 2] [--latency-ms 20] [--json]

One epoch of batches of 4096 rows through a shuffle pool of 256 MiB, in turns with: the codec alone, which decodes
the same chunks on as many threads into one buffer each; and zarr-python's default pipeline on the same files: shuffled
batches through a pool of the same size, and, unshuffled, chunk by chunk in a random order and shard by shard. Then from
a cold page cache, by pread, and from an emulated bucket whose every answer is delayed. Private memory is what the
process holds beyond what it held before.
"""

import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from bench import HOOK, best_of, finish, machine, parser, rows_to_measure, table, write_cache

from store.cache.order import keyed_permutation
from store.codec.registry import decode_chunk
from store.files.local import Mode
from store.files.open import CachePlace, open_files
from store.files.protocol import Files
from store.read.cache import ActivationCache

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # the emulated server is a part of the tests, which are not installed
from emulated_s3 import emulated_s3

BATCH_ROWS = 4096
POOL_BYTES = 256 * 2**20
ZARR_CHUNKS = 64  # read by zarr-python per turn


def main() -> None:
    """Parses the command line, measures, prints."""
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=4)
    arguments.add_argument("--threads", type=int, default=2, help="that decode (%(default)s)")
    arguments.add_argument("--megabytes", type=int, default=3000, help="of rows in the cache (%(default)s)")
    arguments.add_argument("--latency-ms", type=float, default=20.0, help="of the emulated bucket (%(default)s)")
    options = arguments.parse_args()
    rows = rows_to_measure(options)
    with tempfile.TemporaryDirectory(dir=Path()) as parent:
        folder = Path(parent) / "cache"
        write_cache(folder, rows, repeats=max(1, options.megabytes * 10**6 // rows.nbytes))
        figures = measure(folder, threads=options.threads, rounds=options.rounds)
        figures |= measure_bucket(folder, Path(parent) / "ranges", threads=options.threads, latency=options.latency_ms)
        figures["memory"] = measure_memory(folder, threads=options.threads)
    figures |= {"threads": options.threads, "latency_ms": options.latency_ms, "d_model": rows.shape[1]}
    figures["machine"] = machine("zarr", "numcodecs")
    show(figures)
    finish(figures, options)


def measure(folder: Path, *, threads: int, rounds: int) -> dict[str, Any]:
    """MB/s of raw bfloat16 rows for each way of reading the cache."""
    cache = ActivationCache(folder)
    raw = 2 * cache.manifest.num_rows * cache.spec.model.d_model
    chunk_nbytes = 2 * cache.spec.rows_per_chunk * cache.spec.model.d_model
    zarr_chunks = min(ZARR_CHUNKS, cache.manifest.num_rows // cache.spec.rows_per_chunk)
    read: dict[str, Callable[[], object]] = {
        "codec alone": partial(decode_all, cache, threads=threads),
        "batches": partial(read_epoch, open_files(folder), threads=threads),
        "batches, pread": partial(read_epoch, open_files(folder, mode="pread"), threads=threads),
        "zarr-python, chunks": partial(read_zarr, cache, folder, num_chunks=zarr_chunks, whole_shards=False),
        "zarr-python, shards": partial(read_zarr, cache, folder, num_chunks=zarr_chunks, whole_shards=True),
        "zarr-python, shuffled": partial(shuffle_zarr, cache, folder, num_chunks=zarr_chunks),
    }
    seconds = best_of(rounds, read)
    read.clear()  # what it holds mapped could not be measured cold
    modes: tuple[Mode, ...] = ("mmap", "pread")
    for mode in modes:
        best = float("inf")
        for _ in range(min(3, rounds)):
            forget_pages(folder)
            begin = time.perf_counter()
            read_epoch(open_files(folder, mode=mode), threads=threads)
            best = min(best, time.perf_counter() - begin)
        seconds[f"batches, cold, {mode}"] = best
    nbytes = dict.fromkeys(seconds, raw)
    nbytes |= dict.fromkeys([name for name in nbytes if name.startswith("zarr")], zarr_chunks * chunk_nbytes)
    rates = {name: nbytes[name] / value / 1e6 for name, value in seconds.items()}
    return {
        "raw_bytes": raw,
        "mb_per_s": rates,
        "share_of_codec": rates["batches"] / rates["codec alone"],
        "against_zarr_shuffled": rates["batches"] / rates["zarr-python, shuffled"],
        "against_zarr_chunks": rates["batches"] / rates["zarr-python, chunks"],
        "against_zarr_shards": rates["batches"] / rates["zarr-python, shards"],
    }


def decode_all(cache: ActivationCache, *, threads: int) -> None:
    """Every chunk of the cache through the codec on `threads` threads, without checksums, shuffling or pools."""
    spec = cache.spec
    shape = (spec.rows_per_chunk, spec.model.d_model)
    index_nbytes = 16 * spec.chunks_per_shard + 4
    files = open_files(cache.location)  # of this call: files that stay mapped could not be measured cold

    def decode(shards: range) -> None:
        out, slots = np.empty(shape, dtype=np.uint16), np.arange(shape[0])
        for shard in shards:
            name = f"{HOOK}/c/{shard}/0"
            nbytes = cache.manifest.files[name].nbytes
            data = files.open_range(name, nbytes).read(0, nbytes)
            for offset, length in data[-index_nbytes:-4].view("<u8").reshape(-1, 2).tolist():
                if offset != 2**64 - 1:
                    decode_chunk(spec.codec, data[offset : offset + length - 4], shape, out, slots)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, (range(t, cache.manifest.num_shards, threads) for t in range(threads))))


def read_epoch(files: Files, *, threads: int) -> int:
    """One epoch of batches; the number of rows."""
    cache = ActivationCache(files)
    with cache.batches(
        HOOK, batch_rows=BATCH_ROWS, seed=0, num_epochs=1, pool_bytes=POOL_BYTES, num_threads=threads
    ) as stream:
        return sum(len(batch) for batch in stream)


def read_zarr(cache: ActivationCache, folder: Path, *, num_chunks: int, whole_shards: bool) -> None:
    """As many rows through zarr-python, chunk by chunk in a random order or a shard at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(folder / HOOK, mode="r")
    rows = cache.spec.rows_per_chunk
    if whole_shards:
        for start in range(0, num_chunks, cache.spec.chunks_per_shard):
            array[start * rows : min(num_chunks, start + cache.spec.chunks_per_shard) * rows]
        return
    for chunk in keyed_permutation(cache.manifest.num_rows // rows, 0)[:num_chunks]:
        array[int(chunk) * rows : (int(chunk) + 1) * rows]


def shuffle_zarr(cache: ActivationCache, folder: Path, *, num_chunks: int) -> None:
    """Batches of as many rows by zarr-python and numpy: chunks in a random order, their rows put into a shuffled pool.

    What the reader does, as one would write it with zarr: the next pool is not read while batches are taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.open_array(folder / HOOK, mode="r")
    rows = cache.spec.rows_per_chunk
    in_pool = max(1, POOL_BYTES // (2 * rows * cache.spec.model.d_model))
    chosen = keyed_permutation(cache.manifest.num_rows // rows, 0)[:num_chunks]
    for start in range(0, num_chunks, in_pool):
        chunks = chosen[start : start + in_pool]
        pool = np.empty((len(chunks) * rows, cache.spec.model.d_model), dtype=np.uint16)
        slots = keyed_permutation(len(pool), 1, start)
        for place, chunk in enumerate(chunks):
            pool[slots[place * rows : (place + 1) * rows]] = array[int(chunk) * rows : (int(chunk) + 1) * rows]
        for first in range(0, len(pool), BATCH_ROWS):
            pool[first : first + BATCH_ROWS]


def forget_pages(folder: Path) -> None:
    """Has the kernel drop the cached pages of a folder's files."""
    gc.collect()  # maps of earlier readers keep their pages
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_bucket(folder: Path, ranges: Path, *, threads: int, latency: float) -> dict[str, Any]:
    """MB/s of raw rows from a bucket: without a local cache of ranges, then a first and a second epoch with one."""
    raw = 2 * ActivationCache(folder).manifest.num_rows * ActivationCache(folder).spec.model.d_model
    rates = {}
    places: tuple[tuple[str, Path | None], ...] = (
        ("no local cache", None),
        ("first epoch", ranges),
        ("second epoch", ranges),
    )
    with emulated_s3(folder, latency_ms=latency) as bucket:
        for name, ranges_folder in places:
            begin = time.perf_counter()
            read_epoch(CachePlace(bucket.url, range_cache=ranges_folder).open(), threads=threads)
            rates[name] = raw / (time.perf_counter() - begin) / 1e6
    return {"bucket_mb_per_s": rates}


def measure_memory(folder: Path, *, threads: int) -> dict[str, float]:
    """MiB of private memory that an epoch takes at most, against its pool."""
    gc.collect()
    before, peak, done = private_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    read_epoch(open_files(folder), threads=threads)
    done.set()
    watcher.join()
    return {"pool_mib": POOL_BYTES / 2**20, "peak_private_mib": (peak - before) / 2**20}


def private_bytes() -> int:
    """Anonymous resident memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def show(figures: dict[str, Any]) -> None:
    """The figures, readable."""
    print(
        f"{figures['raw_bytes'] / 1e6:,.0f} MB of rows of {figures['d_model']} channels, {figures['threads']} threads"
    )
    rates = figures["mb_per_s"] | {
        f"bucket at {figures['latency_ms']:g} ms, {name}": rate for name, rate in figures["bucket_mb_per_s"].items()
    }
    table(
        ("read by", "MB/s", "of the codec alone"),
        [(name, rate, rate / rates["codec alone"]) for name, rate in rates.items()],
    )
    print(
        f"batches: {figures['share_of_codec']:.2f} of the codec alone; {figures['against_zarr_shuffled']:.1f} times "
        f"zarr-python's shuffled ones, {figures['against_zarr_chunks']:.1f} times its chunks, "
        f"{figures['against_zarr_shards']:.1f} times its shards; private memory "
        f"{figures['memory']['peak_private_mib']:.0f} MiB at a pool of {figures['memory']['pool_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
