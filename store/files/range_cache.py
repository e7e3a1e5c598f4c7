"""Ranges of remote files kept on a local disk: a byte budget shared by all processes that use the folder.

    FOLDER/ledger                          bytes in use, uint64; locked while anything is added or removed
    FOLDER/3f/3f0c...e1/4096-530123        530,123 bytes at offset 4096 of the file with that SHA-256, and their crc32c

A range is found by what it is part of and not by where that was read, so mirrors share ranges, and a file that was
replaced on the remote cannot be mixed up with its successor. Nothing here needs to survive: what a crash, a full disk
or another program leaves behind fails its length or checksum, and is read from the remote again.
"""

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.atomic import TEMPORARY_SUFFIX
from store.codec.checksum import CRC32C_NBYTES, crc32c
from store.errors import StoreError

DEFAULT_MAX_BYTES = 20 * 2**30
_SPARE = 0.1  # share of the budget that an eviction frees beyond what is needed, so that not every range costs a scan
_FULL_SECONDS = 60.0  # after a scan that found nothing to evict, none is made for so long

_log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    used_ns: int
    nbytes: int
    path: Path


class RangeCache:
    """Keeps at most `max_bytes` of ranges in a folder; the least recently used go first.

    Ranges used since this object was made are not evicted by it: an epoch larger than the budget would otherwise push
    out, again and again, what the next one is about to ask for. With a budget of half the data, half of the reads are
    then served from here from the second epoch on; plain LRU would serve 15 % of them, because each epoch has its own
    random order.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"expected a budget of 0 bytes or more for {folder}, got {max_bytes}")
        self.folder = folder
        self._max_bytes = max_bytes
        self._opened_ns = time.time_ns()
        self._works = True
        self._full_until = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._ledger() as ledger:
                self._make_room(ledger, 0)
        except OSError as error:
            raise StoreError(
                f"expected a folder for ranges of remote files at {folder}, got: {error.strerror}. "
                "Choose another folder, or none"
            ) from error

    def get(self, file_sha256: str, offset: int, nbytes: int) -> NDArray[np.uint8] | None:
        """The range, (nbytes,), when it is here and whole."""
        path = self._path(file_sha256, offset, nbytes)
        try:
            stored = np.fromfile(path, dtype=np.uint8)
            os.utime(path, ns=(time.time_ns(),) * 2)
        except OSError:  # not here, or another process has just evicted it
            return None
        data = stored[:-CRC32C_NBYTES]
        if len(stored) != nbytes + CRC32C_NBYTES or crc32c((data,)) != stored[-CRC32C_NBYTES:].tobytes():
            self.drop(file_sha256, offset)
            return None
        return data

    def put(self, file_sha256: str, offset: int, data: NDArray[np.uint8]) -> None:
        """Keeps a range if the budget allows. A disk that does not take it is reported once and then left alone."""
        path = self._path(file_sha256, offset, len(data))
        nbytes = len(data) + CRC32C_NBYTES
        if not self._works or nbytes > self._max_bytes or time.monotonic() < self._full_until:
            return
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
        try:
            with self._ledger() as ledger:
                if path.exists():
                    return
                total = _total(ledger)
                if total + nbytes > self._max_bytes:
                    total = self._make_room(ledger, nbytes)
                if total + nbytes > self._max_bytes:
                    self._full_until = time.monotonic() + _FULL_SECONDS
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb", buffering=0) as file:
                    _write_all(file.fileno(), data.data)
                    _write_all(file.fileno(), memoryview(crc32c((data,))))
                os.utime(temporary, ns=(time.time_ns(),) * 2)
                temporary.replace(path)
                _set_total(ledger, total + nbytes)
        except OSError as error:
            self._works = False
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            _log.warning("no more ranges are kept in %s: %s", self.folder, error.strerror)

    def drop(self, file_sha256: str, offset: int) -> bool:
        """Removes every range of a file that begins at `offset`; True when there was one."""
        folder = self._path(file_sha256, offset, 0).parent
        dropped = False
        with contextlib.suppress(OSError), self._ledger() as ledger:
            for path in folder.glob(f"{offset}-*"):
                nbytes = path.stat().st_size
                path.unlink()
                dropped = True
                _set_total(ledger, max(0, _total(ledger) - nbytes))
        return dropped

    def _path(self, file_sha256: str, offset: int, nbytes: int) -> Path:
        if len(file_sha256) != 64 or not set(file_sha256) <= set("0123456789abcdef"):
            raise StoreError(f"expected a SHA-256 of 64 hexadecimal digits in the manifest, got {file_sha256[:80]!r}")
        return self.folder / file_sha256[:2] / file_sha256 / f"{offset}-{nbytes}"

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        """The open ledger, locked against all threads and processes; the kernel unlocks it when a process dies."""
        descriptor = os.open(self.folder / "ledger", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _make_room(self, ledger: int, nbytes: int) -> int:
        """Counts the ranges here, removes old ones until `nbytes` more fit and some spare; returns the bytes in use."""
        kept = sorted(self._scan())
        total = sum(found.nbytes for found in kept)
        if total + nbytes > self._max_bytes:
            target = max(0, int(self._max_bytes * (1 - _SPARE)) - nbytes)
            for oldest in kept:
                if total <= target or oldest.used_ns >= self._opened_ns:
                    break
                oldest.path.unlink(missing_ok=True)
                total -= oldest.nbytes
                with contextlib.suppress(OSError):  # not empty
                    oldest.path.parent.rmdir()
        _set_total(ledger, total)
        return total

    def _scan(self) -> Iterator[_Kept]:
        """Every range here. Temporary files are of writers that were killed: the lock is held, so nobody writes."""
        for path in self.folder.glob("??/*/*-*"):
            if path.suffix == TEMPORARY_SUFFIX:
                path.unlink(missing_ok=True)
                continue
            status = path.stat()
            yield _Kept(status.st_mtime_ns, status.st_size, path)


def _total(ledger: int) -> int:
    return int.from_bytes(os.pread(ledger, 8, 0), "little")


def _set_total(ledger: int, total: int) -> None:
    os.pwrite(ledger, total.to_bytes(8, "little"), 0)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
