"""Reconstruction and sparsity of V stacked SAEs on one shared batch: forward and hand-written backward.

Shape suffixes: V variants, B rows, D d_model, F latents; K = D plus a few columns that carry biases through the
products.

    pre = (x - b_dec) W_enc + b_enc      a = relu(pre)      x_hat = a W_dec + b_dec
    L   = mean_B ||x - x_hat||^2  +  l1 * mean_B sum_f a_f

The encoder is one product for all variants. The batch is the last axis, so that each latent's activations are
contiguous. What would cost further passes over (V, F, B) rides in the products as extra columns: the encoder's bias
against a row of ones in x, and l1 / B against a row of ones in the error, which returns l1 in the gradient of a, and
the sums over the batch of a and of the gradient of pre beside the weight gradients. Two elementwise passes over (V, F,
B) remain: relu and its mask. Where products are bfloat16, a float32 bias is carried exactly enough by three columns
(its bfloat16 rounding, then what remains).
"""

import torch
from torch import Tensor

from train.initialise import StackedWeights

_CARRIERS = {torch.float64: 1, torch.float32: 1, torch.bfloat16: 3}
_COLUMNS = {torch.float64: 1, torch.float32: 1, torch.bfloat16: 8}  # 8 keeps bfloat16 rows aligned to 16 bytes


class FusedStep:
    """Buffers and products of one stacked step; nothing is allocated per step but the small vectors of biases."""

    def __init__(self, weights: StackedWeights, *, batch_rows: int, l1_V: Tensor, product_dtype: torch.dtype) -> None:
        """`weights` are read at every step and never written; `l1_V` (V,) holds the L1 coefficients."""
        V, F, D = weights.W_dec.shape
        device = weights.W_dec.device
        self._weights = weights
        self._batch_rows = batch_rows
        self._d_model = D
        self._carriers = _CARRIERS[product_dtype]
        K = D + _COLUMNS[product_dtype]

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=product_dtype, device=device)

        self._x_KB = buffer(K, batch_rows)
        self._enc_VFK = buffer(V, F, K)
        self._dec_VFK = buffer(V, F, K)
        self._error_VKB = buffer(V, K, batch_rows)
        self.activations_VFB = buffer(V, F, batch_rows)
        """a of the last `forward`."""
        self._pre_gradient_VFB = buffer(V, F, batch_rows)
        self._enc_gradient_VFK = buffer(V, F, K)
        self._dec_gradient_VFK = buffer(V, F, K)
        ones = slice(D, D + self._carriers)
        self._x_KB[ones] = 1.0
        self._error_VKB[:, ones] = 1.0
        self._carry(self._dec_VFK, (l1_V / batch_rows).to(weights.W_dec.dtype)[:, None].expand(V, F))
        self.input_DB = self._x_KB[:D]
        """The batch is to be written here, one column per row, before `forward`."""
        self.error_VDB = self._error_VKB[:, :D]
        """2 / B (x_hat - x) after `forward`: the gradient of the reconstruction term by x_hat."""
        self.W_enc_gradient_VFD = torch.empty_like(weights.W_enc)
        self.b_enc_gradient_VF = torch.empty_like(weights.b_enc)
        self.W_dec_gradient_VFD = torch.empty_like(weights.W_dec)
        self.b_dec_gradient_VD = torch.empty_like(weights.b_dec)
        self.activation_sum_VF = torch.empty_like(weights.b_enc)
        """Sum of a over the batch, after `backward`: positive exactly where a latent fired."""

    def _carry(self, matrix_VFK: Tensor, bias_VF: Tensor) -> None:
        """Writes `bias_VF` into the columns of `matrix_VFK` that meet the rows of ones."""
        rest_VF = bias_VF
        for column in range(self._d_model, self._d_model + self._carriers):
            matrix_VFK[:, :, column] = rest_VF
            rest_VF = rest_VF - matrix_VFK[:, :, column]

    def forward(self) -> None:
        """Activations and error of the batch in `input_DB`."""
        weights, D, B = self._weights, self._d_model, self._batch_rows
        self._enc_VFK[:, :, :D] = weights.W_enc
        self._dec_VFK[:, :, :D] = weights.W_dec
        shift_VF = torch.bmm(weights.W_enc, weights.b_dec[:, :, None]).squeeze(-1)
        self._carry(self._enc_VFK, weights.b_enc - shift_VF)
        torch.mm(self._enc_VFK.flatten(0, 1), self._x_KB, out=self.activations_VFB.flatten(0, 1))
        self.activations_VFB.relu_()
        torch.sub(weights.b_dec.to(self._x_KB.dtype)[:, :, None], self.input_DB, out=self.error_VDB)
        W_dec_VDF = self._dec_VFK[:, :, :D].transpose(1, 2)
        self.error_VDB.baddbmm_(W_dec_VDF, self.activations_VFB, beta=2.0 / B, alpha=2.0 / B)

    def backward(self) -> None:
        """Gradients of the loss above by the four kinds of weights, and `activation_sum_VF`."""
        weights, D = self._weights, self._d_model
        torch.bmm(self._dec_VFK, self._error_VKB, out=self._pre_gradient_VFB)  # dL/da = W_dec dL/dx_hat + l1 / B
        torch.bmm(self.activations_VFB, self._error_VKB.transpose(1, 2), out=self._dec_gradient_VFK)
        torch.ops.aten.threshold_backward.grad_input(
            self._pre_gradient_VFB, self.activations_VFB, 0.0, grad_input=self._pre_gradient_VFB
        )
        enc_gradient = self._enc_gradient_VFK.flatten(0, 1)
        torch.mm(self._pre_gradient_VFB.flatten(0, 1), self._x_KB.t(), out=enc_gradient)
        self.activation_sum_VF.copy_(self._dec_gradient_VFK[:, :, D])
        self.b_enc_gradient_VF.copy_(self._enc_gradient_VFK[:, :, D])
        self.W_dec_gradient_VFD.copy_(self._dec_gradient_VFK[:, :, :D])
        # The encoder sees x - b_dec: each of its gradients is short of (sum of the gradient of pre) * b_dec.
        bias_gradient_VF1 = self.b_enc_gradient_VF[:, :, None]
        self.W_enc_gradient_VFD.copy_(self._enc_gradient_VFK[:, :, :D])
        self.W_enc_gradient_VFD.addcmul_(bias_gradient_VF1, weights.b_dec[:, None, :], value=-1.0)
        torch.sum(self.error_VDB, dim=2, dtype=self.b_dec_gradient_VD.dtype, out=self.b_dec_gradient_VD)
        through_encoder_VD = torch.bmm(weights.W_enc.transpose(1, 2), bias_gradient_VF1).squeeze(-1)
        self.b_dec_gradient_VD.sub_(through_encoder_VD)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients under the names of the weights: W_enc, b_enc, W_dec, b_dec."""
        return {
            "W_enc": self.W_enc_gradient_VFD,
            "b_enc": self.b_enc_gradient_VF,
            "W_dec": self.W_dec_gradient_VFD,
            "b_dec": self.b_dec_gradient_VD,
        }

    def squared_error(self) -> Tensor:
        """Mean over the batch of ||x - x_hat||^2 after `forward`, (V,) float64."""
        B = self._batch_rows
        return self.error_VDB.square().sum(dim=(1, 2), dtype=torch.float64) * (B / 4.0)

    def num_active(self) -> Tensor:
        """Mean over the batch of the number of latents that fire (L0), (V,) float64."""
        counts = [torch.count_nonzero(activations_FB) for activations_FB in self.activations_VFB]
        return torch.stack(counts).to(torch.float64) / self._batch_rows
