"""What became of a text: how much of each of its parts was read, trained on, held out, and not used."""

from typing import Self

from pydantic import model_validator

from store.identity import Count
from store.record import Record

MAX_PARTS_TOLD = 20
"""Parts of one source that are named one by one where an account is told in words."""


class PartAccount(Record):
    """One part of a text: a file, or a source that has no files of its own."""

    name: str
    """Of the file, below the folder that was given; or of the data set."""
    source: Count
    """Number of the source that it is part of; 0 where there is one only."""
    num_documents: Count
    """Read: up to the document that completed the last window."""
    num_characters: Count
    """In the documents that were read, those that a filter left out excepted."""
    num_tokens: Count
    """That were made of them. A document of a side that is full, and the rest of a long one, is not tokenized."""
    num_training_documents: Count
    """With a token in a training window."""
    num_training_tokens: Count
    """In training windows, BOS excepted."""
    num_held_out_documents: Count
    num_held_out_tokens: Count
    num_filtered_documents: Count
    """That a filter left out."""
    num_empty_documents: Count
    """Without a token."""
    was_read_to_its_end: bool

    @model_validator(mode="after")
    def check_counts(self) -> Self:
        if self.num_unused_documents < 0 or self.num_unused_tokens < 0:
            raise ValueError(f"expected no more documents and tokens of {self.name[:200]!r} in use than were read")
        return self

    @property
    def num_unused_documents(self) -> int:
        """Read, with text, and in no window: their side was full already."""
        used = self.num_training_documents + self.num_held_out_documents
        return self.num_documents - used - self.num_filtered_documents - self.num_empty_documents

    @property
    def num_unused_tokens(self) -> int:
        """That were made and are in no window."""
        return self.num_tokens - self.num_training_tokens - self.num_held_out_tokens

    @property
    def num_used_tokens(self) -> int:
        """In windows of either side."""
        return self.num_training_tokens + self.num_held_out_tokens


class TextAccount(Record):
    """Every part of a text, the unread ones too, in the order of their source. A function of text and budget alone."""

    sources: tuple[str, ...]
    """What each source is, in words."""
    parts: tuple[PartAccount, ...]

    @model_validator(mode="after")
    def check_sources(self) -> Self:
        if any(part.source >= len(self.sources) for part in self.parts):
            raise ValueError(f"expected parts of the {len(self.sources)} sources")
        return self

    def unused_parts(self) -> list[PartAccount]:
        """Parts of which nothing is in the data."""
        return [part for part in self.parts if not part.num_used_tokens]


def account_lines(account: TextAccount) -> list[str]:
    """The account in words, a line for each source and for its largest parts, and one that says what gave nothing."""
    lines = []
    for number, source in enumerate(account.sources):
        parts = [part for part in account.parts if part.source == number]
        lines.append(f"{source}: {_told(parts)}")
        if len(parts) > 1:
            used = sorted((part for part in parts if part.num_used_tokens), key=lambda part: -part.num_used_tokens)
            lines += [f"  {part.name}: {_told([part])}" for part in used[:MAX_PARTS_TOLD]]
            if len(used) > MAX_PARTS_TOLD:
                lines.append(f"  and {len(used) - MAX_PARTS_TOLD} more, with fewer tokens")
        nothing = [part for part in parts if not part.num_used_tokens]
        if nothing:
            names = ", ".join(part.name for part in nothing[:MAX_PARTS_TOLD])
            names += f" and {len(nothing) - MAX_PARTS_TOLD} more" if len(nothing) > MAX_PARTS_TOLD else ""
            unread = sum(not part.num_documents for part in nothing)
            lines.append(f"  NOTHING is from {len(nothing)} of its {len(parts)} ({unread} were not read): {names}")
    return lines


def _told(parts: list[PartAccount]) -> str:
    def total(name: str) -> int:
        return sum(getattr(part, name) for part in parts)

    if not total("num_documents"):
        return "not read"
    told = (
        f"{total('num_documents'):,} documents read, {total('num_training_documents'):,} trained on "
        f"({total('num_training_tokens'):,} tokens), {total('num_held_out_documents'):,} held out "
        f"({total('num_held_out_tokens'):,} tokens)"
    )
    for what, name in (("unused", "unused"), ("left out by the filter", "filtered"), ("empty", "empty")):
        if number := total(f"num_{name}_documents"):
            told += f", {number:,} {what}"
    return told + ("; read to the end" if all(part.was_read_to_its_end for part in parts) else "")
