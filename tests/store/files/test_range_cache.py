"""Ranges kept on a local disk: what is served is whole, and the budget holds for all processes together."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from store.errors import StoreError
from store.files.range_cache import RangeCache

FILE, OTHER = "ab" * 32, "cd" * 32


def some_bytes(nbytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "ledger")


def the_ledger(folder: Path) -> int:
    return int.from_bytes((folder / "ledger").read_bytes(), "little")


def test_a_range_survives_a_restart(tmp_path: Path) -> None:
    data = some_bytes(1000)
    RangeCache(tmp_path, max_bytes=5000).put(FILE, 7, data)
    again = RangeCache(tmp_path, max_bytes=5000)
    found = again.get(FILE, 7, 1000)
    assert found is not None
    assert found.tolist() == data.tolist()
    assert again.get(FILE, 8, 1000) is None
    assert again.get(FILE, 7, 999) is None
    assert again.get(OTHER, 7, 1000) is None
    assert the_ledger(tmp_path) == used(tmp_path) == 1004  # the bytes and their crc32c


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "longer"])
def test_a_damaged_range_is_not_served_and_is_removed(tmp_path: Path, damage: str) -> None:
    cache = RangeCache(tmp_path, max_bytes=5000)
    cache.put(FILE, 0, some_bytes(1000))
    (path,) = tmp_path.glob("??/*/0-1000")
    stored = bytearray(path.read_bytes())
    stored[500] ^= 1
    path.write_bytes({"cut": stored[:-1], "flipped": stored, "emptied": b"", "longer": stored + b"x"}[damage])
    assert cache.get(FILE, 0, 1000) is None
    assert not path.exists()
    cache.put(FILE, 0, some_bytes(1000))
    assert cache.get(FILE, 0, 1000) is not None


def test_the_least_recently_used_ranges_of_earlier_runs_go_first(tmp_path: Path) -> None:
    first = RangeCache(tmp_path, max_bytes=4 * 1004)
    for number in range(4):
        first.put(FILE, number, some_bytes(1000, number))
        time.sleep(0.002)
    assert first.get(FILE, 0, 1000) is not None  # now the most recently used
    second = RangeCache(tmp_path, max_bytes=4 * 1004)
    second.put(FILE, 4, some_bytes(1000, 4))
    # 3614 bytes may stay (0.9 of the budget), 1004 come: two of four go.
    assert [second.get(FILE, number, 1000) is not None for number in range(5)] == [True, False, False, True, True]
    assert the_ledger(tmp_path) == used(tmp_path) == 3 * 1004


def test_what_this_run_used_is_not_pushed_out_by_this_run(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, max_bytes=3 * 1004)
    for number in range(10):
        cache.put(FILE, number, some_bytes(1000, number))
    assert [cache.get(FILE, number, 1000) is not None for number in range(10)] == [True] * 3 + [False] * 7


def test_a_smaller_budget_evicts_on_opening_and_a_range_above_it_is_not_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, max_bytes=10_000)
    for number in range(8):
        cache.put(FILE, number, some_bytes(1000, number))
    small = RangeCache(tmp_path, max_bytes=2500)
    assert used(tmp_path) == 2 * 1004
    small.put(FILE, 99, some_bytes(3000))
    assert small.get(FILE, 99, 3000) is None


def test_a_range_can_be_forgotten(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, max_bytes=10_000)
    cache.put(FILE, 5, some_bytes(1000))
    cache.put(FILE, 50, some_bytes(1000))
    assert cache.drop(FILE, 5)
    assert not cache.drop(FILE, 5)
    assert cache.get(FILE, 5, 1000) is None
    assert cache.get(FILE, 50, 1000) is not None
    assert the_ledger(tmp_path) == 1004


def test_leftovers_of_a_killed_writer_and_a_lost_ledger_are_put_right_on_opening(tmp_path: Path) -> None:
    RangeCache(tmp_path, max_bytes=10_000).put(FILE, 5, some_bytes(1000))
    leftover = next(tmp_path.glob("??/*")) / "6-1000.12345678.tmp"
    leftover.write_bytes(bytes(300))
    (tmp_path / "ledger").write_bytes(b"\xff" * 3)
    RangeCache(tmp_path, max_bytes=10_000)
    assert not leftover.exists()
    assert the_ledger(tmp_path) == used(tmp_path) == 1004


def test_a_digest_that_is_a_path_is_refused(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "ranges", max_bytes=10_000)
    with pytest.raises(StoreError, match="expected a SHA-256 of 64 hexadecimal digits in the manifest, got"):
        cache.put("../" * 21 + "x", 0, some_bytes(10))


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"expected a folder for ranges of remote files at .*file/ranges, got"):
        RangeCache(tmp_path / "file" / "ranges", max_bytes=1)


def test_a_full_disk_costs_the_cache_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from store.files.range_cache import RangeCache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "cache = RangeCache(Path(sys.argv[1]), max_bytes=10**6)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "cache.put('ab' * 32, 0, np.zeros(10_000, dtype=np.uint8))\n"
        "cache.put('ab' * 32, 1, np.zeros(10_000, dtype=np.uint8))\n"
        "assert cache.get('ab' * 32, 0, 10_000) is None\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == f"no more ranges are kept in {tmp_path}: File too large\n"
    assert used(tmp_path) == the_ledger(tmp_path) == 0


def test_processes_share_one_budget(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from store.files.range_cache import RangeCache\n"
        "cache = RangeCache(Path(sys.argv[1]), max_bytes=50_000)\n"
        "def work(i):\n"
        "    name, data = f'{i % 7:064x}', np.full(1000 + i % 7, i % 7, dtype=np.uint8)\n"
        "    cache.put(name, i % 23, data)\n"
        "    got = cache.get(name, i % 23, len(data))\n"
        "    assert got is None or (got == i % 7).all()\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    list(threads.map(work, range(int(sys.argv[2]), int(sys.argv[2]) + 400)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(40 * n)], env=environment) for n in range(3)
    ]
    most = 0
    while any(process.poll() is None for process in running):
        with (tmp_path / "ledger").open("a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)  # so that nothing is added or removed while it is counted
            most = max(most, used(tmp_path))
            assert used(tmp_path) == the_ledger(tmp_path)
        time.sleep(0.005)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert 20_000 < most <= 50_000
    assert the_ledger(tmp_path) == used(tmp_path)
