"""Rows whose norm is far above the others'. Where they hold much of the variance, few rows decide explained variance,
mean squared error and the scale of the input, and l1 is weighed against them.

Language models have such rows at some tokens and layers (Sun et al. 2024, "Massive Activations in Large Language
Models"), others have none there.
"""

from torch import Tensor

from store.record import Record

TIMES_MEDIAN = 5.0
"""A row is an outlier above so many times the median norm."""
DECIDING_SHARE = 1 / 3
"""Outliers decide the figures above this share of the summed squared deviation from the mean."""


class OutlierRows(Record):
    """How much some rows hold of the summed squared deviation of all rows from their mean."""

    num_rows: int
    num_outliers: int
    largest_over_median: float | None
    """Norm of the largest row over the median norm; None where that is 0."""
    variance_share: float
    """Of the outliers."""

    @property
    def decide(self) -> bool:
        """Whether figures over all rows describe little but the outliers."""
        return self.variance_share > DECIDING_SHARE

    def __str__(self) -> str:
        have, hold = ("has", "holds") if self.num_outliers == 1 else ("have", "hold")
        ratio = self.largest_over_median
        largest = "" if ratio is None else f" (the largest {ratio:,.4g} times)"
        return (
            f"{self.num_outliers:,} of {self.num_rows:,} rows {have} a norm over {TIMES_MEDIAN:g} times the median"
            f"{largest} and {hold} {self.variance_share:.1%} of the variance"
        )


def outlier_rows(norms: Tensor, largest: Tensor, *, mean: Tensor, squared_deviation: float) -> OutlierRows:
    """Finds the outliers among the `largest` rows.

    Args:
        norms: of all rows, (n,).
        largest: the rows of largest norm, or all, (m, d), float64. Outliers that are not among them count as others.
        mean: of all rows, (d,), float64.
        squared_deviation: sum over all rows of ||x - mean||^2.
    """
    median = float(norms.median())
    outliers = largest[largest.norm(dim=1) > TIMES_MEDIAN * median]
    held = float((outliers - mean).square().sum())
    return OutlierRows(
        num_rows=len(norms),
        num_outliers=len(outliers),
        largest_over_median=float(norms.max()) / median if median > 0.0 else None,
        variance_share=held / squared_deviation if squared_deviation > 0.0 else 0.0,
    )
