"""Sequences that were left out of a cache because the language model gave no finite rows for them."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from pydantic import Field

from store.cache.split import Split
from store.cache.text_account import TextAccount
from store.identity import Count, HookName, Size
from store.record import Record

SEQUENCES_PER_SPARE: Final = 64
"""A shard has one spare sequence for so many, and one at least: where more are not finite, the model is at fault."""
MAX_PLACES: Final = 5
"""That are kept of each hook, the first ones; the others are counted."""


def spare_sequences(sequences_per_shard: int) -> int:
    """Sequences of text behind those of a shard that take the place of such as are left out."""
    return math.ceil(sequences_per_shard / SEQUENCES_PER_SPARE)


class LeftOutPlace(Record):
    """A row with an infinity or NaN: the first one of a sequence that was left out."""

    part: Count | None
    """Number of the part of the text (see TextAccount) that its token comes from; None where that is not known."""
    document: Count | None
    """Number of the document in that part, from 1, in the order in which documents were read."""
    position: Count
    """In the sequence, from 0."""


class LeftOutRows(Record):
    """What one hook gave that is not finite."""

    num_sequences: Size
    """With such a row."""
    num_rows: Size
    first: Annotated[tuple[LeftOutPlace, ...], Field(min_length=1, max_length=MAX_PLACES)]
    """Of the first such sequences."""


class LeftOut(Record):
    """Sequences that were left out, for all hooks, because a row of one hook is not finite."""

    num_sequences: Size
    hooks: dict[HookName, LeftOutRows]
    """Those with such rows."""


def combine_left_out(shards: Sequence[LeftOut]) -> LeftOut | None:
    """All shards together, in their order; None where nothing was left out."""
    if not shards:
        return None
    hooks = dict.fromkeys(hook for shard in shards for hook in shard.hooks)
    parts = {hook: [shard.hooks[hook] for shard in shards if hook in shard.hooks] for hook in hooks}
    return LeftOut(
        num_sequences=sum(shard.num_sequences for shard in shards),
        hooks={
            hook: LeftOutRows(
                num_sequences=sum(rows.num_sequences for rows in found),
                num_rows=sum(rows.num_rows for rows in found),
                first=tuple(place for rows in found for place in rows.first)[:MAX_PLACES],
            )
            for hook, found in parts.items()
        },
    )


def left_out_lines(left_out: Mapping[Split, LeftOut], account: TextAccount | None) -> list[str]:
    """What was left out, in words: a line for each split and hook."""
    return [
        f"{split.replace('_', '-')}: {rows.num_rows:,} rows of {rows.num_sequences:,} sequences are not finite at "
        f"{hook}; these sequences were left out and others took their place. The first: "
        + "; ".join(_told(place, account) for place in rows.first)
        for split, of_split in left_out.items()
        for hook, rows in of_split.hooks.items()
    ]


def _told(place: LeftOutPlace, account: TextAccount | None) -> str:
    where = f"position {place.position} of its sequence"
    if place.part is None or place.document is None:
        return where
    known = account is not None and place.part < len(account.parts)
    name = account.parts[place.part].name if account is not None and known else f"part {place.part}"
    return f"document {place.document:,} of {name}, {where}"
