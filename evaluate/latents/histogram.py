"""Histograms of activations above zero, one per latent, in one pass though their range is not known beforehand.

A latent's bins are `NUM_BINS` of one width from zero on, the width a power of two: the largest activation lies in the
upper half of them. When a larger one comes, bins are merged in pairs, exactly, as often as needed. So the histogram
is that of all activations at once.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LOG2_BINS = 5
NUM_BINS = 2**_LOG2_BINS
_NONE = -(2**15)  # exponent of a latent that has not fired: less than any of float32


class ActivationHistograms:
    """Counts activations of `num_latents` latents."""

    def __init__(self, num_latents: int, device: torch.device) -> None:
        self._exponent = torch.full((num_latents,), _NONE, dtype=torch.int64, device=device)
        self._counts = torch.zeros(num_latents, NUM_BINS, dtype=torch.int64, device=device)

    def add(self, latent: Tensor, value: Tensor, largest: Tensor) -> None:
        """Activations `value` (n,) > 0 of latents `latent` (n,); `largest` (F,) of them per latent, 0 where none."""
        self._widen(largest)
        # value < 2^exponent, and a product with a power of two is exact.
        bins = torch.ldexp(value.double(), _LOG2_BINS - self._exponent[latent]).long()
        num_latents = len(self._exponent)
        flat = torch.bincount(latent * NUM_BINS + bins, minlength=num_latents * NUM_BINS)
        self._counts += flat.reshape(num_latents, NUM_BINS)

    def _widen(self, largest: Tensor) -> None:
        """Makes every latent's bins reach above its largest activation."""
        needed = torch.frexp(largest).exponent.long()  # largest < 2^needed
        needed = torch.where(largest > 0, torch.maximum(needed, self._exponent), self._exponent)
        steps = torch.where(self._exponent == _NONE, 0, needed - self._exponent)
        while bool((steps > 0).any()):
            merging = steps > 0
            merged = torch.zeros_like(self._counts[merging])
            merged[:, : NUM_BINS // 2] = self._counts[merging].reshape(-1, NUM_BINS // 2, 2).sum(dim=2)
            self._counts[merging] = merged
            steps = torch.where(self._counts.sum(dim=1) > 0, steps - 1, 0)
        self._exponent = needed

    def figures(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Width of the bins of each latent, (F,), 0 where it never fired; and counts (F, NUM_BINS)."""
        exponent = self._exponent.cpu().numpy()
        width = np.where(exponent == _NONE, 0.0, np.ldexp(1.0 / NUM_BINS, np.where(exponent == _NONE, 0, exponent)))
        return width, self._counts.cpu().numpy()
