"""The documents in one local file: plain text, JSON lines or Parquet, compressed or not."""

import codecs
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from harvest.files import BadText, FoundFile
from harvest.text_config import TextFilter
from store.machine import explain

PARQUET_BATCH_ROWS = 64
PARQUET_BUFFER_BYTES = 2**20
"""Of a file: many are open at once, and a row group, which would else be read as a whole, may take gigabytes."""
_READ_BYTES = 2**20


def starts_with_mark(file: FoundFile) -> bool:
    """Whether a text begins with UTF-8's byte order mark, as some editors and spreadsheets write; it is no text."""
    with _opened(file) as stream:
        return stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def texts_of(
    file: FoundFile, *, column: str | None, chosen: TextFilter | None, split_characters: int | None
) -> Iterator[str | None]:
    """The documents of one file, in order; None for each that the filter leaves out. Raises BadText."""
    file.check_unchanged()
    columns = {} if chosen is None else chosen.columns
    if file.suffix == ".jsonl":
        texts = _jsonl_texts(file, column or "", columns)
    elif file.suffix == ".parquet":
        texts = _parquet_texts(file, column or "", columns)
    elif split_characters is None:
        texts = _plain_text(file)
    else:
        texts = _pieces(file, split_characters)
    for text in texts:
        yield text if text is not None and fits(text, chosen) else None
    file.check_unchanged()


def fits(text: str, chosen: TextFilter | None) -> bool:
    """Whether a document has a length that the filter takes."""
    if chosen is None:
        return True
    return len(text) >= (chosen.min_characters or 0) and len(text) <= (chosen.max_characters or len(text))


@contextlib.contextmanager
def _opened(file: FoundFile) -> Iterator[BinaryIO]:
    """The plain bytes of a file. A file that ends too early or is not compressed as its name says is a BadText."""
    try:
        if file.compression is None:
            with file.path.open("rb") as stream:
                yield stream
        else:
            # pyarrow's streams, unlike others, find a file that was cut off, and go on behind a frame that ends.
            with pyarrow.input_stream(str(file.path), compression=file.compression) as native:
                yield io.BufferedReader(native)
    except (pyarrow.ArrowException, OSError) as error:
        _raise_for(
            error, file, f"expected whole {file.compression} data in {file.path}, got: {error}. Compress it again"
        )


def _raise_for(error: Exception, file: FoundFile, message: str) -> None:
    """What the machine cannot do is said as such; pyarrow's errors about a file's bytes have no number."""
    file.check_unchanged()
    if isinstance(error, OSError) and error.errno is not None:
        raise explain(error, f"read {file.path}") from error
    raise BadText(message) from error


def _plain_text(file: FoundFile) -> Iterator[str]:
    with _opened(file) as stream:
        yield decoded(stream.read().removeprefix(codecs.BOM_UTF8), where=str(file.path))


def _pieces(file: FoundFile, most: int) -> Iterator[str]:
    """The text cut into pieces of at most `most` characters; memory holds a few of them."""
    text, at = "", 0
    for more in _decoded_parts(file):
        text, at = text[at:] + more, 0
        while len(text) - at > most:
            end = _cut(text, at, at + most)
            yield text[at:end]
            at = end
    if len(text) > at:
        yield text[at:]


def _cut(text: str, start: int, end: int) -> int:
    """Behind the last empty line between `start` and `end`, else line end, else space, else `end`."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, start, end)
        if found >= 0:
            return found + len(mark)
    return end


def _decoded_parts(file: FoundFile) -> Iterator[str]:
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(file) as stream:
        while True:
            data = read = stream.read(_READ_BYTES)
            if position == 0:
                data = read.removeprefix(codecs.BOM_UTF8)
                position = len(read) - len(data)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not read)
            except UnicodeDecodeError as error:
                raise _not_utf8(error, str(file.path), offset=position - waiting) from error
            if text:
                yield text
            if not read:
                return
            position += len(data)


def _jsonl_texts(file: FoundFile, column: str, columns: dict[str, Any]) -> Iterator[str | None]:
    with _opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.path}:{number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                record = json.loads(decoded(line.rstrip(b"\r\n"), where=where))
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadText(f"expected a JSON object in {where}, found other text ({error}). Repair it") from error
            if not isinstance(record, dict):
                raise BadText(f"expected a JSON object in {where}, found {type(record).__name__}. Repair it")
            yield column_text(record, column, columns, where=where)


def _parquet_texts(file: FoundFile, column: str, columns: dict[str, Any]) -> Iterator[str | None]:
    number = 0
    wanted = [column, *(name for name in columns if name != column)]
    try:
        with _seekable(file) as source, pyarrow.parquet.ParquetFile(source, buffer_size=PARQUET_BUFFER_BYTES) as table:
            names = table.schema_arrow.names
            for name in wanted:
                if name not in names:
                    known = ", ".join(names)
                    raise BadText(f"expected a column {name!r} in {file.path}, found {known}. Correct the column")
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=wanted, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield column_text(record, column, columns, where=f"{file.path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        told = f"expected a Parquet file with UTF-8 text at {file.path}, got: {error}. Make it again"
        _raise_for(error, file, told)
    if number == 0:
        raise BadText(f"expected rows in {file.path}, found none. Remove it from harvest.text.paths")


@contextlib.contextmanager
def _seekable(file: FoundFile) -> Iterator[BinaryIO | Path]:
    """What can be read from any place: a compressed file is unpacked into a temporary one."""
    if file.compression is None:
        yield file.path
        return
    with tempfile.TemporaryFile() as unpacked:
        with _opened(file) as stream:
            shutil.copyfileobj(stream, unpacked)
        yield unpacked


def column_text(record: dict[str, Any], column: str, columns: dict[str, Any], *, where: str) -> str | None:
    """The text in `column` of one record, checked to be a string that UTF-8 can hold; None if the filter refuses it."""
    for name in (column, *columns):
        if name not in record:
            names = ", ".join(map(str, record)) or "no columns"
            raise BadText(f"expected a column {name!r} in {where}, found {names}. Correct the column or the data")
    for name, value in columns.items():
        if type(record[name]) is not type(value) or record[name] != value:
            return None
    text = record[column]
    if not isinstance(text, str):
        inside = (
            f" with {', '.join(map(str, text))}: only a column of its own can be read" if type(text) is dict else ""
        )
        raise BadText(
            f"expected a string in column {column!r} of {where}, found {type(text).__name__}{inside}. Correct the data"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON's \ud800 can spell half a character
        raise BadText(f"expected text in column {column!r} of {where}, found half a character. Correct it") from error
    return text


def decoded(data: bytes, *, where: str) -> str:
    """No newline is translated, so that the same bytes are the same text everywhere."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, where, offset=0) from error


def _not_utf8(error: UnicodeDecodeError, where: str, *, offset: int) -> BadText:
    byte = error.object[error.start]
    return BadText(
        f"expected UTF-8 in {where}, found the byte 0x{byte:02x} at {offset + error.start}. Convert it to UTF-8"
    )
