"""The trials of store_faults.py: what is damaged, killed, starved and started twice, and how each is judged."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fault_jobs import Job

from store.cache.manifest import ShardRecord, load_manifest
from store.record_file import read_record_file

ROOT = Path(__file__).parents[2]
PAGE = 4096


@dataclass
class Result:
    """Counts for the table, and what went wrong."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, row: str, what: str) -> None:
        self.rows.setdefault(row, Counter())[what] += 1

    def expect(self, holds: bool, row: str, complaint: str) -> None:
        """Counts a failure unless `holds`."""
        if not holds:
            self.count(row, "failures")
            self.failures.append(f"{row}: {complaint}")


class Workers:
    """Runs jobs in processes of their own, through one that has the imports behind it."""

    def __init__(self, inputs: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/faults/fault_jobs.py"), str(inputs)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *jobs: Job) -> list[Job]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        answers: list[Job] = json.loads(self._process.stdout.readline())
        return answers

    def close(self) -> None:
        self._process.communicate()


def kind_of(name: str) -> str:
    """What a file of a cache is for."""
    if name == "manifest.json":
        return "manifest"
    if name.endswith("zarr.json"):
        return "zarr.json"
    if "shards/" in name:
        return "shard record"
    return "tokens" if "tokens/" in name else "rows"


def damage_files(workers: Workers, cache: Path, result: Result, rng: np.random.Generator, *, num_trials: int) -> None:
    """Damages one file at a time, of every kind alike, and puts it back."""
    files: dict[str, list[str]] = {}
    for path in sorted(cache.rglob("*")):
        if path.is_file():
            name = path.relative_to(cache).as_posix()
            files.setdefault(kind_of(name), []).append(name)
    (whole,) = workers.run({"kind": "read", "folder": str(cache), "mode": "mmap"})
    result.expect("digest" in whole, "flip", f"the undamaged cache could not be read: {whole}")
    for trial in range(num_trials):
        kind = list(files)[trial % len(files)]
        name = str(rng.choice(files[kind]))
        fault = ("flip", "truncate", "delete", "flip", "flip")[trial // len(files) % 5]
        path = cache / name
        data = path.read_bytes()
        where = _damage(path, data, fault, rng)
        mode = "pread" if trial % 2 else "mmap"
        jobs: list[Job] = [
            {"kind": "verify", "folder": str(cache)},
            {"kind": "read", "folder": str(cache), "mode": mode},
        ]
        found, read = workers.run(*jobs)
        _judge(result, f"{fault} {kind}", f"{fault} of {name} {where}, {mode}", path, found, read, whole["digest"])
        path.write_bytes(data)
        if fault == "truncate" and kind in ("rows", "tokens"):
            cut = int(rng.integers(len(data)))
            job = {"kind": "shrink", "folder": str(cache), "path": str(path), "num_bytes": cut}
            (read,) = workers.run(job)
            _judge(result, f"truncate while open {kind}", f"{name} cut to {cut}", path, None, read, whole["digest"])
            path.write_bytes(data)


def _damage(path: Path, data: bytes, fault: str, rng: np.random.Generator) -> str:
    if fault == "delete":
        path.unlink()
        return ""
    if fault == "truncate":
        length = int(rng.integers(len(data)))
        path.write_bytes(data[:length])
        return f"to {length} bytes"
    # Half of the flips in the last bytes, where a shard has its index and all files have their checksum or digest.
    place = (
        int(rng.integers(len(data))) if rng.random() < 0.5 else len(data) - 1 - int(rng.integers(min(100, len(data))))
    )
    value = data[place] ^ int(rng.integers(1, 256))
    path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
    return f"at {place} from {data[place]} to {value}"


def _judge(result: Result, row: str, what: str, path: Path, found: Job | None, read: Job, expected_digest: str) -> None:
    """Verification names the file; reading is right, or an error that names it."""
    result.count(row, "trials")
    if found is not None:
        named = any(str(path) in text for text in [*found.get("problems", []), found.get("error", "")])
        result.expect(found["exit"] == 0 and named, row, f"{what}: verify says {found}")
        result.count(row, "found by verify") if named else None
    result.expect(read["exit"] == 0, row, f"{what}: the reader crashed ({read['exit']})")
    if "digest" in read:
        result.expect(read["digest"] == expected_digest, row, f"{what}: THE READER GAVE WRONG NUMBERS")
        result.count(row, "read right")
    elif "error" in read:
        result.expect(str(path) in read["error"], row, f"{what}: the reader names another file: {read['error']}")
        result.count(row, "refused by reader")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_committed(folder: Path) -> int:
    """How many shards are committed in an unfinished cache; raises ValueError if one of them is not whole."""
    records = sorted((folder / "shards").glob("*.json"))
    for path in records:
        for name, file in read_record_file(ShardRecord, path).files.items():
            if (folder / name).stat().st_size != file.nbytes:
                raise ValueError(f"expected {file.nbytes} bytes in {folder / name}, which is committed")
    if (folder / "manifest.json").exists():
        load_manifest(folder)
    return len(records)


def kill_writers(
    workers: Workers, folder: Path, result: Result, rng: np.random.Generator, *, num_kills: int, codec: str
) -> None:
    """SIGKILL at moments spread over the whole of writing, until enough of them hit a living writer."""
    expected = contents(folder / "whole/cache")
    begin = time.monotonic()
    workers.run({"kind": "write", "folder": str(folder / "timed"), "codec": codec})
    duration = time.monotonic() - begin
    num_hit = 0
    for attempt in range(20 * num_kills):
        if num_hit == num_kills:
            break
        target = folder / f"killed-{attempt}"
        moment = float(rng.uniform(0, duration))
        job = {"kind": "write", "folder": str(target), "codec": codec}
        (killed,) = workers.run(job | {"kill_after": moment})
        if killed["exit"] == -9:
            num_hit += 1
            result.count("kill", "trials")
            with _complaints(result, "kill", f"after {moment:.3f} s"):
                num_committed = check_committed(target / "cache")
                result.count(
                    "kill", f"{min(num_committed, 1)}+ shards committed" if num_committed else "none committed"
                )
                (resumed,) = workers.run(job)
                result.expect("error" not in resumed and resumed["exit"] == 0, "kill", f"going on: {resumed}")
                same = contents(target / "cache") == expected
                result.expect(same, "kill", f"killed after {moment:.3f} s, resumed: other bytes")
                result.count("kill", "same bytes after resuming") if same else None
        shutil.rmtree(target, ignore_errors=True)
    result.expect(num_hit == num_kills, "kill", f"only {num_hit} of {num_kills} kills hit a living writer")


@contextlib.contextmanager
def _complaints(result: Result, row: str, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        result.expect(False, row, f"{what}: {error}")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts an empty tmpfs of 64 MB at `folder`; False where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill_disks(
    workers: Workers, folder: Path, result: Result, rng: np.random.Generator, *, num_trials: int, codec: str
) -> None:
    """Writes with too little space: every amount near the end, where the small files are, and random ones before."""
    expected = contents(folder / "whole/cache")
    row = "full disk"
    with small_disk(folder / "disk") as mounted:
        disk = folder / "disk"
        used = _used_pages(workers, disk, codec) if mounted else 0
        amounts = [*range(1, 11), *(used - n for n in range(1, 31))]  # where the small files are
        all_phases = num_trials >= len(amounts)
        amounts += [int(n) for n in rng.integers(2, max(3, used), max(0, num_trials - len(amounts)))]
        amounts = amounts if all_phases else [int(n) for n in rng.choice(amounts, num_trials, replace=False)]
        sizes = sorted({len(data) for data in expected.values()})
        limits: list[int] = amounts if mounted else [size - 1 for size in sizes[:num_trials]]
        for amount in limits:
            result.count(row, "trials")
            job: Job = {"kind": "write", "folder": str(disk / "made"), "codec": codec}
            ballast = disk / "ballast"
            if mounted:
                _fill(ballast, disk, num_pages_left=amount)
            else:
                job["max_file_bytes"] = amount
            (answer,) = workers.run(job)
            what = f"{amount} {'pages' if mounted else 'bytes a file'} left"
            if "error" in answer:
                phase = next((kind_of(name) for name in _longest_first(expected) if name in answer["error"]), "lease")
                result.count(row, f"in {phase}")
                named = str(disk / "made") in answer["error"] and "\n" not in answer["error"]
                result.expect(named, row, f"{what}: the error names no file: {answer['error']}")
            else:
                result.expect(answer["exit"] == 0, row, f"{what}: {answer}")
                result.count(row, "fitted")
            ballast.unlink(missing_ok=True)
            job.pop("max_file_bytes", None)
            (again,) = workers.run(job)
            result.expect("error" not in again and again["exit"] == 0, row, f"{what}, then going on: {again}")
            same = contents(disk / "made/cache") == expected
            result.expect(same, row, f"{what}, then going on: other bytes")
            result.count(row, "completed with the same bytes") if same else None
            shutil.rmtree(disk / "made")
        phases = ["rows", "tokens", "shard record", "zarr.json", "manifest"] if mounted else ["rows", "shard record"]
        for phase in phases if all_phases else ():
            result.expect(result.rows[row][f"in {phase}"] > 0, row, f"the disk was never full while writing {phase}")


def _longest_first(files: dict[str, bytes]) -> list[str]:
    return sorted(files, key=len, reverse=True)


def _free_pages(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize // PAGE


def _used_pages(workers: Workers, disk: Path, codec: str) -> int:
    """Pages that a whole cache takes."""
    before = _free_pages(disk)
    workers.run({"kind": "write", "folder": str(disk / "made"), "codec": codec})
    used = before - _free_pages(disk)
    shutil.rmtree(disk / "made")
    return used


def _fill(ballast: Path, disk: Path, *, num_pages_left: int) -> None:
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, _free_pages(disk) - num_pages_left) * PAGE)


def write_twice(workers: Workers, folder: Path, result: Result, *, codec: str) -> None:
    """Two writers begin at the same moment; ten times."""
    expected = contents(folder / "whole/cache")
    for round_number in range(10):
        target = folder / f"both-{round_number}"
        job = {"kind": "write", "folder": str(target), "codec": codec, "begin": time.time() + 0.05}
        answers = workers.run(job, job)
        result.count("two writers", "trials")
        refused = [answer for answer in answers if answer.get("type") == "Busy"]
        if len(refused) != 1:
            result.expect(False, "two writers", f"expected one to be refused, got {answers}")
            continue
        (winner,) = (answer for answer in answers if answer is not refused[0])
        named = f"process {winner['process']} on" in refused[0]["error"]
        result.expect(named, "two writers", f"expected process {winner['process']} to be named: {refused[0]['error']}")
        same = winner["exit"] == 0 and "error" not in winner and contents(target / "cache") == expected
        result.expect(same, "two writers", f"expected the other to finish: {winner}")
        result.count("two writers", "one refused, by name") if named and same else None
