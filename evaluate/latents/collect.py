"""What one SAE's latents do on text, batch by batch.

Shapes: S sequences, T context length, F latents, W tokens in a window. A place is sequence * T + position.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.latents.best import BestEntries, Entries, best_of_each, priorities
from evaluate.latents.histogram import ActivationHistograms
from store.record import Record

NUM_QUANTILES = 10


class Contexts(Record):
    """Which contexts of a latent are kept, and how much text each shows."""

    num_top: int
    """The sequences in which it is largest, one context of each."""
    num_sampled: int
    """Firings drawn at random, from which quantiles are taken."""
    num_per_quantile: int
    """Contexts of each tenth of the sampled firings."""
    tokens_before: int
    tokens_after: int

    @property
    def width(self) -> int:
        """Tokens of a window."""
        return self.tokens_before + 1 + self.tokens_after

    @property
    def num_slots(self) -> int:
        """Contexts of a latent: the top ones, then those of each quantile."""
        return self.num_top + NUM_QUANTILES * self.num_per_quantile

    def nbytes(self, num_latents: int) -> int:
        """Memory of a `LatentCollector`, about: best entries, as many that wait, and their copies while sorted."""
        return 3 * num_latents * (self.num_top + self.num_sampled) * (4 * self.width + 24)


@dataclass(frozen=True)
class Collected:
    """What was seen of each latent."""

    num_rows: int
    num_firing: NDArray[np.int64]
    """(F,) rows on which it is above zero."""
    sum: NDArray[np.float64]
    """(F,) of its activations."""
    largest: NDArray[np.float32]
    """(F,)"""
    bin_width: NDArray[np.float64]
    """(F,) of its histogram, 0 for a latent that never fires."""
    bin_counts: NDArray[np.int64]
    """(F, bins)"""
    places: NDArray[np.int64]
    """(F, slots) where its contexts are, -1 where there is none."""
    windows: NDArray[np.float32]
    """(F, slots, W) activations there; 0 also outside of the sequence."""
    quantile_ranges: NDArray[np.float32]
    """(F, 10, 2) least and largest activation of each tenth of the sampled firings, 0 where it is empty."""


class LatentCollector:
    """Sees batches of whole sequences in any order; the same text gives the same result."""

    def __init__(self, contexts: Contexts, *, num_latents: int, device: torch.device) -> None:
        self._contexts = contexts
        self._num_rows = 0
        self._num_firing = torch.zeros(num_latents, dtype=torch.int64, device=device)
        self._sum = torch.zeros(num_latents, dtype=torch.float64, device=device)
        self._largest = torch.zeros(num_latents, device=device)
        self._histograms = ActivationHistograms(num_latents, device)
        self._top = BestEntries(num_latents=num_latents, count=contexts.num_top, width=contexts.width)
        self._sample = BestEntries(num_latents=num_latents, count=contexts.num_sampled, width=contexts.width)

    def add(self, latents: Tensor, counted: Tensor, sequences: NDArray[np.int64]) -> None:
        """One batch: activations (S, T, F), which positions are rows (S, T), numbers of the sequences (S,)."""
        latents = latents * counted[:, :, None]
        self._num_rows += int(counted.sum())
        largest = latents.amax(dim=(0, 1))
        self._sum += latents.sum(dim=(0, 1), dtype=torch.float64)
        self._largest = torch.maximum(self._largest, largest)
        sequence, position, latent = latents.nonzero(as_tuple=True)
        self._num_firing += torch.bincount(latent, minlength=len(self._num_firing))
        self._histograms.add(latent, latents[sequence, position, latent], largest)
        self._add_top(latents, sequences)
        self._add_sample(latents, (sequence, position, latent), sequences)

    def _add_top(self, latents: Tensor, sequences: NDArray[np.int64]) -> None:
        """The largest activation in each sequence; the first of equal ones."""
        values, position = latents.max(dim=1)
        position = (latents == values[:, None, :]).int().argmax(dim=1)  # max() may name any of equal ones
        keys = values.double().cpu().numpy()
        sequence, latent = np.nonzero((keys > 0) & (keys >= self._top.least))
        found = position.cpu().numpy()[sequence, latent]
        self._top.add(self._entries(latents, sequence, found, latent, keys[sequence, latent], sequences))

    def _add_sample(self, latents: Tensor, firing: tuple[Tensor, Tensor, Tensor], sequences: NDArray[np.int64]) -> None:
        """Of this batch's firings those that a random sample of all would hold so far."""
        sequence, position, latent = (part.cpu().numpy() for part in firing)
        places = sequences[sequence] * latents.shape[1] + position
        keys = priorities(places)
        good = np.flatnonzero(keys >= self._sample.least[latent])
        best = good[best_of_each(latent[good], keys[good], places[good], count=self._contexts.num_sampled)]
        self._sample.add(self._entries(latents, sequence[best], position[best], latent[best], keys[best], sequences))

    def _entries(
        self,
        latents: Tensor,
        sequence: NDArray[np.int64],
        position: NDArray[np.int64],
        latent: NDArray[np.int64],
        keys: NDArray[np.float64],
        sequences: NDArray[np.int64],
    ) -> Entries:
        """Firings of this batch with the activations around them."""
        length, device = latents.shape[1], latents.device
        offsets = np.arange(-self._contexts.tokens_before, self._contexts.tokens_after + 1)
        around = position[:, None] + offsets
        inside = (around >= 0) & (around < length)
        where = torch.from_numpy(np.where(inside, around, 0)).to(device)
        window = latents[
            torch.from_numpy(sequence).to(device)[:, None], where, torch.from_numpy(latent).to(device)[:, None]
        ]
        return Entries(
            latent=latent,
            key=keys,
            place=sequences[sequence] * length + position,
            window=np.where(inside, window.cpu().numpy(), np.float32(0.0)),
        )

    def collected(self) -> Collected:
        """All of it. More batches may follow."""
        num_latents, slots = len(self._num_firing), self._contexts.num_slots
        places = np.full((num_latents, slots), -1, dtype=np.int64)
        windows = np.zeros((num_latents, slots, self._contexts.width), dtype=np.float32)
        ranges = np.zeros((num_latents, NUM_QUANTILES, 2), dtype=np.float32)
        top = self._top.best()
        rank = _rank_in_group(top.latent)
        places[top.latent, rank], windows[top.latent, rank] = top.place, top.window
        self._fill_quantiles(places[:, self._contexts.num_top :], windows[:, self._contexts.num_top :], ranges)
        width, counts = self._histograms.figures()
        return Collected(
            num_rows=self._num_rows,
            num_firing=self._num_firing.cpu().numpy(),
            sum=self._sum.cpu().numpy(),
            largest=self._largest.cpu().numpy(),
            bin_width=width,
            bin_counts=counts,
            places=places,
            windows=windows,
            quantile_ranges=ranges,
        )

    def _fill_quantiles(
        self, places: NDArray[np.int64], windows: NDArray[np.float32], ranges: NDArray[np.float32]
    ) -> None:
        """Cuts each latent's sampled firings into tenths by activation, and takes the first drawn of each."""
        sample = self._sample.best()
        drawn = _rank_in_group(sample.latent)
        values = sample.window[:, self._contexts.tokens_before]
        order = np.lexsort((sample.place, values, sample.latent))
        latent, values, drawn = sample.latent[order], values[order], drawn[order]
        size = np.bincount(latent, minlength=len(places))[latent]
        quantile = _rank_in_group(latent) * NUM_QUANTILES // size
        group = latent * NUM_QUANTILES + quantile
        first, last = np.searchsorted(group, group, side="left"), np.searchsorted(group, group, side="right") - 1
        ranges[latent, quantile, 0], ranges[latent, quantile, 1] = values[first], values[last]
        count = self._contexts.num_per_quantile
        best = best_of_each(group, -drawn.astype(np.float64), drawn, count=count)
        slot = quantile[best] * count + _rank_in_group(group[best])
        places[latent[best], slot] = sample.place[order][best]
        windows[latent[best], slot] = sample.window[order][best]


def _rank_in_group(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, ... within each run of equal numbers of a sorted array."""
    rank: NDArray[np.int64] = np.arange(len(group)) - np.searchsorted(group, group, side="left")
    return rank
