"""Settings of the evaluation: one record per benchmark, each defined in the benchmark's file and named as it is."""

from typing import Any

from pydantic import create_model

from evaluate.benchmarks.registry import BENCHMARKS
from store.record import Record

_FIELDS: dict[str, Any] = {name: (benchmark.config | None, ...) for name, benchmark in BENCHMARKS.items()}

EvaluateConfig: type[Record] = create_model(
    "EvaluateConfig",
    __base__=Record,
    __doc__="One record per benchmark. Every benchmark that is not null is run on every variant.",
    **_FIELDS,
)


def settings_of(config: Record, benchmark: str) -> Record | None:
    """The settings of one benchmark in an EvaluateConfig; None where it is switched off."""
    settings: Record | None = getattr(config, benchmark)
    return settings
