"""The sentence about rows that outweigh all others, and the advice that it takes back."""

import pytest
from pydantic import JsonValue

from evaluate.report.findings import baseline_sparsity_finding
from evaluate.report.outliers import limit_finding, outliers_finding, outliers_in
from evaluate.results import BenchmarkResult
from store.cache.norm_limit import NormLimit
from store.cache.outlier_rows import OutlierRows
from store.errors import StoreError
from store.record import digest
from tests.evaluate.report.test_findings import card

DECIDING = OutlierRows(num_rows=30_000, num_outliers=86, largest_over_median=12.0, variance_share=0.83)


def core_result(outliers: JsonValue) -> BenchmarkResult:
    return BenchmarkResult(
        format="result/3", benchmark="core", variant="baseline", key=digest({}), inputs={}, metrics={"l0": 1.0},
            basis={}, standard_errors={}, remarks=[],
        details={"outlier_rows": outliers},
    )  # fmt: skip


def test_rows_that_hold_most_of_the_variance_are_a_warning_with_what_to_read_and_to_do() -> None:
    finding = outliers_finding(outliers_in(core_result(DECIDING.model_dump())))
    assert finding is not None
    assert finding.kind == "warning"
    assert finding.text.startswith(
        "A few rows decide the figures: 86 of 30,000 rows have a norm over 5 times the median (the largest 12 times) "
        "and hold 83.0% of the variance of the held-out text."
    )
    assert "Read CE recovered and KL" in finding.text
    assert "Do not tune l1 by this" in finding.text


def test_rows_that_hold_little_are_no_finding() -> None:
    few = DECIDING.model_dump() | {"variance_share": 0.33}
    assert outliers_finding(outliers_in(core_result(few))) is None


def test_a_result_that_tells_of_no_rows_is_damaged() -> None:
    for damaged in (None, {"num_rows": 3}):
        with pytest.raises(StoreError, match=r"expected details\.outlier_rows in the result of core for baseline"):
            outliers_in(core_result(damaged))


def test_another_l1_is_not_advised_where_a_few_rows_decide_the_figures() -> None:
    for l0, advice in ((0.7, "Lower l1"), (300.0, "Raise l1")):
        plain, taken_back = (baseline_sparsity_finding(l0, outliers=outliers) for outliers in (False, True))
        assert plain is not None
        assert advice in plain.text
        assert taken_back is not None
        assert advice not in taken_back.text
        assert "Its l1 was weighed against the few rows that decide the figures" in taken_back.text


def test_figures_within_a_limit_stand_beside_those_of_all_rows() -> None:
    limit = NormLimit(
        times_median=5.0, median=2.0, squared_norm=100.0, num_rows=1000, num_rows_above=3, variance_share_above=0.8
    )
    values = {
        "core/num_rows": 980.0, "core/num_rows_all_rows": 1000.0, "core/explained_variance": 0.806,
        "core/explained_variance_all_rows": 0.94,
    }  # fmt: skip
    limited = {"baseline": card("baseline").model_copy(update={"norm_limit": limit})}
    finding = limit_finding(limited, {"baseline": values})
    assert finding is not None
    assert (
        "20 of 1,000 held-out rows. Explained variance of baseline is 0.8060 without these rows and 0.9400"
        in finding.text
    )
    assert limit_finding({"baseline": card("baseline")}, {"baseline": values}) is None
    inside = {"baseline": values | {"core/num_rows": 1000.0}}
    assert limit_finding(limited, inside) is None
