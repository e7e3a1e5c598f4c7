"""A small run of tests/faults/store_faults.py: every kind of fault, few of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.store.cache_fixture import HOOKS, rows_of

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tests/faults/store_faults.py", "--json", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_no_fault_passes_unseen(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows_of(HOOKS[0], 48))
    done = run(
        tmp_path, "--input", "rows.npy", "--context-length", "9", "--sequences", "24",
        "--flips", "25", "--kills", "2", "--full-disks", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["num_failures"], result["failures"]) == (0, [])
    trials = {row: counts["trials"] for row, counts in result["rows"].items()}
    assert trials["kill"] == 2
    assert sum(number for row, number in trials.items() if row.split()[0] in ("flip", "delete", "truncate")) >= 25


def test_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((10, 4)))
    done = run(tmp_path, "--input", "rows.npy")
    assert done.returncode == 1
    assert "expected at least 9144 uint16 rows (rows, d_model) in rows.npy, got float64 (10, 4)" in done.stderr
