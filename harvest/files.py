"""Local text files: which ones a list of files, folders and patterns means, and the documents in each of them.

A file that was listed and then changed is found: by size and time when it is opened and when it was read to its end,
and all of them once more when the last window is packed.
"""

import codecs
import contextlib
import glob
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from harvest.text_config import FilesText, MixtureText, TextConfig, TextFilter
from store.atomic import file_sha256
from store.machine import explain, explained

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
PLAIN_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".parquet")
KNOWN = ".txt, .md, .jsonl or .parquet, each also with .gz or .zst behind it"
PARQUET_BATCH_ROWS = 1024
_READ_BYTES = 2**20
_TOLD_BYTES = 2 * 10**9
"""Digests of more than this take seconds, which are announced."""


class BadText(ValueError):
    """A source of text that is missing, unreachable, or not what was announced."""


@dataclass(frozen=True)
class FoundFile:
    """A file of text as it was when it was listed."""

    name: str
    """Below the folder or pattern that it was found by; a path that was given itself is called by its last part."""
    path: Path
    state: tuple[int, int]
    """Size, and time of the last change in nanoseconds."""

    @property
    def suffix(self) -> str:
        """.txt, .md, .jsonl or .parquet, whatever it is compressed with."""
        return _suffix(self.path)

    @property
    def compression(self) -> str | None:
        """As pyarrow calls it."""
        return COMPRESSED.get(self.path.suffix)

    def check_unchanged(self) -> None:
        """Raises BadText if the file is gone, or has another size or time than when it was listed."""
        try:
            state = _state(self.path)
        except FileNotFoundError as error:
            raise BadText(
                f"expected {self.path} to stay while it is read, but it was removed. Put it back, and harvest again"
            ) from error
        if state != self.state:
            raise BadText(
                f"expected {self.path} to stay as it was while it is read, but it was changed. Harvest again when "
                "nothing writes to it any more"
            )


def find_files(config: FilesText) -> list[FoundFile]:
    """The files that `paths` mean, in that order, those of a folder or pattern sorted by name.

    Raises:
        BadText: nothing is there, a file is found twice, is of no known kind, or a column is missing or too many.
    """
    found: list[FoundFile] = []
    for given in config.paths:
        found += _found(Path(given), given)
    seen: dict[Path, str] = {}
    for file in found:
        real = file.path.resolve()
        if real in seen:
            raise BadText(
                f"expected every file once in harvest.text.paths, found {file.path} twice (also as {seen[real]}). "
                "Remove the path or pattern that repeats it"
            )
        seen[real] = str(file.path)
    tables = [file for file in found if file.suffix in TABLE_SUFFIXES]
    plain = [file for file in found if file.suffix not in TABLE_SUFFIXES]
    if tables and config.column is None:
        raise BadText(
            f"expected harvest.text.column for .jsonl and .parquet files such as {tables[0].path}, got none. Name the "
            "column with the text"
        )
    if config.column is not None and not tables:
        raise BadText(f"expected no harvest.text.column for .txt and .md files, got {config.column!r}. Remove it")
    if plain and config.filter is not None and config.filter.columns:
        raise BadText(f"expected no filter.columns beside {plain[0].path}, which has no columns. Remove one of them")
    if config.split_characters is not None and not plain:
        raise BadText("expected split_characters with .txt or .md files, found none of these. Remove it")
    return found


def check_text(config: TextConfig) -> None:
    """Raises BadText where local files are missing, or not what the settings say; reads none of them."""
    for source in config.sources if isinstance(config, MixtureText) else (config,):
        if isinstance(source, FilesText):
            find_files(source)


def _found(path: Path, given: str) -> list[FoundFile]:
    if path.is_file():
        if _suffix(path) not in (*PLAIN_SUFFIXES, *TABLE_SUFFIXES):
            raise BadText(f"expected a text file that ends in {KNOWN}, got {given}. Convert it")
        if path.stat().st_size == 0:
            raise BadText(
                f"expected text in {given}, found an empty file. Fill it or remove it from harvest.text.paths"
            )
        return [FoundFile(path.name, path, _state(path))]
    if path.is_dir():
        below = path
        paths = [
            Path(folder) / name for folder, _, names in os.walk(path) for name in names if not name.startswith(".")
        ]
        others = sorted({p.suffix for p in paths if _suffix(p) not in (*PLAIN_SUFFIXES, *TABLE_SUFFIXES)})
        if others:
            kinds = ", ".join(suffix or "no suffix" for suffix in others)
            print(f"text: files of other kinds below {given} are not read: {kinds}", file=sys.stderr)
        paths = [p for p in paths if _suffix(p) in (*PLAIN_SUFFIXES, *TABLE_SUFFIXES)]
    elif glob.has_magic(given):
        below = Path(*path.parts[: _first_magic(path)])
        paths = [Path(name) for name in glob.glob(given, recursive=True) if Path(name).is_file()]
        for p in paths:
            if _suffix(p) not in (*PLAIN_SUFFIXES, *TABLE_SUFFIXES):
                raise BadText(f"expected {given} to match files that end in {KNOWN}, found {p}. Narrow the pattern")
    else:
        raise BadText(
            f"expected a text file at {given}, found nothing. Correct harvest.text.paths: files, folders, or patterns "
            "such as data/*.jsonl"
        )
    if not paths:
        raise BadText(f"expected text files ({KNOWN}) at {given}, found none. Correct harvest.text.paths")
    return sorted((FoundFile(p.relative_to(below).as_posix(), p, _state(p)) for p in paths), key=lambda file: file.name)


def _first_magic(path: Path) -> int:
    return next(number for number, part in enumerate(path.parts) if glob.has_magic(part))


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def digests(files: Sequence[FoundFile]) -> list[str]:
    """SHA-256 of every file's bytes, and that it did not change meanwhile."""
    if (nbytes := sum(file.state[0] for file in files)) > _TOLD_BYTES:
        print(f"text: computing the digests of {len(files)} files, {nbytes / 1e9:.1f} GB", file=sys.stderr)
    found = []
    for file in files:
        with explained(f"read {file.path}"):
            found.append(file_sha256(file.path))
        file.check_unchanged()
    return found


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
        with _seekable(file) as source, pyarrow.parquet.ParquetFile(source) as table:
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
