"""Where training starts: the stacked weights of V variants.

Shape suffixes: V variants, D d_model, F latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from store.sae.geometry import unit_rows

FREE_LENGTH = 0.1
"""Length of the first decoder rows where lengths are free, as is usual in the field."""


@dataclass(frozen=True)
class StackedWeights:
    """What every kind of SAE begins with, one tensor per kind of weight, float32."""

    W_enc: Tensor
    """(V, F, D): row f of variant v is the encoder direction of latent f, the transpose of SAEWeights.W_enc."""
    b_enc: Tensor
    """(V, F)."""
    W_dec: Tensor
    """(V, F, D)."""
    b_dec: Tensor
    """(V, D), also subtracted from the input of the encoder."""


def initial_decoder(*, d_sae: int, d_model: int, seed: int) -> Tensor:
    """Random directions, (F, D) float32 rows of length 1, the same on every device: they are drawn on the CPU."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return unit_rows(torch.randn(d_sae, d_model, generator=generator, dtype=torch.float32))


def initial_weights(
    *,
    seeds: Sequence[int],
    d_sae: int,
    mean: Sequence[float],
    scale: float,
    device: torch.device,
    decoder_length: float = 1.0,
) -> StackedWeights:
    """One SAE per seed; equal seeds give equal weights.

    W_dec: random rows of length `decoder_length`. W_enc: its transpose. b_enc: 0. b_dec: `mean` (D,) of the raw
    training rows times `scale`, so that training starts from centred rows.
    """
    d_model = len(mean)
    drawn = {seed: initial_decoder(d_sae=d_sae, d_model=d_model, seed=seed) for seed in set(seeds)}
    W_dec_VFD = torch.stack([decoder_length * drawn[seed] for seed in seeds]).to(device)
    b_dec_D = (torch.tensor(mean, dtype=torch.float64) * scale).to(torch.float32)
    return StackedWeights(
        W_enc=W_dec_VFD.clone(),
        b_enc=torch.zeros(len(seeds), d_sae, device=device),
        W_dec=W_dec_VFD,
        b_dec=b_dec_D.to(device).repeat(len(seeds), 1),
    )
