"""A table per benchmark with all of its metrics, one with the headline of each, and the numbers as CSV and JSON."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluate.benchmarks.benchmark import NEEDS, Benchmark, Better
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.uncertainty import Estimate
from evaluate.report.inputs import ReportInputs
from evaluate.report.metrics import Cell, verdict
from evaluate.results import BenchmarkResult

FIELDS = ("variant", "benchmark", "judge", "metric", "value", "standard_error", "better", "seed")
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
    rows: dict[str, list[Cell]]
    """By variant, a cell for each column."""
    remarks: list[str]


def headline_columns(inputs: ReportInputs) -> list[Column]:
    """The first headline that all variants have, of every benchmark that is not in the main table, and its floor."""
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
    """Whether all variants have the metric."""
    return all(metric in result.metrics for result in results.values())


def judge_of(results: Mapping[str, BenchmarkResult]) -> str:
    """The judge of a benchmark's results; empty where nobody judged."""
    judges = [result.inputs.get("judge") for result in results.values()]
    return ", ".join(dict.fromkeys(str(judge["name"]) for judge in judges if isinstance(judge, dict)))


def named(benchmark: str, judge: str) -> str:
    """A benchmark's name, with that of its judge: scores of several judges are no common scale."""
    return f"{benchmark} ({judge})" if judge else benchmark


def benchmark_tables(
    inputs: ReportInputs, estimates: Mapping[str, Mapping[str, Estimate]], reference: Mapping[str, str | None]
) -> list[BenchmarkTable]:
    """A table for every benchmark that was run, in the order of the registry."""
    return [_table(BENCHMARKS[name], results, estimates, reference) for name, results in inputs.results.items()]


def cells(
    columns: list[Column] | tuple[Column, ...],
    name: str,
    estimates: Mapping[str, Mapping[str, Estimate]],
    reference: Mapping[str, str | None],
) -> list[Cell]:
    """The cells of one variant, compared with the variant that is its reference."""
    other = reference[name]
    row = []
    for column in columns:
        value = estimates[name][column.key]
        if other in (None, name):
            row.append(Cell(value.value, value.standard_error, None, "baseline"))
            continue
        base = estimates[str(other)][column.key]
        row.append(
            Cell(value.value, value.standard_error, value.value - base.value, verdict(column.better, value, base))
        )
    return row


def _table(
    benchmark: Benchmark,
    results: Mapping[str, BenchmarkResult],
    estimates: Mapping[str, Mapping[str, Estimate]],
    reference: Mapping[str, str | None],
) -> BenchmarkTable:
    columns = tuple(
        Column(benchmark.name, metric, better) for metric, better in benchmark.metrics.items() if has(results, metric)
    )
    return BenchmarkTable(
        benchmark=benchmark,
        title=named(benchmark.name, judge_of(results)),
        needs=", ".join(text for need, text in NEEDS.items() if need in benchmark.needs),
        basis=basis(results),
        columns=columns,
        rows={name: cells(columns, name, estimates, reference) for name in results},
        remarks=remarks(results),
    )


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


def numbers(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Every metric of every variant: a record each, for reports/metrics.csv and metrics.json."""
    return [
        {
            "variant": variant,
            "benchmark": name,
            "judge": judge_of({variant: result}),
            "metric": metric,
            "value": value,
            "standard_error": result.standard_errors.get(metric),
            "better": BENCHMARKS[name].metrics[metric],
            "seed": inputs.cards[variant].seed,
        }
        for name, results in inputs.results.items()
        for variant, result in results.items()
        for metric, value in result.metrics.items()
    ]


def as_csv(records: list[dict[str, Any]]) -> str:
    """The records as CSV, floats in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return text.getvalue()
