"""What the benchmarks of training results share: variants trained in this process, and their held-out figures."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from compute.progress import progress
from store.read.batches import Position
from store.read.cache import ActivationCache
from store.sae.weights import decode, encode
from train.config import TrainConfig, VariantSettings, shape_key
from train.group import VariantGroup, make_group
from train.metrics import COLUMNS, mean_max_cosine
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
    """Mean over the last tenth of the steps of the batch's L0."""
    coefficient: float
    """Sparsity coefficient of the last step; 0 for kinds that select k latents."""


def train_and_measure(
    config: TrainConfig, settings: Mapping[str, VariantSettings], cache: ActivationCache, *, num_threads: int
) -> dict[str, Figures]:
    """Trains all variants on the same batches, as the stage does, and measures them."""
    torch.set_num_threads(num_threads)
    plan, device = plan_run(config, cache.manifest), torch.device("cpu")
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
    last = range(plan.num_steps - max(1, plan.num_steps // 10), plan.num_steps)
    l0 = dict.fromkeys(settings, 0.0)
    coefficient = dict(l0)
    stream = cache_batches(
        cache, config, Position(), device=device, num_threads=num_threads, within=plan.rows_within
    )  # fmt: skip
    with stream, progress("train", total=plan.num_steps, unit="step") as bar:
        for step in range(plan.num_steps):
            rows_BD = next(stream)
            for group, some in zip(groups, members, strict=True):
                if step == last[-1]:
                    coefficient |= dict(zip(some, group.sparsity.at(step).tolist(), strict=True))
                record = group.step(rows_BD, log=step in last)
                if record is not None:
                    for name, value in zip(some, record[:, COLUMNS.index("l0")].tolist(), strict=True):
                        l0[name] += value / len(last)
            bar.update(1)
    limit = None if plan.limit is None else plan.limit.squared_norm
    x = _held_out_rows(cache, config.hook, limit) * plan.scale
    return {
        name: _figures(group, index, x, training_l0=l0[name], coefficient=coefficient[name])
        for group, some in zip(groups, members, strict=True)
        for index, name in enumerate(some)
    }


def _held_out_rows(cache: ActivationCache, hook: str, squared_norm: float | None) -> torch.Tensor:
    bits = cache.rows(hook, np.arange(cache.manifest.split_rows("held_out")), split="held_out")
    x = torch.from_numpy(bits).view(torch.bfloat16).to(torch.float32)
    return x if squared_norm is None else x[x.square().sum(1) < squared_norm]


def _figures(
    group: VariantGroup, index: int, x: torch.Tensor, *, training_l0: float, coefficient: float
) -> Figures:  # fmt: skip
    sae = list(group.trained_weights())[index]
    error = active = 0.0
    for rows in x.split(_ROWS_AT_ONCE):
        latents = encode(sae, rows)
        error += float((rows - decode(sae, latents)).square().sum(dtype=torch.float64))
        active += float((latents > 0).sum())
    variance = float((x - x.mean(0)).square().sum(dtype=torch.float64))
    cosine = float(mean_max_cosine(sae.W_dec))
    return Figures(1.0 - error / variance, active / len(x), cosine, training_l0, coefficient)
