"""Sequences with an infinity or NaN, left out of a shard and replaced by its spare ones.

A shard has spare windows of its own behind its windows (CacheSpec.spare_sequences). Of a window with a row that is not
finite, at any hook, no row is stored: the next spare window that is finite takes its place, tokens and rows. So a shard
is a function of its own windows, whoever computes it, and has as many rows as any other.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from harvest.documents import OriginOf
from harvest.moments import BadActivation
from harvest.streams import Tokens
from store.cache.left_out import MAX_PLACES, LeftOut, LeftOutPlace, LeftOutRows

Rows = dict[str, NDArray[np.uint16]]
"""By hook, (sequences * K, d_model) bit patterns of bfloat16; K is the number of rows of a sequence."""
NotFinite = Mapping[str, NDArray[np.bool_]]
"""By hook, (sequences, K): which rows are not finite."""


def replace_sequences(
    windows: Tokens,
    rows: Rows,
    not_finite: NotFinite,
    *,
    spare: Tokens,
    compute: Callable[[Tokens], tuple[Rows, NotFinite]],
    origin: OriginOf,
    first_position: int,
    where: str,
) -> tuple[Tokens, LeftOut | None]:
    """Puts spare windows in the place of those that are not finite; `rows` are changed.

    Args:
        windows: (sequences, context_length) of the shard.
        rows: of these windows.
        not_finite: of these rows.
        spare: the shard's spare windows (spare, context_length).
        compute: rows of windows; called if a window has to be replaced.
        origin: the document of a position of a window; spare windows are numbered behind the others.
        first_position: of a sequence that has a row.
        where: the shard, for messages.

    Returns:
        The windows that the rows now belong to, and what was left out.

    Raises:
        BadActivation: more sequences are not finite than there are spare ones.
    """
    bad = np.flatnonzero(_any_hook(not_finite))
    if not len(bad):
        return windows, None
    spare_rows, spare_not_finite = compute(spare)
    usable = np.flatnonzero(~_any_hook(spare_not_finite))
    if len(usable) < len(bad):
        hooks = ", ".join(hook for hook, found in not_finite.items() if found.any())
        raise BadActivation(
            f"expected at most {len(usable)} sequences of {where}, as many as it has spare ones, with an infinity or "
            f"NaN at {hooks}, got {len(bad)} of {len(windows)}. So many are no outliers: compute in another "
            "language_model.compute_dtype, or check the model's weights"
        )
    taken = usable[: len(bad)]
    windows = windows.copy()
    windows[bad] = spare[taken]
    per_sequence = next(iter(not_finite.values())).shape[1]
    for hook, values in rows.items():
        by_sequence = values.reshape(-1, per_sequence, values.shape[1])
        by_sequence[bad] = spare_rows[hook].reshape(-1, per_sequence, values.shape[1])[taken]
    tried = int(taken[-1]) + 1  # spare ones that are not finite either are left out on the way
    both = {hook: np.concatenate([found, spare_not_finite[hook][:tried]]) for hook, found in not_finite.items()}
    told = {hook: _told(found, origin=origin, first_position=first_position) for hook, found in both.items()}
    return windows, LeftOut(
        num_sequences=int(_any_hook(both).sum()),
        hooks={hook: of_hook for hook, of_hook in told.items() if of_hook is not None},
    )


def _any_hook(not_finite: NotFinite) -> NDArray[np.bool_]:
    """(sequences,): whether a row of any hook is not finite."""
    return np.any([found.any(axis=1) for found in not_finite.values()], axis=0)


def _told(not_finite: NDArray[np.bool_], *, origin: OriginOf, first_position: int) -> LeftOutRows | None:
    sequences = np.flatnonzero(not_finite.any(axis=1))
    if not len(sequences):
        return None
    places = []
    for sequence in sequences[:MAX_PLACES].tolist():
        position = int(not_finite[sequence].argmax()) + first_position
        found = origin(sequence, position)
        part, number = (None, None) if found is None else (found.part, found.number)
        places.append(LeftOutPlace(part=part, document=number, position=position))
    return LeftOutRows(num_sequences=len(sequences), num_rows=int(not_finite.sum()), first=tuple(places))
