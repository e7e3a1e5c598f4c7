"""What reading the files of a cache asks of the place where they are: names, sizes, and ranges of bytes.

What is read is data to be checked, wherever it comes from: sizes here, checksums by the reader.
"""

from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from store.errors import DamagedFile, StoreError


class RangeReader(Protocol):
    """Reads ranges of one file. Safe to use from several threads."""

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes offset to offset + nbytes, (nbytes,), not to be written to.

        Raises:
            DamagedFile: the file ends before; names it.
            IncompleteCache: there is no such file; names it.
        """
        ...


class Files(Protocol):
    """The files of one cache, by their names relative to it (`tokens/c/0/0`)."""

    location: str
    """For messages: a folder or a URL."""
    parallel_reads: int
    """Reads worth having under way at once: 1 where the kernel reads ahead, tens where each waits for a network."""

    def read(self, name: str) -> bytes:
        """A whole small file. IncompleteCache names it when it is missing."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when there is no such file."""
        ...

    def sizes(self) -> dict[str, int] | None:
        """Bytes of every file that is there, in one go; None where files cannot be listed (plain http)."""
        ...

    def open_range(self, name: str, nbytes: int, *, sha256: str | None = None) -> RangeReader:
        """A reader of a file's ranges.

        Args:
            name: of the file.
            nbytes: the size that the manifest states; DamagedFile when the file has another. Remote files are not
                asked for their sizes, because there are thousands: there a missing or short one is found by a read.
            sha256: what the manifest states; ranges of a remote file are kept locally under it, and only with it.
        """
        ...

    def forget(self, name: str, offset: int) -> bool:
        """Drops the local copies of ranges of a file that begin at `offset`.

        True when reading again asks a remote and so may give other bytes; the reader tries that once when a checksum
        fails. False for a folder, whose bytes are what they are.
        """
        ...


def address(files: Files, name: str) -> str:
    """The path or URL of a file, for messages."""
    return f"{files.location.rstrip('/')}/{name}"


def checked_name(name: str) -> str:
    """The name itself when it stays inside its cache; names come from manifests, which are data."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise StoreError(f"expected the name of a file inside the cache, got {name!r}: the manifest was tampered with")
    return name


def check_range(offset: int, nbytes: int, *, file_nbytes: int, where: str) -> None:
    """DamagedFile when a range, which comes from an index, is not inside its file."""
    if offset < 0 or nbytes < 0 or offset + nbytes > file_nbytes:
        raise DamagedFile(
            f"expected bytes {offset} to {offset + nbytes} inside {where}, which has {file_nbytes}. "
            "What points there is damaged: restore the file"
        )


def short_file(where: str, *, offset: int, nbytes: int, got: int) -> DamagedFile:
    """The error of a file that ends too early."""
    return DamagedFile(
        f"expected {nbytes} bytes at {offset} of {where}, got {got}: the file was cut short. "
        "Remove it and run `dvc checkout` or `dvc pull`, or upload or harvest it again"
    )
