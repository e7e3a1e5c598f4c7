"""Which stacked step serves which kind of SAE, and how much memory a group takes."""

from collections.abc import Sequence

import torch

from compute.device import product_dtype
from store.sae.geometry import BLOCK_ROWS
from train.architectures import FAST
from train.config import VariantSettings, shape_key
from train.steps.analytic import AnalyticStep
from train.steps.autograd import AutogradStep
from train.steps.hold import start_bytes
from train.steps.initialise import FREE_LENGTH, initial_weights
from train.steps.protocol import Step
from train.steps.topk import THRESHOLD_RATE, threshold_rate
from train.task_gradients import lasting_decoders


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
    keys = {shape_key(variant) for variant in settings}
    if len(keys) != 1:
        raise ValueError(f"expected variants of one shape in a group, got {len(keys)}: {keys}. Group them by shape_key")
    weights = initial_weights(
        seeds=[variant.seed for variant in settings],
        d_sae=settings[0].d_sae,
        mean=mean,
        scale=scale,
        device=device,
        decoder_length=FREE_LENGTH if settings[0].decoder_norm == "free" else 1.0,
    )
    rate = THRESHOLD_RATE if num_steps is None else threshold_rate(num_steps)
    return step_class(settings)(
        weights, settings, batch_rows=batch_rows, product_dtype=product_dtype(device), threshold_rate=rate
    )


def step_class(settings: Sequence[VariantSettings]) -> type[AnalyticStep] | type[AutogradStep]:
    """The class of step that serves variants of one shape."""
    return AnalyticStep if isinstance(settings[0].architecture, FAST) else AutogradStep


def group_bytes(settings: Sequence[VariantSettings], *, d_model: int, batch_rows: int, device: torch.device) -> int:
    """About how much memory a group of these variants needs while it trains, in bytes.

    What lasts is what the step says, Adam's two moments in float32, and what lambdas led by gradients keep. Beside it
    either the step computes a batch, or the group a penalty or the cosines of a log record, block by block.
    """
    V, F, D = len(settings), settings[0].d_sae, d_model
    step = step_class(settings).num_bytes(settings, d_model=D, batch_rows=batch_rows, device=device)
    moments = 2 * 4 * 2 * V * F * (D + 2)
    rows = 0 if settings[0].decoder_norm == "unit" else 3 * F * D  # directions, and the gradient through their lengths
    penalty = 4 * V * (min(F, D) ** 2 + rows)
    cosines = 4 * (min(F, 2 * BLOCK_ROWS) * F + 2 * F * D)
    task = 4 * F * D * lasting_decoders(settings)
    following = 4 * F * D * 6 if task else 0  # one decoder's derivative by lambda, and what is made on the way
    return (
        step.lasting
        + moments
        + start_bytes(settings, d_model=D)
        + task
        + max(step.passing, penalty, cosines, following)
    )
