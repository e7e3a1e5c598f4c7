"""The parameters of an SAE, and the definition of encode and decode.

An SAE has one of four forms, whatever it was trained as, with pre = (x - b_dec) W_enc + b_enc:

    relu       a = relu(pre)
    topk       a = relu of the k largest pre of a row, 0 elsewhere
    jumprelu   a = relu(pre) where pre > threshold, 0 elsewhere (also batchtopk and matryoshka-batchtopk, once trained)
    gated      a = [pre > 0] relu(exp(r_mag) (pre - b_enc) + b_mag); b_enc is named b_gate in the file

Shapes: d_model d, d_sae F, rows B.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

SAEForm = Literal["relu", "topk", "jumprelu", "gated"]


@dataclass(frozen=True)
class SAEWeights:
    """Parameters of one SAE, float32. Which of the optional ones there are decides its form."""

    W_enc: Tensor
    """(d_model, d_sae)"""
    b_enc: Tensor
    """(d_sae,); of the gate in the gated form."""
    W_dec: Tensor
    """(d_sae, d_model), one row per latent."""
    b_dec: Tensor
    """(d_model,)"""
    k: int | None = None
    """topk only: latents per row."""
    threshold: Tensor | None = None
    """jumprelu only, (d_sae,), >= 0."""
    r_mag: Tensor | None = None
    """gated only, (d_sae,)"""
    b_mag: Tensor | None = None
    """gated only, (d_sae,)"""

    @property
    def form(self) -> SAEForm:
        """How it encodes."""
        if self.k is not None:
            return "topk"
        if self.threshold is not None:
            return "jumprelu"
        return "relu" if self.r_mag is None else "gated"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under the names that they have in the file."""
        named = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        if self.threshold is not None:
            named["threshold"] = self.threshold
        if self.r_mag is not None and self.b_mag is not None:
            named |= {"b_gate": named.pop("b_enc"), "r_mag": self.r_mag, "b_mag": self.b_mag}
        return named


def encode(weights: SAEWeights, x: Tensor) -> Tensor:
    """Latent activations as the form says: (..., d) -> (..., F)."""
    pre = (x - weights.b_dec) @ weights.W_enc + weights.b_enc
    if weights.k is not None:
        largest = pre.topk(weights.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, largest.indices, largest.values.relu())
    if weights.threshold is not None:
        return torch.relu(pre) * (pre > weights.threshold)
    if weights.r_mag is not None and weights.b_mag is not None:
        magnitude = (x - weights.b_dec) @ (weights.W_enc * weights.r_mag.exp()) + weights.b_mag
        return torch.relu(magnitude) * (pre > 0)
    return torch.relu(pre)


def decode(weights: SAEWeights, latents: Tensor) -> Tensor:
    """Reconstruction a W_dec + b_dec: (..., F) -> (..., d)."""
    return latents @ weights.W_dec + weights.b_dec


def fold_scale(weights: SAEWeights, scale: float) -> SAEWeights:
    """The SAE for raw x of one trained on x * scale: all that adds or compares is divided by it, W_enc and W_dec stay.

    Every form is homogeneous: pre, thresholds and a of scaled rows are scale times those of raw ones.
    """

    def folded(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor / scale

    return replace(
        weights,
        b_enc=weights.b_enc / scale,
        b_dec=weights.b_dec / scale,
        threshold=folded(weights.threshold),
        b_mag=folded(weights.b_mag),
    )
