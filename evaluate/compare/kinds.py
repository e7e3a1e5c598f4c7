"""Fixed, scheduled and learned lambdas against each other, at the same seeds."""

from collections.abc import Mapping
from itertools import combinations
from typing import Literal, get_args

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparison, Comparisons, Units, Values, corrected, difference_of
from evaluate.compare.treatments import digest_without_treatment
from store.sae.artefact import SAECard

Kind = Literal["none", "fixed", "scheduled", "learned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCHEDULES = ("linear", "cosine", "exponential", "piecewise")
FAMILY = "kinds of lambda"


def kind_of(card: SAECard) -> Kind:
    """How the lambda of a variant comes about: `learned` is whatever follows the training."""
    settings = card.variant["lambda"]
    if not isinstance(settings, Mapping):
        raise TypeError(f"expected a record as lambda in the card of {card.name}, got {settings!r}")
    kind = settings["kind"]
    if kind == "fixed":
        return "none" if settings.get("value") == 0.0 else "fixed"
    return "scheduled" if kind in SCHEDULES else "learned"


def kinds_compared(
    comparisons: Comparisons,
    cards: Mapping[str, SAECard],
    metrics: Values,
    *,
    errors: Values,
    without_one: Units,
    shown: list[str],
) -> list[Comparison]:
    """Every treatment minus every other one of another kind, where they differ in the treatment alone.

    `treatment` of a comparison is the one of the later kind (learned before scheduled before fixed), `baseline` the
    other. `shown` are the metrics. Corrected for their number, as a family of their own.
    """
    names = [name for name in comparisons.groups if kind_of(cards[name]) != "none"]
    order = {name: KINDS.index(kind_of(cards[name])) for name in names}
    found = {}
    for one, other in combinations(sorted(names, key=lambda name: order[name]), 2):
        if order[one] == order[other] or digest_without_treatment(cards[one]) != digest_without_treatment(cards[other]):
            continue
        pairs = _pairs(other, one, comparisons, cards)
        for metric in shown:
            difference = difference_of(pairs, metric, metrics, errors=errors, without_one=without_one)
            if difference is not None:
                benchmark, short = metric.split("/")
                better = BENCHMARKS[benchmark].metrics[short]
                item = Comparison(other, one, metric, better, difference, FAMILY)
                found[f"{other} - {one}", metric] = item
    return list(corrected(found).values())


def _pairs(first: str, second: str, comparisons: Comparisons, cards: Mapping[str, SAECard]) -> list[tuple[str, str]]:
    of_seed = {cards[name].seed: name for name in reversed(comparisons.groups[second].variants)}
    once = {cards[name].seed: name for name in reversed(comparisons.groups[first].variants)}
    return [(name, of_seed[seed]) for seed, name in once.items() if seed in of_seed]
