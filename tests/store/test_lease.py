"""One process at a time holds a folder; the dead and the stopped are forgotten, and notice it when they come back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import store.lease
from store.atomic import clear_leftovers, temporary_neighbour
from store.errors import Busy, LostLease, MachineError
from store.lease import SharedLease, acquire, exclusive_lock, read_lease
from store.process import is_running, start_time

ROOT = Path(__file__).parents[2]

# Holds the lease of argv[1]; for every line of its input it checks the lease and says how that went.
HOLDER = """
import sys
from pathlib import Path
from store.errors import StoreError
from store.lease import acquire

try:
    lease = acquire(Path(sys.argv[1]), lease_seconds=float(sys.argv[2]))
except StoreError as error:
    sys.exit(f"refused: {error}")
print("held", lease.token, flush=True)
for line in sys.stdin:
    try:
        lease.check()
        print("still mine", flush=True)
    except StoreError as error:
        print(error, flush=True)
lease.release()
"""

# Starts at the moment in argv[2], so that several come at once; says whether it won, and keeps what it has won.
CONTENDER = """
import sys, time
from pathlib import Path
from store.errors import Busy
from store.lease import acquire

time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
try:
    acquire(Path(sys.argv[1]))
    print("won", flush=True)
    sys.stdin.read()
except Busy:
    print("refused", flush=True)
"""


class Process:
    """A script that runs until it is told to end."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def says(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def checks(self) -> str:
        assert self.popen.stdin is not None
        self.popen.stdin.write("check\n")
        self.popen.stdin.flush()
        return self.says()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.popen.pid, number)

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.end()


def test_a_second_writer_is_refused_by_name_and_a_killed_one_is_forgotten_at_once(
    tmp_path: Path, processes: list[Process]
) -> None:
    holder = Process(HOLDER, tmp_path, 60)
    processes.append(holder)
    token = holder.says().removeprefix("held ")
    with pytest.raises(
        Busy,
        match=rf"is being written by process {holder.popen.pid} on .* since 20\d\d-.*, last heard of \d s ago. "
        r"Wait for it to end, or stop it, and run this again; a process that died elsewhere is forgotten after 60 s",
    ):
        acquire(tmp_path)
    held = read_lease(tmp_path)
    assert held is not None
    assert (held.token, held.process) == (token, holder.popen.pid)
    assert holder.checks() == "still mine"
    holder.send(signal.SIGKILL)
    holder.popen.wait()
    with exclusive_lock(tmp_path) as lease:
        lease.check()
        assert lease.token != token
    assert read_lease(tmp_path) is None


def test_a_stopped_holder_loses_its_lease_after_the_stated_time_and_notices(
    tmp_path: Path, processes: list[Process]
) -> None:
    holder = Process(HOLDER, tmp_path, 0.8)
    processes.append(holder)
    holder.says()
    time.sleep(1.2)  # longer than the lease: it is renewed meanwhile
    with pytest.raises(Busy):
        acquire(tmp_path)
    holder.send(signal.SIGSTOP)
    time.sleep(1.0)
    with exclusive_lock(tmp_path, lease_seconds=30) as lease:
        holder.send(signal.SIGCONT)
        answer = holder.checks()
        assert answer.startswith(f"lost the lease of {tmp_path} to process {os.getpid()} on ")
        assert "it was not renewed for 0.8 s" in answer
        lease.check()
        time.sleep(0.3)  # the other's thread goes on touching its own file, which is nobody's any more
        lease.check()


def test_of_many_contenders_for_a_dead_processs_lease_one_wins(tmp_path: Path, processes: list[Process]) -> None:
    dead = Process(HOLDER, tmp_path, 60)
    processes.append(dead)
    dead.says()
    dead.send(signal.SIGKILL)
    dead.popen.wait()
    begin = time.time() + 1.0
    processes += [Process(CONTENDER, tmp_path, begin) for _ in range(6)]
    assert sorted(process.says() for process in processes[1:]) == ["refused"] * 5 + ["won"]


