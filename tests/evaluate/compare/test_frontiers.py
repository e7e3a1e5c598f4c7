"""Curves over L0: interpolated by hand, never extrapolated, compared at the same seeds."""

import math

import numpy as np
import pytest

from evaluate.compare.cost import cost
from evaluate.compare.frontiers import at_l0, compare_frontiers, frontiers
from tests.evaluate.compare.test_compare import ONE, ZERO, by_name, card

EV = "core/explained_variance"
CARDS = by_name(
    *(
        card(
            f"{name}-{l1:.0f}-{seed}" if (name, l1, seed) != ("baseline", 1.0, 0) else "baseline",
            schedule,
            l1=l1,
            seed=seed,
        )
        for name, schedule in (("baseline", ZERO), ("fixed", ONE))
        for l1 in (1.0, 2.0)
        for seed in (0, 1, 2)
    )
)


def test_between_two_points_it_is_linear_in_the_logarithm_of_l0() -> None:
    points = [(10.0, np.array([0.5, 1.0])), (40.0, np.array([0.7, 3.0]))]
    assert at_l0(points, 20.0).tolist() == pytest.approx([0.6, 2.0])
    assert at_l0(points, 10.0).tolist() == pytest.approx([0.5, 1.0])
    rising = [(10.0, 0.1), (20.0, 0.5), (40.0, 0.55), (80.0, 0.9)]
    values = [float(at_l0([(l0, np.asarray(value)) for l0, value in rising], wanted)) for wanted in range(10, 81)]
    assert values == sorted(values)


@pytest.mark.parametrize("wanted", [9.0, 41.0])
def test_it_is_never_extrapolated(wanted: float) -> None:
    with pytest.raises(ValueError, match="expected an L0 between those trained, 10 and 40, got"):
        at_l0([(10.0, np.array(0.5)), (40.0, np.array(0.7))], wanted)


def measured(*, shift: float = 1.0) -> dict[str, dict[str, float]]:
    """Explained variance is 0.1 log L0 plus the seed's own; `fixed` has `shift` times the L0, and less at the same."""
    found = {}
    for name, variant in CARDS.items():
        fixed = variant.variant["lambda"] == ONE
        l0 = {1.0: 60.0, 2.0: 30.0}[float(variant.variant["l1"])] * (shift if fixed else 1.0)  # type: ignore[arg-type]
        value = 0.1 * math.log(l0) + 0.01 * variant.seed - (0.02 + 0.001 * variant.seed if fixed else 0.0)
        found[name] = {"core/l0": l0, EV: value}
    return found


def test_families_are_subtracted_at_the_l0s_that_both_have() -> None:
    assert {family: sorted(seeds) for family, seeds in frontiers(CARDS).items()} == {
        "baseline": [0, 1, 2], "fixed-1-0": [0, 1, 2]
    }  # fmt: skip
    found = compare_frontiers(CARDS, measured(shift=1.5), without_one={}, shown=(EV,))
    assert [item.l0 for item in found] == pytest.approx([45.0, math.sqrt(45 * 60), 60.0])
    for item in found:
        assert item.comparison.difference.value == pytest.approx(
            -0.021
        )  # as matched L0 alone would not say at equal l1
        assert item.comparison.verdict == "worse"


def test_families_without_a_common_l0_and_single_sparsities_are_not_compared() -> None:
    assert compare_frontiers(CARDS, measured(shift=3.0), without_one={}, shown=(EV,)) == []
    single = {name: variant for name, variant in CARDS.items() if variant.variant["l1"] == 1.0}
    assert frontiers(single) == {}
    assert compare_frontiers(single, measured(), without_one={}, shown=(EV,)) == []


def test_the_text_that_all_share_counts_at_the_same_l0_too() -> None:
    metrics = measured()
    units = {name: {EV: found[EV] + np.arange(5.0) * (1 if "fixed" in name else 0)} for name, found in metrics.items()}
    first, *_ = compare_frontiers(CARDS, metrics, without_one=units, shown=(EV,))
    assert first.comparison.difference.knows_text
    # Without a unit the difference is 0 to 4 more: 4/5 * sum of squares about the mean of 0..4, 10.
    assert first.comparison.difference.standard_error == pytest.approx(math.sqrt(8.0 + 0.001**2 / 3), rel=1e-6)


def test_the_cost_of_a_penalty_is_that_of_its_products() -> None:
    plain, gram = cost(CARDS["baseline"]), cost(CARDS["fixed-1-0"])
    assert plain is not None
    assert gram is not None
    assert plain.share == 0.0
    # F 4, d 2, B 4: 4 F d d over 10 B d F is 0.4 * 2 / 4.
    assert gram.share == pytest.approx(0.2)
    assert gram.own_bytes == 16 * (2 * 8 + 6)
    often = cost(card("m", ONE, penalty={"kind": "max-cosine", "every_steps": 5, "chunk_latents": 2}))
    assert often is not None
    assert often.share == pytest.approx(0.2 * 2 / 4 / 5)
