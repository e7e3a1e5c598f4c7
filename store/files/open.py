"""From the place of a cache, a folder or a URL, to its files."""

from dataclasses import dataclass, replace
from pathlib import Path

from store.files.local import LocalFiles, Mode
from store.files.protocol import Files
from store.files.range_cache import DEFAULT_MAX_BYTES


@dataclass(frozen=True)
class CachePlace:
    """Where a cache is and how its files are read. None of it can change a result."""

    location: str
    """A folder, or a URL that fsspec knows (s3://bucket/folder, gs://, https://, ssh://)."""
    mode: Mode = "mmap"
    """How a folder's files are read; see LocalFiles."""
    range_cache: Path | None = None
    """Where ranges read from a URL are kept; None keeps none."""
    range_cache_bytes: int = DEFAULT_MAX_BYTES
    """The most that they may take; the least recently used go first."""

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        """Whether it is behind a URL."""
        return "://" in self.location

    def absolute(self) -> "CachePlace":
        """The same place in words that another process, with another working folder, understands."""
        return self if self.is_remote else replace(self, location=str(Path(self.location).resolve()))

    def open(self) -> Files:
        """Its files; nothing is read yet."""
        if not self.is_remote:
            return LocalFiles(Path(self.location), mode=self.mode)
        from store.files.remote import RemoteFiles  # fsspec's drivers take long to import, and most caches are local

        return RemoteFiles(self.location, cache_folder=self.range_cache, cache_bytes=self.range_cache_bytes)


Place = Files | CachePlace | Path | str
"""Wherever a cache is read, its files, a folder or a URL will do."""


def open_files(place: Place, *, mode: Mode = "mmap") -> Files:
    """The files of a cache, however its place is given; `mode` is for a place that does not say how it is read."""
    return place_of(place, mode=mode).open() if isinstance(place, (CachePlace, Path, str)) else place


def place_of(place: CachePlace | Path | str, *, mode: Mode = "mmap") -> CachePlace:
    """A place with all said about it: a bare folder or URL is read in `mode`, and keeps no ranges."""
    return place if isinstance(place, CachePlace) else CachePlace(str(place), mode=mode)
