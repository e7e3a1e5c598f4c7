"""Sums over held-out rows and what an SAE makes of them, in float64 and by sequence, for figures and their errors."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.jackknife import without_one
from store.cache.outlier_rows import OutlierRows, outlier_rows

TOP_SHARE = 0.01
"""Of the rows: those of largest norm, whose share of the variance is told and among which outliers are sought."""


@dataclass(frozen=True)
class RowFigures:
    """What the sums give."""

    metrics: dict[str, float]
    """explained_variance, mse, cosine_similarity, l0, l1; see benchmarks/core.py."""
    without_one: dict[str, NDArray[np.float64]]
    """Of these, their values without each of the sequences that have rows."""
    num_rows: int
    firing_counts: Tensor
    """Rows on which each latent is above zero, (F,) int64."""
    num_constant_latents: int
    """Latents with one and the same activation on every row; the dead ones are among them."""
    top_rows_variance_share: float
    """What the `TOP_SHARE` of rows with the largest norms hold of the summed squared deviation from the mean."""
    outlier_rows: OutlierRows
    """Among those rows."""


class RowStatistics:
    """Adds up batches of rows.

    Args:
        num_sequences: that the rows come from.
        most_rows: upper bound of the number of rows.
        d_model, d_sae: sizes of the SAE.
        device: where rows are.
    """

    def __init__(self, *, num_sequences: int, most_rows: int, d_model: int, d_sae: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self._row_sum = zeros(num_sequences, d_model)
        self._square, self._residual, self._cosine, self._l0, self._l1, self._count = zeros(6, num_sequences)
        self._firing = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._least = torch.full((d_sae,), math.inf, device=device)
        self._most = torch.full((d_sae,), -math.inf, device=device)
        self._norms: list[Tensor] = []
        self._most_top_rows = num_top_rows(most_rows)
        self._top = torch.empty(0, d_model, device=device)

    def add(self, x: Tensor, latents: Tensor, reconstruction: Tensor, sequence: Tensor) -> None:
        """One batch: rows (n, d), their latents (n, F), reconstructions (n, d) and sequences (n,)."""
        wide, output = x.double(), reconstruction.double()
        self._row_sum.index_add_(0, sequence, wide)
        for sums, values in (
            (self._square, wide.square().sum(dim=1)),
            (self._residual, (wide - output).square().sum(dim=1)),
            (self._cosine, torch.cosine_similarity(wide, output, dim=-1)),
            (self._l0, (latents > 0).sum(dim=1).double()),
            (self._l1, latents.double().sum(dim=1)),
            (self._count, torch.ones_like(wide[:, 0])),
        ):
            sums.index_add_(0, sequence, values)
        self._firing += (latents > 0).sum(dim=0)
        self._least = torch.minimum(self._least, latents.amin(dim=0))
        self._most = torch.maximum(self._most, latents.amax(dim=0))
        self._norms.append(wide.norm(dim=1))
        self._top = largest(torch.cat([self._top.to(x.dtype), x]), self._most_top_rows)

    def figures(self) -> RowFigures:
        """The figures over all rows that were added. Raises ValueError where there are none, or none that vary."""
        num_rows = int(self._count.sum())
        if num_rows == 0:
            raise ValueError("expected held-out text with tokens other than BOS, EOS and padding, got none")
        mean = self._row_sum.sum(dim=0) / num_rows
        deviation = self._square - 2.0 * self._row_sum @ mean + self._count * mean.square().sum()
        variance_sum = float(self._square.sum()) - num_rows * float(mean.square().sum())
        if variance_sum <= 0.0:
            raise ValueError(f"expected held-out activations that vary, got {num_rows} rows that are all the same")
        top = largest(self._top, num_top_rows(num_rows)).double()
        sums = (
            torch.stack([self._count, self._residual, deviation, self._cosine, self._l0, self._l1], dim=1).cpu().numpy()
        )
        return RowFigures(
            metrics={
                "explained_variance": 1.0 - float(self._residual.sum()) / variance_sum,
                "mse": float(self._residual.sum()) / num_rows,
                "cosine_similarity": float(self._cosine.sum()) / num_rows,
                "l0": float(self._l0.sum()) / num_rows,
                "l1": float(self._l1.sum()) / num_rows,
            },
            without_one=without_one(sums[sums[:, 0] > 0], _from_totals),
            num_rows=num_rows,
            firing_counts=self._firing.cpu(),
            num_constant_latents=int((self._least == self._most).sum()),
            top_rows_variance_share=float((top - mean).square().sum()) / variance_sum,
            outlier_rows=outlier_rows(torch.cat(self._norms), top, mean=mean, squared_deviation=variance_sum),
        )


def _from_totals(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Metrics of totals (n, 6); the mean row stays that of all sequences."""
    rows, residual, deviation, cosine, l0, l1 = totals.T
    return {
        "explained_variance": 1.0 - residual / deviation,
        "mse": residual / rows,
        "cosine_similarity": cosine / rows,
        "l0": l0 / rows,
        "l1": l1 / rows,
    }


def num_top_rows(num_rows: int) -> int:
    """`TOP_SHARE` of them, at least one."""
    return math.ceil(TOP_SHARE * num_rows)


def largest(rows: Tensor, count: int) -> Tensor:
    """Up to `count` rows (n, d) of largest norm."""
    return rows[rows.double().norm(dim=1).topk(min(count, len(rows))).indices]
