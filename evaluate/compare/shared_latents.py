"""Which latents two decoders share."""

import math
import statistics
from collections.abc import Mapping

from torch import Tensor

from store.sae.geometry import best_match_cosines


def shared_latents(decoders: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean over the latents of the first variant of the largest cosine with a latent of the second.

    `decoders` holds W_dec (F, d) per variant. Variants of one seed begin from the same weights, which raises it.
    """
    return {
        first: {second: float(best_match_cosines(decoders[first], decoders[second]).mean()) for second in decoders}
        for first in decoders
    }


def chance_best_match(d_sae: int, d_model: int) -> float:
    """About what `shared_latents` gives for decoders of random directions.

    A cosine of random directions is near normal with deviation 1 / sqrt(d); the largest of F normals is expected at
    the quantile (F - 3/8) / (F + 1/4) (Blom 1958).
    """
    quantile = statistics.NormalDist().inv_cdf((d_sae - 0.375) / (d_sae + 0.25))
    return min(1.0, quantile / math.sqrt(d_model))
