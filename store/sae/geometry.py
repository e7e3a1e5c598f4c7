"""Geometry of decoder directions: the orthogonality penalty and the statistics that show what it does.

Shapes: F latents (d_sae), d model dimensions (d_model), V variants. A decoder is (F, d), one row per latent.

With D the decoder with rows of length 1 and G = D D^T, the penalty is P = ||G - I||_F^2. The diagonal of G is 1 and
||D D^T||_F = ||D^T D||_F, so no F x F matrix is needed where F > d.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ROWS = 1024
"""Rows of a block of cosines: block x F numbers live at once."""


def unit_rows(W_dec: Tensor) -> Tensor:
    """Rows scaled to length 1, (..., F, d). A row of zeros stays zero: it has no direction."""
    return W_dec / W_dec.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny)


def cosine_blocks(U: Tensor, others: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """The cosines of directions `U` (N, d) with `others` (M, d), 1024 rows at a time: (first row, (rows, M)).

    Both have rows of length 1. Without `others` they are those of `U` with itself, and a row has -2 with itself, which
    is less than any cosine.
    """
    for start in range(0, len(U), BLOCK_ROWS):
        cosines = U[start : start + BLOCK_ROWS] @ (U if others is None else others).T
        if others is None:
            cosines.diagonal(offset=start).fill_(-2.0)
        yield start, cosines


def nearest(U: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each direction's largest (signed) cosine with another one, or with `others`; and with which: (N,), (N,) int64.

    A row that is alone, without `others`, has cosine 0 with itself.
    """
    if others is None and len(U) == 1:
        return U.new_zeros(1), torch.zeros(1, dtype=torch.int64, device=U.device)
    largest = [cosines.max(dim=1) for _, cosines in cosine_blocks(U, others)]
    return torch.cat([block.values for block in largest]), torch.cat([block.indices for block in largest])


def gram_penalty_bound(d_sae: int, d_model: int) -> float:
    """The least P that any decoder can reach: max(0, F^2/d - F), reached by tight frames (the Welch bound)."""
    return max(0.0, d_sae**2 / d_model - d_sae)


def gram_penalty_and_gradient(W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, its excess over the lower bound, and dP/dW_dec through the normalisation of the rows.

    Args:
        W_dec: (F, d) or stacked (V, F, d), float32 or float64, rows of any positive length.

    Returns:
        P () or (V,), excess () or (V,), gradient of the shape of `W_dec`.

    P is summed without the cancellation of ||C||_F^2 - F: for F > d as ||C - (F/d) I||_F^2 plus the bound
    (C = D^T D, trace F), for F <= d as the sum of squares of G - I. With g = dP/dD, a raw row w with direction u gets
    (g - (g.u) u) / ||w||. Cost 4 F d min(F, d) FLOPs.
    """
    num_latents, d_model = W_dec.shape[-2:]
    norms = W_dec.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(W_dec.dtype).tiny)
    D = W_dec / norms
    if num_latents > d_model:
        deviation = D.transpose(-1, -2) @ D  # C, (d, d)
        deviation.diagonal(dim1=-2, dim2=-1).sub_(num_latents / d_model)
        excess = deviation.square().sum(dim=(-2, -1))
        # g = 4 D C; the part (F/d) D of D C is parallel to each row and drops out of the projection below.
        gradient = 4.0 * (D @ deviation)
        penalty = excess + gram_penalty_bound(num_latents, d_model)
    else:
        deviation = D @ D.transpose(-1, -2)  # G, (F, F)
        deviation.diagonal(dim1=-2, dim2=-1).zero_()
        penalty = excess = deviation.square().sum(dim=(-2, -1))
        gradient = 4.0 * (deviation @ D)
    gradient -= (gradient * D).sum(dim=-1, keepdim=True) * D
    gradient /= norms
    return penalty, excess, gradient


def gram_penalty(W_dec: Tensor) -> Tensor:
    """P of a decoder (F, d) or of stacked decoders (V, F, d): () or (V,)."""
    return gram_penalty_and_gradient(W_dec)[0]


@dataclass(frozen=True)
class DecoderGeometry:
    """What one decoder looks like. Cosines are between the directions of different latents."""

    penalty: float
    """P = ||G - I||_F^2, the sum of squared cosines over ordered pairs."""
    lower_bound: float
    """The least P possible with this F and d."""
    excess: float
    """P minus the bound."""
    mean_abs_cosine: float
    """Mean of |cos| over all pairs."""
    mean_max_cosine: float
    """Mean over latents of the largest (signed) cosine with another latent."""
    max_cosine: Tensor
    """Per latent, the largest (signed) cosine with another latent, (F,)."""
    histogram_counts: Tensor
    """Unordered pairs per bin of cosine, (num_bins,), int64."""
    histogram_edges: Tensor
    """Edges of the bins from -1 to 1, (num_bins + 1,)."""
    effective_rank: float
    """exp of the entropy of the normalised squared singular values of D: from 1 to min(F, d) (Roy & Vetterli 2007,
    with squared singular values, the participation of directions in the variance)."""


def decoder_geometry(W_dec: Tensor, *, num_bins: int = 100) -> DecoderGeometry:
    """Statistics of the decoder `W_dec` (F, d), F >= 2, computed in float64 block by block."""
    if W_dec.ndim != 2 or W_dec.shape[0] < 2:
        raise ValueError(f"expected a decoder (F, d) with at least two latents, got shape {tuple(W_dec.shape)}")
    D = unit_rows(W_dec.to(torch.float64))
    num_latents, d_model = D.shape
    edges = torch.linspace(-1.0, 1.0, num_bins + 1, dtype=torch.float64)
    counts = torch.zeros(num_bins, dtype=torch.int64)
    max_cosine = torch.empty(num_latents, dtype=torch.float64)
    sum_abs = 0.0
    for start, cosines in cosine_blocks(D):
        rows = torch.arange(start, start + len(cosines))
        max_cosine[rows] = cosines.max(dim=1).values
        upper = torch.arange(num_latents)[None, :] > rows[:, None]
        values = cosines[upper].clamp(-1.0, 1.0)
        sum_abs += float(values.abs().sum())
        bins = ((values + 1.0) * (num_bins / 2)).long().clamp(0, num_bins - 1)
        counts += torch.bincount(bins, minlength=num_bins)
    penalty, excess, _ = gram_penalty_and_gradient(D)
    smaller_gram = D.T @ D if num_latents > d_model else D @ D.T
    spectrum = torch.linalg.eigvalsh(smaller_gram).clamp_min(0.0)
    shares = spectrum / spectrum.sum()
    entropy = -(shares * shares.clamp_min(torch.finfo(torch.float64).tiny).log()).sum()
    return DecoderGeometry(
        penalty=float(penalty),
        lower_bound=gram_penalty_bound(num_latents, d_model),
        excess=float(excess),
        mean_abs_cosine=sum_abs / (num_latents * (num_latents - 1) / 2),
        mean_max_cosine=float(max_cosine.mean()),
        max_cosine=max_cosine,
        histogram_counts=counts,
        histogram_edges=edges,
        effective_rank=float(entropy.exp()),
    )


def best_match_cosines(first: Tensor, second: Tensor) -> Tensor:
    """For each latent of `first` (F, d), the largest cosine with any latent of `second` (F2, d): (F,)."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected two decoders of one d_model, got {tuple(first.shape)} and {tuple(second.shape)}")
    a, b = unit_rows(first.to(torch.float64)), unit_rows(second.to(torch.float64))
    return nearest(a, b)[0]
