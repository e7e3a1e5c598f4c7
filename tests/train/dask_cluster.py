"""A Dask cluster of separate processes on this machine, started as a user starts one."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def dask_cluster(folder: Path, *, code: Sequence[Path]) -> Iterator[str]:
    """The address of a cluster with one worker for each folder of `code`, which that worker imports."""
    file = folder / "scheduler.json"

    def start(*command: str, code: Path = ROOT) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + command[0], *command[1:], "--scheduler-file", str(file)],
                stdout=log, stderr=log, env=environment, cwd=folder,
            )  # fmt: skip

    processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    try:
        deadline = time.monotonic() + 240
        while not file.exists():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        worker = ("dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        processes += [start(*worker, code=place) for place in code]
        while (folder / "log").read_text().count("Registered to") < len(code):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)
