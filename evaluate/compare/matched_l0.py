"""Whether variants are compared at matched sparsity."""

import math
from collections.abc import Mapping

MATCHED_L0_WITHIN = 0.10


def differing_sparsity(l0: Mapping[str, float], reference: Mapping[str, str | None]) -> dict[str, float]:
    """Variants whose L0 is further from their baseline's than `MATCHED_L0_WITHIN`, with the relative difference."""
    found = {}
    for name, value in l0.items():
        other = reference[name]
        if other is None or other == name:
            continue
        relative = value / l0[other] - 1.0 if l0[other] > 0 else math.inf
        if abs(relative) > MATCHED_L0_WITHIN:
            found[name] = relative
    return found
