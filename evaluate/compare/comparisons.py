"""Every treatment against its baseline on every metric, corrected for the number of comparisons.

Two kinds of families, each corrected by Holm's method at 5 %:

* `the headlines`: all treatments on all headline metrics of all benchmarks. The verdict rests on these, so that a study
  of treatments that make no difference finds one in at most 5 % of cases, however many benchmarks it ran. Geometry and
  latents are not among them: they describe what the penalty sets by construction.
* of each benchmark, all treatments on its other metrics that have a good direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluate.benchmarks.benchmark import Better
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.paired import LEVEL, Difference, holm, paired_difference
from evaluate.compare.seeds import SeedGroup, seed_groups
from evaluate.compare.treatments import baseline_of
from store.sae.artefact import SAECard

HEADLINES = "the headlines"
DESCRIPTIVE = ("geometry", "latents")
"""Benchmarks that say what an SAE looks like, and not how good it is."""
NUM_HEADLINES = {"core": 2}
"""Headlines of a benchmark that are in the family; one of all others."""

Verdict = Literal["baseline", "better", "worse", "same", "neutral", "unknown"]
Values = Mapping[str, Mapping[str, float]]
Units = Mapping[str, Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Comparison:
    """One treatment against another on one metric."""

    treatment: str
    baseline: str
    metric: str
    """`<benchmark>/<metric>`."""
    better: Better
    difference: Difference
    family: str
    p_corrected: float | None = None
    """By Holm's method over the family; None where there is no p-value."""

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the corrected p-value is below 5 %."""
        if self.better == "neither":
            return "neutral"
        if self.p_corrected is None:
            return "same" if self.difference.value == 0.0 else "unknown"
        if self.p_corrected >= LEVEL:
            return "same"
        return "better" if (self.difference.value > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Comparisons:
    """The treatments of a study, and how each compares with its baseline."""

    groups: dict[str, SeedGroup]
    """By treatment, which has the name of its first variant."""
    baseline: dict[str, str | None]
    """By treatment, the one that it is compared with: itself for a baseline, None where there is none."""
    pairs: dict[str, tuple[tuple[str, str], ...]]
    """By treatment, (variant, variant of the baseline) of the same seed."""
    found: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    """By treatment and metric."""

    def of(self, treatment: str, metric: str) -> Comparison | None:
        """The comparison of a treatment on a metric; None for a baseline, or where no pair has both figures."""
        return self.found.get((treatment, metric))

    def family(self, name: str) -> list[Comparison]:
        """The comparisons of a family that have a direction."""
        return [item for item in self.found.values() if item.family == name and item.better != "neither"]

    def means(self) -> dict[str, dict[str, float]]:
        """Means over seeds, by treatment and metric."""
        return {
            name: {metric: spread.mean for metric, spread in group.spreads.items()}
            for name, group in self.groups.items()
        }

    def treatment_of(self, variant: str) -> str:
        """The treatment that a variant is a seed of."""
        return next(name for name, group in self.groups.items() if variant in group.variants)


def compare(cards: Mapping[str, SAECard], metrics: Values, *, errors: Values, without_one: Units) -> Comparisons:
    """Compares all treatments with their baselines.

    Args:
        cards: by variant.
        metrics: by variant and metric; a variant may lack some.
        errors: standard errors, as far as the benchmarks give them.
        without_one: metrics without each unit of the test material, as far as they are kept.
    """
    groups = {group.variants[0]: group for group in seed_groups(cards, metrics)}
    reference = {name: baseline_of(name, cards) for name in cards}
    pairs = {name: _pairs(group, reference, cards) for name, group in groups.items()}
    owner = {variant: name for name, group in groups.items() for variant in group.variants}
    first = {name: reference[name] for name in groups}
    result = Comparisons(
        groups, {name: None if other is None else owner[other] for name, other in first.items()}, pairs
    )
    uncorrected = {}
    for name, found in pairs.items():
        base = result.baseline[name]
        if base is None or base == name:
            continue
        for metric in groups[name].spreads:
            difference = difference_of(found, metric, metrics, errors=errors, without_one=without_one)
            if difference is not None:
                benchmark, short = metric.split("/")
                better = BENCHMARKS[benchmark].metrics[short]
                uncorrected[name, metric] = Comparison(name, base, metric, better, difference, family_of(metric))
    return replace(result, found=corrected(uncorrected))


def difference_of(
    pairs: Sequence[tuple[str, str]], metric: str, metrics: Values, *, errors: Values, without_one: Units
) -> Difference | None:
    """The mean difference of `pairs` of variants on a metric; None where no pair has it on both sides."""
    pairs = [pair for pair in pairs if all(metric in metrics[name] for name in pair)]
    if not pairs:
        return None
    units = [tuple(without_one.get(name, {}).get(metric) for name in pair) for pair in pairs]
    shapes = {None if found is None else found.shape for pair in units for found in pair}
    shared = None not in shapes and len(shapes) == 1
    own = [tuple(errors.get(name, {}).get(metric) for name in pair) for pair in pairs]
    known = all(error is not None for pair in own for error in pair)
    return paired_difference(
        [(metrics[first][metric], metrics[second][metric]) for first, second in pairs],
        without_one=units if shared else None,  # type: ignore[arg-type]
        own_errors=own if known else None,  # type: ignore[arg-type]
    )


def corrected(comparisons: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], Comparison]:
    """The same with p-values corrected within each family."""
    by_family: dict[str, dict[tuple[str, str], float]] = {}
    for key, item in comparisons.items():
        if item.better != "neither" and item.difference.p_value is not None:
            by_family.setdefault(item.family, {})[key] = item.difference.p_value
    found = {key: value for p_values in by_family.values() for key, value in holm(p_values).items()}
    return {key: replace(item, p_corrected=found.get(key)) for key, item in comparisons.items()}


def family_of(metric: str) -> str:
    """The family of a metric: that of the headlines, or its benchmark's own."""
    return HEADLINES if metric in headline_metrics() else metric.split("/")[0]


def headline_metrics() -> list[str]:
    """The metrics by which the question is answered, of all benchmarks."""
    return [
        f"{name}/{metric}"
        for name, entry in BENCHMARKS.items()
        if name not in DESCRIPTIVE
        for metric in [item for item in entry.headlines if entry.metrics[item] != "neither"][
            : NUM_HEADLINES.get(name, 1)
        ]
    ]


def _pairs(
    group: SeedGroup, reference: Mapping[str, str | None], cards: Mapping[str, SAECard]
) -> tuple[tuple[str, str], ...]:
    """One (variant, reference) for each seed that both have."""
    found: dict[int, tuple[str, str]] = {}
    for name in group.variants:
        other = reference[name]
        if other in (None, name):
            continue
        base = cards[str(other)]
        if base.seed == cards[name].seed and base.hook == cards[name].hook:
            found.setdefault(cards[name].seed, (name, str(other)))
    return tuple(found.values())
