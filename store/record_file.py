"""Records as files that hold their own digest, so that a change of any byte is found.

A record file is the JSON of a record with one more key, `self_sha256`, the digest of all the others. It is accepted
only if writing the record again would give the same bytes. So even a change that means nothing in JSON (a space, an
escape, a repeated key, 1.0 for 1) is found, without another file to compare.
"""

import json
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from store.atomic import json_bytes, parse_json, write_parts
from store.errors import DamagedFile, StoreError
from store.record import Record, digest, plain

DIGEST_KEY: Final = "self_sha256"
MAX_NBYTES = 2**28
"""No record is larger. A larger file is refused before it is read."""

REMEDY = "Run `pipeline.py store repair`, restore the file or harvest again"
"""For a record of a cache whose bytes were changed."""

RecordKind = TypeVar("RecordKind", bound=Record)


def record_bytes(record: Record) -> bytes:
    """The bytes of the file of a record: its JSON, with its digest."""
    value: dict[str, Any] = plain(record)
    return json_bytes(value | {DIGEST_KEY: digest(value)})


def write_record_file(path: Path, record: Record, *, token: str = "") -> None:
    """Writes the file of a record, whole or not at all; `token` as in `store.atomic.write_parts`."""
    write_parts(path, (record_bytes(record),), token=token)


def read_record_file(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads the file of a record; a StoreError names the file and the first thing wrong with it."""
    return parse_record_file(kind, _read_small(path), where=str(path))


def parse_record_file(kind: type[RecordKind], data: bytes, *, where: str, remedy: str = REMEDY) -> RecordKind:
    """The record in the bytes of its file; `where` is the file's name and `remedy` what to do, for messages.

    Raises:
        DamagedFile: its digest or its bytes are not those that were written.
        StoreError: it is no such record.
    """
    value = parse_json(data, where=where)
    if not isinstance(value, dict) or not isinstance(value.get(DIGEST_KEY), str):
        raise StoreError(
            f"expected {where} to hold a {kind.__name__} with its digest in {DIGEST_KEY!r}, found none. "
            "Another version made it, or it is damaged: restore it or make it again"
        )
    expected = value.pop(DIGEST_KEY)
    try:
        got = digest(value)
    except (ValueError, RecursionError) as error:  # JSON allows infinities, a record does not
        raise DamagedFile(f"expected finite numbers in {where} ({error}). Restore the file or make it again") from error
    if got != expected:
        raise DamagedFile(
            f"expected {where} to have the digest {expected[:64]!r} that it states, got {got}: its bytes changed since "
            f"they were written. {remedy}"
        )
    record = _validate(kind, value, where)
    if record_bytes(record) != data:
        raise DamagedFile(
            f"expected {where} to be as it was written, but writing its {kind.__name__} again gives other bytes: "
            f"it was changed since. {remedy}"
        )
    return record


def read_plain_record(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads a record from a JSON file without a digest; a StoreError names the file and what is wrong with it."""
    return _validate(kind, parse_json(_read_small(path), where=str(path)), str(path))


def _read_small(path: Path) -> bytes:
    check_record_size(path.stat().st_size, where=str(path))
    return path.read_bytes()


def check_record_size(nbytes: int, *, where: str) -> None:
    """StoreError for a file that is larger than any record: call it before the file is read."""
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
            "Another version made it, or it is damaged: restore it or make it again"
        ) from error
