"""Treatments against baselines: who is paired with whom, families, verdicts, and kinds of lambda."""

from typing import Any

import numpy as np
import pytest

from evaluate.compare.comparisons import HEADLINES, Comparisons, compare, family_of, headline_metrics
from evaluate.compare.kinds import kind_of, kinds_compared
from evaluate.report.metrics import cell
from evaluate.report.verdict import statements
from store.sae.artefact import SAECard
from tests.evaluate.compare.test_compare import ONE, ZERO, by_name, card

LEARNED = {"kind": "learned", "start": 1.0}
EV, CE, L0 = "core/explained_variance", "core/ce_loss_score", "core/l0"
CARDS = by_name(
    *(card(f"baseline{'' if seed == 0 else seed}", ZERO, seed=seed) for seed in range(3)),
    *(card(f"fixed{'' if seed == 0 else seed}", ONE, seed=seed) for seed in range(3)),
    *(card(f"learned{'' if seed == 0 else seed}", LEARNED, seed=seed) for seed in range(3)),
)


def values(gain: dict[str, list[float]], metric: str = EV) -> dict[str, dict[str, float]]:
    """Seeds differ much, and treatments by `gain` at each seed."""
    found = {}
    for name, variant in CARDS.items():
        base = [0.5, 0.7, 0.6][variant.seed]
        treatment = name.rstrip("12")
        found[name] = {metric: base + gain.get(treatment, [0.0] * 3)[variant.seed], L0: 46.0}
    return found


def compared(metrics: dict[str, dict[str, float]], cards: dict[str, SAECard] = CARDS, **units: Any) -> Comparisons:  # noqa: ANN401
    return compare(cards, metrics, errors={}, without_one=units)


def test_differences_are_taken_at_each_seed_so_that_what_seeds_have_in_common_cancels() -> None:
    found = compared(values({"fixed": [0.010, 0.011, 0.0105], "learned": [0.02, -0.01, 0.0]}))
    assert found.pairs["fixed"] == (("fixed", "baseline"), ("fixed1", "baseline1"), ("fixed2", "baseline2"))
    fixed, learned = found.of("fixed", EV), found.of("learned", EV)
    assert fixed is not None
    assert learned is not None
    assert fixed.difference.value == pytest.approx(0.0105)
    assert (fixed.verdict, learned.verdict) == ("better", "same")
    assert found.of("baseline", EV) is None
    shown = cell(found, "fixed", EV)
    assert shown is not None
    assert shown.value == pytest.approx(0.6105)
    assert shown.half_width == pytest.approx(4.3027 * 0.0005 / 3**0.5, rel=1e-3)


def test_a_lower_loss_is_better_and_l0_is_neither() -> None:
    metrics = values({"fixed": [-0.010, -0.011, -0.0105]}, "core/mse")
    found = compared(metrics)
    assert found.found["fixed", "core/mse"].verdict == "better"
    assert found.found["fixed", L0].verdict == "neutral"


def test_p_values_are_corrected_for_all_headlines_together_and_others_by_benchmark() -> None:
    assert {EV, CE, "sparse_probing/sae_top_1_test_accuracy"} <= set(headline_metrics())
    assert not [name for name in headline_metrics() if name.startswith(("geometry", "latents"))]
    assert (family_of(EV), family_of("core/mse")) == (HEADLINES, "core")
    metrics = values({"fixed": [0.010, 0.011, 0.0105]})
    for name in metrics:
        metrics[name][CE] = metrics[name][EV]
    found = compared(metrics)
    one = found.found["fixed", EV]
    # fixed and learned on two figures: four comparisons, of which both of learned are exactly no difference.
    assert len(found.family(HEADLINES)) == 4
    assert one.p_corrected == pytest.approx(4 * (one.difference.p_value or 0.0))


