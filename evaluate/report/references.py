"""Published results as rows beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.references import PROBING, Reference, same_model
from evaluate.report.findings import Finding
from evaluate.report.probing import probing_finding
from evaluate.results import BenchmarkResult
from store.identity import ModelIdentity
from store.sae.artefact import SAECard


@dataclass(frozen=True)
class ReferenceRow:
    """One line of the table."""

    name: str
    published: bool
    about: str
    """Language model and hook."""
    values: list[float | None]
    """One for each column."""


@dataclass(frozen=True)
class ReferenceTable:
    """Published results of one benchmark with ours."""

    benchmark: str
    columns: list[str]
    rows: list[ReferenceRow]
    note: str
    """Why they cannot be compared, where they cannot."""


def reference_tables(
    references: Sequence[Reference],
    results: Mapping[str, Mapping[str, BenchmarkResult]],
    cards: Mapping[str, SAECard],
    *,
    model: ModelIdentity,
) -> list[ReferenceTable]:
    """A table for every benchmark with a published result.

    Args:
        references: as `read_references` gives them.
        results: ours, by benchmark and variant.
        cards: the variants that are shown.
        model: the language model of ours.
    """
    tables = []
    for benchmark in dict.fromkeys(reference.benchmark for reference in references):
        published = [reference for reference in references if reference.benchmark == benchmark]
        ours = {name: results[benchmark][name] for name in cards} if benchmark in results else {}
        columns = _columns(benchmark, published)
        rows = [
            ReferenceRow(
                reference.sae,
                published=True,
                about=f"{reference.model_name}, {reference.hook or 'hook not said'}",
                values=[reference.metrics.get(column) for column in columns],
            )
            for reference in published
        ]
        rows += [
            ReferenceRow(
                name,
                published=False,
                about=f"{model.name}, {cards[name].hook}",
                values=[result.metrics.get(column) for column in columns],
            )
            for name, result in ours.items()
        ]
        tables.append(ReferenceTable(benchmark, columns, rows, _note(benchmark, published, ours, cards, model)))
    return tables


def _columns(benchmark: str, published: Sequence[Reference]) -> list[str]:
    """Metrics of published results: those that ours has first, in its order, then the others."""
    found = dict.fromkeys(name for reference in published for name in reference.metrics)
    declared = BENCHMARKS[benchmark].metrics if benchmark in BENCHMARKS else {}
    return [name for name in declared if name in found] + [name for name in found if name not in declared]


def _note(
    benchmark: str,
    published: Sequence[Reference],
    ours: Mapping[str, BenchmarkResult],
    cards: Mapping[str, SAECard],
    model: ModelIdentity,
) -> str:
    if not ours:
        return f"{benchmark} was not run here, so that ours are missing."
    if not any(same_model(reference, model) for reference in published):
        return f"Ours are of another language model, {model.name}: these numbers cannot be compared."
    hooks = {reference.hook for reference in published}
    if not any(cards[name].hook in hooks for name in ours):
        return "Ours are of another hook: these numbers cannot be compared."
    return ""


def reference_findings(references: Sequence[Reference]) -> list[Finding]:
    """What is to be said of published results that are no scores."""
    found = [
        probing_finding(f"Published result {reference.sae}", reference.file.model_dump())
        for reference in references
        if reference.benchmark == PROBING
    ]
    return [finding for finding in found if finding is not None]
