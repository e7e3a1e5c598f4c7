"""Standard errors by bootstrap against the formula of the mean."""

import numpy as np
import pytest

from evaluate.bootstrap import standard_errors


def test_the_error_of_a_mean_is_the_deviation_over_the_root_of_the_number() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    sums = np.stack([values, np.ones(400)], axis=1)
    errors = standard_errors(sums, lambda totals: {"mean": totals[:, 0] / totals[:, 1]})
    assert errors["mean"] == pytest.approx(values.std() / 20, rel=0.07)


def test_it_is_the_same_every_time_and_what_is_not_finite_is_left_out() -> None:
    sums = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])

    def metrics(totals: np.ndarray) -> dict[str, np.ndarray]:
        return {"sum": totals[:, 0], "ratio": totals[:, 0] / totals[:, 1]}

    errors = standard_errors(sums, metrics)
    assert errors == standard_errors(sums, metrics)
    assert set(errors) == {"sum"}


def test_a_single_sequence_has_no_error_and_not_one_of_zero() -> None:
    assert standard_errors(np.array([[1.0]]), lambda totals: {"sum": totals[:, 0]}) == {}
