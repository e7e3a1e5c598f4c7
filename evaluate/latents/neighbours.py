"""Latents that point the same way, by cosines of decoder rows: nearest ones in one SAE, matching ones of two."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluate.latents.best import best_of_each
from store.sae.geometry import BLOCK_ROWS, cosine_blocks, unit_rows

NUM_NEAREST = 5


def nearest_latents(W_dec: Tensor, *, count: int = NUM_NEAREST) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each latent's `count` nearest others and their cosines, both (F, count), nearest first; of equals the first.

    `W_dec` (F, d). Where there are fewer others, `count` is their number.
    """
    directions = unit_rows(W_dec.double())
    count = min(count, len(directions) - 1)
    shape = (len(directions), count)
    if count == 0:
        return np.empty(shape, dtype=np.int64), np.empty(shape)
    numbers, cosines = [], []
    for _, block in cosine_blocks(directions):
        worst = block.topk(count, dim=1).values[:, -1:]
        row, other = (part.numpy() for part in (block >= worst).nonzero(as_tuple=True))
        values = block[row, other].numpy()
        best = best_of_each(row, values, other, count=count)
        numbers.append(other[best])
        cosines.append(values[best])
    return np.concatenate(numbers).reshape(shape), np.concatenate(cosines).reshape(shape)


def matching_latents(
    first: Tensor, second: Tensor
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]], tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each latent of `first` (F, d) the one of `second` (F2, d) with the largest cosine, and the other way round.

    Each way: numbers and cosines, (F,) and (F2,); of equals the first.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected two decoders of one d_model, got {tuple(first.shape)} and {tuple(second.shape)}")
    there: list[NDArray[np.int64]] = []
    there_cosines: list[NDArray[np.float64]] = []
    back = np.zeros(len(second), dtype=np.int64)
    back_cosines = np.full(len(second), -np.inf)
    mine, others = unit_rows(first.double()), unit_rows(second.double())
    for start in range(0, len(mine), BLOCK_ROWS):
        block = (mine[start : start + BLOCK_ROWS] @ others.T).numpy()
        there.append(block.argmax(axis=1))
        there_cosines.append(block.max(axis=1))
        better = block.max(axis=0) > back_cosines
        back[better] = start + block.argmax(axis=0)[better]
        back_cosines[better] = block.max(axis=0)[better]
    return (np.concatenate(there), np.concatenate(there_cosines)), (back, back_cosines)


def all_matches(decoders: dict[str, Tensor]) -> dict[str, dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]]:
    """By variant, then by other variant: the number of each latent's match there, and the cosine.

    Each pair's cosines are computed once. A variant's latents match themselves and are left out. Variants of another
    d_model (hooks of another width) have no matches.
    """
    names = list(decoders)
    matches: dict[str, dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]] = {name: {} for name in names}
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if decoders[first].shape[1] == decoders[second].shape[1]:
                matches[first][second], matches[second][first] = matching_latents(decoders[first], decoders[second])
    return matches
