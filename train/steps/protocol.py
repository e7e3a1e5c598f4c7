"""What a group needs of a stacked step."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from store.sae.weights import SAEWeights
from train.architectures import USES_L1, JumpReLU
from train.config import VariantSettings


class Step(Protocol):
    """Weights of V stacked SAEs, and the loss and gradients of a batch; AnalyticStep documents each member."""

    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_dec_gradient: Tensor
    input_DB: Tensor
    activation_sum_VF: Tensor

    def compute(self, *, sparsity_V: Tensor, dead_VF: Tensor | None) -> None: ...
    def squared_error(self) -> Tensor: ...
    def num_active(self) -> Tensor: ...
    def sparsity_terms(self) -> Tensor: ...
    def auxiliary_terms(self) -> Tensor: ...
    def row_errors(self, variant: int) -> Tensor: ...
    def after_update(self) -> None: ...
    def restart(self, variant: int, latents: Tensor) -> None: ...
    def sae(self, variant: int) -> SAEWeights: ...


def sparsity_coefficient(settings: VariantSettings) -> float:
    """What the sparsity term is multiplied with once it is warmed up; 0 for the kinds that select k latents."""
    architecture = settings.architecture
    if isinstance(architecture, JumpReLU):
        return architecture.l0
    return settings.l1 if isinstance(architecture, USES_L1) else 0.0


def live_state(step: Step) -> Mapping[str, Tensor]:
    """What lasts from batch to batch, by name; the live tensors."""
    return {**step.parameters, **{f"buffer.{name}": tensor for name, tensor in step.buffers.items()}}
