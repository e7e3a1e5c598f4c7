"""jumprelu, matryoshka-batchtopk and gated: V stacked SAEs on one shared batch, backward by autograd.

Shape suffixes: V variants, B rows, D d_model, F latents. The formulas stand in architectures.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compute.device import product_dtype
from store.sae.weights import SAEWeights
from train.architectures import AuxK, Gated, JumpReLU, MatryoshkaBatchTopK
from train.config import VariantSettings
from train.steps.auxk import AuxKTerm, top_dead
from train.steps.initialise import StackedWeights
from train.steps.protocol import StepBytes
from train.steps.topk import THRESHOLD_RATE, RunningThreshold, selection_bytes, smallest_of_top


class Forward(NamedTuple):
    """What one kind of SAE makes of a batch."""

    activations_VBF: Tensor
    pre_VBF: Tensor
    """What AuxK chooses from."""
    sparsity_V: Tensor
    """The term that the sparsity coefficient multiplies."""
    auxiliary_V: Tensor
    """Losses besides reconstruction and sparsity."""


class _Jump(torch.autograd.Function):
    """pre where pre > threshold, else 0; the threshold's gradient through a window of width `bandwidth`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401 - torch's own
        pre, threshold = ctx.saved_tensors
        through = _window(pre, threshold, ctx.bandwidth) * gradient
        return gradient * (pre > threshold), -(threshold * through).sum(dim=1, keepdim=True), None


class _Fires(torch.autograd.Function):
    """1 where pre > threshold, else 0; the threshold's gradient as in _Jump, none for pre."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # noqa: ANN401 - torch's own
        pre, threshold = ctx.saved_tensors
        return None, -(_window(pre, threshold, ctx.bandwidth) * gradient).sum(dim=1, keepdim=True), None


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 / bandwidth within half a bandwidth of the threshold, 0 elsewhere."""
    return ((pre - threshold).abs() < bandwidth / 2.0).to(pre.dtype) / bandwidth


