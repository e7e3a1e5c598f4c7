"""Which stacked step serves which kind of SAE."""

from collections.abc import Sequence

import torch

from compute.device import product_dtype
from train.architectures import FAST
from train.config import VariantSettings, shape_key
from train.steps.analytic import AnalyticStep
from train.steps.autograd import AutogradStep
from train.steps.initialise import FREE_LENGTH, initial_weights
from train.steps.protocol import Step
from train.steps.topk import THRESHOLD_RATE, threshold_rate


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
    kind = AnalyticStep if isinstance(settings[0].architecture, FAST) else AutogradStep
    rate = THRESHOLD_RATE if num_steps is None else threshold_rate(num_steps)
    return kind(weights, settings, batch_rows=batch_rows, product_dtype=product_dtype(device), threshold_rate=rate)
