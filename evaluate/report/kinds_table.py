"""The table of fixed, scheduled and learned lambdas against each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.benchmarks.benchmark import Better
from evaluate.compare.comparisons import Comparison
from evaluate.report.benchmark_tables import Column

MOST_ROWS = 30


@dataclass(frozen=True)
class KindsTable:
    """A row for each pair of treatments, a column for each headline metric."""

    columns: tuple[Column, ...]
    rows: dict[str, list[Comparison | None]]
    """By `one - other`, one minus the other."""
    num_left_out: int
    """Pairs that are in no row, because there are too many."""
    num_comparisons: int


def _column(metric: str, better: Better) -> Column:
    benchmark, short = metric.split("/")
    return Column(benchmark, short, better)


def kinds_table(kinds: Sequence[Comparison]) -> KindsTable:
    """The comparisons as a table of at most `MOST_ROWS` pairs."""
    metrics = list(dict.fromkeys(item.metric for item in kinds))
    found = {(f"{item.treatment} - {item.baseline}", item.metric): item for item in kinds}
    pairs = list(dict.fromkeys(pair for pair, _ in found))
    better = {item.metric: item.better for item in kinds}
    return KindsTable(
        columns=tuple(_column(metric, better[metric]) for metric in metrics),
        rows={pair: [found.get((pair, metric)) for metric in metrics] for pair in pairs[:MOST_ROWS]},
        num_left_out=max(0, len(pairs) - MOST_ROWS),
        num_comparisons=sum(item.p_corrected is not None for item in kinds),
    )
