"""How the decoder would have moved, had lambda been another in the last step: dW_{t+1} / dlambda_t, exactly.

Shape suffixes: D d_model, F latents, of one variant.

With q = dP/dW_t, scaled as in the loss and along the sphere for unit rows, Adam's gradient is g = (what does not depend
on lambda) + lambda q, and with m, v its moments after the step, b1, b2 its betas and t the number of the step from 1,

    w      = W_t - lr m' / (sqrt(v') + eps),    m' = m / (1 - b1^t),    v' = v / (1 - b2^t)
    dw     = -lr (dm' / (sqrt(v') + eps) - m' dsqrt(v') / (sqrt(v') + eps)^2)
    dm'    = (1 - b1) q / (1 - b1^t),           dsqrt(v') = (1 - b2) g q / ((1 - b2^t) sqrt(v'))
    dW     = (dw - (dw . u) u) / ||w||,         u = w / ||w||                  row by row, where rows are unit

A gradient clip's factor counts as a constant: q is shortened by it as g is.
"""

import torch
from torch import Tensor


def derivative_by_lambda(
    q_FD: Tensor,
    *,
    gradient_FD: Tensor,
    first_FD: Tensor,
    second_FD: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    count: int,
) -> Tensor:
    """dw/dlambda of one Adam step, (F, D).

    Args:
        q_FD: derivative of Adam's gradient by lambda.
        gradient_FD: Adam's gradient.
        first_FD: running mean of gradients after the step.
        second_FD: running mean of squared gradients after the step.
        count: number of the step, from 1.
    """
    tiny = torch.finfo(q_FD.dtype).tiny
    unbiased1, unbiased2 = 1.0 - beta1**count, 1.0 - beta2**count
    root_FD = (second_FD / unbiased2).sqrt_()
    below_FD = root_FD + eps
    # From the inside out: dsqrt(v'), then m' dsqrt(v') / (sqrt(v') + eps), then the difference with dm'.
    change_FD = gradient_FD * q_FD
    change_FD.mul_((1.0 - beta2) / unbiased2).div_(root_FD.clamp_min_(tiny))
    change_FD.mul_(first_FD).div_(below_FD).mul_(-1.0 / unbiased1)
    change_FD.add_(q_FD, alpha=(1.0 - beta1) / unbiased1)
    return change_FD.div_(below_FD).mul_(-lr)


def on_unit_rows_(change_FD: Tensor, w_FD: Tensor) -> Tensor:
    """dW of W = w / ||w|| row by row, from dw; in place. Rows of zeros get no finite answer, and have dw = 0."""
    squares_F1 = w_FD.square().sum(dim=1, keepdim=True).clamp_min_(torch.finfo(w_FD.dtype).tiny)
    along_F1 = (change_FD * w_FD).sum(dim=1, keepdim=True).div_(squares_F1)
    return change_FD.addcmul_(w_FD, along_F1, value=-1.0).div_(squares_F1.sqrt_())


def along_sphere(gradient_FD: Tensor, W_dec_FD: Tensor) -> Tensor:
    """gradient - (gradient . u) u for each unit row u: a new tensor."""
    parallel_F1 = (gradient_FD * W_dec_FD).sum(dim=1, keepdim=True)
    return torch.addcmul(gradient_FD, W_dec_FD, parallel_F1, value=-1.0)
