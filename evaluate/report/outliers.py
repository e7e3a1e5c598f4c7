"""The sentence about rows that outweigh all others."""

from collections.abc import Mapping

from pydantic import ValidationError

from evaluate.report.findings import Finding
from evaluate.results import BenchmarkResult
from store.cache.outlier_rows import OutlierRows
from store.errors import StoreError
from store.sae.artefact import SAECard


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
        "recovered and KL, which count every token alike. Do not tune l1 by this: first leave such rows out, with "
        "`train.max_norm: {times_median: 5}`, or choose a layer or text without them.",
    )


def limit_finding(cards: Mapping[str, SAECard], metrics: Mapping[str, Mapping[str, float]]) -> Finding | None:
    """Says that figures leave out rows above the limit of the norm, and what they are with them."""
    limited = {
        name: values
        for name, values in metrics.items()
        if cards[name].norm_limit is not None and values["core/num_rows"] < values["core/num_rows_all_rows"]
    }
    if not limited:
        return None
    name, values = next(iter(limited.items()))
    left_out = values["core/num_rows_all_rows"] - values["core/num_rows"]
    return Finding(
        "note",
        f"Explained variance, MSE, cosine similarity, L0 and L1 leave out rows above the limit of the norm that SAEs "
        f"were trained with: {left_out:,.0f} of {values['core/num_rows_all_rows']:,.0f} held-out rows. Explained "
        f"variance of {name} is {values['core/explained_variance']:.4f} without these rows and "
        f"{values['core/explained_variance_all_rows']:.4f} with them. Losses of the language model count every token.",
    )
