"""Files that appear whole or not at all, folders that are replaced by renames, and the lock of a writer."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from store.errors import Busy, StoreError
from store.record import plain

TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the concatenated parts to a temporary neighbour, syncs it and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"could not write {path}: {error.strerror}. Free some space or choose another folder"
        ) from error
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Writes a record or plain value as JSON with sorted keys, so that equal values are equal bytes."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON can hold
    """The one spelling of a record or plain value as JSON: sorted keys, one item a line, ASCII."""
    return (json.dumps(plain(value), sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Parses a JSON file; a StoreError names the file when it is not one."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise StoreError(
            f"expected JSON in {path}, found something else ({error}). Restore or remake the file"
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source` (a hard link), or a copy where file systems differ; atomic."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def replace_folder(source: Path, target: Path) -> None:
    """Puts the folder `source` in the place of `target`, which is removed. A crash leaves one of them whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    if target.exists():
        target.rename(old)
    source.rename(target)
    sync_folder(target.parent)
    for leftover in target.parent.glob(f".{target.name}.*.old"):  # of this swap, and of earlier ones that were killed
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for one writer; `Busy` names the process that has it. The kernel frees it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise Busy(
                f"{folder} is being written by {holder}. Wait for it to end, or stop it, and run this again"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)
