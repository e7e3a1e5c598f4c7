"""The files of a cache in a folder, mapped into memory or read by position."""

import mmap
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedFile, IncompleteCache, StoreError
from store.files.protocol import check_range, checked_name, short_file

_MAX_OPEN = 256  # files held open at once, far below the usual limit of 1024 for a process

Mode = Literal["mmap", "pread"]


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

    def read(self, name: str) -> bytes:
        path = self.folder / checked_name(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error

    def size(self, name: str) -> int | None:
        path = self.folder / checked_name(name)
        return path.stat().st_size if path.is_file() else None

    def sizes(self) -> dict[str, int]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    def open_range(self, name: str, nbytes: int, *, sha256: str | None = None) -> "_LocalRange":
        path = self.folder / checked_name(name)
        try:
            got = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        if got != nbytes:
            raise DamagedFile(
                f"expected {path} to have {nbytes} bytes, got {got}. "
                "Remove the file and run `dvc checkout`, or harvest again"
            )
        return _LocalRange(self, name, nbytes)

    def forget(self, name: str, offset: int) -> bool:
        return False

    def _opened(self, name: str, nbytes: int) -> "_Mapped | _Descriptor":
        """The open file of that name. At most _MAX_OPEN are kept; one in use lives on until its last view is gone."""
        with self._lock:
            held = self._open.pop(name, None)
            if held is None:
                path = self.folder / name
                try:
                    held = _Mapped(path, nbytes) if self._mode == "mmap" else _Descriptor(path)
                except OSError as error:
                    raise _unreadable(path, error) from error
            self._open[name] = held
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
            return held


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


def _unreadable(path: Path, error: OSError) -> StoreError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return IncompleteCache(
            f"expected the file {path}, found none: the cache is not finished or only partly there. "
            "Run `dvc checkout` or `dvc pull` to restore it, or `dvc repro harvest` to finish it"
        )
    return StoreError(f"could not read {path}: {error.strerror}. Check its permissions and its disk")
