"""A few rows of a cache, chosen by a seed, with the tokens around them, for people to look at."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store.read.cache import ActivationCache

_TOKENS_BEFORE, _TOKENS_AFTER = 8, 3
_NUM_VALUES = 4

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class SampledRow:
    """One row of a hook, and where it comes from."""

    row: int
    sequence: int
    position: int
    """In the sequence, from 0; the first ones (BOS) have no row."""
    before: list[int]
    """Tokens up to this one, which are all that the row depends on: the last few of them."""
    token: int
    after: list[int]
    bits: NDArray[np.uint16]
    """(d_model,) bit patterns of bfloat16."""

    @property
    def values(self) -> NDArray[np.float32]:
        """(d_model,)"""
        return (self.bits.astype(np.uint32) << 16).view(np.float32)


def sample_rows(cache: ActivationCache, hook: str, *, num_rows: int, seed: int) -> list[SampledRow]:
    """`num_rows` different rows of a hook in ascending order, the same for the same seed and number of rows."""
    available = cache.manifest.num_rows
    if not 1 <= num_rows <= available:
        raise ValueError(f"expected a sample of 1 to {available} rows, which the cache has, got {num_rows}. Change -n")
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = np.sort(rng.choice(available, size=num_rows, replace=False, shuffle=False))
    places = [cache.locate(int(row)) for row in chosen]
    windows = cache.tokens(np.asarray([sequence for sequence, _ in places])).tolist()
    sampled = []
    for row, (sequence, position), window, bits in zip(chosen, places, windows, cache.rows(hook, chosen), strict=True):
        sampled.append(
            SampledRow(
                row=int(row),
                sequence=sequence,
                position=position,
                before=window[max(0, position - _TOKENS_BEFORE) : position],
                token=window[position],
                after=window[position + 1 : position + 1 + _TOKENS_AFTER],
                bits=bits,
            )
        )
    return sampled


def format_sample(sampled: list[SampledRow], *, decode: Decode | None) -> str:
    """Lines for people. `decode` gives the text of tokens; without it they stay numbers."""
    lines = []
    for item in sampled:
        values = item.values
        first = ", ".join(f"{value:.4g}" for value in values[:_NUM_VALUES])
        if decode is None:
            text = f"{' '.join(map(str, item.before))} [{item.token}] {' '.join(map(str, item.after))}"
        else:
            before, token, after = decode(item.before), decode([item.token]), decode(item.after)
            text = f"{before!r} [{token!r}] {after!r}"
        lines += [
            f"row {item.row}: sequence {item.sequence}, position {item.position}, "
            f"||x|| = {float(np.linalg.norm(values.astype(np.float64))):.4g}, x = {first}, ...",
            f"    {text}",
        ]
    return "\n".join(lines)
