"""The benchmarks: those that run, and those that this version does not run yet, with what each of them measures.

A benchmark is one module with a function `measure(subject, config, context) -> Measurement`, one entry in
`BENCHMARKS`, and one field of the same name in `EvaluateConfig`. Modules are imported when they are needed, because
sae-bench takes many seconds to import and the report needs none of it.
"""

import importlib
from collections.abc import Collection
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
    metrics: tuple[str, ...]
    """Their names in its results. Where results of several benchmarks meet they are `<benchmark>/<metric>`."""
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
            metrics=(
                "explained_variance",
                "mse",
                "cosine_similarity",
                "l0",
                "l1",
                "l2_ratio",
                "num_dead_latents",
                "fraction_dead_latents",
                "num_constant_latents",
                "num_rows",
                "ce_loss_without_sae",
                "ce_loss_with_sae",
                "ce_loss_with_ablation",
                "ce_loss_score",
                "kl_div_with_sae",
                "kl_div_with_ablation",
                "kl_div_score",
            ),
            measures="How well the SAE reconstructs held-out activations, how sparse it is, and what the language "
            "model loses when it runs on the reconstruction (sae-bench core).",
        ),
        Benchmark(
            name="geometry",
            module="evaluate.benchmarks.geometry",
            version=1,
            needs_language_model=False,
            metrics=(
                "penalty",
                "lower_bound",
                "excess",
                "mean_abs_cosine",
                "mean_max_cosine",
                "largest_cosine",
                "effective_rank",
            ),
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
    """Runs `benchmark` on one SAE; a ValueError names metrics that are not finite, missing or unknown."""
    measurement: Measurement = importlib.import_module(benchmark.module).measure(subject, config, context)
    broken = {name: value for name, value in measurement.metrics.items() if not np.isfinite(value)}
    if broken:
        raise ValueError(f"expected finite metrics, got {broken}. Nothing was recorded")
    if problem := wrong_metrics(benchmark, measurement.metrics):
        raise ValueError(f"expected the metrics that the registry lists for {benchmark.name}, but {problem}")
    return measurement


def wrong_metrics(benchmark: Benchmark, names: Collection[str]) -> str:
    """Which metrics are missing among `names` and which are unknown, in words; nothing where they are right."""
    problems = [f"{benchmark.name}/{name} is missing" for name in benchmark.metrics if name not in names]
    problems += [f"{benchmark.name}/{name} is unknown" for name in sorted(set(names) - set(benchmark.metrics))]
    return ", ".join(problems)
