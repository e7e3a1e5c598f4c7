"""Local text files: which ones a list of files, folders and patterns means, and whether they stay as they were.

A file that was listed and then changed is found: by size and time when it is opened and when it was read to its end,
and all of them once more when the last window is packed.
"""

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harvest.text_config import FilesText, MixtureText, TextConfig
from store.atomic import file_sha256
from store.machine import explain, explained

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
PLAIN_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".jsonl", ".parquet")
KNOWN = ".txt, .md, .jsonl or .parquet, each also with .gz or .zst behind it"
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
            Path(folder) / name
            for folder, _, names in os.walk(path, onerror=_refuse_to_skip)
            for name in names
            if not name.startswith(".")
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


def _refuse_to_skip(error: OSError) -> None:
    """A folder that cannot be listed is no empty folder."""
    raise explain(error, f"list the folder {error.filename}") from error


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
