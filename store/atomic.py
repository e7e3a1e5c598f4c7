"""Files that appear whole or not at all."""

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from store.errors import StoreError
from store.machine import explain
from store.record import plain

TEMPORARY_SUFFIX = ".tmp"


def temporary_neighbour(path: Path, *, token: str = "") -> Path:
    """Where a file is written before it gets its name: `<name>.<token>.<random>.tmp`, the token being its lease's."""
    return path.with_name(f"{path.name}.{token}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")


def clear_leftovers(folder: Path, *, token: str = "") -> None:
    """Removes temporary files below `folder` that dead writers left. Those of workers under the lease `token` stay."""
    for path in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        if not token or path.name.split(".")[-3:-2] != [token]:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Writes the concatenated parts to a temporary neighbour, syncs it and renames it to `path`."""
    write_parts(path, parts)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], *, token: str = "") -> tuple[int, str]:
    """As `write_bytes`, part by part as they come: (bytes, SHA-256 in hex) of the file.

    `token` names the writer's lease in the temporary's name. Whatever ends the writing, `path` is as it was before.
    """
    temporary = temporary_neighbour(path, token=token)
    hasher, nbytes = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb", buffering=0) as file:
            for part in parts:
                hasher.update(part)
                nbytes += _write_whole(file, part)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise explain(error, f"write {path}") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return nbytes, hasher.hexdigest()


def _write_whole(file: io.FileIO, part: bytes | memoryview) -> int:
    """Writes all of `part`: a system call may take less, on a disk that fills up or above 2 GiB."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]
    return len(part)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Writes a record or plain value as JSON with sorted keys, so that equal values are equal bytes."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON can hold
    """The one spelling of a record or plain value as JSON: sorted keys, one item a line, ASCII."""
    return (json.dumps(plain(value), sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Parses a JSON file; a StoreError names the file when it is not one."""
    return parse_json(path.read_bytes(), where=str(path))


def parse_json(data: bytes, *, where: str) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Parses the JSON that was read from `where`; a StoreError names it when it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise StoreError(
            f"expected JSON in {where}, found something else ({error}). Restore the file or make it again"
        ) from error


def sync_file(path: Path) -> None:
    """Makes the bytes of a file durable, whichever process wrote them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable, where its file system can do that for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path, *, token: str = "") -> None:
    """Makes `target` the same file as `source` (a hard link), or a synced copy where file systems differ; atomic.

    `token` is as in `write_parts`.
    """
    temporary = temporary_neighbour(target, token=token)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, one without links, or a file of somebody else
            shutil.copyfile(source, temporary)
            sync_file(temporary)
        temporary.replace(target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain(error, f"link or copy {source} to {target}") from error
    finally:
        temporary.unlink(missing_ok=True)
