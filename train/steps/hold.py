"""Decoders that are held at or near where they started: see train/decoders.py for the kinds and the formula.

Shape suffixes: V variants, D d_model, F latents.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from store.sae.geometry import unit_rows
from train.config import VariantSettings
from train.decoders import FrozenDecoder, SoftFrozenDecoder
from train.steps.initialise import initial_decoder


class HeldDecoders:
    """What is done to the decoders of a group around the optimiser. No state: starts are drawn from the seeds."""

    def __init__(self, settings: Sequence[VariantSettings], *, d_model: int, device: torch.device) -> None:
        self.frozen = [index for index, variant in enumerate(settings) if isinstance(variant.decoder, FrozenDecoder)]
        """The variants whose decoder never moves."""
        self._soft: list[tuple[int, int, float]] = [
            (index, variant.seed, variant.decoder.min_cosine)
            for index, variant in enumerate(settings)
            if isinstance(variant.decoder, SoftFrozenDecoder)
        ]
        self._start_by_seed = {
            seed: initial_decoder(d_sae=settings[0].d_sae, d_model=d_model, seed=seed).to(device)
            for seed in {seed for _, seed, _ in self._soft}
        }

    def hold_gradients_(self, gradient_VFD: Tensor) -> None:
        """Sets the gradients of frozen decoders to 0, before anything is made of them."""
        for index in self.frozen:
            gradient_VFD[index] = 0.0

    def put_back_(self, W_dec_VFD: Tensor) -> None:
        """Brings the rows of soft-frozen decoders back to within their cosine, after the optimiser, in place."""
        for index, seed, min_cosine in self._soft:
            put_back_(W_dec_VFD[index], self._start_by_seed[seed], min_cosine=min_cosine)


def put_back_(W_dec_FD: Tensor, start_FD: Tensor, *, min_cosine: float) -> None:
    """Every row comes to have a cosine of at least `min_cosine` with that of `start_FD`, as train/decoders.py has it.

    Rows keep their lengths, and those that are near enough every bit; so do rows of zeros, of a variant that is trained
    no further. `start_FD` has unit rows.
    """
    lengths_F1 = torch.linalg.vector_norm(W_dec_FD, dim=1, keepdim=True)
    u_FD = unit_rows(W_dec_FD)
    cosine_F1 = (u_FD * start_FD).sum(dim=1, keepdim=True)
    across_FD = unit_rows(u_FD.addcmul_(start_FD, cosine_F1, value=-1.0))
    edge_FD = unit_rows(across_FD.mul_(math.sqrt(1.0 - min_cosine**2)).add_(start_FD, alpha=min_cosine))
    nearest_FD = torch.where(cosine_F1 > 0.0, edge_FD, start_FD).mul_(lengths_F1)
    W_dec_FD.copy_(torch.where(cosine_F1 < min_cosine, nearest_FD, W_dec_FD))


def start_bytes(settings: Sequence[VariantSettings], *, d_model: int) -> int:
    """Memory of the starts, one for each seed of soft-frozen decoders, and of putting one decoder back."""
    seeds = {variant.seed for variant in settings if isinstance(variant.decoder, SoftFrozenDecoder)}
    matrix = 4 * settings[0].d_sae * d_model
    return matrix * (len(seeds) + 4) if seeds else 0
