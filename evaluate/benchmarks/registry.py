"""The benchmarks that run, those that do not run yet, and what they measure.

A benchmark is one module with the functions `num_batches(config) -> int` and `measure(sae, config, context) ->
Measurement`, one entry in `BENCHMARKS`, and one field of the same name in `EvaluateConfig`. Modules are imported when
they are needed, because sae-bench takes many seconds to import and the report needs none of it.
"""

import importlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from compute.code_version import CodeVersion
from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE, Measurement
from store.record import Record


@dataclass(frozen=True)
class Benchmark:
    """One entry of the table below."""

    name: str
    module: str
    version: CodeVersion
    """Raised by hand when the same inputs give other metrics: results of other versions are not reused."""
    needs_language_model: bool
    metrics: tuple[str, ...]
    """Their names in its results. Where results of several benchmarks meet they are `<benchmark>/<metric>`."""
    measures: str


@dataclass(frozen=True)
class PlannedBenchmark:
    """A benchmark of sae-bench 0.6.0 that this version does not run."""

    name: str
    measures: str


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="core",
            module="evaluate.benchmarks.core",
            version=CodeVersion(
                number=2,
                files=(
                    "evaluate/benchmarks/context.py",
                    "evaluate/benchmarks/core.py",
                    "evaluate/sae_bench.py",
                    "evaluate/set_up.py",
                    "language_model/checkpoint.py",
                    "language_model/families.py",
                    "language_model/hooks.py",
                    "language_model/load.py",
                    "language_model/special_tokens.py",
                    "language_model/structure.py",
                    "language_model/tokenizer.py",
                    "store/cache/outlier_rows.py",
                    "store/sae/weights.py",
                ),
                code_sha256="1715951b6643b87b52d7581c646b1eb64e10c1b1b666d297ccdabe21657204aa",
            ),
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
            version=CodeVersion(
                number=1,
                files=(
                    "evaluate/benchmarks/context.py",
                    "evaluate/benchmarks/geometry.py",
                    "store/sae/geometry.py",
                ),
                code_sha256="330e66f93ef90cda5c36c41b259dfb8a31e91f350225d16dddce6b6a920558fc",
            ),
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
    PlannedBenchmark("sparse_probing", "Whether 1 to 50 latents suffice to classify texts of eight data sets."),
    PlannedBenchmark(
        "autointerp",
        "Whether a judge model that is given an explanation of a latent can predict on which texts the latent fires.",
    ),
    PlannedBenchmark("scr", "Whether ablating a few latents removes a spurious correlation from a biased classifier."),
    PlannedBenchmark("tpp", "Whether ablating a few latents harms the probe of one class and no other probe."),
    PlannedBenchmark(
        "absorption",
        "How often a latent for a first letter does not fire because a more specific latent fires. Lower is better.",
    ),
    PlannedBenchmark("ravel", "Whether patching latents changes one attribute of an entity and leaves the others."),
    PlannedBenchmark("unlearning", "Whether clamping latents removes knowledge of one topic and keeps the rest."),
    PlannedBenchmark(
        "sparse_probing_sae_probes",
        "Accuracy of sparse probes on latents in over 140 classification tasks (the package sae-probes).",
    ),
    PlannedBenchmark(
        "meta_structure",
        "How much of the variance of the decoder directions a second, smaller SAE trained on them explains.",
    ),
    PlannedBenchmark("mdl", "How many bits the latents of a row take when they are binned, and what binning costs."),
)


def measure(benchmark: Benchmark, sae: EvaluatedSAE, config: Record, context: BenchmarkContext | None) -> Measurement:
    """Runs `benchmark` on one SAE; a ValueError names metrics that are not finite, missing or unknown."""
    measurement: Measurement = importlib.import_module(benchmark.module).measure(sae, config, context)
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
