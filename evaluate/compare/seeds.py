"""Variants that differ by seed alone: means and spread."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from evaluate.compare.treatments import treatment
from store.sae.artefact import SAECard


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one metric over the seeds of one treatment."""

    mean: float
    deviation: float | None
    """None with a single seed."""


@dataclass(frozen=True)
class SeedGroup:
    """The variants of one treatment."""

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    """Without repetition."""
    spreads: dict[str, Spread]
    """By metric."""


def seed_groups(cards: Mapping[str, SAECard], metrics: Mapping[str, Mapping[str, float]]) -> list[SeedGroup]:
    """Variants grouped by treatment, in the order given, with the spread of every metric over the seeds of a group.

    `metrics` are by variant; of a metric that some variants lack, the others' count.
    """
    grouped: dict[str, list[str]] = {}
    for name, card in cards.items():
        grouped.setdefault(treatment(card), []).append(name)
    groups = []
    for names in grouped.values():
        of_seed = {cards[name].seed: name for name in reversed(names)}  # one setting under two names counts once
        seeds = tuple(dict.fromkeys(cards[name].seed for name in names))
        spreads = {}
        for metric in dict.fromkeys(metric for name in names for metric in metrics[name]):
            values = [metrics[of_seed[seed]][metric] for seed in seeds if metric in metrics[of_seed[seed]]]
            if not values:
                continue  # a second name of the same settings has it, and is not counted
            deviation = statistics.stdev(values) if len(values) > 1 else None
            spreads[metric] = Spread(statistics.fmean(values), deviation)
        groups.append(SeedGroup(tuple(names), seeds, spreads))
    return groups
