"""One writer per folder, on one machine or on many that share a file system.

A lease is a file `.lease/NNNNNN.json` that names its holder. Only the file with the highest number counts. It is made
by linking a finished file to its name, which succeeds for one process only, wherever it runs; so taking over a stale
lease is making the next number, and two contenders cannot both win. A lease is stale

* at once, when its process is dead; told from the machine's boot, the process namespace, the process number and when
  that process started, and so only by processes of the same machine;
* otherwise, when it was not renewed for `LEASE_SECONDS`. A thread of the holder renews it by touching the file, and the
  contender compares its age with that of a file that it touches itself: both times are the file system's, so clocks of
  machines may differ as they like.

A holder that was stopped for longer finds at its next `check` that the lease is another's, and gives up. What is
written between a check and the take-over does no harm: files appear whole, and a shard has the same bytes from any
process.
"""

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from store.errors import Busy, LostLease
from store.machine import explain, explained
from store.process import is_running, machine_name, start_time
from store.record import Record

LEASE_SECONDS: Final = 60.0
_RENEWALS_PER_LEASE: Final = 6
_FOLDER: Final = ".lease"
_MAX_NBYTES: Final = 2**16
_NUM_KEPT: Final = 8
"""Old lease files that stay. A slow contender that saw one of them then finds the number that it tries to be taken."""


class LeaseRecord(Record):
    """What a lease file says."""

    token: str
    """Names the holder among all there ever were; part of the names of its workers' temporary files."""
    host: str
    machine: str
    """The machine's boot and process namespace, or "" where that cannot be told."""
    process: int
    started: str
    """When the process started, in the kernel's ticks since boot, or ""."""
    since: str
    """When the lease was taken by the holder's clock: for people, never compared."""
    lease_seconds: float
    """Without renewal for this long, others may take it."""
    released: bool = False


@dataclass(frozen=True)
class _Found:
    """The lease file that counts."""

    number: int
    path: Path
    record: LeaseRecord | None
    """None for a file that cannot be parsed: then only its age says anything."""
    age_seconds: float


class Lease:
    """A lease that is held, renewed by a thread until it is released."""

    def __init__(self, folder: Path, record: LeaseRecord, *, number: int) -> None:
        self.folder = folder
        self.record = record
        self._number = number
        self._path = _lease_path(folder, number)
        self._descriptor = os.open(self._path, os.O_RDWR)  # renewing touches our file, even if the name is another's
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_done, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """Names this lease among all there ever were."""
        return self.record.token

    def check(self) -> None:
        """Raises `LostLease` when another process holds the lease now. Call it before a write that only one may do."""
        numbers = _numbers(self.folder)
        if numbers and numbers[-1] == self._number and _same_file(self._descriptor, self._path):
            os.utime(self._descriptor)
            return
        holder = read_lease(self.folder)
        raise LostLease(
            f"lost the lease of {self.folder} to {_describe(holder) if holder else 'a process that has ended since'}: "
            f"it was not renewed for {self.record.lease_seconds:g} s, as when this process is stopped or the file "
            "system does not answer. What was committed stays; run this again when the other has ended"
        )

    def release(self) -> None:
        """Ends the renewals and lets others in at once."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(LostLease, OSError):  # then it is another's already, or goes stale
            self.check()
            try:
                _replace(self._path, self.record.model_copy(update={"released": True}))
            except OSError:  # as on a full disk
                self._path.unlink()
        os.close(self._descriptor)

    def _renew_until_done(self) -> None:
        while not self._done.wait(self.record.lease_seconds / _RENEWALS_PER_LEASE):
            with contextlib.suppress(OSError):  # tried again soon; `check` says when it was too late
                os.utime(self._descriptor)


class SharedLease:
    """A lease that another process holds, and on whose behalf this one writes: a worker of its holder."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder
        self.token = token

    def check(self) -> None:
        """Raises `LostLease` unless the holder still has it: then nobody waits for what this process writes."""
        holder = read_lease(self.folder)
        if holder is None or holder.token != self.token:
            raise LostLease(
                f"the harvest or other work in {self.folder} that this worker belongs to has ended"
                + (f"; it is held by {_describe(holder)} now" if holder else "")
                + ". What was committed stays; nothing more is written here"
            )


