"""The variants that are trained together: their weights, optimiser, lambdas and counters, and one step of all of them.

Shape suffixes: V variants, B rows, D d_model, F latents. Nothing of one variant enters another: a variant whose numbers
stop being finite is set to zero by `freeze`, and the others go on to the same bits as with any other variant beside
them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.sae.geometry import gram_penalty, gram_penalty_bound
from store.sae.weights import SAEWeights
from train.architectures import Resample
from train.config import VariantSettings, check_against_data
from train.lambda_controller import LambdaController
from train.metrics import COLUMNS, explained_variance, mean_max_cosine
from train.penalty_term import PenaltyTerm
from train.schedule import lr_factor
from train.sparsity_controller import SparsityController
from train.steps.adam import StackedAdam, clip_, remove_parallel_part_, renormalise_
from train.steps.hold import HeldDecoders
from train.steps.input import load_batch
from train.steps.make import make_step
from train.steps.protocol import Step, live_state
from train.steps.resample import resample_
from train.task_gradients import Measured, TaskGradients


def make_group(
    settings: Sequence[VariantSettings],
    *,
    num_steps: int,
    batch_rows: int,
    scale: float,
    mean: Sequence[float],
    device: torch.device,
) -> "VariantGroup":
    """The variants before their first step; they must agree in `shape_key`.

    Args:
        num_steps: of the run; schedules depend on it.
        batch_rows: of every batch.
        scale: s of steps.input.activation_scale, what rows are multiplied with.
        mean: of the raw training rows, (D,).
    """
    for variant in settings:
        check_against_data(variant, d_model=len(mean))
    step = make_step(settings, batch_rows=batch_rows, scale=scale, mean=mean, device=device, num_steps=num_steps)
    return VariantGroup(step, settings, num_steps=num_steps, batch_rows=batch_rows, scale=scale, mean=mean)


class VariantGroup:
    """V variants of one shape. `step` trains all of them on a batch; `state` and `restore` carry all that lasts."""

    def __init__(
        self,
        step: Step,
        settings: Sequence[VariantSettings],
        *,
        num_steps: int,
        batch_rows: int,
        scale: float,
        mean: Sequence[float],
    ) -> None:
        self._device = step.W_dec.device
        self._settings = list(settings)
        self._step = step
        self._num_steps = num_steps
        self._batch_rows = batch_rows
        self._scale = scale
        self._mean_D = (torch.tensor(mean, dtype=torch.float64) * scale).to(step.W_dec)
        self._adam = StackedAdam(step.parameters, settings)
        self.lambdas = LambdaController(settings, num_steps=num_steps, device=self._device)
        self.sparsity = SparsityController(settings, num_steps=num_steps, device=self._device)
        self.num_steps_done = 0
        self.frozen = [False] * len(settings)
        """Which variants are trained no further."""
        self._frozen_V = torch.zeros(len(settings), dtype=torch.bool)
        self._unit = settings[0].decoder_norm == "unit"
        self._penalties = PenaltyTerm(
            settings, d_model=step.W_dec.shape[2], device=self._device, dtype=step.W_dec.dtype
        )
        self._task = TaskGradients(settings, step.W_dec)
        self._held = HeldDecoders(settings, d_model=step.W_dec.shape[2], device=self._device)
        clips = [torch.inf if variant.gradient_clip is None else variant.gradient_clip for variant in settings]
        self._clip_V = None if min(clips) == torch.inf else self._column(clips)
        V, F, _ = step.W_dec.shape
        self._rows_since_fired_VF = torch.zeros(V, F, dtype=torch.int64, device=self._device)
        dead_after = [variant.dead_after_rows for variant in settings]
        self._dead_after_V1 = torch.tensor(dead_after, dtype=torch.int64, device=self._device)[:, None]
        self._first_dead_rows = min(dead_after)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self._device)

    def step(
        self, rows_BD: NDArray[np.uint16] | Tensor, *, log: bool = False, log_cosines: bool = False
    ) -> Tensor | None:
        """One training step on a batch of the store; the record of the step, (V, columns) on the CPU, if `log`."""
        step, now = self._step, self.num_steps_done
        load_batch(rows_BD, scale=self._scale, out_DB=step.input_DB)
        sparsity_V = self.sparsity.at(now)
        step.compute(sparsity_V=sparsity_V, dead_VF=self._dead_latents())
        self._rows_since_fired_VF += self._batch_rows
        self._rows_since_fired_VF.masked_fill_(step.activation_sum_VF > 0, 0)
        lambda_V = self.lambdas.at(now)
        self._task.measure_task(step.W_dec_gradient, step.W_dec)
        self.add_penalties(lambda_V, now)
        self._task.measure_penalty(self._penalties.own_nFD, step.W_dec)
        lr_factors = self._lr_factors(now)
        record = self._record(lambda_V, sparsity_V, lr_factors, log_cosines=log_cosines).cpu() if log else None
        self._update(lr_factors)
        if self.sparsity.has_targets:
            self.sparsity.update(step.num_active(), step=now)
        self.lambdas.update(self._measured(), lambda_V=lambda_V, step=now, lr_factors=lr_factors)
        self._resample(now)
        self.num_steps_done = now + 1
        return record

    def _lr_factors(self, now: int) -> list[float]:
        return [
            lr_factor(
                now,
                num_steps=self._num_steps,
                warm_up_fraction=variant.lr_warm_up_fraction,
                decay_fraction=variant.lr_decay_fraction,
            )
            for variant in self._settings
        ]

    def _dead_latents(self) -> Tensor | None:
        """(V, F) which latents count as dead; None where none can."""
        if self._settings[0].dead_latents.kind != "auxk":
            return None
        if self.num_steps_done * self._batch_rows < self._first_dead_rows:
            return None
        dead_VF = self._rows_since_fired_VF >= self._dead_after_V1
        if self._device.type == "cpu" and not bool(dead_VF.any()):  # asking a GPU would wait for it
            return None
        return dead_VF

    def add_penalties(self, lambda_V: Tensor, now: int) -> None:
        """Adds lambda dP/dW_dec to the gradient of W_dec, for the variants that have a penalty."""
        self._penalties.add_gradients_(self._step.W_dec, self._step.W_dec_gradient, lambda_V=lambda_V, step=now)

    def _measured(self) -> Measured:
        """What the controllers of lambda are told of this step."""
        step, task = self._step, self._task
        needed = self.lambdas.needs_losses
        losses_V = step.squared_error() + step.auxiliary_terms() if needed else torch.zeros_like(task.cosine_V)
        return Measured(self._penalties.scaled_V, losses_V, task.task_norm_V, task.penalty_norm_V, task.cosine_V)

    def _update(self, lr_factors: list[float]) -> None:
        """From gradients to new weights."""
        step = self._step
        if any(self.frozen):
            for gradient in step.gradients.values():
                gradient[self._frozen_V] = 0.0
        self._held.hold_gradients_(step.W_dec_gradient)
        if self._unit:
            remove_parallel_part_(step.W_dec_gradient, step.W_dec)
        factors_V = None if self._clip_V is None else clip_(step.gradients, self._clip_V)
        self._adam.step(step.gradients, lr_factors=lr_factors)
        self._follow_step(factors_V, lr_factors)
        if self._unit:
            renormalise_(step.W_dec, but=self._held.frozen)
        self._held.put_back_(step.W_dec)
        step.after_update()

    def _follow_step(self, clip_factors_V: Tensor | None, lr_factors: list[float]) -> None:
        """Notes how Adam's step depended on lambda, where a lambda is led by that."""
        step, name = self._step, "decoder" if "decoder" in self._step.parameters else "W_dec"
        D = step.W_dec.shape[2]
        self._task.follow_step(
            self._penalties.own_nFD,
            w_VFD=step.W_dec,
            gradient_VFD=step.W_dec_gradient,
            first_VFD=self._adam.first[name][:, :, :D],
            second_VFD=self._adam.second[name][:, :, :D],
            clip_factors=[1.0] * len(lr_factors) if clip_factors_V is None else clip_factors_V,
            lr_factors=lr_factors,
            count=self.num_steps_done + 1,
        )

    def _resample(self, now: int) -> None:
        """Resamples dead latents in the variants that do so after this step."""
        for index, variant in enumerate(self._settings):
            dead_latents = variant.dead_latents
            if (
                isinstance(dead_latents, Resample)
                and (now + 1) % dead_latents.every_steps == 0
                and not self.frozen[index]
            ):
                rows_F = self._rows_since_fired_VF[index]
                dead_F = rows_F >= variant.dead_after_rows
                scale, seed = dead_latents.encoder_scale, variant.seed
                resample_(self._step, self._adam, index, dead_F=dead_F, encoder_scale=scale, seed=seed, step_number=now)
                self._task.forget_latents(index, dead_F)
                rows_F.masked_fill_(dead_F, 0)

    def _record(self, lambda_V: Tensor, sparsity_V: Tensor, lr_factors: list[float], *, log_cosines: bool) -> Tensor:
        """One log record, (V, columns) float64: see train/metrics.py."""
        step, W_dec_VFD = self._step, self._step.W_dec
        _, F, D = W_dec_VFD.shape
        mse_V = step.squared_error()
        penalty_V = torch.stack([gram_penalty(W_dec_FD) for W_dec_FD in W_dec_VFD]).to(torch.float64)
        penalised_V = torch.zeros_like(lambda_V, dtype=torch.bool)
        penalised_V[self.lambdas.penalised] = True
        scaled_V = torch.where(penalised_V, self._penalties.scaled_V, penalty_V / self._penalties.divisors_V)
        absent_V = torch.full_like(lambda_V, torch.nan)
        learned = self.lambdas.learned
        log_lambda_V = torch.where(learned, lambda_V.clamp_min(1e-300).log(), torch.zeros_like(lambda_V))
        loss_V = mse_V + step.sparsity_terms() + step.auxiliary_terms() + lambda_V * scaled_V
        cosines_V = torch.stack([mean_max_cosine(W_dec) for W_dec in W_dec_VFD]) if log_cosines else absent_V
        regularizer_V = self.lambdas.regularizer
        bound = gram_penalty_bound(F, D)
        columns = {
            "step": torch.full_like(lambda_V, self.num_steps_done),
            "rows": torch.full_like(lambda_V, (self.num_steps_done + 1) * self._batch_rows),
            "loss": loss_V + regularizer_V * log_lambda_V.square(),
            "mse": mse_V,
            "sparsity_term": step.sparsity_terms(),
            "auxiliary_term": step.auxiliary_terms(),
            "l0": step.num_active(),
            "explained_variance": explained_variance(mse_V, step.input_DB, self._mean_D),
            "lr": self._column(
                [variant.lr * factor for variant, factor in zip(self._settings, lr_factors, strict=True)]
            ),
            "lambda": lambda_V,
            "scaled_penalty": scaled_V,
            "penalty": penalty_V,
            "penalty_lower_bound": torch.full_like(lambda_V, bound),
            "penalty_excess": penalty_V - bound,
            "lambda_residual": torch.where(learned, lambda_V * scaled_V + 2.0 * regularizer_V * log_lambda_V, absent_V),
            "dead_latents": self.num_dead(),
            "mean_max_cosine": cosines_V,
            "hypergradient_cosine": torch.where(self.lambdas.hypergradient, self._task.cosine_V, absent_V),
            "sparsity_coefficient": torch.where(self.sparsity.with_target(), sparsity_V, absent_V),
        }
        record = torch.stack([columns[name].to(torch.float64) for name in COLUMNS], dim=1)
        record[self._frozen_V] = torch.nan
        return record

    def num_dead(self) -> Tensor:
        """Latents that have not fired within the last dead_after_rows rows, (V,)."""
        return (self._rows_since_fired_VF >= self._dead_after_V1).sum(dim=1)

    def lambdas_at(self, step: int) -> Tensor:
        """(V,) lambdas of a step; of those that follow training, now."""
        return self.lambdas.at(step)

    def not_finite(self) -> list[int]:
        """The variants with a weight that is not finite, frozen ones aside."""
        finite_V = torch.stack(
            [torch.isfinite(weight).flatten(1).all(dim=1) for weight in self._step.parameters.values()]
        ).all(dim=0)
        return [index for index, finite in enumerate(finite_V.tolist()) if not finite and not self.frozen[index]]

    def freeze(self, index: int) -> None:
        """Trains a variant no further: its numbers become 0 and stay, its records NaN. The others notice nothing."""
        self.frozen[index] = True
        self._frozen_V[index] = True
        for tensor in self._per_variant():
            tensor[index] = 0
        self.lambdas.clear(index)
        self._task.clear(index)

    def _per_variant(self) -> Iterator[Tensor]:
        yield from live_state(self._step).values()
        yield from self._adam.first.values()
        yield from self._adam.second.values()
        yield from (self._penalties.scaled_V, self._rows_since_fired_VF)

    def trained_weights(self) -> Iterator[SAEWeights]:
        """The weights of each variant on the host, for rows times the scale."""
        return (self._step.sae(index) for index in range(len(self._settings)))

    def state(self) -> dict[str, Tensor]:
        """Everything that lasts from step to step but the number of steps, by name; the tensors are the live ones."""
        return {
            **live_state(self._step),
            **{f"adam_first.{name}": moment for name, moment in self._adam.first.items()},
            **{f"adam_second.{name}": moment for name, moment in self._adam.second.items()},
            **self.lambdas.state(),
            **self._task.state(),
            **self.sparsity.state(),
            "scaled_penalty": self._penalties.scaled_V,
            "rows_since_fired": self._rows_since_fired_VF,
            "frozen": self._frozen_V,
        }

    def restore(self, state: dict[str, Tensor], *, num_steps_done: int) -> None:
        """Continues from a `state` taken after `num_steps_done` steps."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.frozen = self._frozen_V.tolist()
        self._adam.set_num_steps_done(num_steps_done)
        self.num_steps_done = num_steps_done
