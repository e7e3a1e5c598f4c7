"""The best entries of each latent out of a stream that is never held as a whole.

An entry is a firing of a latent somewhere in the text, with the activations around it. Its `key` says how good it is;
among equal keys the earlier place in the text wins. Order of arrival and size of batches make no difference.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Entries:
    """n firings."""

    latent: NDArray[np.int64]
    """(n,)"""
    key: NDArray[np.float64]
    """(n,) the larger the better."""
    place: NDArray[np.int64]
    """(n,) sequence times context length plus position."""
    window: NDArray[np.float32]
    """(n, W) activations of the latent around the place."""

    def taken(self, order: NDArray[np.int64]) -> "Entries":
        """Some of the entries, in this order."""
        return Entries(**{field.name: getattr(self, field.name)[order] for field in fields(self)})

    @staticmethod
    def joined(parts: "list[Entries]") -> "Entries":
        """All entries of all parts."""
        return Entries(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Entries)}
        )

    @staticmethod
    def none(width: int) -> "Entries":
        """No entries, with windows of `width`."""
        empty = np.empty(0, dtype=np.int64)
        return Entries(empty, empty.astype(np.float64), empty, np.empty((0, width), dtype=np.float32))


def best_of_each(
    group: NDArray[np.int64], key: NDArray[np.float64], place: NDArray[np.int64], *, count: int
) -> NDArray[np.int64]:
    """Numbers of the entries that are among the `count` best of their group: by group, then best first."""
    order = np.lexsort((place, -key, group))
    sorted_group = group[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_group, sorted_group, side="left")
    chosen: NDArray[np.int64] = order[rank < count]
    return chosen


class BestEntries:
    """Keeps the `count` best entries of each of `num_latents` latents.

    Memory: at most twice num_latents * count entries, and those that are being added.
    """

    def __init__(self, *, num_latents: int, count: int, width: int) -> None:
        self._count = count
        self._most_waiting = num_latents * count
        self._kept = Entries.none(width)
        self._waiting: list[Entries] = []
        self._num_waiting = 0
        self.least = np.full(num_latents, -np.inf)
        """(F,) what an entry of a latent needs at least to be among the best: the key of the worst one kept."""

    def add(self, entries: Entries) -> None:
        """More of the stream. Entries below `least` may be left out beforehand."""
        self._waiting.append(entries)
        self._num_waiting += len(entries.key)
        if self._num_waiting >= self._most_waiting:
            self._compact()

    def best(self) -> Entries:
        """The best so far: by latent, then best first."""
        self._compact()
        return self._kept

    def _compact(self) -> None:
        entries = Entries.joined([self._kept, *self._waiting])
        self._waiting, self._num_waiting = [], 0
        self._kept = entries.taken(best_of_each(entries.latent, entries.key, entries.place, count=self._count))
        latents, counts = np.unique(self._kept.latent, return_counts=True)
        full = counts == self._count
        last = np.cumsum(counts) - 1
        self.least[latents[full]] = self._kept.key[last[full]]


def priorities(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each place in the text, as if drawn at random, and the same in every run.

    The `count` firings of a latent with the largest ones are a random sample of its firings without replacement.
    SplitMix64 (Steele, Lea and Flood 2014), its upper 53 bits.
    """
    mixed = places.astype(np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
