"""Harvests on 1, 2 and 4 worker processes, and with workers killed at random moments: the same bytes, every time.

    python benchmarks/harvest_cluster.py [--rows 260096] [--kills 10] [--seed 0] [--json]

The embedded language model on the standard library. The first harvest runs in this process; each other one must give
its files, byte for byte. Workers are killed with SIGKILL whenever the number of committed shards passes a random one,
and up to half a second later, so in the middle of some computation, encoding or writing; Dask starts others. Seconds
include starting the workers and loading the model. On a machine with fewer cores than workers more of them do not help:
what is shown is that the result does not depend on them.
"""

import contextlib
import hashlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from bench import finish, machine, parser, table

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.run import run
from language_model.config import LanguageModelConfig

MODEL = LanguageModelConfig(name="embedded", revision=None, compute_dtype="float32")


def main() -> None:
    """Parses the command line, harvests, compares, prints."""
    arguments = parser(__doc__)
    arguments.set_defaults(rows=127 * 2048)
    arguments.add_argument("--kills", type=int, default=10, help="workers to kill in a harvest (%(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="(%(default)s)")
    options = arguments.parse_args()
    settings = config(options.rows)
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path(), ignore_cleanup_errors=True) as place:
        expected, seconds = harvest(settings, Path(place) / "here", HarvestResources("cpu"))
        trials.append({"workers": 0, "kills": 0, "seconds": seconds, "identical": True})
        for workers in options.workers:
            for kills in dict.fromkeys((0, options.kills)):
                folder = Path(place) / f"{workers}-{kills}"
                with killer(folder, settings, kills=kills, seed=options.seed + workers) as killed:
                    found, seconds = harvest(settings, folder, HarvestResources("cpu", num_workers=workers))
                trials.append(
                    {"workers": workers, "kills": len(killed), "seconds": seconds, "identical": found == expected}
                )
    print(f"embedded model, {options.rows:,} rows, {num_shards(settings)} shards; 0 workers: in this process")
    table(
        ("workers", "killed", "seconds", "every file identical"),
        [(t["workers"], t["kills"], float(t["seconds"]), "yes" if t["identical"] else "NO") for t in trials],
    )
    finish({"trials": trials, "machine": machine("torch", "distributed")}, options)
    if not all(trial["identical"] for trial in trials):
        raise SystemExit("expected the same bytes from every harvest, got others")


def config(num_rows: int) -> HarvestConfig:
    """The embedded profile with small shards."""
    return HarvestConfig.model_validate(
        {
            "text": {"kind": "standard-library"}, "hooks": ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"],
            "num_rows": num_rows, "num_held_out_sequences": 64, "held_out_fraction": 0.05, "context_length": 128,
            "forward_batch_sequences": 16, "sequences_per_chunk": 16, "chunks_per_shard": 2, "codec": "bf16_planes_v1",
        }
    )  # fmt: skip


def num_shards(settings: HarvestConfig) -> int:
    """Of both splits."""
    return -(-settings.num_sequences // 32) + -(-settings.num_held_out_sequences // 32)


def harvest(settings: HarvestConfig, folder: Path, resources: HarvestResources) -> tuple[dict[str, str], float]:
    """SHA-256 of every file of the cache, and the seconds it took."""
    began = time.perf_counter()
    run(
        settings, model=MODEL, output=folder / "activations", scratch=folder / "scratch", resources=resources,
        reuse=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    files = sorted(path for path in (folder / "activations").rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests, seconds


@contextlib.contextmanager
def killer(folder: Path, settings: HarvestConfig, *, kills: int, seed: int) -> Iterator[list[int]]:
    """Kills `kills` workers of this process at random moments of the harvest in `folder`; gives their process ids."""
    chosen = random.Random(seed)
    moments = sorted(chosen.sample(range(1, num_shards(settings) - 1), k=kills))
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while len(killed) < kills and not ended.wait(0.02):
            committed = len(list(folder.glob("scratch/activations-*/cache/**/shards/*.json")))
            workers = [child for child in psutil.Process(os.getpid()).children() if "spawn_main" in _command(child)]
            if workers and committed >= moments[len(killed)]:
                victim = chosen.choice(workers)
                time.sleep(chosen.uniform(0.0, 0.5))
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(victim.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


if __name__ == "__main__":
    main()
