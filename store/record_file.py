"""Records as files that show every change of a byte: their own digest is in them, and no two files say the same.

A sealed file is the JSON of a record with one more key, `self_sha256`, the digest of all the others. Only the very
bytes that writing the parsed record again would give are accepted, so that even a change that JSON does not mind (a
space, an escape, a repeated key, 1.0 for 1) is found without knowing anything but the file.
"""

import json
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from store.atomic import json_bytes, parse_json, write_parts
from store.errors import DamagedFile, StoreError
from store.record import Record, digest, plain

SEAL: Final = "self_sha256"
MAX_NBYTES = 2**28
"""No record is larger; a file that is would only cost memory before it is refused."""

RecordKind = TypeVar("RecordKind", bound=Record)


def seal(record: Record) -> bytes:
    """The sealed bytes of a record."""
    value: dict[str, Any] = plain(record)
    return json_bytes(value | {SEAL: digest(value)})


def write_sealed(path: Path, record: Record, *, token: str = "") -> None:
    """Writes the sealed record whole or not at all; `token` as in `store.atomic.write_parts`."""
    write_parts(path, (seal(record),), token=token)


def read_sealed(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads a sealed record; a StoreError names the file and the first thing wrong with it."""
    return parse_sealed(kind, read_small(path), where=str(path))


def parse_sealed(kind: type[RecordKind], data: bytes, *, where: str) -> RecordKind:
    """The record in the sealed bytes of a file called `where`.

    Raises:
        DamagedFile: its digest or its bytes are not those that were written.
        StoreError: it is no such record.
    """
    value = parse_json(data, where=where)
    if not isinstance(value, dict) or not isinstance(value.get(SEAL), str):
        raise StoreError(
            f"expected {where} to hold a {kind.__name__} with its digest in {SEAL!r}, found none. "
            "It was made by another version or damaged: restore or remake it"
        )
    expected = value.pop(SEAL)
    try:
        got = digest(value)
    except (ValueError, RecursionError) as error:  # JSON lets infinities in, no record holds any
        raise DamagedFile(f"expected finite numbers in {where} ({error}). Restore or remake the file") from error
    if got != expected:
        raise DamagedFile(
            f"expected {where} to have the digest {expected[:64]!r} that it states, got {got}: its bytes changed since "
            "they were written. Run `pipeline.py store repair`, restore the file or harvest again"
        )
    record = _validate(kind, value, where)
    if seal(record) != data:
        raise DamagedFile(
            f"expected {where} to be spelled as it was written, but writing its {kind.__name__} again gives other "
            "bytes: it was changed since. Run `pipeline.py store repair`, restore the file or harvest again"
        )
    return record


def parse_record(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads a record from a JSON file without a seal; a StoreError names the file and the first thing wrong with it."""
    return _validate(kind, parse_json(read_small(path), where=str(path)), str(path))


def read_small(path: Path) -> bytes:
    """The bytes of a file that holds a record."""
    check_small(path.stat().st_size, where=str(path))
    return path.read_bytes()


def check_small(nbytes: int, *, where: str) -> None:
    """Refuses a file that is larger than any record before it is read."""
    if nbytes > MAX_NBYTES:
        raise StoreError(f"expected at most {MAX_NBYTES} bytes of JSON in {where}, got {nbytes}. Restore the file")


def _validate(kind: type[RecordKind], value: object, where: str) -> RecordKind:
    try:
        return kind.model_validate_json(json.dumps(value))  # JSON has no tuples: strict, but for those
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the whole file"
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise StoreError(
            f"expected {where} to hold a {kind.__name__}, but {place}: {problem}. "
            "It was made by another version or damaged: restore or remake it"
        ) from error
