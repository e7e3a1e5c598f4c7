"""README's picture and table are what the code makes of docs/study.json, and the arithmetic behind them is right."""

import json
import math
import re

import pytest

from benchmarks.study_figure import (
    NO_PENALTY,
    PICTURE,
    RESULTS,
    SAE,
    Treatment,
    gains,
    picture,
    spread_out,
    table,
    through,
    treatments,
)
from tests.imports import ROOT


def sae(l1: float, l0: float, explained_variance: float, seed: int = 0) -> SAE:
    return SAE(
        l1=l1, seed=seed, l0=l0, explained_variance=explained_variance, penalty=0.0, mean_max_cosine=0.0,
        lambda_at_end=0.0,
    )  # fmt: skip


def test_the_committed_picture_is_what_the_code_makes_of_the_committed_results() -> None:
    assert PICTURE.read_text() == picture(json.loads(RESULTS.read_text())), (
        "run `make figure` and commit docs/study.svg"
    )


def test_the_readme_s_table_is_what_the_code_makes_of_the_committed_results() -> None:
    (shown,) = re.findall(r"<!-- study -->\n(.*?)\n\n", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    expected = table(json.loads(RESULTS.read_text()))
    assert shown + "\n" == expected, "put the output of `python benchmarks/study_figure.py --table` into README.md"


def test_every_treatment_of_the_study_has_three_l1_and_three_seeds() -> None:
    found = treatments(json.loads(RESULTS.read_text()))
    assert found[0].name == NO_PENALTY
    assert len(found) == 9
    for treatment in found:
        assert sorted({one.l1 for one in treatment.saes}) == [0.75, 1.5, 3.0], treatment.name
        assert all(len(treatment.at(l1)) == 3 for l1 in (0.75, 1.5, 3.0)), treatment.name


def test_a_gain_is_read_from_the_treatment_s_curve_at_the_reference_s_l0() -> None:
    # The treatment explains log(L0)^2 / 100, at L0 e^3 0.09; the reference explains 0.05 there.
    curve = [sae(l1, math.exp(power), power**2 / 100) for l1, power in ((3.0, 2.0), (1.5, 3.5), (0.75, 4.0))]
    reference = Treatment(NO_PENALTY, 0, False, [sae(1.5, math.exp(3.0), 0.05), sae(3.0, math.exp(2.5), 0.9)])
    assert gains(Treatment("fixed 1", 1, False, curve), reference, 1.5) == [pytest.approx(0.04)]


def test_a_gain_compares_saes_of_the_same_seed() -> None:
    reference = Treatment(NO_PENALTY, 0, False, [sae(1.5, 40.0, 0.7, seed=0), sae(1.5, 40.0, 0.8, seed=1)])
    treatment = Treatment("fixed 1", 1, False, [sae(1.5, 40.0, 0.71, seed=0), sae(1.5, 40.0, 0.78, seed=1)])
    assert gains(treatment, reference, 1.5) == [pytest.approx(0.01), pytest.approx(-0.02)]


def test_no_gain_is_read_outside_of_the_treatment_s_curve() -> None:
    treatment = Treatment("fixed 1", 1, False, [sae(3.0, 20.0, 0.5), sae(1.5, 40.0, 0.7)])
    reference = Treatment(NO_PENALTY, 0, False, [sae(1.5, 19.0, 0.5), sae(0.75, 41.0, 0.7)])
    assert gains(treatment, reference, 1.5) == []
    assert gains(treatment, reference, 0.75) == []


def test_a_polynomial_goes_through_its_points() -> None:
    # 2 x^2 - 3 x + 1
    points = [(0.0, 1.0), (1.0, 0.0), (3.0, 10.0)]
    assert through(points, 2.0) == pytest.approx(3.0)
    assert through(points, 3.0) == pytest.approx(10.0)


def test_labels_that_want_the_same_place_are_spread_around_it_and_stay_below_the_top() -> None:
    assert spread_out([100.0, 100.0, 100.0], 0.0) == [80.0, 100.0, 120.0]
    assert spread_out([100.0, 200.0], 0.0) == [100.0, 200.0]
    assert spread_out([10.0, 12.0], 50.0) == [50.0, 70.0]
