"""Errors by leaving each unit out, against formulas, against a bootstrap, and in differences."""

import numpy as np
import pytest

from evaluate.jackknife import as_arrays, from_arrays, standard_error, standard_errors, without_one, without_one_task


def ratio(totals: np.ndarray) -> dict[str, np.ndarray]:
    return {"mean": totals[:, 0] / totals[:, 1]}


def test_the_error_of_a_mean_is_the_deviation_over_the_root_of_the_number() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    errors = standard_errors(without_one(np.stack([values, np.ones(400)], axis=1), ratio))
    assert errors["mean"] == pytest.approx(values.std(ddof=1) / 20, rel=1e-9)


def test_the_error_of_a_ratio_is_that_of_a_bootstrap_over_the_same_sequences() -> None:
    generator = np.random.default_rng(1)
    below = generator.gamma(5.0, size=192)
    sums = np.stack([below * generator.normal(0.3, 0.05, size=192), below], axis=1)
    counts = generator.multinomial(192, np.full(192, 1 / 192), 4000)
    drawn = ratio(counts @ sums)["mean"]
    assert standard_errors(without_one(sums, ratio))["mean"] == pytest.approx(drawn.std(), rel=0.05)


def test_what_two_metrics_have_in_common_cancels_in_their_difference() -> None:
    # Each sequence is as hard for both; the second is always 1 better.
    hard = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    first = without_one(np.stack([hard, np.ones(6)], axis=1), ratio)["mean"]
    second = without_one(np.stack([hard + 1.0, np.ones(6)], axis=1), ratio)["mean"]
    assert standard_error(first) > 1.0
    assert standard_error(second - first) == pytest.approx(0.0, abs=1e-12)


def test_fewer_than_five_units_and_what_is_not_finite_have_no_error() -> None:
    assert without_one(np.ones((4, 2)), ratio) == {}
    assert without_one(np.array([[1.0, 1.0], *[[1.0, 0.0]] * 5]), ratio) == {}


def test_tasks_of_several_data_sets_are_left_out_one_by_one() -> None:
    scores = [{"a": {"m": 1.0}, "b": {"m": 0.0}, "c": {"m": 0.5}}, {"d": {"m": 0.2}, "e": {"m": 0.4}}]
    values = without_one_task(scores)["m"]
    # Without a: (mean(0, .5) + mean(.2, .4)) / 2 = (.25 + .3) / 2; without d: (.5 + .4) / 2.
    assert values[0] == pytest.approx(0.275)
    assert values[3] == pytest.approx(0.45)
    assert without_one_task([{"a": {"m": 1.0}, "b": {"m": 0.0}}]) == {}  # two tasks say nothing about others
    assert without_one_task([{"a": {"m": 1.0}}, *scores]) == {}
    five = [{name: {"m": value} for name, value in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)}]
    # The deviation of these is sqrt(0.025), over the root of five.
    assert standard_error(without_one_task(five)["m"]) == pytest.approx((0.025 / 5) ** 0.5)


def test_they_are_kept_as_arrays_beside_others() -> None:
    kept = as_arrays({"m": np.arange(5.0)}) | {"top_rows": np.arange(3)}
    assert list(from_arrays(kept)) == ["m"]
    assert from_arrays(kept)["m"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
