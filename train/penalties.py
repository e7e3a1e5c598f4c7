"""The penalties on decoder directions that are close to each other. A new one is a record with two methods here.

Shape suffixes: F latents, D d_model. u_f is the direction of latent f, W_dec_f / ||W_dec_f||.

    gram         P = ||G - I||_F^2 with G = U U^T: the sum of squared cosines over ordered pairs
    max-cosine   P = 1/K sum_k 1/|C_k| sum_{i in C_k} (max_{j != i in C_k} u_i . u_j)^2 over K random chunks C_k of
                 latents, drawn anew in each step (OrtSAE, arXiv 2509.22033)

torch is imported inside the functions, so that reading settings does not wait for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from store.record import Record
from train.checks import PositiveCount

if TYPE_CHECKING:
    from torch import Tensor


class GramPenalty(Record):
    """P = ||G - I||_F^2, exact, in 4 F d min(F, d) FLOPs and min(F, d)^2 numbers of memory."""

    kind: Literal["gram"]

    def factor(self, step: int) -> float:
        """What lambda is multiplied with in `step`; 0 where the penalty is not computed."""
        del step
        return 1.0

    def add_gradients_(
        self,
        W_dec_VFD: "Tensor",
        gradient_VFD: "Tensor",
        *,
        weight_V: "Tensor",
        unit: bool,
        seeds: Sequence[int],
        step: int,
    ) -> "Tensor":
        """Adds weight * dP/dW_dec to the gradients in place, and returns P (V,); store/sae/geometry.py has the formula.

        With `unit` rows the part along each row is left in: the caller projects the whole gradient.
        """
        import torch

        from store.sae.geometry import gram_penalty_and_gradient, gram_penalty_bound

        del seeds, step
        weight_V11 = weight_V.to(W_dec_VFD.dtype)[:, None, None]
        if not unit:
            penalty_V, _, own_VFD = gram_penalty_and_gradient(W_dec_VFD)
            gradient_VFD.addcmul_(own_VFD, weight_V11)
            return penalty_V
        _, F, D = W_dec_VFD.shape
        W_dec_VDF = W_dec_VFD.transpose(1, 2)
        if F > D:
            deviation = torch.bmm(W_dec_VDF, W_dec_VFD)
            deviation.diagonal(dim1=1, dim2=2).sub_(F / D)
        else:
            deviation = torch.bmm(W_dec_VFD, W_dec_VDF)
            deviation.diagonal(dim1=1, dim2=2).zero_()
        excess_V = torch.linalg.vector_norm(deviation, dim=(1, 2)).square_()
        deviation.mul_(4.0 * weight_V11)
        if F > D:
            gradient_VFD.baddbmm_(W_dec_VFD, deviation)
        else:
            gradient_VFD.baddbmm_(deviation, W_dec_VFD)
        return excess_V + gram_penalty_bound(F, D)


class MaxCosinePenalty(Record):
    """Mean squared cosine of each latent with its nearest one (signed), within random chunks.

    P is a mean over latents already: give it `penalty_scale: sum`, since `per_latent` divides it by d_sae once more.
    """

    kind: Literal["max-cosine"]
    every_steps: PositiveCount = 1
    """It is computed every so many steps, with so many times the coefficient."""
    chunk_latents: PositiveCount = 8192
    """Latents of a chunk at most; a step costs 2 F d * min(F, chunk) FLOPs."""

    def factor(self, step: int) -> float:
        """What lambda is multiplied with in `step`; 0 where the penalty is not computed."""
        return float(self.every_steps) if step % self.every_steps == 0 else 0.0

    def add_gradients_(
        self,
        W_dec_VFD: "Tensor",
        gradient_VFD: "Tensor",
        *,
        weight_V: "Tensor",
        unit: bool,
        seeds: Sequence[int],
        step: int,
    ) -> "Tensor":
        """Adds weight * dP/dW_dec to the gradients in place, and returns P (V,).

        Each row has one partner, its nearest: with w = 1 / (K |C_k|) and c = u_i . u_j, u_i receives 2 w c u_j and u_j
        receives 2 w c u_i; through the normalisation of a row of length n that is (g - (g . u) u) / n.
        """
        import torch

        from store.sae.geometry import unit_rows

        penalties = []
        for W_dec_FD, gradient_FD, weight, seed in zip(W_dec_VFD, gradient_VFD, weight_V, seeds, strict=True):
            U_FD = W_dec_FD if unit else unit_rows(W_dec_FD)
            penalty, own_FD = _max_cosine(U_FD, latent_chunks(len(U_FD), self.chunk_latents, seed=seed, step=step))
            if not unit:
                own_FD -= (own_FD * U_FD).sum(dim=1, keepdim=True) * U_FD
                own_FD /= W_dec_FD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W_dec_FD.dtype).tiny)
            gradient_FD.addcmul_(own_FD, weight.to(own_FD.dtype))
            penalties.append(penalty)
        return torch.stack(penalties)


def _max_cosine(U_FD: "Tensor", chunks: Sequence[NDArray[np.int64]]) -> tuple["Tensor", "Tensor"]:
    """P () and dP/dU (F, D) of directions and their partition."""
    import torch

    from store.sae.geometry import nearest

    penalty, gradient_FD = U_FD.new_zeros(()), torch.zeros_like(U_FD)
    for chunk in chunks:
        members = torch.from_numpy(chunk).to(U_FD.device)
        C_ND = U_FD if len(chunks) == 1 else U_FD[members]
        cosine_N, partner_N = nearest(C_ND)
        share = 1.0 / (len(chunks) * len(C_ND))
        penalty = penalty + share * cosine_N.dot(cosine_N)
        scaled_N1 = (2.0 * share * cosine_N)[:, None]
        chunk_gradient_ND = scaled_N1 * C_ND[partner_N]
        _add_rows_(chunk_gradient_ND, partner_N, scaled_N1 * C_ND)
        gradient_FD[members] = chunk_gradient_ND
    return penalty, gradient_FD


Penalty = Annotated[GramPenalty | MaxCosinePenalty, Field(discriminator="kind")]


def latent_chunks(num_latents: int, chunk_latents: int, *, seed: int, step: int) -> list[NDArray[np.int64]]:
    """A random partition of the latents into ceil(F / chunk_latents) chunks of nearly equal size, new in each step."""
    num_chunks = -(-num_latents // chunk_latents)
    if num_chunks == 1:
        return [np.arange(num_latents)]
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    return [np.sort(chunk) for chunk in np.array_split(generator.permutation(num_latents), num_chunks)]


def _add_rows_(target_ND: "Tensor", rows_N: "Tensor", values_ND: "Tensor") -> None:
    """target[rows[n]] += values[n], in an order that is the same in every run on each kind of device."""
    if target_ND.device.type == "cuda":
        target_ND.index_put_((rows_N,), values_ND, accumulate=True)  # sorts; index_add_ would use atomics
    else:
        target_ND.index_add_(0, rows_N, values_ND)
