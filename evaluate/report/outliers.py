"""The sentence about rows that outweigh all others."""

from collections.abc import Mapping
from typing import Any

from evaluate.report.findings import Finding
from store.cache.outlier_rows import OutlierRows


def outliers_in(details: Mapping[str, Any]) -> OutlierRows | None:
    """The outliers that the details of a core result tell of, where they decide its figures."""
    found = OutlierRows(**details["outlier_rows"])
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
