"""When latents fire against when features are on: counts by sequence, and what follows from their totals.

N features, P of them parents. A feature is detected by the latent that stands for it (see directions.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """What the rows of one sequence, or of several together, count. The last axis is features, or parents."""

    both: Array
    """(..., N): rows on which the feature is on and its latent fires."""
    latent: Array
    """(..., N): rows on which its latent fires."""
    feature: Array
    """(..., N): rows on which it is on."""
    alone: Array
    """(..., P): rows on which the parent is on and no child of it."""
    alone_fired: Array
    """(..., P): those of them on which the parent's latent fires."""
    with_child: Array
    """(..., P): rows on which a child is on, and so the parent."""
    with_child_fired: Array
    """(..., P): those of them on which the parent's latent fires."""

    def flat(self) -> Array:
        """All in one, (..., 3 N + 4 P)."""
        return np.concatenate([getattr(self, name) for name in self.__dataclass_fields__], axis=-1)

    @staticmethod
    def unflat(totals: Array, *, num_features: int, num_parents: int) -> "Counts":
        """What `flat` gave, or sums of it."""
        sizes = [num_features] * 3 + [num_parents] * 4
        return Counts(*np.split(totals, np.cumsum(sizes)[:-1], axis=-1))


def children_of(parents: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The children of every feature that has some, in the order of the parents."""
    return {int(parent): np.flatnonzero(parents == parent) for parent in np.unique(parents[parents >= 0])}


def count(fired: Bools, on: Bools, children: dict[int, NDArray[np.int64]]) -> Counts:
    """Counts over rows: whether the latent of each feature fires, and whether the feature is on, both (rows, N)."""
    has_child = np.stack([on[:, numbers].any(axis=1) for numbers in children.values()], axis=1) if children else None
    above = list(children)
    with_child = on[:, above] & has_child if has_child is not None else np.zeros((len(on), 0), dtype=np.bool_)
    alone = on[:, above] & ~has_child if has_child is not None else with_child
    parent_fired = fired[:, above]

    def summed(values: Bools) -> Array:
        return values.sum(axis=0).astype(np.float64)

    return Counts(
        both=summed(fired & on),
        latent=summed(fired),
        feature=summed(on),
        alone=summed(alone),
        alone_fired=summed(alone & parent_fired),
        with_child=summed(with_child),
        with_child_fired=summed(with_child & parent_fired),
    )


@dataclass(frozen=True)
class Detection:
    """Of each feature, (..., N); 0 where nothing was there to be divided by."""

    precision: Array
    """Of the rows on which its latent fires, the share on which it is on."""
    recall: Array
    """Of the rows on which it is on, the share on which its latent fires."""
    f1: Array
    """2 both / (latent + feature), the harmonic mean of the two."""


def detection(counts: Counts) -> Detection:
    """What the counts say about each feature."""
    return Detection(
        precision=_share(counts.both, counts.latent),
        recall=_share(counts.both, counts.feature),
        f1=_share(2 * counts.both, counts.latent + counts.feature),
    )


def absorbed(counts: Counts, *, lost_recall: float) -> Array:
    """(..., P), 1 where the parent's latent loses more than that share of its recall on rows with an active child.

    Its recall is that on rows where the parent stands alone. A latent that never fires there has none to lose: 0.
    """
    alone = _share(counts.alone_fired, counts.alone)
    with_child = _share(counts.with_child_fired, counts.with_child)
    return (with_child < (1.0 - lost_recall) * alone).astype(np.float64)


def thirds(frequencies: Array) -> dict[str, NDArray[np.int64]]:
    """The features by how often they fire: rare, middle and frequent, as equal in number as can be."""
    order = np.argsort(frequencies, kind="stable")
    return dict(zip(("rare", "middle", "frequent"), np.array_split(order, 3), strict=True))


def mean_of(values: Array, chosen: Sequence[int] | NDArray[np.int64]) -> Array:
    """(...,): the mean over some features of (..., N)."""
    mean: Array = values[..., np.asarray(chosen, dtype=np.int64)].mean(axis=-1)
    return mean


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