def _rewrite(folder: Path, **changes: object) -> None:
    (path,) = folder.glob(".lease/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _age(folder: Path, seconds: float) -> None:
    (path,) = folder.glob(".lease/*.json")
    os.utime(path, (path.stat().st_atime, time.time() - seconds))


def _foreign(folder: Path, **changes: object) -> None:
    """The lease of a process that this machine cannot look at."""
    lease = acquire(folder)
    lease.release()
    _rewrite(folder, **({"released": False, "machine": "another boot", "host": "elsewhere", "process": 1} | changes))


def test_a_lease_of_another_machine_is_judged_by_its_age_alone(tmp_path: Path) -> None:
    _foreign(tmp_path, process=2**22 + 5)  # no such process here, which says nothing about there
    with pytest.raises(Busy, match=rf"by process {2**22 + 5} on elsewhere"):
        acquire(tmp_path)
    _age(tmp_path, 59)
    with pytest.raises(Busy, match="last heard of 59 s ago"):
        acquire(tmp_path)
    _age(tmp_path, 61)
    acquire(tmp_path).release()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    lease.release()
    _rewrite(tmp_path, released=False)
    with pytest.raises(Busy):  # this very process
        acquire(tmp_path)
    _rewrite(tmp_path, released=False, started="1")
    acquire(tmp_path).release()


def test_the_clock_of_a_machine_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _foreign(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(Busy):
        acquire(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with pytest.raises(Busy):
        acquire(tmp_path)


def test_a_lease_that_says_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease/000007.json").write_bytes(b"half a li")
    with pytest.raises(Busy, match=r"is being written by an unknown process \(see .*000007\.json\)"):
        acquire(tmp_path)
    _age(tmp_path, 61)
    acquire(tmp_path).release()
    assert sorted(path.name for path in (tmp_path / ".lease").iterdir()) == ["000007.json", "000008.json"]


def test_a_contender_that_was_slow_cannot_take_a_number_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = acquire(tmp_path)
    stale.release()
    seen = store.lease._current(tmp_path)  # the slow one looks here, and is overtaken by another
    other = acquire(tmp_path)
    monkeypatch.setattr(store.lease, "_current", lambda _folder: seen)
    with pytest.raises(Busy):
        acquire(tmp_path)
    other.check()
    (tmp_path / ".lease/000002.json").rename(tmp_path / ".lease/000003.json")  # as if it had won and tidied up
    with pytest.raises(Busy):
        acquire(tmp_path)
    assert not (tmp_path / ".lease/000002.json").exists()


def test_old_lease_files_and_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".lease").mkdir()
    for name in ("1234.draft", "1234.probe"):
        (tmp_path / ".lease" / name).write_bytes(b"")
        os.utime(tmp_path / ".lease" / name, (0, 0))
    for _ in range(20):
        acquire(tmp_path).release()
    names = sorted(path.name for path in (tmp_path / ".lease").iterdir())
    assert names == [f"{number:06d}.json" for number in range(13, 21)]


def test_a_lost_lease_is_not_released_under_its_new_holder(tmp_path: Path) -> None:
    first = acquire(tmp_path)
    record = first.record.model_copy(update={"token": "other"})
    (tmp_path / ".lease/000002.json").write_text(record.model_dump_json())
    with pytest.raises(LostLease):
        first.check()
    first.release()
    assert read_lease(tmp_path) == record


def test_leftovers_of_dead_leases_go_and_files_of_living_workers_stay(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path) as lease:
        living = temporary_neighbour(tmp_path / "a.b", token=lease.token)
        dead = temporary_neighbour(tmp_path / "a.b", token="0123456789abcdef")
        nobodys = temporary_neighbour(tmp_path / "a.b")
        for path in (living, dead, nobodys, tmp_path / "a.b"):
            path.write_bytes(b"")
        clear_leftovers(tmp_path, token=lease.token)
        assert {path.name for path in tmp_path.iterdir()} == {".lease", living.name, "a.b"}
        clear_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lease", "a.b"}


def test_a_living_process_of_another_user_is_not_dead_because_proc_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid shows one's own processes only, and kill(2) says of others that they are not ours."""
    assert is_running(os.getpid(), started=start_time(os.getpid()))
    assert not is_running(os.getpid(), started="1")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: not str(path).startswith("/proc/") and exists(path))

    def not_ours(_process: int, _signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", not_ours)
    assert is_running(os.getpid(), started="whatever it was")

    def none_such(_process: int, _signal: int) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "kill", none_such)
    assert not is_running(os.getpid(), started=start_time(os.getpid()))


def test_a_full_disk_leaves_no_half_of_a_lease_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def write(self, _data: bytes) -> None:
            raise OSError(28, "No space left on device")

    opened = Path.open

    def open_full(self: Path, mode: str = "r", *arguments: object, **others: object) -> object:
        file = opened(self, mode, *arguments, **others)  # type: ignore[arg-type, call-overload]
        if mode == "xb":
            file.close()
            return Full()
        return file

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(MachineError, match=r"could not write .*000001\.json: No space left on device. Free some space"):
        acquire(tmp_path)
    monkeypatch.setattr(Path, "open", opened)
    acquire(tmp_path).release()  # at once: nobody has to wait for a lease that says nothing


def test_a_worker_writes_for_the_holder_and_for_no_other(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path) as lease:
        worker = SharedLease(tmp_path, lease.token)
        worker.check()
        with pytest.raises(LostLease, match="nothing more is written here"):
            SharedLease(tmp_path, "0" * 16).check()
    with pytest.raises(LostLease, match="that this worker belongs to has ended"):
        worker.check()
    with exclusive_lock(tmp_path), pytest.raises(LostLease, match="it is held by process"):
        worker.check()
