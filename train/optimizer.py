"""Adam on stacked weights, with decoder rows that stay unit.

Shape suffixes: V variants, D d_model, F latents.
"""

import torch
from torch import Tensor
from torch.optim.adam import adam

from train.initialise import StackedWeights


def remove_parallel_part_(gradient_VFD: Tensor, W_dec_VFD: Tensor, *, scratch_VFD: Tensor) -> None:
    """gradient - (gradient . u) u for each unit decoder row u, in place: what is left cannot change a row's length."""
    torch.mul(gradient_VFD, W_dec_VFD, out=scratch_VFD)
    gradient_VFD.addcmul_(W_dec_VFD, scratch_VFD.sum(dim=-1, keepdim=True), value=-1.0)


def renormalise_(W_dec_VFD: Tensor) -> None:
    """Scales every decoder row to length 1, in place. An Adam step leaves the sphere, so that this follows each one."""
    W_dec_VFD.div_(torch.linalg.vector_norm(W_dec_VFD, dim=-1, keepdim=True))


class StackedAdam:
    """Adam (Kingma & Ba 2015) with one learning rate per variant and moments stacked like the weights."""

    def __init__(self, weights: StackedWeights, *, lrs: list[float], betas: tuple[float, float], eps: float) -> None:
        """`lrs`: one rate per variant."""
        self._weights = weights.tensors()
        self._betas = betas
        self._eps = eps
        self.first = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        """Running mean of the gradients, by name of the weights."""
        self.second = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        """Running mean of the squared gradients, by name of the weights."""
        # Variants of one rate are updated by one call, whole tensors where all share it.
        self._members: dict[float, list[int | slice]] = {}
        for index, lr in enumerate(lrs):
            self._members.setdefault(lr, []).append(index)
        if len(self._members) == 1:
            self._members = {lrs[0]: [slice(None)]}
        device = weights.W_dec.device
        self._counts = {
            lr: list(torch.zeros(4 * len(members), device=device).unbind()) for lr, members in self._members.items()
        }

    def set_num_steps_done(self, num_steps: int) -> None:
        """Continues after `num_steps` steps (the bias correction depends on it)."""
        for counts in self._counts.values():
            for count in counts:
                count.fill_(float(num_steps))

    def step(self, gradients: dict[str, Tensor], *, lr_factor: float) -> None:
        """One update of the weights in place, at each variant's rate times `lr_factor`."""
        for lr, members in self._members.items():
            named = [(name, member) for name in self._weights for member in members]
            adam(
                [self._weights[name][member] for name, member in named],
                [gradients[name][member] for name, member in named],
                [self.first[name][member] for name, member in named],
                [self.second[name][member] for name, member in named],
                [],
                self._counts[lr],
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=lr * lr_factor,
                weight_decay=0.0,
                eps=self._eps,
                maximize=False,
            )
