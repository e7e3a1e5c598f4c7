"""Whether two values differ by more than what is uncertain about them. Pure functions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evaluate.benchmarks.benchmark import Better
from evaluate.compare.seeds import SeedGroup

SURE = 2.0
"""Standard errors of a difference above which it is called one: about 95 of 100 differences of nothing stay below."""


@dataclass(frozen=True)
class Estimate:
    """A value and how uncertain it is."""

    value: float
    standard_error: float | None
    """None where nothing is known about it."""


def estimate(group: SeedGroup, metric: str, errors: Mapping[str, Mapping[str, float]]) -> Estimate:
    """Mean over the seeds of a treatment. Its error has two parts, of which either may be unknown: that of the mean
    over seeds, and that of the text on which all were measured.

    Args:
        group: the variants of one treatment.
        metric: `<benchmark>/<metric>`.
        errors: standard errors by variant and metric, as far as the benchmarks give them.
    """
    spread = group.spreads[metric]
    of_seeds = None if spread.deviation is None else spread.deviation / math.sqrt(len(group.seeds))
    of_text = max((errors[name][metric] for name in group.variants if metric in errors[name]), default=None)
    return Estimate(spread.mean, _combined(of_seeds, of_text))


def estimates_of_variants(
    groups: Iterable[SeedGroup],
    metrics: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, Estimate]]:
    """Every metric of every variant, as uncertain as its text and, where there are several, its seeds make it.

    Args:
        groups: the variants of each treatment.
        metrics, errors: values and standard errors by variant and metric.
    """
    found = {}
    for group in groups:
        for name in group.variants:
            found[name] = {
                metric: Estimate(value, _combined(errors[name].get(metric), group.spreads[metric].deviation))
                for metric, value in metrics[name].items()
            }
    return found


def _combined(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return math.hypot(*known) if known else None


def differs(first: Estimate, second: Estimate) -> bool | None:
    """Whether the difference exceeds `SURE` standard errors; None where the error of one is unknown."""
    if first.standard_error is None or second.standard_error is None:
        return None
    return abs(first.value - second.value) > SURE * math.hypot(first.standard_error, second.standard_error)


def goodness(value: float, better: Better) -> float:
    """The value, turned so that higher is better; for a metric of which neither direction is, the value itself."""
    return -value if better == "lower" else value


def leaders(estimates: Mapping[str, Estimate], better: Better) -> list[str]:
    """The best, and all that do not differ from it for sure, best first."""
    ordered = sorted(estimates, key=lambda name: -goodness(estimates[name].value, better))
    first = estimates[ordered[0]]
    return [ordered[0], *(name for name in ordered[1:] if not differs(first, estimates[name]))]
