"""How much memory a group of variants takes while it trains."""

from collections.abc import Sequence

import torch

from compute.device import product_dtype
from train.architectures import FAST, AuxK, BatchTopK, TopK
from train.config import VariantSettings


def group_bytes(settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device) -> int:
    """About how much memory a group of these variants needs while it trains, in bytes.

    Weights, gradients and Adam's two moments in float32; where products are bfloat16 matrices and results of products
    besides; per row and latent two numbers in the fast kinds, a few more for selection, AuxK and autograd.
    """
    V, F, D, B = len(settings), settings[0].d_sae, d_model, batch_rows
    low = product_dtype(device) == torch.bfloat16
    width = 2 if low else 4
    weights = 2 * V * F * (D + 8)
    per_weight = 4 * 4 + (4 if low else 0) + 1
    architecture = settings[0].architecture
    auxk = isinstance(settings[0].dead_latents, AuxK)
    if isinstance(architecture, FAST):
        per_activation = 2.0 + (6.5 if auxk else 0.0)
        # selection works variant by variant
        selecting = F * B * (width + 8) if isinstance(architecture, TopK | BatchTopK) else 0
    else:
        per_activation, selecting = 10.0 + (6.5 if auxk else 0.0), F * B * 12
    rows = (V + 2) * (D + 8) * B * width * (3 if auxk else 1)
    penalty = 4 * min(F, D) ** 2
    return int(weights * per_weight + V * F * B * width * per_activation + selecting + rows + penalty)
