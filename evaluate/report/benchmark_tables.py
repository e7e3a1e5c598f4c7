"""A table per benchmark with all of its metrics, and one with the headline of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluate.benchmarks.benchmark import NEEDS, Benchmark, Better
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparisons
from evaluate.report.inputs import ReportInputs
from evaluate.report.metrics import Cell, cell
from evaluate.results import BenchmarkResult

MAIN = ("core", "geometry")
"""Benchmarks whose headlines are in the main table."""


@dataclass(frozen=True)
class Column:
    """One metric of one benchmark."""

    benchmark: str
    metric: str
    better: Better
    judge: str = ""
    """Who judged, where somebody did."""

    @property
    def source(self) -> str:
        """Benchmark and judge."""
        return named(self.benchmark, self.judge)

    @property
    def key(self) -> str:
        """`<benchmark>/<metric>`."""
        return f"{self.benchmark}/{self.metric}"

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.metric.replace("_", " ")


@dataclass(frozen=True)
class BenchmarkTable:
    """Everything that a benchmark measured."""

    benchmark: Benchmark
    title: str
    """Its name, and who judged."""
    needs: str
    basis: str
    columns: tuple[Column, ...]
    rows: dict[str, list[Cell | None]]
    """By treatment, a cell for each column; None where it has no such metric."""
    not_measured: list[str]
    """Variants that could not be measured, with the reason."""
    remarks: list[str]


def headline_columns(inputs: ReportInputs) -> list[Column]:
    """The first headline that any variant has, of every benchmark that is not in the main table, and its floor."""
    columns = []
    for name, results in inputs.results.items():
        entry = BENCHMARKS[name]
        headlines = [metric for metric in entry.headlines if has(results, metric)]
        if name in MAIN or not headlines:
            continue
        metric = headlines[0]
        shown = [metric, entry.floors[metric]] if metric in entry.floors else [metric]
        columns += [Column(name, metric, entry.metrics[metric], judge_of(results)) for metric in shown]
    return columns


def has(results: Mapping[str, BenchmarkResult], metric: str) -> bool:
    """Whether any variant has the metric."""
    return any(metric in result.metrics for result in results.values())


def judge_of(results: Mapping[str, BenchmarkResult]) -> str:
    """The judge of a benchmark's results; empty where nobody judged."""
    judges = [result.inputs.get("judge") for result in results.values()]
    return ", ".join(dict.fromkeys(str(judge["name"]) for judge in judges if isinstance(judge, dict)))


def named(benchmark: str, judge: str) -> str:
    """A benchmark's name, with that of its judge: scores of several judges are no common scale."""
    return f"{benchmark} ({judge})" if judge else benchmark


def benchmark_tables(inputs: ReportInputs, comparisons: Comparisons) -> list[BenchmarkTable]:
    """A table for every benchmark that was run, in the order of the registry."""
    return [_table(BENCHMARKS[name], results, comparisons) for name, results in inputs.results.items()]


def rows(
    columns: Sequence[Column], comparisons: Comparisons, *, all_of_them: bool = False
) -> dict[str, list[Cell | None]]:
    """A row of cells for each treatment that has any of the columns, or for all of them."""
    found = {name: [cell(comparisons, name, column.key) for column in columns] for name in comparisons.groups}
    return {name: cells for name, cells in found.items() if all_of_them or any(item is not None for item in cells)}


def _table(benchmark: Benchmark, results: Mapping[str, BenchmarkResult], comparisons: Comparisons) -> BenchmarkTable:
    columns = tuple(
        Column(benchmark.name, metric, better) for metric, better in benchmark.metrics.items() if has(results, metric)
    )
    return BenchmarkTable(
        benchmark=benchmark,
        title=named(benchmark.name, judge_of(results)),
        needs=", ".join(text for need, text in NEEDS.items() if need in benchmark.needs),
        basis=basis(results),
        columns=columns,
        rows=rows(columns, comparisons),
        not_measured=not_measured(results),
        remarks=remarks(results),
    )


def not_measured(results: Mapping[str, BenchmarkResult]) -> list[str]:
    """Every reason why SAEs could not be measured, with their names."""
    about: dict[str, list[str]] = {}
    for variant, result in results.items():
        if result.not_measured is not None:
            about.setdefault(result.not_measured, []).append(variant)
    return [f"{', '.join(names)}: not measured. {why}" for why, names in about.items()]


def basis(results: Mapping[str, BenchmarkResult]) -> str:
    """On how much the metrics rest; where variants differ, from the least to the most."""
    counts: dict[str, list[int]] = {}
    for result in results.values():
        for name, count in result.basis.items():
            counts.setdefault(name, []).append(count)

    def spelled(found: list[int]) -> str:
        return f"{min(found):,}" if min(found) == max(found) else f"{min(found):,} to {max(found):,}"

    return ", ".join(f"{spelled(found)} {name.replace('_', ' ')}" for name, found in counts.items())


def remarks(results: Mapping[str, BenchmarkResult]) -> list[str]:
    """Every remark once, with the variants that it is about."""
    about: dict[str, list[str]] = {}
    for variant, result in results.items():
        for remark in result.remarks:
            about.setdefault(remark, []).append(variant)
    return [f"{', '.join(names)}: {remark}" for remark, names in about.items()]