def acquire(folder: Path, *, lease_seconds: float = LEASE_SECONDS) -> Lease:
    """Takes the lease of `folder`, which is made if need be.

    Raises:
        Busy: another process holds it; says which, since when, and what to do.
    """
    with explained(f"write to {folder / _FOLDER}"):
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        found = _current(folder)
    if found is not None and not _is_free(found):
        raise _busy(folder, found)
    record = _own_record(lease_seconds)
    number = found.number + 1 if found else 1
    path = _lease_path(folder, number)
    draft = path.with_name(f"{record.token}.draft")
    try:
        draft.write_text(record.model_dump_json())
        won = _link(draft, path)
    except OSError as error:
        raise explain(error, f"write {path}") from error
    finally:
        draft.unlink(missing_ok=True)
    numbers = _numbers(folder)
    if not won or numbers[-1] != number:
        if won:
            path.unlink(missing_ok=True)
        winner = _current(folder)
        raise _busy(folder, winner) if winner else Busy(f"{folder} was taken at this moment. Run this again")
    _remove_old_files(folder, numbers, seconds=lease_seconds)
    return Lease(folder, record, number=number)


@contextlib.contextmanager
def exclusive_lock(folder: Path, *, lease_seconds: float = LEASE_SECONDS) -> Iterator[Lease]:
    """Holds `folder` for one writer while the block runs; `Busy` names the process that has it."""
    lease = acquire(folder, lease_seconds=lease_seconds)
    try:
        yield lease
    finally:
        lease.release()


def read_lease(folder: Path) -> LeaseRecord | None:
    """Who holds `folder`, for workers that write under its token; None where nobody does."""
    found = _current(folder)
    return None if found is None or found.record is None or _is_free(found) else found.record


def _lease_path(folder: Path, number: int) -> Path:
    return folder / _FOLDER / f"{number:06d}.json"


def _numbers(folder: Path) -> list[int]:
    """The numbers of all lease files, ascending."""
    try:
        names = os.listdir(folder / _FOLDER)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal())


def _current(folder: Path) -> _Found | None:
    while numbers := _numbers(folder):
        path = _lease_path(folder, numbers[-1])
        try:
            with path.open("rb") as file:  # opening it makes a network file system look again
                data, modified = file.read(_MAX_NBYTES), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            continue  # it was given up at this moment
        try:
            record = LeaseRecord.model_validate_json(data)
        except ValidationError:
            record = None
        return _Found(numbers[-1], path, record, age_seconds=_now(folder) - modified)
    return None


def _remove_old_files(folder: Path, numbers: list[int], *, seconds: float) -> None:
    """Removes lease files whose numbers nobody can be about to take, and what killed processes left."""
    for number in numbers[:-_NUM_KEPT]:
        _lease_path(folder, number).unlink(missing_ok=True)
    now = _now(folder)
    for leftover in (folder / _FOLDER).glob("*.[dp]r*"):  # drafts and probes
        with contextlib.suppress(FileNotFoundError):
            if now - leftover.stat().st_mtime > seconds:
                leftover.unlink()


def _now(folder: Path) -> float:
    """The file system's time: what a file that is touched now is dated."""
    probe = folder / _FOLDER / f"{uuid.uuid4().hex}.probe"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_free(found: _Found) -> bool:
    record = found.record
    if record is None:
        return found.age_seconds > LEASE_SECONDS
    return record.released or _is_dead(record) or found.age_seconds > record.lease_seconds


def _is_dead(record: LeaseRecord) -> bool:
    """Whether the holder ran on this machine and runs no more."""
    if not record.machine or record.machine != machine_name():
        return False
    return not is_running(record.process, started=record.started)


def _own_record(lease_seconds: float) -> LeaseRecord:
    return LeaseRecord(
        token=uuid.uuid4().hex[:16],
        host=socket.gethostname(),
        machine=machine_name(),
        process=os.getpid(),
        started=start_time(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        lease_seconds=lease_seconds,
    )


def _link(draft: Path, path: Path) -> bool:
    """Gives the finished file its name, if that is free; False when another process was first."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        text = draft.read_bytes()
        try:
            with path.open("xb") as file:
                try:
                    file.write(text)
                    file.flush()
                except OSError:  # a full disk: half a lease would keep everybody out for a while
                    path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
    return True


def _replace(path: Path, record: LeaseRecord) -> None:
    draft = path.with_name(f"{record.token}.draft")
    draft.write_text(record.model_dump_json())
    draft.replace(path)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _describe(record: LeaseRecord) -> str:
    return f"process {record.process} on {record.host} since {record.since}"


def _busy(folder: Path, found: _Found) -> Busy:
    holder = _describe(found.record) if found.record else f"an unknown process (see {found.path})"
    seconds = found.record.lease_seconds if found.record else LEASE_SECONDS
    return Busy(
        f"{folder} is being written by {holder}, last heard of {max(found.age_seconds, 0):.0f} s ago. Wait for it to "
        f"end, or stop it, and run this again; a process that died elsewhere is forgotten after {seconds:g} s"
    )
