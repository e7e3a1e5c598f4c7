"""The files of a cache in a bucket or on a server, read by ranges through fsspec.

The manifest says what there is, and each read is checked against it; on opening, files are listed in one go where the
protocol can do that, and nowhere asked for one by one. Credentials and endpoints come from the drivers' usual places
(AWS_PROFILE, AWS_ENDPOINT_URL, fsspec's own configuration) and from nowhere else.
"""

import asyncio
import functools
import inspect
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
from fsspec.asyn import AsyncFileSystem, sync
from numpy.typing import NDArray

from store.errors import StoreError
from store.files.protocol import check_range, checked_name, short_file
from store.files.range_cache import DEFAULT_MAX_BYTES, RangeCache
from store.files.remote_errors import Fault, classify, driver_errors, explain, no_driver

CONNECT_SECONDS: Final = 5.0
"""Until a connection stands."""
SILENCE_SECONDS: Final = 15.0
"""Between two pieces of an answer."""
SLOWEST_BYTES_PER_SECOND: Final = 64 * 1024
"""An answer that takes longer than SILENCE_SECONDS plus its size at this rate counts as lost."""
TRIES: Final = 5
"""How often a read is tried when the fault may pass."""
PATIENCE_SECONDS: Final = 30.0
"""No try begins later than this after the first."""
BACKOFF_SECONDS: Final = 0.25
"""The longest pause after the first try; it doubles after each. The pause itself is random, to spread readers out."""

_LISTED = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "file", "memory"})


class RemoteFiles:
    """A cache at a URL. Safe to use from several threads, and after a fork (but for ssh).

    Args:
        url: of the cache's folder, without credentials: s3://bucket/folder, gs://, https://, ssh://user@host/folder.
        cache_folder: where the ranges that were read are kept for next time; None keeps none.
        cache_bytes: the most that they may take there.
    """

    parallel_reads = 32

    def __init__(self, url: str, *, cache_folder: Path | None = None, cache_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.location = _checked_url(url)
        self.protocol = url.split("://", 1)[0]
        self._cache = None if cache_folder is None else RangeCache(cache_folder, max_bytes=cache_bytes)
        self._sha256: dict[str, str] = {}
        self._lock = threading.Lock()
        self._connected: tuple[int, Any] | None = None

    def read(self, name: str) -> bytes:
        return self._fetch(name, None, None)

    def size(self, name: str) -> int | None:
        filesystem = self._filesystem()
        try:
            size = self._retrying(name, lambda: filesystem.info(self._path(name))["size"], passing=("missing",))
        except FileNotFoundError:
            return None
        return None if size is None else int(size)

    def sizes(self) -> dict[str, int] | None:
        """None also for ssh, which would ask folder after folder, and for a bucket that may be read but not listed."""
        if self.protocol not in _LISTED:
            return None
        filesystem = self._filesystem()
        try:
            found = self._retrying("", lambda: filesystem.find(self.location, detail=True), passing=("denied",))
        except PermissionError:
            return None
        root = str(filesystem._strip_protocol(self.location)).rstrip("/") + "/"
        return {
            name.removeprefix(root): int(facts["size"]) for name, facts in found.items() if facts.get("type") == "file"
        }

    def open_range(self, name: str, nbytes: int, *, sha256: str | None = None) -> "_RemoteRange":
        if sha256 is not None:
            self._sha256[name] = sha256
        return _RemoteRange(self, checked_name(name), nbytes, sha256)

    def forget(self, name: str, offset: int) -> bool:
        if self._cache is not None and name in self._sha256:
            self._cache.drop(self._sha256[name], offset)
        return True

    def _path(self, name: str) -> str:
        if not name:
            return self.location
        quoted = urllib.parse.quote(name) if self.protocol in ("http", "https") else name
        return f"{self.location}/{quoted}"

    def _filesystem(self) -> Any:  # noqa: ANN401 - fsspec's drivers share no useful type
        """This process's connection: drivers do not survive a fork. No other user of fsspec shares its settings."""
        with self._lock:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), self._connect())
            return self._connected[1]

    def _connect(self) -> Any:  # noqa: ANN401
        try:
            driver = fsspec.get_filesystem_class(self.protocol)
        except ImportError as error:
            raise no_driver(self.protocol, self.location) from error
        except ValueError as error:
            raise StoreError(
                f"expected a URL that fsspec can read (s3://, gs://, https://, ssh://), got {self.location}: {error}"
            ) from error
        options = dict(driver._get_kwargs_from_urls(self.location))
        configured = fsspec.config.conf.get(self.protocol, {})
        for key, value in _bounds(self.protocol).items():
            theirs = configured.get(key)
            if isinstance(value, Mapping) and isinstance(theirs, Mapping):
                options[key] = {**value, **theirs}
            elif theirs is None:
                options[key] = value
        if issubclass(driver, AsyncFileSystem) and self.protocol not in ("ssh", "sftp"):  # sshfs takes no loop
            options["loop"] = _loop(os.getpid())
        make = functools.partial(driver, **options, skip_instance_cache=True)
        filesystem = self._retrying("", make)
        if hasattr(filesystem, "retries"):
            filesystem.retries = 1  # s3fs, gcsfs: one loop of tries, ours, with one bound on its time
        return filesystem

    def _fetch(self, name: str, start: int | None, end: int | None) -> bytes:
        """A file, or bytes start to end of it, as many as there are."""
        filesystem, path = self._filesystem(), self._path(checked_name(name))
        if isinstance(filesystem, AsyncFileSystem) and _reads_ranges(filesystem):
            limit = PATIENCE_SECONDS
            if start is not None and end is not None:
                limit = SILENCE_SECONDS + (end - start) / SLOWEST_BYTES_PER_SECOND

            def read() -> bytes:
                return bytes(sync(filesystem.loop, filesystem._cat_file, path, start=start, end=end, timeout=limit))
        else:
            # Some drivers' cat_file reads whole files whatever it is asked for; this one opens, seeks and reads.
            def read() -> bytes:
                return bytes(fsspec.AbstractFileSystem.cat_file(filesystem, path, start=start, end=end))

        return self._retrying(name, read)

    def _retrying(self, name: str, read: Any, *, passing: tuple[Fault, ...] = ()) -> Any:  # noqa: ANN401
        """The result of `read()`, tried again while the fault may pass.

        A fault named in `passing` is raised as FileNotFoundError or PermissionError, without another try.
        """
        begin = time.monotonic()
        for tries in range(1, TRIES + 1):
            try:
                return read()
            except driver_errors() as error:
                fault = classify(error)
                if fault in passing:
                    raise (FileNotFoundError if fault == "missing" else PermissionError)(name) from error
                late = time.monotonic() - begin > PATIENCE_SECONDS
                if fault != "transient" or tries == TRIES or late:
                    where = self._path(name)
                    raise explain(fault, error, where=where, protocol=self.protocol, tries=tries) from error
            time.sleep(random.uniform(0.5, 1.0) * BACKOFF_SECONDS * 2 ** (tries - 1))
        raise AssertionError("the last try returns or raises")


