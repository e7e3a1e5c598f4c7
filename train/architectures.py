"""The kinds of SAE: the settings of each, and what it computes. Imports no torch, as all settings.

With pre = (x - b_dec) W_enc + b_enc and x_hat = a W_dec + b_dec, every kind minimises mean_B ||x - x_hat||^2 and
what is said below; rows scaled to E||x||^2 = d_model. "Warmed up" terms are multiplied by the sparsity warm-up.

relu, topk and batchtopk have a hand-written backward (steps/analytic.py), the others use autograd on stacked parameters
(steps/autograd.py).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from store.record import Record
from train.checks import Positive, PositiveCount
from train.sparsity import Coefficient


class ReLU(Record):
    """a = relu(pre); + l1 * mean_B sum_f ||W_dec_f|| a_f, warmed up. The lengths are 1 unless decoder_norm is free."""

    kind: Literal["relu"]


class TopK(Record):
    """a = relu of the k largest pre of each row, 0 elsewhere (Gao et al., arXiv 2406.04093)."""

    kind: Literal["topk"]
    k: PositiveCount
    """Latents per row."""


class BatchTopK(Record):
    """a = relu(pre) where it is among the k * B largest of the batch, 0 elsewhere (Bussmann et al., arXiv 2412.06410).

    Afterwards a latent fires above a threshold, the running mean of the smallest a that fired (rate 0.01, in runs of
    less than 1000 steps 10 / steps).
    """

    kind: Literal["batchtopk"]
    k: PositiveCount
    """Latents per row, on average over a batch."""


class JumpReLU(Record):
    """a = pre where pre > threshold_f, else 0; + l0 * mean_B sum_f [pre > threshold_f], warmed up.

    The steps pass a gradient to the threshold alone, through a window of width `bandwidth` (Rajamanoharan et al., arXiv
    2407.14435); the threshold itself is the parameter, kept >= 0.
    """

    kind: Literal["jumprelu"]
    l0: Coefficient
    """Coefficient of the number of latents that fire, or the number that shall: `{target_l0: 46}`."""
    bandwidth: Positive = 0.05
    """Width of the window around the threshold, in units of pre."""
    start_threshold: Positive = 0.01
    """Threshold of every latent before the first step."""


def _increasing(values: list[int]) -> list[int]:
    if not values or values != sorted(set(values)):
        raise ValueError(f"expected at least one width, each larger than the one before, got {values}. Sort them")
    return values


class MatryoshkaBatchTopK(Record):
    """batchtopk, + for each prefix of w latents mean_B ||x - (a_:w W_dec_:w + b_dec)||^2 (arXiv 2503.17547)."""

    kind: Literal["matryoshka-batchtopk"]
    k: PositiveCount
    """Latents per row, on average over a batch."""
    widths: Annotated[list[PositiveCount], AfterValidator(_increasing)]
    """Latents of the prefixes, increasing, all below d_sae (the whole SAE is always one of the losses)."""


class Gated(Record):
    """a = [gate > 0] relu(exp(r_mag) (x - b_dec) W_enc + b_mag), gate = (x - b_dec) W_enc + b_gate;

    + l1 * mean_B sum_f ||W_dec_f|| relu(gate_f), warmed up, + mean_B ||x - (relu(gate) W_dec + b_dec)||^2 with a frozen
    copy of the decoder (Rajamanoharan et al., arXiv 2404.16014).
    """

    kind: Literal["gated"]


Architecture = Annotated[ReLU | TopK | BatchTopK | JumpReLU | MatryoshkaBatchTopK | Gated, Field(discriminator="kind")]
FAST = (ReLU, TopK, BatchTopK)
"""The kinds with a hand-written backward."""
USES_L1 = (ReLU, Gated)
"""The kinds whose loss holds l1."""
SELECTS = (TopK, BatchTopK, MatryoshkaBatchTopK)
"""The kinds whose sparsity is a number k."""


class KeepDead(Record):
    """Dead latents stay dead."""

    kind: Literal["none"]


class AuxK(Record):
    """+ coefficient * min(1, dead / k) * mean_B ||e - z W_dec||^2, e = x - x_hat without gradient, z the k largest pre
    of dead latents per row (Gao et al., arXiv 2406.04093, appendix A.2)."""

    kind: Literal["auxk"]
    k: PositiveCount
    """Dead latents per row; half of d_model is usual."""
    coefficient: Positive = 0.03125
    """1/32 in the paper."""


class Resample(Record):
    """Every so often a dead latent starts again at a row that is reconstructed badly (Bricken et al. 2023).

    Rows are drawn with probability ||x - x_hat||^4. The decoder row becomes the direction of x - b_dec, the encoder
    column the same times `encoder_scale` times the mean length of live columns; biases and Adam's moments become 0.
    """

    kind: Literal["resample"]
    every_steps: PositiveCount
    """Steps between two resamplings."""
    encoder_scale: Positive = 0.2
    """Length of a new encoder column relative to the live ones."""


DeadLatents = Annotated[KeepDead | AuxK | Resample, Field(discriminator="kind")]