def test_variants_without_a_partner_of_their_seed_are_not_compared_and_missing_metrics_do_not_hide_others() -> None:
    cards = {name: CARDS[name] for name in ("baseline", "fixed1", "fixed2", "learned", "learned1")}
    metrics = {name: found for name, found in values({}).items() if name in cards}
    metrics["learned1"] = {}
    found = compared(metrics, cards)
    assert found.baseline == {"baseline": "baseline", "fixed1": "baseline", "learned": "baseline"}
    assert found.pairs["fixed1"] == ()
    assert found.of("fixed1", EV) is None
    alone = found.of("learned", EV)
    assert alone is not None
    assert (alone.difference.num_seeds, alone.verdict) == (1, "same")
    assert found.groups["learned"].spreads[EV].mean == pytest.approx(0.5)


def test_units_that_two_saes_do_not_share_are_not_paired() -> None:
    metrics = values({"fixed": [0.01, 0.02, 0.0]})
    units = {name: {EV: np.full(5, found[EV])} for name, found in metrics.items()}
    assert compared(metrics, **units).found["fixed", EV].difference.knows_text
    units["fixed1"] = {EV: np.full(6, 0.7)}
    assert not compared(metrics, **units).found["fixed", EV].difference.knows_text


def test_kinds_of_lambda_are_compared_with_each_other_at_the_same_seeds() -> None:
    assert [kind_of(CARDS[name]) for name in ("baseline", "fixed", "learned")] == ["none", "fixed", "learned"]
    assert kind_of(card("s", {"kind": "cosine", "start": 1.0, "end": 2.0})) == "scheduled"
    metrics = values({"fixed": [-0.05, -0.05, -0.051], "learned": [-0.01, -0.012, -0.011]})
    found = compared(metrics)
    (pair,) = kinds_compared(found, CARDS, metrics, errors={}, without_one={}, shown=[EV])
    assert (pair.treatment, pair.baseline, pair.verdict) == ("learned", "fixed", "better")
    assert pair.difference.value == pytest.approx(0.118 / 3)


def said(gain: dict[str, list[float]], cards: dict[str, SAECard] = CARDS, l0: float = 46.0) -> dict[str, str]:
    metrics = {name: found for name, found in values(gain).items() if name in cards}
    for name in metrics:
        metrics[name][L0] = l0 if name.startswith("fixed") else 46.0
    found = compared(metrics, cards)
    kinds = kinds_compared(found, cards, metrics, errors={}, without_one={}, shown=[EV])
    return {item.label: item.text for item in statements(found, kinds, cards, found.means())}


def test_the_verdict_is_made_from_differences_and_their_intervals() -> None:
    text = said({"fixed": [-0.050, -0.052, -0.051], "learned": [0.01, -0.012, 0.001]})
    assert text["Does it help?"] == (
        "2 treatments on 1 headline figure, each against the baseline of its seed: 0 better, 1 worse, 1 with no "
        "difference found. Explained variance: worse in fixed -0.0510 (-0.0535 to -0.0485); no difference found in "
        "learned -0.000 (-0.028 to +0.027)."
    )
    assert (
        "no penalty 0.6000 (baseline), learned 0.5997 (learned) and fixed 0.5490 (fixed)"
        in (text["Fixed, scheduled or learned?"])
    )
    assert "learned minus fixed +0.051 (+0.026 to +0.076)" in text["Fixed, scheduled or learned?"]
    assert text["At matched sparsity?"] == "Yes: mean L0 is 46 to 46, each within 10% of its baseline's."
    assert "With 3 seeds a t interval has 2 degrees of freedom and reaches 4.3 standard errors." in text["How sure?"]
    assert "To be called first of 2, a difference must be 6 standard errors." in text["How sure?"]
    assert "with 6 of the same spread" in text["What would change it?"]


def test_the_verdict_says_where_sparsity_differs_and_that_one_seed_is_none() -> None:
    text = said({}, l0=60.0)
    assert text["At matched sparsity?"].startswith(
        "No: mean L0 is 46 to 60. More than 10% from the baseline's: fixed +30%"
    )
    one = said({"fixed": [0.1] * 3}, {name: CARDS[name] for name in ("baseline", "fixed")})
    assert one["How sure?"].startswith("One seed: intervals are of the text alone, and hold for these pairs of SAEs.")
    assert "fixed +0.1 (no interval)" in one["Does it help?"]
    assert "Only one kind of lambda was trained" in one["Fixed, scheduled or learned?"]
    assert "there is none yet" in said({}, {"baseline": CARDS["baseline"]})["The answer"]
