"""The settings of a text: where documents come from, which are taken, and in what order. Nothing here reads a file."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from store.record import Record

Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
"""A list in params.yaml, a tuple here; its items stay strict."""


class TextFilter(Record):
    """Which documents are taken. Those that are not are counted, and never seen by anything."""

    min_characters: int | None = Field(default=None, gt=0)
    """A shorter document is left out."""
    max_characters: int | None = Field(default=None, gt=0)
    """A longer document is left out."""
    columns: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Values that columns beside the text must have, such as {language: en}."""

    @model_validator(mode="after")
    def check_limits(self) -> Self:
        if self.min_characters and self.max_characters and self.min_characters > self.max_characters:
            raise ValueError(
                f"expected min_characters of at most max_characters {self.max_characters}, got {self.min_characters}. "
                "Lower it: no document would be left"
            )
        return self


class Shuffle(Record):
    """Another order of the documents, drawn by a seed; memory holds one window of them."""

    seed: int = Field(ge=0, lt=2**63)
    window_documents: int = Field(default=10_000, gt=0, le=10**7)
    """Documents that are read, and then handed on in an order drawn for them; the next window follows. Files are read
    in an order that is drawn for all of them."""


class _Source(Record):
    """What every source of text may say."""

    weight: float = Field(default=1.0, gt=0)
    """In a mixture: characters from this source for each one from a source of weight 1, until either ends."""
    filter: TextFilter | None = None
    shuffle: Shuffle | None = None
    """null: documents in the order of their source."""


class StandardLibraryText(_Source):
    """The sources of this Python's own standard library, one file a document."""

    kind: Literal["standard-library"]

    @model_validator(mode="after")
    def check_columns(self) -> Self:
        _refuse_columns(self.filter, "the standard library")
        return self


class FilesText(_Source):
    """Local files. Several are read in turns, so that each has given as many characters as the others until it ends."""

    kind: Literal["files"]
    paths: Names
    """Files, folders (all files of these kinds below it) or patterns (data/*.jsonl), relative to the working folder.
    .txt and .md: a file is a document. .jsonl: a JSON object a line. .parquet. Each may be .gz or .zst."""
    column: str | None = None
    """Where .jsonl and .parquet files keep the text; must be left out for .txt and .md files alone."""
    split_characters: int | None = Field(default=None, ge=100, le=10**7)
    """A .txt or .md file becomes several documents of at most so many characters, cut at an empty line where there is
    one, else at a line's end, else at a space. For books and logs; null: a file is one document."""

    @field_validator("paths")
    @classmethod
    def check_paths(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"expected every path once, got {repeated[0]!r} more than once. Remove the repetition")
        return paths


class HubText(_Source):
    """A data set of the Hugging Face hub, streamed; no code of the repository is run."""

    kind: Literal["hub"]
    dataset: str
    """Such as "HuggingFaceFW/fineweb-edu"."""
    config: str | None
    """The data set's configuration; null where it has one only."""
    revision: str
    """The full commit hash (40 hexadecimal digits): a branch could change between two runs."""
    split: str
    column: str

    @field_validator("dataset")
    @classmethod
    def check_dataset(cls, dataset: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", dataset, flags=re.ASCII):
            raise ValueError(f"expected a data set's hub id such as 'owner/name', got {dataset!r}. Correct it")
        return dataset

    @field_validator("revision")
    @classmethod
    def check_revision(cls, revision: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(
                f"expected a full commit hash of 40 hexadecimal digits, got {revision!r}. "
                "Copy it from the data set's 'Files and versions' page on the hub"
            )
        return revision


SourceConfig = Annotated[StandardLibraryText | FilesText | HubText, Field(discriminator="kind")]


class MixtureText(Record):
    """Several sources, a document at a time from the one that is furthest behind its weight in characters."""

    kind: Literal["mixture"]
    sources: Annotated[tuple[SourceConfig, ...], Field(strict=False, min_length=2)]
    """In a source's turn it gives its next document; one that has ended leaves the rest to the others."""


TextConfig = Annotated[StandardLibraryText | FilesText | HubText | MixtureText, Field(discriminator="kind")]


def _refuse_columns(chosen: TextFilter | None, what: str) -> None:
    if chosen is not None and chosen.columns:
        raise ValueError(f"expected no filter.columns for {what}, which has none, got {chosen.columns}. Remove them")
