"""The files of a cache in a folder, mapped into memory or read by position.

Files are held open so that a range costs no opening. How many depends on the process's limit: a map counts as an open
file, too. When the limit is reached all the same, because others in the process have files open, all that are held by
any folder of this process are closed, and the file is opened once more.
"""

import errno
import mmap
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedFile, IncompleteCache, MachineError
from store.files.listing import files_below
from store.files.protocol import check_range, checked_name, short_file
from store.machine import explain

Mode = Literal["mmap", "pread"]
Result = TypeVar("Result")

_SHARE = 4  # of the files that the process may have open, one of so many: a training reads one cache, an export two
_MAX_OPEN = 4096  # where the limit is far higher; a process may have 65,530 maps


class LocalFiles:
    """A cache in a folder.

    Args:
        folder: of the cache.
        mode: `mmap` returns views of the mapped file and copies nothing. `pread` reads into a new array each time:
            for network file systems, where a file truncated under a map would kill the process by SIGBUS.
    """

    parallel_reads = 1

    def __init__(self, folder: Path, *, mode: Mode = "mmap") -> None:
        self.folder = folder
        self.location = str(folder)
        self._mode = mode
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Mapped | _Descriptor] = OrderedDict()
        with _ALL_LOCK:
            _ALL.add(self)

    def read(self, name: str) -> bytes:
        path = self.folder / checked_name(name)
        return _opening(path, path.read_bytes)

    def size(self, name: str) -> int | None:
        path = self.folder / checked_name(name)
        return path.stat().st_size if path.is_file() else None

    def sizes(self) -> dict[str, int]:
        paths = files_below(self.folder)
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def open_range(self, name: str, nbytes: int, *, sha256: str | None = None) -> "_LocalRange":
        path = self.folder / checked_name(name)
        got = _opening(path, lambda: path.stat().st_size)
        if got != nbytes:
            raise DamagedFile(
                f"expected {path} to have {nbytes} bytes, got {got}. "
                "Remove the file and run `dvc checkout`, or harvest again"
            )
        return _LocalRange(self, name, nbytes)

    def forget(self, name: str, offset: int) -> bool:
        return False

    def _opened(self, name: str, nbytes: int) -> "_Mapped | _Descriptor":
        """The open file of that name, which is kept for a while; one in use lives on until its last view is gone."""
        with self._lock:
            if (held := self._open.get(name)) is not None:
                self._open.move_to_end(name)
                return held
        path = self.folder / name
        opened = _opening(path, lambda: _Mapped(path, nbytes) if self._mode == "mmap" else _Descriptor(path))
        with self._lock:
            self._open[name] = opened
            while len(self._open) > max_open():
                self._open.popitem(last=False)
        return opened

    def close(self) -> None:
        """Closes the files that are held open and not in use; they are opened again when they are read."""
        with self._lock:
            self._open.clear()


_ALL: "weakref.WeakSet[LocalFiles]" = weakref.WeakSet()
_ALL_LOCK = threading.Lock()


def max_open() -> int:
    """Files that a folder may hold open, by the process's present limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MAX_OPEN if limit == resource.RLIM_INFINITY else min(max(limit // _SHARE, 1), _MAX_OPEN)


def _opening(path: Path, action: Callable[[], Result]) -> Result:
    """What the action gives, which opens or asks for a file; tried again with fewer files open if there are too many.

    Raises IncompleteCache where there is no such file, and MachineError where the machine does not let us have it.
    """
    try:
        return action()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise _unreadable(path, error) from error
    with _ALL_LOCK:
        everyone = list(_ALL)
    for files in everyone:
        files.close()
    try:
        return action()
    except OSError as error:
        raise _unreadable(path, error) from error


class _LocalRange:
    def __init__(self, files: LocalFiles, name: str, nbytes: int) -> None:
        self._files, self._name, self._nbytes = files, name, nbytes

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        path = self._files.folder / self._name
        check_range(offset, nbytes, file_nbytes=self._nbytes, where=str(path))
        if nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        return self._files._opened(self._name, self._nbytes).read(offset, nbytes)


class _Mapped:
    """A whole file mapped into memory; its views keep it alive."""

    def __init__(self, path: Path, nbytes: int) -> None:
        with path.open("rb") as file:
            got = os.fstat(file.fileno()).st_size
            if got < nbytes:
                raise DamagedFile(f"expected {path} to have {nbytes} bytes, got {got}: it was cut short since opening")
            # Keeps a descriptor of its own as long as the map is there.
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ), dtype=np.uint8)

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        return self._bytes[offset : offset + nbytes]


class _Descriptor:
    """An open file, closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        out = np.empty(nbytes, dtype=np.uint8)
        done = 0
        while done < nbytes:
            try:
                got = os.preadv(self._file.fileno(), [out.data[done:]], offset + done)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if got == 0:
                raise short_file(str(self._path), offset=offset, nbytes=nbytes, got=done)
            done += got
        return out


def _unreadable(path: Path, error: OSError) -> IncompleteCache | MachineError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return IncompleteCache(
            f"expected the file {path}, found none: the cache is not finished or only partly there. "
            "Run `dvc checkout` or `dvc pull` to restore it, or `dvc repro harvest` to finish it"
        )
    return explain(error, f"read {path}")
