"""What the benchmark `recovery` found, world by world: a table of treatments, a figure, sentences. Pure functions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from evaluate.benchmarks.benchmark import Better
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparisons
from evaluate.compare.seeds import SeedGroup, Spread, seed_groups
from evaluate.report.findings import Finding
from evaluate.report.inputs import ReportInputs
from evaluate.report.plots import scatter
from evaluate.report.spelling import paired

MCC, VARIANCE = "recovery/mcc", "core/explained_variance"
COLUMNS = (
    (MCC, "MCC", 3),
    ("recovery/found", "found", 3),
    ("recovery/f1", "F1", 3),
    ("recovery/precision", "precision", 3),
    ("recovery/recall", "recall", 3),
    ("recovery/f1_rare", "F1, rare third", 3),
    ("recovery/f1_frequent", "F1, frequent third", 3),
    ("recovery/parents_absorbed", "parents absorbed", 3),
    ("recovery/leak", "leak", 3),
    ("recovery/f1_roots", "F1, roots", 3),
    ("recovery/f1_children", "F1, children", 3),
    ("recovery/uniqueness", "uniqueness", 3),
    (VARIANCE, "explained variance", 4),
    ("core/l0", "L0", 2),
)


@dataclass(frozen=True)
class WorldColumn:
    """One metric of the table of a world."""

    key: str
    label: str
    digits: int
    better: Better


@dataclass(frozen=True)
class WorldTable:
    """What treatments reach in one world."""

    hook: str
    features: str
    """What the features are, in a sentence."""
    columns: tuple[WorldColumn, ...]
    rows: dict[str, list[Spread]]
    """By treatment, a cell for each column."""
    seeds: dict[str, int]
    """By treatment, over how many."""
    figure: Markup | None
    """MCC against explained variance."""


def world_tables(inputs: ReportInputs) -> list[WorldTable]:
    """A table for each hook with results of `recovery`, in the order of the variants."""
    if "recovery" not in inputs.results:
        return []
    return [_table(inputs, hook, groups) for hook, groups in _groups_by_hook(inputs).items()]


def found_cosine(inputs: ReportInputs) -> float | None:
    """From which cosine on a feature counts as found; None without results."""
    results = inputs.results.get("recovery")
    settings = next(iter(results.values())).inputs["settings"] if results else None
    found = settings["found_cosine"] if isinstance(settings, dict) else None
    return found if isinstance(found, float) else None


def recovery_findings(inputs: ReportInputs, comparisons: Comparisons) -> list[Finding | None]:
    """Which treatment comes nearest to the truth in each world, and whether explained variance would have said so."""
    if "recovery" not in inputs.results:
        return []
    found: list[Finding | None] = []
    for hook, groups in _groups_by_hook(inputs).items():
        if len(groups) < 2:
            continue
        first = _highest(groups, MCC)
        text = f"{hook}: the highest mean MCC is that of {first}, {groups[first].spreads[MCC].mean:.4f}"
        comparison = comparisons.of(groups[first].variants[0], MCC)
        if comparison is not None:
            difference = comparison.difference
            called = "larger" if comparison.verdict == "better" else "not called different after correction"
            text += f"; {paired(difference.value, difference.half_width())} against its baseline ({called})"
        text += "."
        if all(VARIANCE in group.spreads for group in groups.values()):
            seeming = _highest(groups, VARIANCE)
            if seeming != first:
                text += f" Explained variance is highest for {seeming}, whose MCC is "
                text += f"{groups[seeming].spreads[MCC].mean:.4f}."
        found.append(Finding("result", text))
    return found


def _highest(groups: Mapping[str, SeedGroup], metric: str) -> str:
    return max(groups, key=lambda name: groups[name].spreads[metric].mean)


def short_name(variant: str) -> str:
    """A variant's name without what says its seed and hook."""
    return re.sub(r"-(seed-\d+|hook-[A-Za-z0-9_]+)", "", variant)


def _groups_by_hook(inputs: ReportInputs) -> dict[str, dict[str, SeedGroup]]:
    """Treatments by hook, under short names; where those would be the same, under the full ones."""
    metrics = inputs.metrics()
    by_hook: dict[str, dict[str, SeedGroup]] = {}
    for hook in dict.fromkeys(card.hook for card in inputs.cards.values()):
        groups = seed_groups({name: card for name, card in inputs.cards.items() if card.hook == hook}, metrics)
        short = [short_name(group.variants[0]) for group in groups]
        is_clear = len(set(short)) == len(short)
        names = short if is_clear else [group.variants[0] for group in groups]
        by_hook[hook] = dict(zip(names, groups, strict=True))
    return by_hook


def _table(inputs: ReportInputs, hook: str, groups: Mapping[str, SeedGroup]) -> WorldTable:
    columns = tuple(
        WorldColumn(key, label, digits, BENCHMARKS[key.split("/")[0]].metrics[key.split("/")[1]])
        for key, label, digits in COLUMNS
        if all(key in group.spreads for group in groups.values())
    )
    first = next(iter(groups.values()))
    result = inputs.results["recovery"][first.variants[0]]
    figure = None
    if all(VARIANCE in group.spreads for group in groups.values()):
        points = {name: (group.spreads[VARIANCE].mean, group.spreads[MCC].mean) for name, group in groups.items()}
        drawn = scatter(
            points,
            x_label="explained variance",
            y_label="MCC",
            description=f"MCC against explained variance of each treatment at {hook}",
        )
        figure = Markup(drawn)
    return WorldTable(
        hook=hook,
        features=f"{result.basis['features']} features, {result.metrics['true_l0']:.2f} of them on in a sample on "
        f"average. A random decoder has an MCC of {result.metrics['mcc_chance']:.3f}.",
        columns=columns,
        rows={name: [group.spreads[column.key] for column in columns] for name, group in groups.items()},
        seeds={name: len(group.seeds) for name, group in groups.items()},
        figure=figure,
    )
