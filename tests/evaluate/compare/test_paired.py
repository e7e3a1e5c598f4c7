"""Differences on the same seeds and text: by hand, against scipy and statsmodels, and how often they err."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evaluate.compare.paired import critical_t, holm, paired_difference
from evaluate.jackknife import standard_error


def test_over_seeds_it_is_the_paired_t_test() -> None:
    first, second = [0.71, 0.74, 0.69], [0.70, 0.72, 0.685]
    found = paired_difference(list(zip(first, second, strict=True)))
    # Differences 0.01, 0.02, 0.005: mean 0.011667, deviation 0.0076376.
    assert found.value == pytest.approx(0.035 / 3)
    assert found.standard_error == pytest.approx(0.0076376 / 3**0.5, rel=1e-4)
    assert found.p_value == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found.interval() == pytest.approx(tuple(stats.ttest_rel(first, second).confidence_interval(0.95)))
    assert critical_t(2) == pytest.approx(4.3027, abs=1e-4)


def test_what_all_seeds_share_in_their_text_is_added_to_the_spread_over_seeds() -> None:
    # Both seeds gain on the first text and lose on the others: the mean gain is as uncertain as five texts are.
    gain = np.array([5.0, -1.0, 0.0, 1.0, 0.0])
    without = (gain.sum() - gain) / 4
    pairs = [(without + 3.0, np.full(5, 3.0)), (without + 7.0, np.full(5, 7.0))]
    found = paired_difference([(4.0, 3.0), (8.5, 7.0)], without_one=pairs)
    seeds = (0.5**2 / 2) / 2  # variance of 1 and 1.5 is 0.125, over two
    text = np.var(gain, ddof=1) / 5
    assert standard_error(without) ** 2 == pytest.approx(text)
    assert found.standard_error == pytest.approx(math.sqrt(seeds + text))
    assert found.degrees_of_freedom == 1
    assert found.knows_text


def test_one_seed_has_the_error_of_its_text_alone_and_without_that_none() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 6.0])
    found = paired_difference([(2.0, 1.0)], without_one=[(values, np.ones(5))])
    assert found.standard_error == pytest.approx(standard_error(values))
    assert (found.num_seeds, found.degrees_of_freedom) == (1, 4)
    independent = paired_difference([(2.0, 1.0)], own_errors=[(0.3, 0.4)])
    assert independent.standard_error == pytest.approx(0.5)
    assert independent.half_width() == pytest.approx(1.96 * 0.5, rel=1e-3)
    unknown = paired_difference([(2.0, 1.0)])
    assert (unknown.standard_error, unknown.p_value, unknown.interval()) == (None, None, None)


def test_independent_errors_are_part_of_the_spread_over_seeds_and_not_added() -> None:
    pairs = [(2.0, 1.0), (3.0, 1.0)]
    assert paired_difference(pairs, own_errors=[(9.0, 9.0)] * 2) == paired_difference(pairs)


def test_no_difference_at_all_is_none_and_one_that_is_the_same_at_every_seed_has_no_p_value() -> None:
    assert paired_difference([(1.0, 1.0), (2.0, 2.0)]).p_value == 1.0
    assert paired_difference([(2.0, 1.0), (3.0, 2.0)]).p_value is None


def test_holm_is_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(0).beta(0.3, 2.0, size=30)
    expected = multipletests(p_values, method="holm")[1]
    assert list(holm(dict(enumerate(p_values))).values()) == pytest.approx(expected)
    assert holm({"a": 0.01, "b": 0.02, "c": 0.9}) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.9})


@pytest.mark.parametrize("share_of_text", [0.0, 0.5, 1.0])
def test_of_no_differences_at_most_as_many_are_called_as_the_level_says(share_of_text: float) -> None:
    generator = np.random.default_rng(1)
    called = 0
    for _ in range(400):
        text = generator.normal(size=40) * math.sqrt(40 * share_of_text)
        seeds = generator.normal(size=3) * math.sqrt(3 * (1.0 - share_of_text))
        without = (text.sum() - text) / 39
        found = paired_difference(
            [(float(seed + text.mean()), 0.0) for seed in seeds],
            without_one=[(without + seed, np.zeros(40)) for seed in seeds],
        )
        assert found.p_value is not None
        called += found.p_value < 0.05
    # 20 of 400 are expected where seeds are all there is, and 36 or more happen once in 1000 times.
    assert called < 36
