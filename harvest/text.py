"""Where documents come from: the standard library, local files, or a streamed hub data set.

Every source yields (name, text) in a fixed order, and tells its lineage: what has to be equal for the text to be equal.
A document may be empty (it adds no tokens); a file without any document is an error.
"""

import codecs
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pydantic import JsonValue

from harvest.config import TEXT_SUFFIX, FilesText, HubText, StandardLibraryText
from language_model import standard_library
from store.atomic import file_sha256
from store.machine import explain

PARQUET_BATCH_ROWS = 1024


class BadText(ValueError):
    """A source of text that is missing, unreachable, or not what was announced."""


@dataclass(frozen=True)
class TextSource:
    """Documents and where they come from."""

    lineage: dict[str, JsonValue]
    """Equal lineages mean equal documents in equal order. Holds no path, host or time."""
    documents: Callable[[], Iterator[tuple[str, str]]]
    """Starts over at each call; raises `BadText` where a document cannot be read."""


def open_text(config: StandardLibraryText | FilesText | HubText) -> TextSource:
    """Finds the source and identifies it; local files are hashed here, a hub data set is first asked when read."""
    match config:
        case StandardLibraryText():
            return _open_standard_library()
        case FilesText():
            return _open_files([Path(path) for path in config.paths], config.column)
        case HubText():
            return TextSource(lineage=config.model_dump(mode="json"), documents=lambda: _hub_documents(config))


def _open_standard_library() -> TextSource:
    lineage: dict[str, JsonValue] = {
        "kind": "standard-library",
        "python": platform.python_version(),
        "modules": " ".join(standard_library.MODULES),
        "sha256": standard_library.corpus_digest(),
    }
    return TextSource(lineage=lineage, documents=standard_library.documents)


def _open_files(paths: list[Path], column: str | None) -> TextSource:
    files: list[JsonValue] = []
    for path in paths:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "nothing"
            raise BadText(f"expected a text file at {path}, found {what}. Correct harvest.text.paths")
        if path.stat().st_size == 0:
            raise BadText(f"expected text in {path}, found an empty file. Fill it or remove it from harvest.text.paths")
        # A byte order mark was a token in caches of earlier versions, which must not be taken for these.
        marked = path.suffix == TEXT_SUFFIX and _has_mark(path)
        mark: dict[str, JsonValue] = {"byte_order_mark": "left out"} if marked else {}
        files.append({"name": path.name, "sha256": file_sha256(path), **mark})

    def documents() -> Iterator[tuple[str, str]]:
        for path in paths:
            yield from _file_documents(path, column)

    return TextSource(lineage={"kind": "files", "column": column, "files": files}, documents=documents)


def _file_documents(path: Path, column: str | None) -> Iterator[tuple[str, str]]:
    if path.suffix == ".txt":
        yield path.name, _decoded(path.read_bytes().removeprefix(codecs.BOM_UTF8), where=str(path))
        return
    assert column is not None, "the config requires a column for .jsonl and .parquet files"
    if path.suffix == ".jsonl":
        yield from _jsonl_documents(path, column)
    else:
        yield from _parquet_documents(path, column)


def _jsonl_documents(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                record = json.loads(_decoded(line.rstrip(b"\r\n"), where=where))
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadText(f"expected a JSON object in {where}, found other text ({error}). Repair it") from error
            if not isinstance(record, dict):
                raise BadText(f"expected a JSON object in {where}, found {type(record).__name__}. Repair it")
            yield f"{path.name}:{number}", _column_text(record, column, where=where)


def _parquet_documents(path: Path, column: str) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise BadText(f"expected a column {column!r} in {path}, found {', '.join(names)}. Correct the column")
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    text = _column_text({column: value.as_py()}, column, where=f"{path}, row {number}")
                    yield f"{path.name}:{number}", text
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the machine; pyarrow's own have no number
            raise explain(error, f"read {path}") from error
        raise BadText(f"expected a Parquet file with UTF-8 text at {path}, got: {error}. Make it again") from error
    if number == 0:
        raise BadText(f"expected rows in {path}, found none. Remove it from harvest.text.paths")


def _hub_documents(config: HubText) -> Iterator[tuple[str, str]]:
    # Slow to import and of no use to the other sources.
    import aiohttp
    import datasets
    import httpx2

    from harvest.hub import hub_records

    if Path(config.dataset).exists():
        # `datasets` would prefer the folder, and the lineage would then name a text that was never read.
        raise BadText(
            f"expected the hub data set {config.dataset!r}, but a local file or folder has that name. Run from "
            "another folder, or use local files (kind: files)"
        )
    number = 0
    try:
        for record in hub_records(config):
            number += 1
            name = f"{config.dataset}:{number}"
            yield name, _column_text(record, config.column, where=f"{config.dataset} ({config.split}), row {number}")
    except BadText:
        raise
    except (
        OSError,
        ValueError,
        TypeError,  # of a column that cannot be cast to what the data set says it is
        httpx2.HTTPError,
        aiohttp.ClientError,
        datasets.exceptions.DatasetsError,
        pyarrow.ArrowException,
    ) as error:
        raise BadText(
            f"could not read the hub data set {config.dataset!r} at {config.revision[:12]}, split {config.split!r}, "
            f"configuration {config.config!r}: {_first_line(error)}. Check the names in harvest.text, that the hub can "
            "be reached from here, and, for a gated data set, that you are logged in (hf auth login)"
        ) from error
    if number == 0:
        raise BadText(f"expected documents in {config.dataset!r}, split {config.split!r}, found none. Choose another")


def _column_text(record: dict[str, Any], column: str, *, where: str) -> str:
    """The text in `column` of one record, checked to be a string that UTF-8 can hold."""
    if column not in record:
        names = ", ".join(map(str, record)) or "no columns"
        raise BadText(f"expected a column {column!r} in {where}, found {names}. Correct the column or the data")
    text = record[column]
    if not isinstance(text, str):
        raise BadText(
            f"expected a string in column {column!r} of {where}, found {type(text).__name__}. Correct the data"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON's \ud800 can spell half a character
        raise BadText(f"expected text in column {column!r} of {where}, found half a character. Correct it") from error
    return text


def _has_mark(path: Path) -> bool:
    """Whether a text begins with UTF-8's byte order mark, as some editors and spreadsheets write; it is no text."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _decoded(data: bytes, *, where: str) -> str:
    """No newline is translated, so that the same bytes are the same text everywhere."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadText(
            f"expected UTF-8 in {where}, found the byte 0x{data[error.start]:02x} at {error.start}. Convert it to UTF-8"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
