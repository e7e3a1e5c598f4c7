"""Variants that differ by seed alone: means and spread."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from evaluate.compare.treatments import treatment
from evaluate.report.metrics import METRICS
from store.sae.artefact import SAECard


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one figure over the seeds of one treatment."""

    mean: float
    deviation: float | None
    """None with a single seed."""


@dataclass(frozen=True)
class SeedGroup:
    """The variants of one treatment."""

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    """Without repetition."""
    figures: dict[str, Spread]


def seed_groups(cards: Mapping[str, SAECard], metrics: Mapping[str, Mapping[str, float]]) -> list[SeedGroup]:
    """Variants grouped by treatment, in the order given; a group of several seeds has a spread."""
    grouped: dict[str, list[str]] = {}
    for name, card in cards.items():
        grouped.setdefault(treatment(card), []).append(name)
    groups = []
    for names in grouped.values():
        of_seed = {cards[name].seed: name for name in reversed(names)}  # one setting under two names counts once
        seeds = tuple(dict.fromkeys(cards[name].seed for name in names))
        figures = {}
        for metric in METRICS:
            values = [metrics[of_seed[seed]][metric.key] for seed in seeds]
            deviation = statistics.stdev(values) if len(seeds) > 1 else None
            figures[metric.key] = Spread(statistics.fmean(values), deviation)
        groups.append(SeedGroup(tuple(names), seeds, figures))
    return groups
