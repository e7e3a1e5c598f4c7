"""relu, topk and batchtopk: V stacked SAEs on one shared batch, forward and hand-written backward.

Shape suffixes: V variants, B rows, D d_model, F latents; K = D plus a few columns that carry biases through the
products.

    pre = (x - b_dec) W_enc + b_enc      a = relu(pre), where selected      x_hat = a W_dec + b_dec
    L   = mean_B ||x - x_hat||^2  +  l1 * mean_B sum_f ||W_dec_f|| a_f  +  AuxK (architectures.py)

The encoder is one product for all variants. The batch is the last axis, so that each latent's activations are
contiguous. What would cost further passes over (V, F, B) rides in the products as extra columns: the encoder's bias
against rows of ones in x, and l1 ||W_dec_f|| / B against a row of ones in the error, which returns it in the gradient
of a, and the sums over the batch of a and of the gradient of pre beside the weight gradients. Two elementwise passes
over (V, F, B) remain: relu and its mask.

Where products are in the weights' own number format, the weights live in the very matrices that are multiplied, and
the gradients in the very results: nothing is copied. Where products are bfloat16, both are cast once per step, and a
float32 bias is carried exactly enough by three columns (its bfloat16 rounding, then what remains).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compute.device import product_dtype
from store.sae.weights import SAEWeights
from train.architectures import AuxK, BatchTopK, ReLU, TopK
from train.config import VariantSettings
from train.steps.auxk import AuxKTerm, top_dead
from train.steps.initialise import StackedWeights
from train.steps.protocol import StepBytes
from train.steps.topk import THRESHOLD_RATE, RunningThreshold, keep_top_of_batch_, keep_top_of_rows_, selection_bytes

_CARRIERS = {torch.float64: 2, torch.float32: 2, torch.bfloat16: 3}
_COLUMNS = {torch.float64: 2, torch.float32: 2, torch.bfloat16: 8}  # 8 keeps bfloat16 rows aligned to 16 bytes


class AnalyticStep:
    """Weights, buffers and products of one stacked step; only small vectors are allocated per step."""

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
        self._d_model = D
        self._settings = list(settings)
        self._carriers = _CARRIERS[product_dtype]
        self._cast = product_dtype != dtype
        K = D + _COLUMNS[product_dtype]

        def buffer(*shape: int, of: torch.dtype = product_dtype) -> Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        encoder_VFK, decoder_VFK = buffer(V, F, K, of=dtype), buffer(V, F, K, of=dtype)
        encoder_VFK[:, :, :D], decoder_VFK[:, :, :D] = weights.W_enc, weights.W_dec
        encoder_VFK[:, :, D] = weights.b_enc
        self.parameters = {"encoder": encoder_VFK, "decoder": decoder_VFK, "b_dec": weights.b_dec.clone()}
        """What the optimiser updates: W_enc with b_enc as column D, W_dec, b_dec. Other columns are scratch."""
        self.gradients = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        """Gradients of the loss above by `parameters`, after `compute`; 0 in the columns that are scratch."""
        self.W_enc, self.b_enc, self.b_dec = encoder_VFK[:, :, :D], encoder_VFK[:, :, D], self.parameters["b_dec"]
        self.W_dec = decoder_VFK[:, :, :D]
        self.W_dec_gradient = self.gradients["decoder"][:, :, :D]
        self._enc_VFK = buffer(V, F, K) if self._cast else encoder_VFK
        self._dec_VFK = buffer(V, F, K) if self._cast else decoder_VFK
        self._enc_gradient_VFK = buffer(V, F, K) if self._cast else self.gradients["encoder"]
        self._dec_gradient_VFK = buffer(V, F, K) if self._cast else self.gradients["decoder"]
        self._x_KB = buffer(K, batch_rows)
        self._error_VKB = buffer(V, K, batch_rows)
        self.activations_VFB = buffer(V, F, batch_rows)
        """a of the last `compute`."""
        self._pre_gradient_VFB = buffer(V, F, batch_rows)
        self._x_KB[D : D + self._carriers] = 1.0
        self._error_VKB[:, D : D + self._carriers] = 1.0
        self.input_DB = self._x_KB[:D]
        """The batch is to be written here, one column per row, before `compute`."""
        self.error_VDB = self._error_VKB[:, :D]
        """2 / B (x_hat - x) after `compute`: the gradient of the reconstruction term by x_hat."""
        self.activation_sum_VF = torch.zeros_like(weights.b_enc)
        """Sum of a over the batch, after `compute`: positive exactly where a latent fired."""
        self._free = settings[0].decoder_norm == "free"
        self._norms_VF = torch.ones_like(weights.b_enc)
        self._sparsity_V = torch.full((V,), torch.nan, dtype=torch.float64, device=device)
        self._auxk = AuxKTerm(settings, device=device)
        self._pre_VFB = buffer(V, F, batch_rows) if self._auxk.k else None
        self._aux_terms_V = torch.zeros(V, dtype=torch.float64, device=device)
        self._threshold = RunningThreshold(V, rate=threshold_rate, device=device)
        selects = isinstance(settings[0].architecture, BatchTopK)
        self.buffers = {"threshold": self._threshold.value_V} if selects else {}
        """What lasts from step to step beside `parameters`."""

    @classmethod
    def num_bytes(
        cls, settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device
    ) -> StepBytes:
        """About how much memory a step of these variants takes: see Step."""
        V, F, B = len(settings), settings[0].d_sae, batch_rows
        weight, product = 4, product_dtype(device).itemsize
        K = d_model + _COLUMNS[product_dtype(device)]
        auxk = settings[0].dead_latents if isinstance(settings[0].dead_latents, AuxK) else None
        matrices = 2 * V * F * K
        lasting = matrices * (2 * weight + (2 * product if product != weight else 0))
        lasting += product * B * (K + V * K + (3 if auxk else 2) * V * F)
        errors = V * d_model * B
        passing = errors * (product + 8)  # squares, and as float64 for their sum
        if auxk:  # z, where it is, and its gradient; the k largest and their places; the errors with z
            passing += V * F * B * (2 * product + 1) + V * auxk.k * B * (product + 8) + errors * product
            passing += selection_bytes(V * F * B, number_bytes=product, device=device)
        if not isinstance(settings[0].architecture, ReLU):  # variant by variant
            passing = max(passing, selection_bytes(F * B, number_bytes=product, device=device))
        return StepBytes(lasting, passing)

    def compute(self, *, sparsity_V: Tensor, dead_VF: Tensor | None) -> None:
        """Activations, error and gradients of the batch in `input_DB`.

        Args:
            sparsity_V: l1 of this step, (V,) float64.
            dead_VF: which latents count as dead, or None where none does: AuxK is for them.
        """
        self._prepare(sparsity_V)
        self._forward()
        self._backward(dead_VF if self._auxk.k else None)

    def _carry(self, matrix_VFK: Tensor, bias_VF: Tensor, *, first: int = 0) -> None:
        """Writes `bias_VF` into the columns of `matrix_VFK` that meet the rows of ones."""
        rest_VF = bias_VF
        for column in range(self._d_model + first, self._d_model + self._carriers):
            matrix_VFK[:, :, column] = rest_VF
            rest_VF = rest_VF - matrix_VFK[:, :, column]

    def _prepare(self, sparsity_V: Tensor) -> None:
        """The matrices that are multiplied, from the weights."""
        D = self._d_model
        shift_VF = torch.bmm(self.W_enc, self.b_dec[:, :, None]).squeeze(-1)
        if self._cast:
            self._enc_VFK.copy_(self.parameters["encoder"])
            self._dec_VFK.copy_(self.parameters["decoder"])
            self._carry(self._enc_VFK, self.b_enc - shift_VF)
        else:
            torch.neg(shift_VF, out=self._enc_VFK[:, :, D + 1])  # beside b_enc, which has a column of its own
        if self._free:
            self._norms_VF = torch.linalg.vector_norm(self.W_dec, dim=-1)
        self._sparsity_V = sparsity_V
        weight_VF = (sparsity_V / self._batch_rows).to(self._norms_VF.dtype)[:, None] * self._norms_VF
        if self._cast:
            self._carry(self._dec_VFK, weight_VF)
        else:
            self._dec_VFK[:, :, D] = weight_VF

    def _forward(self) -> None:
        B, D = self._batch_rows, self._d_model
        torch.mm(self._enc_VFK.flatten(0, 1), self._x_KB, out=self.activations_VFB.flatten(0, 1))
        if self._pre_VFB is not None:
            self._pre_VFB.copy_(self.activations_VFB)
        self._select()
        torch.sub(self.b_dec.to(self._x_KB.dtype)[:, :, None], self.input_DB, out=self.error_VDB)
        W_dec_VDF = self._dec_VFK[:, :, :D].transpose(1, 2)
        self.error_VDB.baddbmm_(W_dec_VDF, self.activations_VFB, beta=2.0 / B, alpha=2.0 / B)

    def _select(self) -> None:
        """From pre to a, in place."""
        kinds = [variant.architecture for variant in self._settings]
        if isinstance(kinds[0], TopK):
            for kind, pre_FB in zip(kinds, self.activations_VFB, strict=True):
                assert isinstance(kind, TopK)
                keep_top_of_rows_(pre_FB, k=kind.k)
            return
        self.activations_VFB.relu_()
        if isinstance(kinds[0], BatchTopK):
            smallest = []
            for kind, a_FB in zip(kinds, self.activations_VFB, strict=True):
                assert isinstance(kind, BatchTopK)
                smallest.append(keep_top_of_batch_(a_FB, count=kind.k * self._batch_rows))
            self._threshold.update(torch.stack(smallest))

    def _backward(self, dead_VF: Tensor | None) -> None:
        D = self._d_model
        torch.bmm(self._dec_VFK, self._error_VKB, out=self._pre_gradient_VFB)  # dL/da = W_dec dL/dx_hat + l1 / B
        torch.bmm(self.activations_VFB, self._error_VKB.transpose(1, 2), out=self._dec_gradient_VFK)
        torch.ops.aten.threshold_backward.grad_input(
            self._pre_gradient_VFB, self.activations_VFB, 0.0, grad_input=self._pre_gradient_VFB
        )
        self.activation_sum_VF.copy_(self._dec_gradient_VFK[:, :, D])
        self._aux_terms_V.zero_()
        if dead_VF is not None:
            self._add_aux(dead_VF)
        torch.mm(self._pre_gradient_VFB.flatten(0, 1), self._x_KB.t(), out=self._enc_gradient_VFK.flatten(0, 1))
        enc_VFK, dec_VFK = self.gradients["encoder"], self.gradients["decoder"]
        if self._cast:
            enc_VFK.copy_(self._enc_gradient_VFK)
            dec_VFK.copy_(self._dec_gradient_VFK)
        enc_VFK[:, :, D + 1 :] = 0.0
        dec_VFK[:, :, D:] = 0.0
        # The encoder sees x - b_dec: each of its gradients is short of (sum of the gradient of pre) * b_dec.
        bias_gradient_VF1 = enc_VFK[:, :, D : D + 1]
        enc_VFK[:, :, :D].addcmul_(bias_gradient_VF1, self.b_dec[:, None, :], value=-1.0)
        b_dec_gradient_VD = self.gradients["b_dec"]
        torch.sum(self.error_VDB, dim=2, dtype=b_dec_gradient_VD.dtype, out=b_dec_gradient_VD)
        through_encoder_VD = torch.bmm(self.W_enc.transpose(1, 2), bias_gradient_VF1).squeeze(-1)
        b_dec_gradient_VD.sub_(through_encoder_VD)
        if self._free:  # l1 ||W_dec_f|| sum_B a_f / B also pulls at the lengths
            pull_VF = (self._sparsity_V / self._batch_rows).to(self._norms_VF.dtype)[:, None] * self.activation_sum_VF
            pull_VF = pull_VF / self._norms_VF.clamp_min(torch.finfo(pull_VF.dtype).tiny)
            self.W_dec_gradient.addcmul_(pull_VF[:, :, None], self.W_dec)

    def _add_aux(self, dead_VF: Tensor) -> None:
        """AuxK: its value, and its gradients added to those of pre and of W_dec."""
        assert self._pre_VFB is not None
        B, W_dec_VFD = self._batch_rows, self._dec_VFK[:, :, : self._d_model]
        z_VFB, chosen_VFB = top_dead(self._pre_VFB, dead_VF, k=self._auxk.k)
        off_VDB = self.error_VDB * (B / 2.0)  # x_hat - x, so that z W_dec - (x - x_hat) is
        off_VDB.baddbmm_(W_dec_VFD.transpose(1, 2), z_VFB)
        weight_V = self._auxk.weight(dead_VF) / B
        self._aux_terms_V.copy_(weight_V * off_VDB.square().sum(dim=(1, 2), dtype=torch.float64))
        off_VDB.mul_((2.0 * weight_V).to(off_VDB.dtype)[:, None, None])
        self._pre_gradient_VFB.add_(torch.bmm(W_dec_VFD, off_VDB).mul_(chosen_VFB))
        self._dec_gradient_VFK[:, :, : self._d_model].baddbmm_(z_VFB, off_VDB.transpose(1, 2))

    def squared_error(self) -> Tensor:
        """Mean over the batch of ||x - x_hat||^2 after `compute`, (V,) float64."""
        B = self._batch_rows
        return self.error_VDB.square().sum(dim=(1, 2), dtype=torch.float64) * (B / 4.0)

    def num_active(self) -> Tensor:
        """Mean over the batch of the number of latents that fire (L0), (V,) float64."""
        counts = [torch.count_nonzero(activations_FB) for activations_FB in self.activations_VFB]
        return torch.stack(counts).to(torch.float64) / self._batch_rows

    def sparsity_terms(self) -> Tensor:
        """l1 * mean_B sum_f ||W_dec_f|| a_f after `compute`, (V,) float64."""
        weighted = (self.activation_sum_VF * self._norms_VF).sum(dim=1, dtype=torch.float64)
        return self._sparsity_V * weighted / self._batch_rows

    def auxiliary_terms(self) -> Tensor:
        """AuxK's part of the loss after `compute`, (V,) float64."""
        return self._aux_terms_V

    def row_errors(self, variant: int) -> Tensor:
        """||x - x_hat||^2 of every row after `compute`, (B,)."""
        return self.error_VDB[variant].square().sum(dim=0, dtype=torch.float32)

    def after_update(self) -> None:
        """Nothing: there are no parameters with bounds."""

    def restart(self, variant: int, latents: Tensor) -> None:
        """What a resampled latent has beside its directions starts again."""
        self.b_enc[variant, latents] = 0.0

    def sae(self, variant: int) -> SAEWeights:
        """One variant on the host, for rows times the scale."""
        architecture = self._settings[variant].architecture
        b_enc = self.b_enc[variant].cpu().clone()
        threshold = None
        if isinstance(architecture, BatchTopK):
            threshold = torch.full_like(b_enc, self._threshold.of(variant))
        return SAEWeights(
            W_enc=self.W_enc[variant].t().cpu().contiguous(),
            b_enc=b_enc,
            W_dec=self.W_dec[variant].cpu().contiguous(),
            b_dec=self.b_dec[variant].cpu().clone(),
            k=architecture.k if isinstance(architecture, TopK) else None,
            threshold=threshold,
        )
