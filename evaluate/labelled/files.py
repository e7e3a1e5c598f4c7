"""A person's own texts and labels: data to be checked."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluate.labelled.config import FilesLabels, UnusableLabels

_MOST_CHARACTERS = 2**20
"""Of a text: csv's own limit is below a long document."""


def read(labels: FilesLabels) -> dict[str, list[str]]:
    """Texts by label, in the order of the file. UnusableLabels names what cannot be read, and where."""
    path = Path(labels.path)
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UnusableLabels(
            f"expected a file of the form {', '.join(readers)} for the data set {labels.name}, got {path}. Convert it"
        )
    found: dict[str, list[str]] = defaultdict(list)
    try:
        for number, row in enumerate(readers[path.suffix](path), 1):
            text, label = (_value(row, column, path, number) for column in (labels.text_column, labels.label_column))
            if isinstance(label, bool) or not isinstance(label, str | int):
                raise UnusableLabels(
                    f"expected a string or a whole number as {labels.label_column} in row {number} of {path}, got "
                    f"{type(label).__name__}. Correct the data"
                )
            if not isinstance(text, str) or not text.strip():
                raise UnusableLabels(
                    f"expected text as {labels.text_column} in row {number} of {path}, got "
                    f"{'nothing' if text in (None, '') else type(text).__name__}. Correct the data"
                )
            found[str(label)].append(text)
    except UnicodeDecodeError as error:
        raise UnusableLabels(f"expected UTF-8 in {path}, found another byte at {error.start}. Convert it") from error
    return dict(found)


def _value(row: dict[str, Any], column: str, path: Path, number: int) -> Any:  # noqa: ANN401 - whatever a row holds
    if column not in row:
        names = ", ".join(map(str, row))
        raise UnusableLabels(
            f"expected a column {column!r} in row {number} of {path}, found {names}. Correct text_column or "
            "label_column"
        )
    return row[column]


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    before = csv.field_size_limit(_MOST_CHARACTERS)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, strict=True)
    except csv.Error as error:
        raise UnusableLabels(f"expected rows of commas and quotes in {path}: {error}. Correct the file") from error
    finally:
        csv.field_size_limit(before)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UnusableLabels(f"expected JSON in line {number} of {path}: {error}. Correct the line") from error
            if not isinstance(row, dict):
                raise UnusableLabels(f"expected an object in line {number} of {path}, got {type(row).__name__}")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(use_threads=False):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UnusableLabels(f"expected a whole Parquet file at {path}: {str(error).splitlines()[0]}") from error
