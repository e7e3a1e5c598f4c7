"""What a penalty costs: multiplications and memory, computed from an SAE's shape and settings.

Variants are trained together, so that no clock tells them apart. An SAE's own products take 10 B d F operations a step
(encode, decode, and their gradients for weights alone); the penalty `gram` 4 F d min(F, d), `max-cosine` 2 F d times
the latents of a chunk. benchmarks/penalty.py measures the first with a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluate.compare.treatments import all_settings
from store.sae.artefact import SAECard

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Of the penalty of one variant."""

    share: float
    """Its operations over those of the SAE's own products in a step."""
    extra_bytes: int
    """Memory that it takes besides weights, gradients and the optimiser's state."""
    own_bytes: int
    """What these take."""


def cost(card: SAECard) -> Cost | None:
    """The computed cost; None where the card does not say how many rows a batch has."""
    settings = all_settings(card)
    batch, schedule = settings.get("batch_rows"), settings.get("lambda")
    if not isinstance(batch, int):
        return None
    F, d = card.d_sae, card.d_model
    own = 4 * FLOAT_BYTES * (2 * F * d + F + d)  # weights, gradients and two moments
    if isinstance(schedule, Mapping) and schedule.get("kind") == "fixed" and schedule.get("value") == 0.0:
        return Cost(0.0, 0, own)
    penalty = settings.get("penalty")
    penalty = penalty if isinstance(penalty, Mapping) else {"kind": "gram"}
    every, most = penalty.get("every_steps"), penalty.get("chunk_latents")
    steps = every if isinstance(every, int) else 1
    if penalty.get("kind") == "max-cosine":
        chunk = min(F, most if isinstance(most, int) else F)
        return Cost(0.2 * chunk / batch / steps, FLOAT_BYTES * min(1024, chunk) * chunk, own)
    smaller = min(F, d)
    return Cost(0.4 * smaller / batch / steps, FLOAT_BYTES * (smaller**2 + F * d), own)
