"""What is logged about every variant, and its summary in the card.

One record is one row of `COLUMNS` per variant, float64, NaN where a column does not apply. All figures of a record
belong to the same weights and batch: those of the step before its update. Nothing of the machine or the time enters.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from store.sae.geometry import nearest, unit_rows

COLUMNS = (
    "step",  # 0-based number of the step
    "rows",  # rows seen, this batch included
    "loss",  # mse + sparsity_term + auxiliary_term + lambda * scaled_penalty + c (log lambda)^2 where it is learned
    "mse",  # mean over the batch of ||x - x_hat||^2, rows scaled to E||x||^2 = d_model
    "sparsity_term",  # what l1 (jumprelu: l0) stands before, times it: see architectures.py
    "auxiliary_term",  # prefixes of matryoshka-batchtopk, the gate's reconstruction of gated, AuxK
    "l0",  # mean over the batch of the number of latents that fire
    "explained_variance",  # see explained_variance
    "lr",  # learning rate of this step
    "lambda",  # weight of the penalty in this step
    "scaled_penalty",  # what lambda stands before: the variant's own penalty as last computed, over d_sae if per_latent
    "penalty",  # P = ||G - I||_F^2, never divided by d_sae
    "penalty_lower_bound",  # the least P possible, max(0, F^2/d - F)
    "penalty_excess",  # P minus the bound
    "lambda_residual",  # lambda * scaled_penalty + 2 c log(lambda); learned lambdas only
    "hypergradient_cosine",  # c of task_lambdas.py; hypergradient lambdas only
    "dead_latents",  # latents that have not fired within the last dead_after_rows rows
    "mean_max_cosine",  # mean over latents of the largest cosine with another one; every COSINE_EVERY_RECORDS records
    "sparsity_coefficient",  # l1 (jumprelu: l0) of this step, where it follows a target L0
)
COUNTS = ("step", "rows", "dead_latents")
"""Columns that are whole numbers."""
AVERAGED = ("loss", "mse", "sparsity_term", "auxiliary_term", "l0", "explained_variance")
"""Columns that vary with the batch: the card gives their mean over the last `AVERAGED_RECORDS` records."""
AVERAGED_RECORDS = 10
COSINE_EVERY_RECORDS = 10
"""The cosines cost 2 F^2 d, a step 10 B F d: they are not worth it in every record."""


def explained_variance(squared_error: Tensor, x_DB: Tensor, mean_D: Tensor) -> Tensor:
    """1 - sum ||x - x_hat||^2 / sum ||x - mean||^2 over a batch.

    Args:
        squared_error: mean over the batch of ||x - x_hat||^2, (V,).
        x_DB: the batch, one column per row.
        mean_D: the mean of all training rows (exact, from the manifest), scaled as x is; not the batch's own.
    """
    variance = (x_DB.to(torch.float32) - mean_D[:, None]).square().sum(dtype=torch.float64) / x_DB.shape[1]
    return 1.0 - squared_error / variance


def mean_max_cosine(W_dec: Tensor) -> Tensor:
    """Mean over latents of the largest signed cosine with another latent, (); NaN for a single latent.

    `W_dec` is (F, D).
    """
    if len(W_dec) < 2:
        return torch.tensor(math.nan, device=W_dec.device)
    return nearest(unit_rows(W_dec))[0].mean()


def log_lines(records: Tensor, variant: int) -> list[dict[str, Any]]:
    """The log of one variant from all records (num_records, V, columns): a dictionary each, NaN columns left out."""
    lines = []
    for row in records[:, variant].tolist():
        present = {name: value for name, value in zip(COLUMNS, row, strict=True) if not math.isnan(value)}
        lines.append({name: int(value) if name in COUNTS else value for name, value in present.items()})
    return lines


def diverged(record: Tensor, frozen: Sequence[bool]) -> list[int]:
    """The variants of one record (V, columns) whose loss is not finite, those aside that are frozen."""
    losses = record[:, COLUMNS.index("loss")].tolist()
    return [index for index, loss in enumerate(losses) if not math.isfinite(loss) and not frozen[index]]


def averaged_tail(lines: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Means of the noisy columns over the last `AVERAGED_RECORDS` log lines, and how many there were."""
    tail = lines[-AVERAGED_RECORDS:]
    means = {name: math.fsum(line[name] for line in tail) / len(tail) for name in AVERAGED}
    return {**means, "averaged_records": len(tail)}


def log_lambda_range(lines: Sequence[dict[str, Any]], *, final_lambda: float, num_steps: int) -> float:
    """Largest minus smallest log(lambda) over the log lines of the last tenth of the run and the final value."""
    recent = [line["lambda"] for line in lines if line["step"] >= 0.9 * num_steps]
    values = [math.log(value) for value in [*recent, final_lambda]]
    return max(values) - min(values)