class AutogradStep:
    """Weights, the batch and one step of one of the kinds above. See Step for its members."""

    def __init__(
        self,
        weights: StackedWeights,
        settings: Sequence[VariantSettings],
        *,
        batch_rows: int,
        product_dtype: torch.dtype,
        threshold_rate: float = THRESHOLD_RATE,
    ) -> None:
        """`weights`: where training begins; they are copied. `threshold_rate`: see topk.threshold_rate."""
        V, F, D = weights.W_dec.shape
        device, dtype = weights.W_dec.device, weights.W_dec.dtype
        self._batch_rows = batch_rows
        self._settings = list(settings)
        self._product_dtype = product_dtype
        self.W_enc, self.W_dec = weights.W_enc.clone(), weights.W_dec.clone()
        self.b_dec = weights.b_dec.clone()
        self.parameters = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        """What the optimiser updates."""
        self._per_latent: dict[str, Tensor] = {"b_enc": torch.zeros(V, F, dtype=dtype, device=device)}
        kind = settings[0].architecture
        if isinstance(kind, JumpReLU):
            self._starts = [
                variant.architecture.start_threshold
                for variant in settings
                if isinstance(variant.architecture, JumpReLU)
            ]
            starts = torch.tensor(self._starts, dtype=dtype, device=device)
            self._per_latent["threshold"] = starts[:, None].repeat(1, F)
        if isinstance(kind, Gated):
            self._per_latent |= {name: torch.zeros(V, F, dtype=dtype, device=device) for name in ("r_mag", "b_mag")}
        self._per_latent["b_enc"].copy_(weights.b_enc)
        self.parameters |= self._per_latent
        self._forward = self._chosen(kind)
        self.gradients = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        """By `parameters`, after `compute`."""
        self.W_dec_gradient = self.gradients["W_dec"]
        self.input_DB = torch.zeros(D, batch_rows, dtype=product_dtype, device=device)
        """The batch is to be written here, one column per row, before `compute`."""
        self.activation_sum_VF = torch.zeros(V, F, dtype=dtype, device=device)
        """Sum of a over the batch, after `compute`: positive exactly where a latent fired."""
        self._auxk = AuxKTerm(settings, device=device)
        self._running_threshold = RunningThreshold(V, rate=threshold_rate, device=device)
        selects = isinstance(kind, MatryoshkaBatchTopK)
        self.buffers = {"threshold": self._running_threshold.value_V} if selects else {}
        """What lasts from step to step beside `parameters`."""
        zeros_V = torch.zeros(V, dtype=torch.float64, device=device)
        self._terms = (zeros_V, zeros_V, zeros_V)
        self._active_V = zeros_V
        self._errors_VB = torch.zeros(V, batch_rows, device=device)

    @classmethod
    def num_bytes(
        cls, settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device
    ) -> StepBytes:
        """About how much memory a step of these variants takes: see Step."""
        V, F, D, B = len(settings), settings[0].d_sae, d_model, batch_rows
        weight, product = 4, product_dtype(device).itemsize
        auxk = isinstance(settings[0].dead_latents, AuxK)
        matrices = 2 * V * F * D
        lasting = 2 * matrices * weight + product * D * B
        # Kept or made by autograd per row: measured 5.5 (jumprelu) to 8.5 (gated) numbers per latent, 4 per channel.
        passing = V * B * product * ((10 + (2 if auxk else 0)) * F + 4 * D)
        passing += matrices * (weight + (2 * product if product != weight else 0))
        if auxk:
            passing += selection_bytes(V * F * B, number_bytes=product, device=device)
        if isinstance(settings[0].architecture, MatryoshkaBatchTopK):
            passing += selection_bytes(F * B, number_bytes=product, device=device)
        return StepBytes(lasting, passing)

    def _chosen(self, kind: object) -> Callable[[dict[str, Tensor], Tensor], Forward]:
        if isinstance(kind, JumpReLU):
            return self._jumprelu
        return self._gated if isinstance(kind, Gated) else self._matryoshka

    def compute(self, *, sparsity_V: Tensor, dead_VF: Tensor | None) -> None:
        """Activations, error and gradients of the batch in `input_DB`; arguments as of Step."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.parameters.items()}
        cast = {name: leaf.to(self._product_dtype) for name, leaf in leaves.items()}
        x_BD = self.input_DB.t()
        forward = self._forward(cast, x_BD)
        error_VBD = torch.baddbmm(cast["b_dec"][:, None, :] - x_BD, forward.activations_VBF, cast["W_dec"])
        mse_V = _mean_square(error_VBD)
        auxiliary_V = forward.auxiliary_V
        if self._auxk.k:
            # Of one layout whether AuxK adds to it or not: no variant's rounding may depend on another's dead latents.
            forward.pre_VBF.register_hook(torch.Tensor.contiguous)
        if dead_VF is not None and self._auxk.k:
            auxiliary_V = auxiliary_V + self._aux(forward.pre_VBF, error_VBD.detach(), cast["W_dec"], dead_VF)
        sparse_V = sparsity_V.to(forward.sparsity_V.dtype) * forward.sparsity_V
        loss = (mse_V + sparse_V + auxiliary_V).sum()
        for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            self.gradients[name].copy_(gradient)
        with torch.no_grad():
            self._terms = (mse_V.detach().double(), sparse_V.detach().double(), auxiliary_V.detach().double())
            torch.sum(forward.activations_VBF, dim=1, dtype=self.activation_sum_VF.dtype, out=self.activation_sum_VF)
            self._active_V = (forward.activations_VBF > 0).sum(dim=(1, 2)).double() / self._batch_rows
            self._errors_VB = error_VBD.detach().square().sum(dim=2, dtype=torch.float32)

    def _jumprelu(self, p: dict[str, Tensor], x_BD: Tensor) -> Forward:
        kind = self._settings[0].architecture
        assert isinstance(kind, JumpReLU)
        pre_VBF, threshold_V1F = _pre(p, x_BD, p["b_enc"]), p["threshold"][:, None, :]
        a_VBF: Tensor = _Jump.apply(pre_VBF, threshold_V1F, kind.bandwidth)
        fires_VBF: Tensor = _Fires.apply(pre_VBF, threshold_V1F, kind.bandwidth)
        l0_V = fires_VBF.sum(dim=2).mean(dim=1, dtype=_wide(pre_VBF))
        return Forward(a_VBF, pre_VBF, l0_V, torch.zeros_like(l0_V))

    def _gated(self, p: dict[str, Tensor], x_BD: Tensor) -> Forward:
        direct_VBF = _pre(p, x_BD, torch.zeros_like(p["b_enc"]))
        gate_VBF = direct_VBF + p["b_enc"][:, None, :]
        magnitude_VBF = direct_VBF * p["r_mag"].exp()[:, None, :] + p["b_mag"][:, None, :]
        a_VBF = torch.relu(magnitude_VBF) * (gate_VBF > 0)
        open_VBF = torch.relu(gate_VBF)
        lengths_V1F = torch.linalg.vector_norm(p["W_dec"], dim=2)[:, None, :]
        sparsity_V = (open_VBF * lengths_V1F).sum(dim=2).mean(dim=1, dtype=_wide(a_VBF))
        frozen_VFD, frozen_V1D = p["W_dec"].detach(), p["b_dec"].detach()[:, None, :]
        by_gate_VBD = torch.baddbmm(frozen_V1D - x_BD, open_VBF, frozen_VFD)
        return Forward(a_VBF, magnitude_VBF, sparsity_V, _mean_square(by_gate_VBD))

    def _matryoshka(self, p: dict[str, Tensor], x_BD: Tensor) -> Forward:
        pre_VBF = _pre(p, x_BD, p["b_enc"])
        positive_VBF = torch.relu(pre_VBF)
        smallest = []
        for variant, a_BF in zip(self._settings, positive_VBF.detach(), strict=True):
            assert isinstance(variant.architecture, MatryoshkaBatchTopK)
            count = variant.architecture.k * self._batch_rows
            smallest.append(smallest_of_top(a_BF, count=count))
        smallest_V = torch.stack(smallest)
        self._running_threshold.update(smallest_V)
        a_VBF = positive_VBF * (positive_VBF.detach() >= smallest_V[:, None, None])
        error_VBD = p["b_dec"][:, None, :] - x_BD
        auxiliary_V = torch.zeros(len(a_VBF), dtype=_wide(a_VBF), device=a_VBF.device)
        kind, start = self._settings[0].architecture, 0
        assert isinstance(kind, MatryoshkaBatchTopK)
        for width in kind.widths:
            error_VBD = torch.baddbmm(error_VBD, a_VBF[:, :, start:width], p["W_dec"][:, start:width])
            auxiliary_V = auxiliary_V + _mean_square(error_VBD)
            start = width
        return Forward(a_VBF, pre_VBF, torch.zeros_like(auxiliary_V), auxiliary_V)

    def _aux(self, pre_VBF: Tensor, error_VBD: Tensor, W_dec_VFD: Tensor, dead_VF: Tensor) -> Tensor:
        """AuxK's part of the loss, (V,); `error_VBD` is x_hat - x."""
        z_VFB, _ = top_dead(pre_VBF.transpose(1, 2), dead_VF, k=self._auxk.k)
        off_VBD = torch.baddbmm(error_VBD, z_VFB.transpose(1, 2), W_dec_VFD)
        return self._auxk.weight(dead_VF).to(_wide(off_VBD)) * _mean_square(off_VBD)

    def squared_error(self) -> Tensor:
        """Mean over the batch of ||x - x_hat||^2 after `compute`, (V,) float64."""
        return self._terms[0]

    def num_active(self) -> Tensor:
        """Mean over the batch of the number of latents that fire (L0), (V,) float64."""
        return self._active_V

    def sparsity_terms(self) -> Tensor:
        """The sparsity term of the loss after `compute`, (V,) float64."""
        return self._terms[1]

    def auxiliary_terms(self) -> Tensor:
        """What else the loss holds after `compute`, (V,) float64."""
        return self._terms[2]

    def row_errors(self, variant: int) -> Tensor:
        """||x - x_hat||^2 of every row after `compute`, (B,)."""
        return self._errors_VB[variant]

    def after_update(self) -> None:
        """Keeps thresholds >= 0; below, negative pre would pass."""
        if "threshold" in self._per_latent:
            self._per_latent["threshold"].clamp_min_(0.0)

    def restart(self, variant: int, latents: Tensor) -> None:
        """What a resampled latent has beside its directions starts again."""
        for name, tensor in self._per_latent.items():
            tensor[variant, latents] = self._starts[variant] if name == "threshold" else 0.0

    def sae(self, variant: int) -> SAEWeights:
        """One variant on the host, for rows times the scale."""
        own = {name: tensor[variant].cpu().clone() for name, tensor in self._per_latent.items()}
        if isinstance(self._settings[variant].architecture, MatryoshkaBatchTopK):
            own["threshold"] = torch.full_like(own["b_enc"], self._running_threshold.of(variant))
        return SAEWeights(
            W_enc=self.W_enc[variant].t().cpu().contiguous(),
            W_dec=self.W_dec[variant].cpu().clone(),
            b_dec=self.b_dec[variant].cpu().clone(),
            b_enc=own["b_enc"],
            threshold=own.get("threshold"),
            r_mag=own.get("r_mag"),
            b_mag=own.get("b_mag"),
        )


def _pre(p: dict[str, Tensor], x_BD: Tensor, bias_VF: Tensor) -> Tensor:
    """(x - b_dec) W_enc + bias, (V, B, F)."""
    shift_VF = bias_VF - torch.bmm(p["W_enc"], p["b_dec"][:, :, None]).squeeze(-1)
    V = len(bias_VF)
    return torch.baddbmm(shift_VF[:, None, :], x_BD.expand(V, -1, -1), p["W_enc"].transpose(1, 2))


def _wide(tensor: Tensor) -> torch.dtype:
    """The number format of sums: float32 where products are bfloat16."""
    return torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype


def _mean_square(error_VBD: Tensor) -> Tensor:
    """Mean over the batch of the squared length of rows, (V,)."""
    return error_VBD.square().sum(dim=(1, 2), dtype=_wide(error_VBD)) / error_VBD.shape[1]
