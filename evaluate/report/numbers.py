"""All numbers of the report as records, for reports/metrics.csv and metrics.json."""

import csv
import io
from typing import Any

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparisons
from evaluate.report.benchmark_tables import judge_of
from evaluate.report.inputs import ReportInputs

FIELDS = (
    "variant", "benchmark", "judge", "metric", "value", "standard_error", "better", "seed", "treatment", "baseline",
    "num_seeds", "mean_difference", "interval_low", "interval_high", "p_value", "family", "p_value_holm",
)  # fmt: skip


def numbers(inputs: ReportInputs, comparisons: Comparisons) -> list[dict[str, Any]]:
    """A record for every metric of every variant, with the difference of its treatment from the baseline.

    What belongs to the treatment (`mean_difference` over `num_seeds`, its 95 % interval, its p-value, and that after
    Holm's correction over `family`) is the same in the records of all its seeds; None for a baseline.
    """
    found = []
    for name, results in inputs.results.items():
        for variant, result in results.items():
            treatment = comparisons.treatment_of(variant)
            for metric, value in result.metrics.items():
                item = comparisons.of(treatment, f"{name}/{metric}")
                difference = None if item is None else item.difference
                interval = None if difference is None else difference.interval()
                record = (
                    variant, name, judge_of({variant: result}), metric, value, result.standard_errors.get(metric),
                    BENCHMARKS[name].metrics[metric], inputs.cards[variant].seed, treatment,
                    None if item is None else item.baseline,
                    None if difference is None else difference.num_seeds,
                    None if difference is None else difference.value,
                    None if interval is None else interval[0],
                    None if interval is None else interval[1],
                    None if difference is None else difference.p_value,
                    None if item is None else item.family,
                    None if item is None else item.p_corrected,
                )  # fmt: skip
                found.append(dict(zip(FIELDS, record, strict=True)))
    return found


def as_csv(records: list[dict[str, Any]]) -> str:
    """The records as CSV, floats in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return text.getvalue()
