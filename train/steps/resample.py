"""Resampling: a dead latent starts again at a row that is reconstructed badly. See architectures.Resample.

Shape suffixes: B rows, D d_model, F latents, n dead latents of one variant.
"""

import numpy as np
import torch
from torch import Tensor

from train.steps.adam import StackedAdam
from train.steps.protocol import Step


def resample_(
    step: Step,
    adam: StackedAdam,
    variant: int,
    *,
    dead_F: Tensor,
    encoder_scale: float,
    seed: int,
    step_number: int,
) -> None:
    """Gives the dead latents of one variant new directions from the last batch; what is drawn is keyed by the step."""
    latents_n = dead_F.nonzero().flatten()
    if len(latents_n) == 0:
        return
    live_F = ~dead_F
    rows_n = torch.from_numpy(draw_rows(step.row_errors(variant), len(latents_n), seed=seed, step=step_number))
    x_nD = step.input_DB[:, rows_n.to(dead_F.device)].t().to(step.W_dec.dtype)
    away_nD = x_nD - step.b_dec[variant]
    tiny = torch.finfo(away_nD.dtype).tiny
    direction_nD = away_nD / torch.linalg.vector_norm(away_nD, dim=1, keepdim=True).clamp_min(tiny)
    step.W_enc[variant, latents_n] = direction_nD * (encoder_scale * _mean_length(step.W_enc[variant], live_F))
    step.W_dec[variant, latents_n] = direction_nD * _mean_length(step.W_dec[variant], live_F)
    step.restart(variant, latents_n)
    for name, weight in step.parameters.items():
        if weight.shape[1] == len(dead_F) and name != "b_dec":
            for moments in (adam.first, adam.second):
                moments[name][variant, latents_n] = 0.0


def draw_rows(
    row_errors_B: Tensor, count: int, *, seed: int, step: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """`count` rows of the batch, each drawn with probability ||x - x_hat||^4 over their sum, with replacement.

    All are alike where that sum is 0, or not finite: a variant may have diverged since the last log record.
    """
    weight_B = row_errors_B.to("cpu", torch.float64).numpy() ** 2
    total = weight_B.sum()
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return generator.choice(len(weight_B), size=count, p=weight_B / total if 0.0 < total < np.inf else None)


def _mean_length(rows_FD: Tensor, live_F: Tensor) -> Tensor:
    """Mean length of the rows of live latents, (); 1 where there are none."""
    lengths_F = torch.linalg.vector_norm(rows_FD, dim=1)
    mean = (lengths_F * live_F).sum() / live_F.sum()
    return torch.where(live_F.any(), mean, torch.ones_like(mean))
