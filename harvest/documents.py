"""Which document a token of a window comes from: kept beside the windows of a shard, to name what went wrong."""

import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from store.cache.spec import CacheSpec
from store.errors import StoreError
from store.identity import Count
from store.record import Record
from store.record_file import read_record_file, write_record_file

Start = tuple[Count, Count, Count]
"""Tokens of a stretch before a document (0 for one that began before it), number of its part of the text, and its own
number in that part, from 1, in the order in which documents are read."""


class Origin(NamedTuple):
    """A document."""

    part: int
    number: int
    name: str
    """Of the part."""


OriginOf = Callable[[int, int], Origin | None]
"""The document of a window of a shard and a position in it; None where that is not known."""


class ShardDocuments(Record):
    """The documents of one shard's windows."""

    starts: tuple[Start, ...]
    names: dict[str, str]
    """Of their parts, by number."""


def cut_starts(starts: Sequence[Start], num_tokens: int) -> tuple[list[Start], list[Start]]:
    """Those of the first `num_tokens` tokens, and those of what follows, which the last of the first may go on in."""
    behind = bisect.bisect_left(starts, num_tokens, key=lambda start: start[0])
    rest = starts[max(0, behind - 1) :]
    return list(starts[:behind]), [(max(0, before - num_tokens), part, number) for before, part, number in rest]


def write_documents(windows: Path, starts: Sequence[Start], names: Callable[[int], str]) -> None:
    """Keeps the documents of a shard beside its file of windows; `names` gives those of parts."""
    of_parts = {str(part): names(part) for part in {part for _, part, _ in starts}}
    write_record_file(_beside(windows), ShardDocuments(starts=tuple(starts), names=of_parts))


def origin_of(windows: Path, spec: CacheSpec, window: int, position: int) -> Origin | None:
    """The document of a position of a window, by the shard's file of windows. BOS counts to what follows it.

    None where that is not known, as for windows that were taken from an earlier cache.
    """
    try:
        kept = read_record_file(ShardDocuments, _beside(windows))
    except (StoreError, FileNotFoundError):
        return None
    num_bos = spec.context_length - spec.text_tokens_per_sequence
    token = window * spec.text_tokens_per_sequence + max(0, position - num_bos)
    at = bisect.bisect_right(kept.starts, token, key=lambda start: start[0]) - 1
    if at < 0:
        return None
    _, part, number = kept.starts[at]
    return Origin(part=part, number=number, name=kept.names[str(part)])


def _beside(windows: Path) -> Path:
    return windows.with_name(f"{windows.name}.documents.json")
