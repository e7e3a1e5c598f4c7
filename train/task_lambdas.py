"""The lambdas that answer to the task: one step of each on s = log lambda, for n variants side by side.

A learned lambda descends on the loss that it weighs, and so falls wherever P is large, whatever helps the SAE. These
three look at the task as well. L is what the SAE is for: the mean squared error, and what else the loss holds that has
no coefficient (prefixes, AuxK). P is the penalty as the loss has it, W the decoder, which is all that both share. Where
decoder rows have length 1, gradients by W are those along the sphere; where they are free, l1 pulls at their lengths,
and that is part of dL/dW.

All weigh L with 1 and P with lambda, the ratio of two weights where the source has one for each: Adam does not see a
common factor, l1 keeps its meaning against the error, and lambdas of all kinds can be compared. All move s by at most
`rate` per step (train/lambdas.py, default_lambda_lr), so that they can cross four orders of magnitude in a fifth of the
run, and stay within DUAL_RANGE.

hypergradient   the derivative of the next batch's L by s through the optimiser's last step (Baydin et al. 2018, arXiv
                1703.04782, for the learning rate; here for lambda),

                    c = cos(dL_{t+1}/dW, dW_{t+1}/dlambda_t)

                with the second factor exact (hypergradient.py). Only its sign says where to go, and its size spans
                orders of magnitude with lambda; hence the cosine, and the mean of c over its root mean square, both
                over a window of 1 / (2 rate) steps: at most 1, and small where signs differ from batch to batch,

                    s <- s - rate * mean(c) / (rms(c) + HYPERGRADIENT_EPS).

                Where lambda |dP/dW| is below LEAST_SHARE of |dL/dW|, lambda hardly moves the decoder, c says nothing of
                it, and s falls no further. It sees one step ahead: where the decoder is at rest dL/dW = -lambda dP/dW,
                so that c > 0 at every lambda, and only while the decoder moves can c be negative. Hence lambda ends
                small (the bias of short horizons, Wu et al. 2018, arXiv 1803.02021).

gradnorm        Chen et al. 2018, arXiv 1711.02257, for the two tasks L and P with weights w_L + w_P = 2, that is
                w_L = 2 / (1 + lambda) and w_P = 2 lambda / (1 + lambda). With G_i = w_i |dL_i/dW|, their mean G, the
                inverse pace r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), and targets that count as constants,

                    L_grad = sum_i |G_i - G r_i^alpha|,
                    dL_grad/ds = w_L w_P / 2 * (sgn(G_P - G r_P^alpha) |dP/dW| - sgn(G_L - G r_L^alpha) |dL/dW|).

                A sum of absolute values has a derivative that jumps at its least value: s goes against its sign, and
                comes to rest as the learning rate falls: s <- s - rate * lr factor * sgn(dL_grad/ds).

uncertainty     Kendall, Gal & Cipolla 2018, arXiv 1705.07115: variances v_L and v_P are learned with

                    L / (2 v_L) + P / (2 v_P) + (log v_L + log v_P) / 2,    lambda = v_L / v_P,

                by descent on e = log v, whose derivative is (1 - L exp(-e)) / 2 =: g; e <- e - rate * g / (|g| + 1/2)
                takes steps of a bounded size and approaches v = L exponentially. At rest lambda = L / P, where both
                terms are equal. v_L begins at L(0), v_P at v_L / start.
"""

import math
from typing import TYPE_CHECKING

from train.lambdas import DUAL_RANGE, adam_direction

if TYPE_CHECKING:
    from torch import Tensor

HYPERGRADIENT_EPS = 0.02
"""A mean cosine below it moves lambda slowly: the last approach is then an exponential one."""
LEAST_SHARE = 0.01
"""Of the task's gradient: below it a hypergradient lambda falls no further, so that it can come back at once."""
_TINY = 1.0e-300


def within_range(s: "Tensor") -> "Tensor":
    """s kept in the logarithm of DUAL_RANGE."""
    low, high = (math.log(bound) for bound in DUAL_RANGE)
    return s.clamp(low, high)


def hypergradient_step(
    s: "Tensor",
    cosine: "Tensor",
    norms: tuple["Tensor", "Tensor"],
    first: "Tensor",
    second: "Tensor",
    *,
    count: int,
    rate: "Tensor",
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """The new s and the running mean of the cosine and of its square.

    Args:
        norms: |dL/dW| and |dP/dW|.
        count: cosines so far, this one included.
    """
    beta, eps = (-2.0 * rate).exp(), 0.0 * rate + HYPERGRADIENT_EPS
    direction, first, second = adam_direction(cosine, first, second, count=count, beta1=beta, beta2=beta, eps=eps)
    lowest = (LEAST_SHARE * norms[0] / norms[1]).log().nan_to_num(nan=math.inf)  # 0 / 0: before there is a penalty
    return within_range((s - rate * direction).maximum(lowest.minimum(s))), first, second


def gradnorm_derivative(
    s: "Tensor",
    *,
    norms: tuple["Tensor", "Tensor"],
    paces: tuple["Tensor", "Tensor"],
    asymmetry: "Tensor",
) -> "Tensor":
    """dL_grad/ds as at the top.

    Args:
        norms: |dL/dW| and |dP/dW|.
        paces: L / L(0) and P / P(0).
        asymmetry: alpha.
    """
    lam, mean_pace = s.exp(), ((paces[0] + paces[1]) / 2.0).clamp_min(_TINY)
    weights = (2.0 / (1.0 + lam), 2.0 * lam / (1.0 + lam))
    lengths = (weights[0] * norms[0], weights[1] * norms[1])
    mean_length = (lengths[0] + lengths[1]) / 2.0
    signs = [
        (length - mean_length * (pace / mean_pace) ** asymmetry).sign()
        for length, pace in zip(lengths, paces, strict=True)
    ]
    return weights[0] * weights[1] / 2.0 * (signs[1] * norms[1] - signs[0] * norms[0])


def gradnorm_step(
    s: "Tensor",
    losses: tuple["Tensor", "Tensor"],
    norms: tuple["Tensor", "Tensor"],
    first_losses: tuple["Tensor", "Tensor"],
    *,
    asymmetry: "Tensor",
    rate: "Tensor",
) -> "Tensor":
    """The new s, given (L, P), the lengths of their gradients, and (L, P) of the first step."""
    task, penalty = (now / before.clamp_min(_TINY) for now, before in zip(losses, first_losses, strict=True))
    derivative = gradnorm_derivative(s, norms=norms, paces=(task, penalty), asymmetry=asymmetry)
    return within_range(s - rate * derivative.sign())


def uncertainty_step(
    s: "Tensor", losses: tuple["Tensor", "Tensor"], log_task_variance: "Tensor", *, rate: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """The new s and log v_L, given (L, P); log v_P is log v_L - s."""

    def descended(log_variance: "Tensor", loss: "Tensor") -> "Tensor":
        g = (1.0 - loss * (-log_variance).exp()) / 2.0
        return log_variance - rate * g / (g.abs() + 0.5 * rate.clamp_min(1.0))

    task = descended(log_task_variance, losses[0])
    return within_range(task - descended(log_task_variance - s, losses[1])), task
