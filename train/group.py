"""The variants that are trained together: their weights, optimiser, lambdas and counters, and one step of all of them.

Shape suffixes: V variants, B rows, D d_model, F latents.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.geometry import gram_penalty_and_gradient, gram_penalty_bound
from train.batches import load_batch
from train.fused import FusedStep
from train.initialise import StackedWeights
from train.lambdas import Lambdas
from train.metrics import COLUMNS, explained_variance, mean_max_cosine
from train.optimizer import StackedAdam, remove_parallel_part_, renormalise_


class VariantGroup:
    """V variants of one shape. `step` trains all of them on a batch; `state` and `restore` carry all that lasts."""

    def __init__(
        self,
        weights: StackedWeights,
        *,
        adam: StackedAdam,
        lambdas: Lambdas,
        l1s: Sequence[float],
        penalty_divisor: float,
        regularizer: float,
        batch_rows: int,
        scale: float,
        mean: Sequence[float],
        dead_after_rows: int,
        product_dtype: torch.dtype,
    ) -> None:
        """`penalty_divisor`: 1 or d_sae. `scale`: s of train/batches.py. `mean` (D,): of the raw training rows."""
        device = weights.W_dec.device
        self.weights = weights
        self.lambdas = lambdas
        self.num_steps_done = 0
        self._adam = adam
        self._l1_V = torch.tensor(l1s, dtype=torch.float64).to(device)
        self._fused = FusedStep(weights, batch_rows=batch_rows, l1_V=self._l1_V, product_dtype=product_dtype)
        self._penalty_divisor = penalty_divisor
        self._regularizer = regularizer
        self._batch_rows = batch_rows
        self._scale = scale
        self._mean_D = (torch.tensor(mean, dtype=torch.float64) * scale).to(weights.W_dec)
        self._dead_after_rows = dead_after_rows
        self._rows_since_fired_VF = torch.zeros(weights.b_enc.shape, dtype=torch.int64, device=device)
        self._scratch_VFD = torch.empty_like(weights.W_dec)

    def step(
        self, bits_BD: NDArray[np.uint16], *, lr_factor: float, log: bool = False, log_cosines: bool = False
    ) -> Tensor | None:
        """One training step on a batch of the store; the record of the step, (V, columns) on the CPU, if `log`."""
        fused, step = self._fused, self.num_steps_done
        load_batch(bits_BD, scale=self._scale, out_DB=fused.input_DB)
        fused.forward()
        fused.backward()
        lambda_V = self.lambdas.at(step)
        penalty_V = self._add_penalty_gradient(lambda_V)
        self._rows_since_fired_VF += self._batch_rows
        self._rows_since_fired_VF.masked_fill_(fused.activation_sum_VF > 0, 0)
        record = self._record(lambda_V, log_cosines=log_cosines).cpu() if log else None
        remove_parallel_part_(fused.W_dec_gradient_VFD, self.weights.W_dec, scratch_VFD=self._scratch_VFD)
        self._adam.step(fused.gradients(), lr_factor=lr_factor)
        renormalise_(self.weights.W_dec)
        self.lambdas.update(penalty_V, step=step, lr_factor=lr_factor)
        self.num_steps_done = step + 1
        return record

    def _add_penalty_gradient(self, lambda_V: Tensor) -> Tensor:
        """Adds lambda dP/dW_dec of the variants that have a penalty; the scaled penalties (V,), 0 for the others."""
        members = self.lambdas.penalised
        penalty_V = torch.zeros_like(lambda_V)
        if not members:
            return penalty_V
        W_dec_VFD = self.weights.W_dec
        whole = len(members) == len(W_dec_VFD)
        penalty, _, gradient = gram_penalty_and_gradient(W_dec_VFD if whole else W_dec_VFD[members])
        weight_V = (lambda_V / self._penalty_divisor).to(gradient.dtype)
        for position, variant in enumerate(members):
            self._fused.W_dec_gradient_VFD[variant].addcmul_(gradient[position], weight_V[variant])
        penalty_V[members] = penalty.to(penalty_V.dtype) / self._penalty_divisor
        return penalty_V

    def _record(self, lambda_V: Tensor, *, log_cosines: bool) -> Tensor:
        """One log record, (V, columns) float64: see train/metrics.py."""
        fused, W_dec_VFD = self._fused, self.weights.W_dec
        _, F, D = W_dec_VFD.shape
        mse_V = fused.squared_error()
        l1_term_V = self._l1_V * fused.activation_sum_VF.sum(dim=1, dtype=torch.float64) / self._batch_rows
        penalty_V, excess_V, _ = (value.to(torch.float64) for value in gram_penalty_and_gradient(W_dec_VFD))
        scaled_V = penalty_V / self._penalty_divisor
        absent_V = torch.full_like(lambda_V, torch.nan)
        learned = self.lambdas.learned
        log_lambda_V = torch.where(learned, lambda_V.clamp_min(1e-300).log(), torch.zeros_like(lambda_V))
        loss_V = mse_V + l1_term_V + lambda_V * scaled_V + self._regularizer * log_lambda_V.square()
        cosines_V = torch.stack([mean_max_cosine(W_dec) for W_dec in W_dec_VFD]) if log_cosines else absent_V
        columns = {
            "step": torch.full_like(lambda_V, self.num_steps_done),
            "rows": torch.full_like(lambda_V, (self.num_steps_done + 1) * self._batch_rows),
            "loss": loss_V,
            "mse": mse_V,
            "l1_term": l1_term_V,
            "l0": fused.num_active(),
            "explained_variance": explained_variance(mse_V, fused.input_DB, self._mean_D),
            "lambda": lambda_V,
            "penalty": penalty_V,
            "penalty_lower_bound": torch.full_like(lambda_V, gram_penalty_bound(F, D)),
            "penalty_excess": excess_V,
            "lambda_residual": torch.where(
                learned, lambda_V * scaled_V + 2.0 * self._regularizer * log_lambda_V, absent_V
            ),
            "dead_latents": self.num_dead(),
            "mean_max_cosine": cosines_V,
        }
        return torch.stack([columns[name].to(torch.float64) for name in COLUMNS], dim=1)

    def num_dead(self) -> Tensor:
        """Latents that have not fired within the last dead_after_rows rows, (V,)."""
        return (self._rows_since_fired_VF >= self._dead_after_rows).sum(dim=1)

    def first_not_finite(self) -> int | None:
        """The first variant with a weight that is not finite, or None."""
        finite = torch.stack(
            [torch.isfinite(weight).flatten(1).all(dim=1) for weight in self.weights.tensors().values()]
        ).all(dim=0)
        broken = torch.nonzero(~finite).flatten().tolist()
        return int(broken[0]) if broken else None

    def state(self) -> dict[str, Tensor]:
        """Everything that lasts from step to step but the number of steps, by name; the tensors are the live ones."""
        return {
            **self.weights.tensors(),
            **{f"adam_first.{name}": moment for name, moment in self._adam.first.items()},
            **{f"adam_second.{name}": moment for name, moment in self._adam.second.items()},
            "lambda.theta": self.lambdas.theta,
            "lambda.first": self.lambdas.first,
            "lambda.second": self.lambdas.second,
            "rows_since_fired": self._rows_since_fired_VF,
        }

    def restore(self, state: dict[str, Tensor], *, num_steps_done: int) -> None:
        """Continues from a `state` taken after `num_steps_done` steps."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self._adam.set_num_steps_done(num_steps_done)
        self.num_steps_done = num_steps_done
