"""AuxK, the auxiliary loss of dead latents: see architectures.AuxK.

Shape suffixes: V variants, B rows, F latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.architectures import AuxK
from train.config import VariantSettings


class AuxKTerm:
    """The constants of the term for V variants, which agree in k."""

    def __init__(self, settings: Sequence[VariantSettings], *, device: torch.device) -> None:
        kinds = [variant.dead_latents for variant in settings]
        self.k = max(kind.k if isinstance(kind, AuxK) else 0 for kind in kinds)
        """Dead latents per row; 0 where the loss has no such term."""
        coefficients = [kind.coefficient if isinstance(kind, AuxK) else 0.0 for kind in kinds]
        self._coefficient_V = torch.tensor(coefficients, dtype=torch.float64, device=device)

    def weight(self, dead_VF: Tensor) -> Tensor:
        """coefficient * min(1, dead / k), (V,) float64."""
        return self._coefficient_V * (dead_VF.sum(dim=1) / self.k).clamp_max(1.0)


def top_dead(pre_VFB: Tensor, dead_VF: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre of dead latents per row, 0 elsewhere, and where they are (bool); all where fewer are dead."""
    hidden_VFB = pre_VFB.masked_fill(~dead_VF[:, :, None], -torch.inf)
    largest = hidden_VFB.topk(k, dim=1, sorted=False)
    found = largest.values > -torch.inf
    z_VFB = torch.zeros_like(pre_VFB).scatter_(1, largest.indices, largest.values.masked_fill(~found, 0.0))
    chosen_VFB = torch.zeros_like(pre_VFB, dtype=torch.bool).scatter_(1, largest.indices, found)
    return z_VFB, chosen_VFB
