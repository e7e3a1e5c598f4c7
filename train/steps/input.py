"""From rows of the store to the input of a step.

Shape suffixes: B rows, D d_model.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def activation_scale(*, d_model: int, mean_squared_norm: float) -> float:
    """s = sqrt(d_model / E||x||^2): rows times s have a mean squared length of d_model."""
    if not mean_squared_norm > 0.0:
        raise ValueError(
            f"expected activations with a mean squared norm > 0, got {mean_squared_norm}. "
            "The cached rows are all zero; harvest the hook again"
        )
    return math.sqrt(d_model / mean_squared_norm)


def load_batch(rows_BD: NDArray[np.uint16] | Tensor, *, scale: float, out_DB: Tensor) -> None:
    """Writes the scaled rows into `out_DB`, one column per row.

    Args:
        rows_BD: bit patterns of bfloat16, as the store yields them; or bfloat16 values on any device.
        scale: s of `activation_scale`.
        out_DB: float32 or wider for an exact product with s, or bfloat16; on any device.
    """
    values_BD = rows_BD if isinstance(rows_BD, Tensor) else torch.from_numpy(rows_BD).view(torch.bfloat16)
    values_BD = values_BD.to(out_DB.device)
    if out_DB.dtype == torch.bfloat16:
        out_DB.copy_((values_BD.to(torch.float32) * scale).t())
    else:
        out_DB.copy_(values_BD.t())
        out_DB.mul_(scale)
