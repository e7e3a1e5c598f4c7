"""Adam on stacked weights, per variant, with decoder rows that stay unit and gradients that are not too long.

Shape suffixes: V variants, D d_model, F latents.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from train.config import VariantSettings

_CLIP_EPS = 1.0e-6  # as torch.nn.utils.clip_grad_norm_


def remove_parallel_part_(gradient_VFD: Tensor, W_dec_VFD: Tensor) -> None:
    """gradient - (gradient . u) u for each unit decoder row u, in place: what is left cannot change a row's length."""
    for gradient, rows in zip(_pieces(gradient_VFD), _pieces(W_dec_VFD), strict=True):
        parallel = (gradient * rows).sum(dim=-1, keepdim=True)
        gradient.addcmul_(rows, parallel, value=-1.0)


def renormalise_(W_dec_VFD: Tensor, *, but: Sequence[int] = ()) -> None:
    """Scales every decoder row to length 1, in place. An Adam step leaves the sphere, so that this follows each one.

    A row of zeros (of a variant that is trained no further) stays, and so does every bit of the variants `but`.
    """
    held = set(but)
    pieces = [rows for index, rows in enumerate(W_dec_VFD) if index not in held] if held else _pieces(W_dec_VFD)
    for rows in pieces:
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        rows.div_(lengths.clamp_min_(torch.finfo(rows.dtype).tiny))


def _pieces(stacked: Tensor) -> Sequence[Tensor]:
    """On a CPU variant by variant, which fits its caches; on a GPU all at once, which keeps it busy."""
    return stacked.unbind() if stacked.device.type == "cpu" else (stacked,)


def clip_(gradients: Mapping[str, Tensor], largest_V: Tensor) -> Tensor:
    """Shortens each variant's whole gradient to a length of at most `largest_V` (inf: as it is), in place.

    Returns what each was multiplied with, (V,).
    """
    squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients.values()]
    lengths_V = torch.stack(squares).sum(dim=0).sqrt()
    factor_V = (largest_V.to(lengths_V.dtype) / (lengths_V + _CLIP_EPS)).clamp_max(1.0)
    for gradient in gradients.values():
        gradient.mul_(factor_V.view(-1, *[1] * (gradient.ndim - 1)))
    return factor_V


class StackedAdam:
    """Adam (Kingma & Ba 2015), with every variant's own rate, betas and epsilon; moments are stacked as weights."""

    def __init__(self, parameters: Mapping[str, Tensor], settings: Sequence[VariantSettings]) -> None:
        """`parameters`: by name, each with the variants first; updated in place."""
        self._parameters = dict(parameters)
        self.first = {name: torch.zeros_like(weight) for name, weight in self._parameters.items()}
        """Running mean of the gradients, by name of the weights."""
        self.second = {name: torch.zeros_like(weight) for name, weight in self._parameters.items()}
        """Running mean of the squared gradients, by name of the weights."""
        # Variants with the same settings of Adam are updated by one call, whole tensors where all have them.
        members: dict[tuple[float, ...], list[int | slice]] = {}
        for index, variant in enumerate(settings):
            schedule = (variant.lr_warm_up_fraction, variant.lr_decay_fraction)
            key = (variant.lr, variant.adam_beta1, variant.adam_beta2, variant.adam_eps, *schedule)
            members.setdefault(key, []).append(index)
        if len(members) == 1:
            members = {key: [slice(None)] for key in members}
        self._members = members
        device = next(iter(self._parameters.values())).device
        self._counts = {
            key: list(torch.zeros(len(self._parameters) * len(indices), device=device).unbind())
            for key, indices in members.items()
        }

    def set_num_steps_done(self, num_steps: int) -> None:
        """Continues after `num_steps` steps (the bias correction depends on it)."""
        for counts in self._counts.values():
            for count in counts:
                count.fill_(float(num_steps))

    def step(self, gradients: Mapping[str, Tensor], *, lr_factors: Sequence[float]) -> None:
        """One update of the weights in place, at each variant's rate times its factor (V of them)."""
        for key, members in self._members.items():
            lr, beta1, beta2, eps, *_ = key
            factor = lr_factors[0 if isinstance(members[0], slice) else members[0]]
            named = [(name, member) for name in self._parameters for member in members]
            adam(
                [self._parameters[name][member] for name, member in named],
                [gradients[name][member] for name, member in named],
                [self.first[name][member] for name, member in named],
                [self.second[name][member] for name, member in named],
                [],
                self._counts[key],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr * factor,
                weight_decay=0.0,
                eps=eps,
                maximize=False,
            )
