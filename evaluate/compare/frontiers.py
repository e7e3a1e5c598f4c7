"""Treatments that were trained at several sparsities, compared at the same L0.

The variants of one family differ in seed and sparsity alone. At each seed, a metric is interpolated between its L0s,
over log L0, by a monotone cubic (PCHIP, Fritsch and Carlson 1980): where the metric rises with L0, so does the curve.
Of two families the curves are subtracted at three L0s: the lowest and the highest that both have at every seed, and
their geometric mean. Nothing is extrapolated: families whose L0s do not overlap are not compared. The intervals are
those of paired.py; the error of interpolating is not in them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparison, Units, Values, corrected
from evaluate.compare.paired import paired_difference
from evaluate.compare.treatments import BASELINE, families
from store.sae.artefact import SAECard

FAMILY = "frontiers"
L0 = "core/l0"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrontierDifference:
    """One family minus the baseline's at one L0, on one metric."""

    family: str
    metric: str
    l0: float
    comparison: Comparison


def frontiers(cards: Mapping[str, SAECard]) -> dict[str, dict[int, list[str]]]:
    """By family and seed, the variants of different sparsity; families of one sparsity are left out."""
    found: dict[str, dict[int, list[str]]] = {}
    for family, members in families(cards).items():
        by_seed: dict[int, list[str]] = {}
        for name in members:
            by_seed.setdefault(cards[name].seed, []).append(name)
        several = {seed: names for seed, names in by_seed.items() if len(names) > 1}
        if several:
            found[family] = several
    return found


def at_l0(points: Sequence[tuple[float, Array]], wanted: float) -> Array:
    """A metric at `wanted`, from (L0, values) at several L0s. ValueError where that is outside of them.

    Points of the same L0 are averaged. Values may be arrays of any one shape.
    """
    by_l0: dict[float, list[Array]] = {}
    for l0, value in points:
        by_l0.setdefault(l0, []).append(np.asarray(value, dtype=np.float64))
    places = sorted(by_l0)
    if len(places) < 2 or not places[0] * (1 - 1e-12) <= wanted <= places[-1] * (1 + 1e-12):
        raise ValueError(f"expected an L0 between those trained, {places[0]:g} and {places[-1]:g}, got {wanted:g}")
    values = np.stack([np.mean(by_l0[place], axis=0) for place in places])
    found: Array = np.asarray(
        PchipInterpolator(np.log(places), values, axis=0)(
            min(max(math.log(wanted), math.log(places[0])), math.log(places[-1]))
        )
    )
    return found


def compare_frontiers(
    cards: Mapping[str, SAECard], metrics: Values, *, without_one: Units, shown: Sequence[str]
) -> list[FrontierDifference]:
    """Every family with several sparsities minus the baseline's, on the metrics `shown`; Holm over all of them."""
    curves = frontiers(cards)
    base = next(
        (name for name, by_seed in curves.items() if any(BASELINE in names for names in by_seed.values())), None
    )
    if base is None:
        return []
    found: dict[tuple[str, str], Comparison] = {}
    places: dict[tuple[str, str], tuple[str, str, float]] = {}
    for family, by_seed in curves.items():
        seeds = [seed for seed in by_seed if seed in curves[base]]
        alike = seeds and cards[by_seed[seeds[0]][0]].hook == cards[BASELINE].hook
        if family == base or not alike:
            continue
        ranges = [
            [metrics[name][L0] for name in members[seed]] for members in (by_seed, curves[base]) for seed in seeds
        ]
        low, high = max(min(values) for values in ranges), min(max(values) for values in ranges)
        if not 0.0 < low < high:
            continue
        for metric in shown:
            for wanted in (low, math.sqrt(low * high), high):
                pairs = [(by_seed[seed], curves[base][seed]) for seed in seeds]
                item = _compared(family, base, metric, wanted, pairs, metrics, without_one)
                key = (f"{family} at {wanted!r}", metric)
                found[key], places[key] = item, (family, metric, wanted)
    return [FrontierDifference(*places[key], item) for key, item in corrected(found).items()]


def _compared(
    family: str,
    base: str,
    metric: str,
    wanted: float,
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
    metrics: Values,
    without_one: Units,
) -> Comparison:
    def value(names: Sequence[str]) -> float:
        return float(at_l0([(metrics[name][L0], np.asarray(metrics[name][metric])) for name in names], wanted))

    def units(names: Sequence[str]) -> Array:
        return at_l0([(metrics[name][L0], without_one[name][metric]) for name in names], wanted)

    everyone = [name for pair in pairs for names in pair for name in names]
    known = all(metric in without_one.get(name, {}) for name in everyone)
    shapes = {without_one[name][metric].shape for name in everyone} if known else set()
    benchmark, short = metric.split("/")
    return Comparison(
        family,
        base,
        metric,
        BENCHMARKS[benchmark].metrics[short],
        paired_difference(
            [(value(first), value(second)) for first, second in pairs],
            without_one=[(units(first), units(second)) for first, second in pairs] if len(shapes) == 1 else None,
        ),
        FAMILY,
    )
