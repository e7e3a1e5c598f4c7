"""The benchmarks: those that run, and those that this version does not run yet, with what each of them measures.

A benchmark is one module with a function `measure(subject, config, context) -> Measurement`, one entry in
`BENCHMARKS`, and one field of the same name in `EvaluateConfig`. Modules are imported when they are needed, because
sae-bench takes many seconds to import and the report needs none of it.
"""

import importlib
from dataclasses import dataclass

import numpy as np

from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE, Measurement
from store.record import Record


@dataclass(frozen=True)
class Benchmark:
    """One entry of the table below."""

    name: str
    module: str
    version: int
    """Raised by hand when the same inputs give other figures: results of other versions are not reused."""
    needs_language_model: bool
    measures: str


@dataclass(frozen=True)
class PlannedBenchmark:
    """A benchmark of the study that this version does not run."""

    name: str
    measures: str


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="core",
            module="evaluate.benchmarks.core",
            version=1,
            needs_language_model=True,
            measures="How well the SAE reconstructs held-out activations, how sparse it is, and what the language "
            "model loses when it runs on the reconstruction (sae-bench core).",
        ),
        Benchmark(
            name="geometry",
            module="evaluate.benchmarks.geometry",
            version=1,
            needs_language_model=False,
            measures="Angles between decoder directions: pairwise cosines, the nearest other latent, the penalty P "
            "against its lower bound, effective rank.",
        ),
    )
}

NOT_RUN_YET: tuple[PlannedBenchmark, ...] = (
    PlannedBenchmark(
        "sparse_probing", "Whether a handful of latents (1 to 50) suffice to tell apart the classes of eight data sets."
    ),
    PlannedBenchmark(
        "autointerp", "Whether a judge model, given an explanation of a latent, can tell where that latent fires."
    ),
    PlannedBenchmark(
        "absorption",
        "How often a specific latent swallows part of a general one (first letters of words). Lower is better.",
    ),
    PlannedBenchmark("scr", "Whether ablating a few latents removes a spurious correlation from a biased classifier."),
    PlannedBenchmark("tpp", "Whether ablating a few latents harms one class probe and leaves the others alone."),
    PlannedBenchmark("ravel", "Whether one attribute of an entity can be patched through latents, others unmoved."),
    PlannedBenchmark("unlearning", "Whether clamping latents removes knowledge of one topic and keeps the rest."),
    PlannedBenchmark("sae_probes", "Probes on latents against probes on raw activations, on over a hundred tasks."),
)


def measure(
    benchmark: Benchmark, subject: EvaluatedSAE, config: Record, context: BenchmarkContext | None
) -> Measurement:
    """Runs `benchmark` on one SAE. A figure that is not a finite number is an error that names it."""
    measurement: Measurement = importlib.import_module(benchmark.module).measure(subject, config, context)
    broken = {name: value for name, value in measurement.metrics.items() if not np.isfinite(value)}
    if broken:
        raise ValueError(f"expected finite figures, got {broken}. Nothing was recorded")
    return measurement
