"""What a group needs of a stacked step, and which step serves which kind of SAE."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from compute.device import product_dtype
from store.sae.weights import SAEWeights
from train.architectures import FAST, USES_L1, AuxK, BatchTopK, JumpReLU, TopK
from train.config import VariantSettings, shape_key
from train.fused import FusedStep
from train.initialise import FREE_LENGTH, initial_weights
from train.select import THRESHOLD_RATE, threshold_rate
from train.stacked import StackedStep


class Step(Protocol):
    """Weights of V stacked SAEs, and the loss and gradients of a batch; FusedStep documents each member."""

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


def make_step(
    settings: Sequence[VariantSettings],
    *,
    batch_rows: int,
    scale: float,
    mean: Sequence[float],
    device: torch.device,
    num_steps: int | None = None,
) -> Step:
    """The stacked variants before their first step; ValueError where they cannot be stacked.

    `num_steps`: of the run, which decides how fast batchtopk's threshold forgets; None is a long one.
    """
    keys = {shape_key(each) for each in settings}
    if len(keys) != 1:
        raise ValueError(f"expected variants of one shape in a group, got {len(keys)}: {keys}. Group them by shape_key")
    weights = initial_weights(
        seeds=[each.seed for each in settings],
        d_sae=settings[0].d_sae,
        mean=mean,
        scale=scale,
        device=device,
        decoder_length=FREE_LENGTH if settings[0].decoder_norm == "free" else 1.0,
    )
    kind = FusedStep if isinstance(settings[0].architecture, FAST) else StackedStep
    rate = THRESHOLD_RATE if num_steps is None else threshold_rate(num_steps)
    return kind(weights, settings, batch_rows=batch_rows, product_dtype=product_dtype(device), threshold_rate=rate)


def group_bytes(settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device) -> int:
    """About how much memory a group of these variants needs while it trains, in bytes.

    Weights, gradients and Adam's two moments in float32; where products are bfloat16 matrices and results of products
    besides; per row and latent two numbers in the fast kinds, a few more for selection, AuxK and autograd.
    """
    V, F, D, B = len(settings), settings[0].d_sae, d_model, batch_rows
    low = product_dtype(device) == torch.bfloat16
    width = 2 if low else 4
    weights = 2 * V * F * (D + 8)
    per_weight = 4 * 4 + (4 if low else 0) + 1
    architecture = settings[0].architecture
    auxk = isinstance(settings[0].dead_latents, AuxK)
    if isinstance(architecture, FAST):
        per_activation = 2.0 + (6.5 if auxk else 0.0)
        # selection works variant by variant
        selecting = F * B * (width + 8) if isinstance(architecture, TopK | BatchTopK) else 0
    else:
        per_activation, selecting = 10.0 + (6.5 if auxk else 0.0), F * B * 12
    rows = (V + 2) * (D + 8) * B * width * (3 if auxk else 1)
    penalty = 4 * min(F, D) ** 2
    return int(weights * per_weight + V * F * B * width * per_activation + selecting + rows + penalty)


def sparsity_coefficient(settings: VariantSettings) -> float:
    """What the sparsity term is multiplied with once it is warmed up; 0 for the kinds that select k latents."""
    architecture = settings.architecture
    if isinstance(architecture, JumpReLU):
        return architecture.l0
    return settings.l1 if isinstance(architecture, USES_L1) else 0.0


def live_state(step: Step) -> Mapping[str, Tensor]:
    """What lasts from batch to batch, by name; the live tensors."""
    return {**step.parameters, **{f"buffer.{name}": tensor for name, tensor in step.buffers.items()}}
