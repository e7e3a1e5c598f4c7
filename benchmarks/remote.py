"""The reader over an emulated S3 with latency, against the same cache in a folder.

    python benchmarks/remote.py [--cache data/activations] [--latency-ms 20] [--json]

In turns, each over one epoch of a hook's shuffled batches, in MB/s of bfloat16 rows:

* folder          the cache where it lies, in a warm page cache;
* bucket          s3://, every answer `--latency-ms` late, nothing kept; the server is a process on the same cores;
* bucket, one by one   the same with one read under way at a time: what the latency costs when it is not hidden;
* local ranges    s3:// again, with every range kept locally from an epoch before;
* half the budget s3:// with room for half of the cache, after an epoch that filled it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import finish, machine, parser, table

from store.files.open import CachePlace
from store.files.remote import RemoteFiles
from store.read.cache import ActivationCache

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # the emulated server is a part of the tests, which are not installed
from emulated_s3 import emulated_s3

BATCH_ROWS = 4096


def main() -> None:
    """Parses the command line, measures, prints."""
    made = parser(__doc__)  # --input and --rows are not looked at: a cache is what is read
    made.add_argument("--cache", type=Path, default=Path("data/activations"), help="folder of a cache (%(default)s)")
    made.add_argument("--latency-ms", type=float, default=20.0, help="before every answer (%(default)s)")
    made.add_argument("--threads", type=int, default=2, help="that decode from the folder (%(default)s)")
    made.set_defaults(rounds=3)
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(
            options.cache, Path(scratch), latency_ms=options.latency_ms, num_threads=options.threads,
            num_rounds=options.rounds,
        )  # fmt: skip
    megabytes = figures["megabytes"]
    table(
        ("", "MB/s of rows", "of the folder"),
        [
            (name, megabytes / seconds, figures["seconds"]["folder"] / seconds)
            for name, seconds in figures["seconds"].items()
        ],
    )
    finish(figures, options)


def measure(folder: Path, scratch: Path, *, latency_ms: float, num_threads: int, num_rounds: int) -> dict[str, Any]:
    """The best seconds of an epoch for each way of reading, and whether all gave the same rows."""
    here = ActivationCache(folder)
    hook = here.spec.hooks[0]
    stored = sum(record.nbytes for name, record in here.manifest.files.items() if name.startswith(f"{hook}/c/"))
    with emulated_s3(folder, latency_ms=latency_ms) as there:
        one_by_one = RemoteFiles(there.url)
        one_by_one.parallel_reads = 1
        ways: dict[str, Callable[[], tuple[ActivationCache, int]]] = {
            "folder": lambda: (ActivationCache(folder), num_threads),
            "bucket": lambda: (ActivationCache(there.url), num_threads),
            "bucket, one by one": lambda: (ActivationCache(one_by_one), 1),
            "local ranges": lambda: (
                ActivationCache(CachePlace(there.url, range_cache=scratch / "all").open()),
                num_threads,
            ),
        }
        half = ActivationCache(
            CachePlace(there.url, range_cache=scratch / "half", range_cache_bytes=stored // 2).open()
        )
        ways["half the budget"] = lambda: (half, num_threads)
        sums = {name: epoch(*way(), hook=hook, seed=0)[1] for name, way in ways.items()}  # also fills what is kept
        best = dict.fromkeys(ways, float("inf"))
        for turn in range(num_rounds):
            for name, way in ways.items():
                best[name] = min(best[name], epoch(*way(), hook=hook, seed=turn + 1)[0])
    kept = sum(path.stat().st_size for path in (scratch / "half").rglob("*-*"))
    return {
        "machine": machine("fsspec", "s3fs", "numpy", "zarr"),
        "latency_ms": latency_ms,
        "megabytes": here.manifest.num_rows * here.spec.model.d_model * 2 / 1e6,
        "megabytes_stored": stored / 1e6,
        "seconds": best,
        "same_rows": len(set(sums.values())) == 1,
        "half_budget_megabytes": stored // 2 / 1e6,
        "half_kept_megabytes": kept / 1e6,
    }


def epoch(cache: ActivationCache, num_threads: int, *, hook: str, seed: int) -> tuple[float, int]:
    """Seconds of one epoch, and a sum over all rows in their order."""
    begin, total = time.perf_counter(), 0
    with cache.batches(hook, batch_rows=BATCH_ROWS, seed=seed, num_epochs=1, num_threads=num_threads) as stream:
        for number, batch in enumerate(stream):
            total += (number + 1) * int(batch[::64].sum(dtype=np.int64))
    return time.perf_counter() - begin, total


if __name__ == "__main__":
    main()
