"""Decoder directions against known ones. F latents, N features, d channels; cosines are signed where nothing is said.

The mean correlation coefficient (MCC) and uniqueness are those of sae_lens.synthetic, which take |cos|. What asks for a
latent of a feature takes the signed cosine: activations of latents and of features are never negative, so that a latent
that points away from a feature does not stand for it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANCE_DRAWS = 20
"""Random decoders on which the chance level of MCC is measured."""


@dataclass(frozen=True)
class Match:
    """Which latent stands for which feature."""

    cosines: NDArray[np.float64]
    """(F, N), of each latent's direction with each feature's."""

    @property
    def best_latent(self) -> NDArray[np.int64]:
        """(N,): the latent that points most as the feature does. One may stand for several features."""
        return self.cosines.argmax(axis=0)

    @property
    def best_cosine(self) -> NDArray[np.float64]:
        """(N,): its cosine with the feature."""
        best: NDArray[np.float64] = self.cosines.max(axis=0)
        return best


def match(decoder: Tensor, directions: NDArray[np.float32]) -> Match:
    """Compares the rows of `decoder` (F, d), of any length, with `directions` (N, d). A row of zeros has cosine 0."""
    latents = torch.nn.functional.normalize(decoder.double().cpu(), dim=1)
    features = torch.nn.functional.normalize(torch.from_numpy(directions).double(), dim=1)
    return Match((latents @ features.T).numpy())


def correlation(decoder: Tensor, directions: NDArray[np.float32]) -> float:
    """MCC: the mean |cos| of the pairs of latent and feature in the best one-to-one matching, min(F, N) of them."""
    from sae_lens.synthetic import mean_correlation_coefficient

    return float(mean_correlation_coefficient(decoder.float().cpu(), torch.from_numpy(directions)))


def uniqueness(decoder: Tensor, directions: NDArray[np.float32]) -> float:
    """How many features are the nearest of some latent, over F; at most N / F."""
    from sae_lens.synthetic import feature_uniqueness

    return float(feature_uniqueness(decoder.float().cpu(), torch.from_numpy(directions)))


def chance_correlation(directions: NDArray[np.float32], *, num_latents: int) -> tuple[float, float]:
    """Mean and sample deviation of the MCC of random decoders with so many latents: what no skill reaches."""
    generator = np.random.Generator(np.random.PCG64(0))
    shape = (CHANCE_DRAWS, num_latents, directions.shape[1])
    drawn = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    found = [correlation(decoder, directions) for decoder in drawn]
    return float(np.mean(found)), float(np.std(found, ddof=1))


def mean_leak(cosines: Match, directions: NDArray[np.float32], parents: NDArray[np.int64]) -> float:
    """How much more a child's latent points to the parent than the child does: excess cosine, mean over children."""
    children = np.flatnonzero(parents >= 0)
    above = parents[children]
    unit = directions.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    of_truth = (unit[children] * unit[above]).sum(axis=1)
    of_latents = cosines.cosines[cosines.best_latent[children], above]
    return float((of_latents - of_truth).mean())
