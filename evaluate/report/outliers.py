"""The sentence about rows that outweigh all others."""

from pydantic import ValidationError

from evaluate.report.findings import Finding
from evaluate.results import BenchmarkResult
from store.cache.outlier_rows import OutlierRows
from store.errors import StoreError


def outliers_in(result: BenchmarkResult) -> OutlierRows | None:
    """The outliers among the held-out rows of a core result, where they decide its figures; StoreError if damaged."""
    try:
        found = OutlierRows.model_validate(result.details.get("outlier_rows"))
    except ValidationError as error:
        raise StoreError(
            f"expected details.outlier_rows in the result of {result.benchmark} for {result.variant}, found none that "
            "is whole. Remove the file and evaluate again"
        ) from error
    return found if found.decide else None


def outliers_finding(outliers: OutlierRows | None) -> Finding | None:
    """Warns where a few rows decide the figures, and says what to do about it."""
    if outliers is None:
        return None
    return Finding(
        "warning",
        f"A few rows decide the figures: {outliers} of the held-out text. Explained variance, MSE, the scale of the "
        "input and the weight of l1 against the reconstruction describe these rows, and hardly the others. Read CE "
        "recovered and KL, which count every token alike. Do not tune l1 by this: first choose a layer, or text, "
        "without such rows (`pipeline.py store sample` shows tokens of the cache), and harvest again.",
    )
