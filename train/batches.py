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


def load_batch(bits_BD: NDArray[np.uint16], *, scale: float, out_DB: Tensor) -> None:
    """Writes the scaled rows into `out_DB`, one column per row.

    Args:
        bits_BD: bit patterns of bfloat16, as the store yields them.
        scale: s of `activation_scale`.
        out_DB: float32 or wider for an exact product with s, or bfloat16; on any device.
    """
    host_BD = torch.from_numpy(bits_BD).view(torch.bfloat16)
    if out_DB.device.type == "cuda":  # from pinned memory, so that the host need not wait for the steps before
        host_BD = host_BD.pin_memory()
    rows_BD = host_BD.to(out_DB.device, non_blocking=True)
    if out_DB.dtype == torch.bfloat16:
        out_DB.copy_((rows_BD.to(torch.float32) * scale).t())
    else:
        out_DB.copy_(rows_BD.t())
        out_DB.mul_(scale)
