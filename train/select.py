"""Which latents of a batch stay active, in the kinds of SAE that count them.

Shape suffixes: V variants, B rows, F latents. The batch is the last axis.
"""

import torch
from torch import Tensor

THRESHOLD_RATE = 0.01
"""Of the running mean of the smallest activation that fired."""


def keep_top_of_rows_(pre_FB: Tensor, *, k: int) -> None:
    """relu of the k largest of each row, 0 elsewhere, in place."""
    largest = pre_FB.topk(k, dim=0, sorted=False)
    pre_FB.zero_().scatter_(0, largest.indices, largest.values.relu_())


def keep_top_of_batch_(a_FB: Tensor, *, count: int) -> Tensor:
    """Keeps the `count` largest of activations >= 0 (all that equal the smallest kept), sets the rest to 0, in place.

    Returns the smallest kept, (); 0 where fewer than `count` are positive.
    """
    smallest = a_FB.flatten().topk(count, sorted=False).values.min()
    a_FB.masked_fill_(a_FB < smallest, 0.0)
    return smallest


def running_threshold(threshold_V: Tensor, smallest_V: Tensor) -> Tensor:
    """The running mean of `smallest_V`, (V,) float64: the first itself, then moved by THRESHOLD_RATE of the way."""
    smallest_V = smallest_V.to(torch.float64)
    moved_V = threshold_V + THRESHOLD_RATE * (smallest_V - threshold_V)
    return torch.where(threshold_V.isnan(), smallest_V, moved_V)


def top_dead(pre_VFB: Tensor, dead_VF: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre of dead latents per row, 0 elsewhere, and where they are (bool); all where fewer are dead."""
    hidden_VFB = pre_VFB.masked_fill(~dead_VF[:, :, None], -torch.inf)
    largest = hidden_VFB.topk(k, dim=1, sorted=False)
    found = largest.values > -torch.inf
    z_VFB = torch.zeros_like(pre_VFB).scatter_(1, largest.indices, largest.values.masked_fill(~found, 0.0))
    chosen_VFB = torch.zeros_like(pre_VFB, dtype=torch.bool).scatter_(1, largest.indices, found)
    return z_VFB, chosen_VFB
