"""Faults: flipped bytes, truncated and deleted files, killed writers, full disks, two writers. Nothing may pass unseen.

    python tests/faults/store_faults.py [--flips 1000 --kills 50 --seed 0] [--cache data/activations | --input ROWS.npy]
                                      [--json]

A small cache of two hooks and several shards is made of the first rows of a real cache (or of a person's own uint16
(rows, d_model) bit patterns). Then, with everything that touches damaged files in a process of its own:

flip, truncate, delete  one file of a random kind is damaged; `store verify --full` must name it, and reading every row
                        and token must give the right numbers or an error that names it
truncate while open     the same for a file that shrinks under an open reader (in pread mode)
kill                    a writer gets SIGKILL at a random moment; what it had committed must be whole, and going on must
                        end in the bytes of a writer that was left alone
full disk               a small tmpfs (or, without the right to mount one, a limit on the size of files) is full at each
                        phase of writing; the error must name a file, and going on with more space must end in the same
two writers             of two that begin at once, one is refused, with the number of the other's process

Exits with 1 if anything else happened, and says what.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from fault_jobs import HOOKS, Inputs
from fault_trials import Result, Workers, damage_files, fill_disks, kill_writers, write_twice

from store.read.cache import ActivationCache

ROOT = Path(__file__).parents[2]
_MAX_SHOWN = 20


def main() -> int:
    """Parses the command line, does damage, prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000, help="damaged files: flips, truncations and deletions")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--full-disks", type=int, default=70, help="random amounts of free space, after 40 near nothing and near enough"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", default="bf16_planes_v1")
    parser.add_argument("--sequences", type=int, default=36)
    parser.add_argument("--context-length", type=int, default=128, help="of the sequences made of --input")
    parser.add_argument("--cache", type=Path, default=Path("data/activations"), help="real cache to take rows from")
    parser.add_argument("--input", type=Path, help="uint16 (rows, d_model) bit patterns to use instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        try:
            np.savez(folder / "inputs.npz", **_inputs(options))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        workers = Workers(folder / "inputs.npz")
        result = Result()
        rng = np.random.default_rng(options.seed)
        (answer,) = workers.run({"kind": "write", "folder": str(folder / "whole"), "codec": options.codec})
        if answer != {"exit": 0, "process": answer["process"]}:
            print(f"error: the cache could not be written: {answer}", file=sys.stderr)
            return 1
        damage_files(workers, folder / "whole/cache", result, rng, num_trials=options.flips)
        kill_writers(workers, folder, result, rng, num_kills=options.kills, codec=options.codec)
        fill_disks(workers, folder, result, rng, num_trials=options.full_disks, codec=options.codec)
        write_twice(workers, folder, result, codec=options.codec)
        workers.close()
    _print(result, options, seconds=time.monotonic() - begin)
    return 1 if result.failures else 0


def _inputs(options: argparse.Namespace) -> Inputs:
    """Tokens (sequences, context_length) and, by hook, the rows of those sequences; the last ones will be held out."""
    num_sequences = options.sequences
    if options.input:
        rows = np.load(options.input, allow_pickle=False)
        num_rows = num_sequences * (options.context_length - 1)
        if rows.dtype != np.uint16 or rows.ndim != 2 or len(rows) < 2 * num_rows:
            raise ValueError(
                f"expected at least {2 * num_rows} uint16 rows (rows, d_model) in {options.input}, got {rows.dtype} "
                f"{rows.shape}. Give more rows, or lower --sequences or --context-length"
            )
        tokens = np.arange(num_sequences * options.context_length, dtype=np.uint32) % 2**18
        tokens = tokens.reshape(num_sequences, options.context_length)
        return {"tokens": tokens, HOOKS[0]: rows[:num_rows], HOOKS[1]: rows[num_rows : 2 * num_rows]}
    cache = ActivationCache(options.cache)
    num_rows = num_sequences * cache.spec.rows_per_sequence
    first = cache.rows(cache.spec.hooks[0], np.arange(num_rows))
    begin = num_rows if len(cache.spec.hooks) == 1 else 0  # with one hook only, other sequences stand for the second
    second = cache.rows(cache.spec.hooks[-1], np.arange(begin, begin + num_rows))
    return {"tokens": cache.tokens(np.arange(num_sequences)), HOOKS[0]: first, HOOKS[1]: second}


def _print(result: Result, options: argparse.Namespace, *, seconds: float) -> None:
    columns = ("trials", "failures")
    print(f"{'fault':<34}{'trials':>8}{'failures':>10}   outcomes")
    for row, counts in sorted(result.rows.items()):
        others = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()) if what not in columns)
        print(f"{row:<34}{counts['trials']:>8}{counts['failures']:>10}   {others}")
    for failure in result.failures[:_MAX_SHOWN]:
        print(f"FAILURE {failure}")
    print(f"seed {options.seed}, {len(result.failures)} failures, {seconds:.0f} s")
    if options.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        print(
            json.dumps(
                {
                    "benchmark": "store_faults",
                    "seed": options.seed,
                    "codec": options.codec,
                    "rows": {row: dict(counts) for row, counts in sorted(result.rows.items())},
                    "failures": result.failures[:_MAX_SHOWN],
                    "num_failures": len(result.failures),
                    "seconds": round(seconds, 1),
                    "machine": platform.machine(),
                    "num_cpus": os.cpu_count(),
                    "versions": {name: version(name) for name in ("numpy", "zarr", "numcodecs")},
                    "commit": commit,
                }
            )
        )


if __name__ == "__main__":
    sys.exit(main())
