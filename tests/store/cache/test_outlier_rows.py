"""Outliers among hand-made rows of two channels."""

import pytest
import torch

from store.cache.outlier_rows import outlier_rows


def found(rows: list[list[float]]):  # noqa: ANN201 - OutlierRows
    x = torch.tensor(rows, dtype=torch.float64)
    mean = x.mean(dim=0)
    return outlier_rows(x.norm(dim=1), x, mean=mean, squared_deviation=float((x - mean).square().sum()))


def test_one_row_at_six_times_the_median_is_an_outlier_with_its_share_of_the_variance() -> None:
    # Norms 1, 1, 1, 1, 6: median 1. Mean (6/5, 0). Squared deviations: of the first two 1.44 + 1 = 2.44 each, of the
    # next two (1 - 1.2)^2 = 0.04 and (-1 - 1.2)^2 = 4.84, of the last (6 - 1.2)^2 = 23.04; together 32.8.
    outliers = found([[0, 1], [0, -1], [1, 0], [-1, 0], [6, 0]])
    assert (outliers.num_rows, outliers.num_outliers, outliers.largest_over_median) == (5, 1, 6.0)
    assert outliers.variance_share == pytest.approx(23.04 / 32.8)
    assert outliers.decide
    assert str(outliers) == (
        "1 of 5 rows has a norm over 5 times the median (the largest 6 times) and holds 70.2% of the variance"
    )


def test_a_row_at_five_times_the_median_is_none() -> None:
    outliers = found([[0, 1], [0, -1], [1, 0], [-1, 0], [5, 0]])
    assert (outliers.num_outliers, outliers.variance_share, outliers.decide) == (0, 0.0, False)


def test_outliers_that_hold_less_than_a_third_of_the_variance_decide_nothing() -> None:
    # 200 rows of norm 1, two of norm 6: the latter hold 72 of 272, the mean being 0.
    outliers = found([[1, 0], [-1, 0]] * 100 + [[0, 6], [0, -6]])
    assert (outliers.num_outliers, outliers.decide) == (2, False)
    assert outliers.variance_share == pytest.approx(72 / 272)


def test_rows_that_are_all_alike_or_mostly_zero_have_figures_too() -> None:
    assert found([[1, 0], [1, 0]]).variance_share == 0.0
    mostly_zero = found([[0, 0], [0, 0], [0, 0], [1, 0]])
    assert mostly_zero.largest_over_median is None
    assert mostly_zero.num_outliers == 1
    assert "(the largest" not in str(mostly_zero)
