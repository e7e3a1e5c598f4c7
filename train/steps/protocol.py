"""What a group needs of a stacked step.

Shape suffixes: V variants, B rows, D d_model, F latents.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from store.sae.weights import SAEWeights
from train.config import VariantSettings


class StepBytes(NamedTuple):
    """About how much memory a step takes, in bytes."""

    lasting: int
    """Weights, gradients and buffers."""
    passing: int
    """What is allocated besides while a batch is computed."""


class Step(Protocol):
    """Weights of V stacked SAEs, and the loss and gradients of a batch.

    One step: write the batch into `input_DB`, call `compute`, update `parameters` by `gradients`, call `after_update`.
    """

    parameters: dict[str, Tensor]
    """What the optimiser updates, by name, the variants first; `W_enc`, `W_dec`, `b_dec` are views of these."""
    gradients: dict[str, Tensor]
    """Gradients of the loss by `parameters`, after `compute`; of the same names and shapes."""
    buffers: dict[str, Tensor]
    """What else lasts from batch to batch, by name, the variants first."""
    W_enc: Tensor
    """(V, F, D): row f of variant v is the encoder direction of latent f."""
    W_dec: Tensor
    """(V, F, D)."""
    b_dec: Tensor
    """(V, D)."""
    W_dec_gradient: Tensor
    """(V, F, D), that of `gradients`; penalties add theirs to it."""
    input_DB: Tensor
    """The batch is to be written here, one column per row, before `compute`."""
    activation_sum_VF: Tensor
    """Sum of a over the batch, after `compute`: positive exactly where a latent fired."""

    @classmethod
    def num_bytes(
        cls, settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device
    ) -> StepBytes:
        """About how much memory a step of these variants takes."""

    def compute(self, *, sparsity_V: Tensor, dead_VF: Tensor | None) -> None:
        """Activations, error and gradients of the batch in `input_DB`.

        Args:
            sparsity_V: what the sparsity term is multiplied with in this step, (V,) float64.
            dead_VF: which latents count as dead, (V, F) bool, or None where none does: AuxK is for them.
        """

    def squared_error(self) -> Tensor:
        """Mean over the batch of ||x - x_hat||^2 after `compute`, (V,) float64."""

    def num_active(self) -> Tensor:
        """Mean over the batch of the number of latents that fire (L0) after `compute`, (V,) float64."""

    def sparsity_terms(self) -> Tensor:
        """The sparsity term of the loss, its coefficient included, after `compute`, (V,) float64."""

    def auxiliary_terms(self) -> Tensor:
        """What else the loss holds besides the squared error, after `compute`, (V,) float64."""

    def row_errors(self, variant: int) -> Tensor:
        """||x - x_hat||^2 of every row of the batch after `compute`, (B,) float32."""

    def after_update(self) -> None:
        """Puts parameters that have bounds back within them; to be called after the optimiser."""

    def restart(self, variant: int, latents: Tensor) -> None:
        """Sets what a latent has beside its directions to its first value; `latents` (n,) are their indices."""

    def sae(self, variant: int) -> SAEWeights:
        """One variant on the host, for rows times the scale."""


def live_state(step: Step) -> Mapping[str, Tensor]:
    """What lasts from batch to batch, by name; the live tensors."""
    return {**step.parameters, **{f"buffer.{name}": tensor for name, tensor in step.buffers.items()}}
