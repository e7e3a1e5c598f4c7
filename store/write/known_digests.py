"""SHA-256 of files that were read or written before, so that an earlier cache is not read as a whole each time.

A digest counts for a file as long as device, inode, size and time of its last change are the same; `store verify
--full` and a harvest without reuse trust none of it. Nothing depends on the file that keeps them: where it cannot be
read or written, files are read again.
"""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any, Final

from store.atomic import file_sha256, read_json, write_json
from store.errors import StoreError

REMEMBERED_BYTES: Final = 2**20
"""Smaller files are read each time."""
_SETTLED_SECONDS: Final = 2.0
_NUM_KEPT: Final = 200_000


class KnownDigests:
    """The digests that `file` keeps. Threads may use it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, StoreError, AttributeError, TypeError, ValueError):
            found = read_json(file)["digests"]
            self._known = {str(key): [*value] for key, value in found.items() if len(value) == 3}

    def sha256(self, path: Path) -> str:
        """SHA-256 (hex) of a file's bytes, from memory where it is the one that was read before."""
        key, state = _identity(path)
        with self._lock:
            known = self._known.get(key)
        if known is not None and known[:2] == state:
            return str(known[2])
        sha256 = file_sha256(path)
        if _identity(path) == (key, state):
            self._keep(key, state, sha256)
        return sha256

    def remember(self, path: Path, sha256: str) -> None:
        """Keeps the digest of a file that was just written."""
        self._keep(*_identity(path), sha256)

    def save(self) -> None:
        """Writes what is known, if that is possible."""
        with self._lock:
            kept = dict(list(self._known.items())[-_NUM_KEPT:])
        if kept:
            with contextlib.suppress(OSError, StoreError):
                write_json(self._file, {"digests": kept})

    def _keep(self, key: str, state: list[int], sha256: str) -> None:
        # A change within the clock's steps would go unseen.
        if state[0] >= REMEMBERED_BYTES and time.time_ns() - state[1] > _SETTLED_SECONDS * 1e9:
            with self._lock:
                self._known.pop(key, None)
                self._known[key] = [*state, sha256]


def _identity(path: Path) -> tuple[str, list[int]]:
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}", [status.st_size, status.st_mtime_ns]
