"""What the benchmarks of training results share: variants trained in this process, and their held-out figures."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compute.progress import progress
from store.cache.split import Split
from store.read.batches import Position
from store.read.cache import ActivationCache
from store.sae.weights import SAEWeights, decode, encode
from train.config import TrainConfig, VariantSettings, shape_key
from train.group import make_group
from train.metrics import mean_max_cosine
from train.task import cache_batches, plan_run

_ROWS_AT_ONCE = 4096


class Figures(NamedTuple):
    """What came of one variant. On held-out rows within the limit of the norm where there is one, else on all."""

    explained_variance: float
    """1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean being that of the held-out rows."""
    l0: float
    max_cosine: float
    """Mean over latents of the largest cosine with another one."""
    training_l0: float
    """That of the trained SAE on as many training rows, spread over the cache: what a target L0 speaks of."""
    coefficient: float
    """Sparsity coefficient of the last step; 0 for kinds that select k latents."""


def train_and_measure(
    config: TrainConfig, settings: Mapping[str, VariantSettings], cache: ActivationCache, *, num_threads: int
) -> dict[str, Figures]:
    """Trains all variants on the same batches, as the stage does, and measures them."""
    torch.set_num_threads(num_threads)
    plan, device = plan_run(config, cache.manifest, cache.files, hook=config.hook), torch.device("cpu")
    names: dict[object, list[str]] = {}
    for name, variant in settings.items():
        names.setdefault(shape_key(variant), []).append(name)
    members = list(names.values())
    groups = [
        make_group(
            [settings[name] for name in some],
            num_steps=plan.num_steps,
            batch_rows=config.batch_rows,
            scale=plan.scale,
            mean=plan.mean,
            device=device,
        )
        for some in members
    ]
    coefficient: dict[str, float] = {}
    stream = cache_batches(
        cache, config, Position(), hook=config.hook, device=device, num_threads=num_threads, within=plan.rows_within
    )  # fmt: skip
    with stream, progress("train", total=plan.num_steps, unit="step") as bar:
        for step in range(plan.num_steps):
            rows_BD = next(stream)
            for group, some in zip(groups, members, strict=True):
                coefficient |= dict(zip(some, group.sparsity.at(step).tolist(), strict=True))
                group.step(rows_BD)
            bar.update(1)
    limit = None if plan.limit is None else plan.limit.squared_norm
    held_out, training = (_rows(cache, config.hook, split, limit) * plan.scale for split in ("held_out", "training"))
    return {
        name: _figures(sae, held_out, training, coefficient=coefficient[name])
        for group, some in zip(groups, members, strict=True)
        for name, sae in zip(some, group.trained_weights(), strict=True)
    }


def _rows(cache: ActivationCache, hook: str, split: Split, squared_norm: float | None) -> Tensor:
    """All held-out rows, or as many training rows, spread over the cache; (rows, d_model)."""
    count = cache.manifest.split_rows("held_out")
    numbers = np.linspace(0, cache.manifest.split_rows(split) - 1, count).astype(np.int64)
    x = torch.from_numpy(cache.rows(hook, numbers, split=split)).view(torch.bfloat16).to(torch.float32)
    return x if squared_norm is None else x[x.square().sum(1) < squared_norm]


def _figures(sae: SAEWeights, held_out: Tensor, training: Tensor, *, coefficient: float) -> Figures:
    error, l0 = _error_and_l0(sae, held_out)
    variance = float((held_out - held_out.mean(0)).square().sum(dtype=torch.float64))
    cosine = float(mean_max_cosine(sae.W_dec))
    return Figures(1.0 - error / variance, l0, cosine, _error_and_l0(sae, training)[1], coefficient)


def _error_and_l0(sae: SAEWeights, x: Tensor) -> tuple[float, float]:
    """Summed squared error and mean number of latents that fire, of rows (N, d_model)."""
    error = active = 0.0
    for rows in x.split(_ROWS_AT_ONCE):
        latents = encode(sae, rows)
        error += float((rows - decode(sae, latents)).square().sum(dtype=torch.float64))
        active += float((latents > 0).sum())
    return error, active / len(x)
