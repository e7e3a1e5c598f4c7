"""What the lambdas that answer to the task need of a step's gradients; nothing is computed for other variants.

Shape suffixes: V variants, D d_model, F latents; n the variants whose lambda is led by gradients, in their order. The
gradients are those by W_dec that the step computes anyway: no further forward or backward pass is made. Variants are
visited one by one, so that what is made on the way is of the size of one decoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.config import VariantSettings
from train.hypergradient import along_sphere, derivative_by_lambda, on_unit_rows_
from train.lambdas import GradNormLambda, HypergradientLambda


class Measured(NamedTuple):
    """What a step tells the controllers of lambda, each (V,) float64; 0 for variants whose lambda does not ask."""

    scaled_penalty: Tensor
    """P, scaled as in the loss."""
    task_loss: Tensor
    """L of task_lambdas.py."""
    task_norm: Tensor
    """Length of dL/dW_dec."""
    penalty_norm: Tensor
    """Length of dP/dW_dec, as last computed."""
    cosine: Tensor
    """Between dL/dW_dec and the derivative of W_dec by lambda through the last step."""


def led_by_gradients(settings: VariantSettings) -> bool:
    """Whether dP/dW_dec of a variant is needed by itself, apart from the rest of its gradient."""
    return isinstance(settings.schedule, (HypergradientLambda, GradNormLambda))


def lasting_decoders(settings: Sequence[VariantSettings]) -> int:
    """How many numbers are kept beside weights and moments for all this, in decoders of F * D."""
    hyper = sum(isinstance(variant.schedule, HypergradientLambda) for variant in settings)
    return hyper + sum(map(led_by_gradients, settings))


class TaskGradients:
    """Lengths and cosines of gradients of a group's variants; `state` is what lasts from step to step."""

    def __init__(self, settings: Sequence[VariantSettings], W_dec_VFD: Tensor) -> None:
        self._settings = list(settings)
        self._unit = settings[0].decoder_norm == "unit"
        self._led = [index for index, variant in enumerate(settings) if led_by_gradients(variant)]
        self._hyper = [i for i, variant in enumerate(settings) if isinstance(variant.schedule, HypergradientLambda)]
        self.any = bool(self._led)
        """Whether there is anything to measure."""
        self.change_nFD = W_dec_VFD.new_zeros(len(self._hyper), *W_dec_VFD.shape[1:])
        """dW_dec/dlambda through the last step, of hypergradient variants."""
        zeros_V = torch.zeros(len(settings), dtype=torch.float64, device=W_dec_VFD.device)
        self.task_norm_V, self.penalty_norm_V, self.cosine_V = zeros_V.clone(), zeros_V.clone(), zeros_V.clone()

    def measure_task(self, gradient_VFD: Tensor, W_dec_VFD: Tensor) -> None:
        """Takes dL/dW_dec, before any penalty is added to it."""
        for index in self._led:
            gradient_FD = self._free_part(gradient_VFD[index], W_dec_VFD[index])
            norm = torch.linalg.vector_norm(gradient_FD).to(torch.float64)
            self.task_norm_V[index] = norm
            if index in self._hyper:
                change_FD = self.change_nFD[self._hyper.index(index)]
                product = (gradient_FD * change_FD).sum().to(torch.float64)
                lengths = norm * torch.linalg.vector_norm(change_FD).to(torch.float64)
                self.cosine_V[index] = product / lengths.clamp_min(torch.finfo(torch.float64).tiny)

    def measure_penalty(self, own_nFD: Tensor, W_dec_VFD: Tensor) -> None:
        """Takes dP/dW_dec of this step, scaled as in the loss and not yet weighed; puts it on the sphere in place.

        It is 0 in steps that leave the penalty out: its last length counts on then.
        """
        for place, index in enumerate(self._led):
            own_nFD[place] = self._free_part(own_nFD[place], W_dec_VFD[index])
            norm = torch.linalg.vector_norm(own_nFD[place]).to(torch.float64)
            self.penalty_norm_V[index] = torch.where(norm > 0.0, norm, self.penalty_norm_V[index])

    def _free_part(self, gradient_FD: Tensor, W_dec_FD: Tensor) -> Tensor:
        return along_sphere(gradient_FD, W_dec_FD) if self._unit else gradient_FD

    def follow_step(
        self,
        own_nFD: Tensor,
        *,
        w_VFD: Tensor,
        gradient_VFD: Tensor,
        first_VFD: Tensor,
        second_VFD: Tensor,
        clip_factors: Sequence[float] | Tensor,
        lr_factors: Sequence[float],
        count: int,
    ) -> None:
        """Keeps dW_dec/dlambda of the step that Adam has just made; see hypergradient.py.

        Args:
            own_nFD: as `measure_penalty` left it.
            w_VFD: decoders after Adam, before rows are scaled to length 1.
            gradient_VFD: what Adam saw.
            first_VFD, second_VFD: Adam's moments after the step.
            clip_factors: what each variant's whole gradient was multiplied with, (V,).
            lr_factors: what each variant's rate was multiplied with.
            count: number of the step, from 1.
        """
        for place, index in enumerate(self._hyper):
            settings = self._settings[index]
            change_FD = derivative_by_lambda(
                own_nFD[self._led.index(index)] * clip_factors[index],
                gradient_FD=gradient_VFD[index],
                first_FD=first_VFD[index],
                second_FD=second_VFD[index],
                lr=settings.lr * lr_factors[index],
                beta1=settings.adam_beta1,
                beta2=settings.adam_beta2,
                eps=settings.adam_eps,
                count=count,
            )
            self.change_nFD[place] = on_unit_rows_(change_FD, w_VFD[index]) if self._unit else change_FD

    def forget_latents(self, index: int, latents_F: Tensor) -> None:
        """Latents (F,) bool of a variant whose rows were replaced: those no longer depend on lambda."""
        if index in self._hyper:
            self.change_nFD[self._hyper.index(index)].masked_fill_(latents_F[:, None], 0.0)

    def clear(self, index: int) -> None:
        """A variant that is trained no further."""
        for kept_V in (self.task_norm_V, self.penalty_norm_V, self.cosine_V):
            kept_V[index] = 0.0
        if index in self._hyper:
            self.change_nFD[self._hyper.index(index)] = 0.0

    def state(self) -> dict[str, Tensor]:
        """What lasts from step to step, by name."""
        if not self.any:
            return {}
        return {"lambda.change": self.change_nFD, "lambda.penalty_norm": self.penalty_norm_V}