class _RemoteRange:
    def __init__(self, files: RemoteFiles, name: str, nbytes: int, sha256: str | None) -> None:
        self._files, self._name, self._nbytes, self._sha256 = files, name, nbytes, sha256

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        where = self._files._path(self._name)
        check_range(offset, nbytes, file_nbytes=self._nbytes, where=where)
        cache, sha256 = self._files._cache, self._sha256
        if nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        if cache is not None and sha256 is not None:
            kept = cache.get(sha256, offset, nbytes)
            if kept is not None:
                return kept
        # A connection that broke can look like the end of the file, so a short answer is asked for once more.
        for _ in range(2):
            data = np.frombuffer(self._files._fetch(self._name, offset, offset + nbytes), dtype=np.uint8)
            if len(data) >= nbytes:
                break
        if len(data) < nbytes:
            raise short_file(where, offset=offset, nbytes=nbytes, got=len(data))
        if len(data) > nbytes:
            raise StoreError(
                f"expected {nbytes} bytes at {offset} of {where}, got {len(data)}: the server does not answer range "
                "requests. Use one that does, or copy the cache to a local disk"
            )
        if cache is not None and sha256 is not None:
            cache.put(sha256, offset, data)
        return data


def _checked_url(url: str) -> str:
    """The URL without a slash at its end; StoreError if it may hold a secret, because URLs are printed in messages."""
    parts = urllib.parse.urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.password is not None or parts.query or parts.fragment or "::" in url:
        raise StoreError(
            f"expected the plain URL of a cache's folder, got {shown} with a password, a query or a chain of "
            "protocols. Give credentials through the environment (AWS_PROFILE, FSSPEC_..., an ssh agent)"
        )
    return url.rstrip("/")


@functools.cache
def _loop(_process_id: int) -> asyncio.AbstractEventLoop:
    """The event loop on which this process's connections run. fsspec's own one is dead in a forked process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote files", daemon=True).start()
    return loop


def _reads_ranges(filesystem: AsyncFileSystem) -> bool:
    return "start" in inspect.signature(filesystem._cat_file).parameters


def _bounds(protocol: str) -> dict[str, Any]:
    """What each driver is told unless the person's own fsspec configuration says otherwise: its timeouts and limits."""
    if protocol in ("s3", "s3a"):
        config = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": SILENCE_SECONDS,
            "max_pool_connections": 2 * RemoteFiles.parallel_reads,
            "retries": {"total_max_attempts": 1},
        }
        return {"config_kwargs": config, "use_listings_cache": False}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        # Compressed in transit, a range would be one of other bytes.
        return {"client_kwargs": {"timeout": timeout, "headers": {"Accept-Encoding": "identity"}}}
    if protocol in ("ssh", "sftp"):
        # Unless told so, sshfs does not look at host keys at all; () stands for ~/.ssh/known_hosts.
        return {"known_hosts": (), "connect_timeout": CONNECT_SECONDS, "login_timeout": SILENCE_SECONDS}
    return {}
