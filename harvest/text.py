"""Where documents come from: the standard library, local files, a streamed hub data set, or several of these.

Every source yields documents in a fixed order, and tells its lineage: what has to be equal for the text to be equal.
A document may be empty (it adds no tokens).
"""

import functools
import platform
from dataclasses import dataclass

from pydantic import JsonValue

from harvest.files import BadText, FoundFile, digests, find_files
from harvest.formats import fits, starts_with_mark, texts_of
from harvest.interleave import (
    Check,
    Documents,
    StartDocuments,
    numbered,
    shuffled,
    shuffled_numbers,
    take_turns,
    unchecked,
)
from harvest.text_config import FilesText, HubText, MixtureText, SourceConfig, StandardLibraryText, TextConfig
from language_model import standard_library
from store.record import plain

__all__ = ["BadText", "Part", "TextSource", "open_text"]

MAX_OPEN_FILES = 32
"""That are read in turns; when one ends, the next one is opened. Bounds memory, and what a process has open."""


@dataclass(frozen=True)
class Part:
    """A file, or a source that has no files of its own: what an account has a line for."""

    name: str
    source: int
    """Number of the source that it belongs to."""


@dataclass(frozen=True)
class TextSource:
    """Documents and where they come from."""

    lineage: dict[str, JsonValue]
    """Equal lineages mean equal documents in equal order. Holds no path, host or time."""
    sources: tuple[str, ...]
    """What each source is, in words."""
    parts: tuple[Part, ...]
    """What documents are numbered by."""
    documents: StartDocuments
    """Starts over at each call; raises `BadText` where a document cannot be read."""
    files: tuple[FoundFile, ...] = ()
    """Local ones."""

    def check_unchanged(self) -> None:
        """Raises BadText where a local file is no longer what the lineage says of it."""
        for file in self.files:
            file.check_unchanged()


def open_text(config: TextConfig) -> TextSource:
    """Finds the text and identifies it; local files are hashed here, a hub data set is first asked when read."""
    if isinstance(config, MixtureText):
        return _open_mixture(config)
    return _open_source(config, source=0, first_part=0)


def _open_mixture(config: MixtureText) -> TextSource:
    opened: list[TextSource] = []
    first_part = 0
    for number, source in enumerate(config.sources):
        opened.append(_open_source(source, source=number, first_part=first_part))
        first_part += len(opened[-1].parts)
    weights = [source.weight for source in config.sources]

    def documents(check: Check = unchecked, /) -> Documents:
        streams = [
            (weight, functools.partial(text.documents, check)) for weight, text in zip(weights, opened, strict=True)
        ]
        return take_turns(streams, at_once=len(streams))

    sources: list[JsonValue] = [
        {**text.lineage, "weight": weight} for weight, text in zip(weights, opened, strict=True)
    ]
    return TextSource(
        lineage={"kind": "mixture", "sources": sources},
        sources=tuple(
            f"{told}, weight {w:g}" for w, text in zip(weights, opened, strict=True) for told in text.sources
        ),
        parts=tuple(part for text in opened for part in text.parts),
        documents=documents,
        files=tuple(file for text in opened for file in text.files),
    )


def _open_source(config: SourceConfig, *, source: int, first_part: int) -> TextSource:
    match config:
        case StandardLibraryText():
            text = _open_standard_library(config, source=source, part=first_part)
        case FilesText():
            text = _open_files(config, source=source, first_part=first_part)
        case HubText():
            text = _open_hub(config, source=source, part=first_part)
    chosen, shuffle = config.filter, config.shuffle
    lineage = dict(text.lineage)
    if chosen is not None:
        lineage["filter"] = plain(chosen)
    if shuffle is None:
        return TextSource(lineage, text.sources, text.parts, text.documents, text.files)
    lineage["shuffle"] = plain(shuffle)

    def documents(check: Check = unchecked, /) -> Documents:
        return shuffled(text.documents(check), seed=shuffle.seed, window_documents=shuffle.window_documents)

    return TextSource(lineage, text.sources, text.parts, documents, text.files)


def _open_standard_library(config: StandardLibraryText, *, source: int, part: int) -> TextSource:
    lineage: dict[str, JsonValue] = {
        "kind": "standard-library",
        "python": platform.python_version(),
        "modules": " ".join(standard_library.MODULES),
        "sha256": standard_library.corpus_digest(),
    }

    def documents(check: Check = unchecked, /) -> Documents:
        texts = (text if fits(text, config.filter) else None for _, text in standard_library.documents())
        return numbered(part, texts, check=check)

    told = f"the standard library of Python {platform.python_version()}"
    return TextSource(lineage, (told,), (Part(told, source),), documents)


def _open_files(config: FilesText, *, source: int, first_part: int) -> TextSource:
    found = find_files(config)
    records: list[JsonValue] = []
    for file, digest in zip(found, digests(found), strict=True):
        # A byte order mark was a token in caches of earlier versions, which must not be taken for these.
        marked = file.suffix in (".txt", ".md") and starts_with_mark(file)
        mark: dict[str, JsonValue] = {"byte_order_mark": "left out"} if marked else {}
        records.append({"name": file.name, "sha256": digest, **mark})
    lineage: dict[str, JsonValue] = {"kind": "files", "column": config.column, "files": records}
    if len(found) > 1:
        lineage["order"] = f"files in turns by characters read, {MAX_OPEN_FILES} at once"
    if config.split_characters is not None:
        lineage["split_characters"] = config.split_characters
    order = list(range(len(found)))
    if config.shuffle is not None:
        order = shuffled_numbers(len(found), seed=config.shuffle.seed)

    def start(number: int, check: Check) -> Documents:
        texts = texts_of(
            found[number],
            column=config.column,
            chosen=config.filter,
            split_characters=config.split_characters,
        )
        return numbered(first_part + number, texts, check=check)

    def documents(check: Check = unchecked, /) -> Documents:
        streams = ((1.0, functools.partial(start, number, check)) for number in order)
        return take_turns(streams, at_once=MAX_OPEN_FILES)

    told = found[0].name if len(found) == 1 else f"{len(found)} files"
    parts = tuple(Part(file.name, source) for file in found)
    return TextSource(lineage, (told,), parts, documents, tuple(found))


def _open_hub(config: HubText, *, source: int, part: int) -> TextSource:
    lineage = config.model_dump(mode="json", exclude={"weight", "filter", "shuffle"})
    told = f"{config.dataset}, {config.config or 'its only configuration'}, split {config.split}"

    def documents(check: Check = unchecked, /) -> Documents:
        from harvest.hub import hub_texts  # slow to import, and of no use to the other sources

        return numbered(part, hub_texts(config), check=check)

    return TextSource(lineage, (told,), (Part(config.dataset, source),), documents)
