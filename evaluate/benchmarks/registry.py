"""All benchmarks. Each is one file beside this one; here they get their order."""

from collections.abc import Collection

import numpy as np

from evaluate.benchmarks import (
    absorption,
    autointerp,
    core,
    geometry,
    latents,
    mdl,
    meta_structure,
    ravel,
    recovery,
    scr,
    sparse_probing,
    sparse_probing_sae_probes,
    tpp,
    unlearning,
)
from evaluate.benchmarks.benchmark import Benchmark, Measurement

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        core.BENCHMARK,
        geometry.BENCHMARK,
        sparse_probing.BENCHMARK,
        tpp.BENCHMARK,
        scr.BENCHMARK,
        sparse_probing_sae_probes.BENCHMARK,
        autointerp.BENCHMARK,
        meta_structure.BENCHMARK,
        mdl.BENCHMARK,
        absorption.BENCHMARK,
        ravel.BENCHMARK,
        unlearning.BENCHMARK,
        latents.BENCHMARK,
        recovery.BENCHMARK,
    )
}


def check_measurement(benchmark: Benchmark, measurement: Measurement) -> None:
    """A ValueError names metrics that are not finite, missing or unknown."""
    broken = {name: value for name, value in measurement.metrics.items() if not np.isfinite(value)}
    if broken:
        raise ValueError(f"expected finite metrics, got {broken}. Nothing was recorded")
    if problem := wrong_metrics(benchmark, measurement.metrics):
        raise ValueError(f"expected the metrics that {benchmark.name} declares, but {problem}")


def wrong_metrics(benchmark: Benchmark, names: Collection[str]) -> str:
    """Which metrics are missing among `names` and which are unknown, in words; nothing where they are right."""
    problems = [
        f"{benchmark.name}/{name} is missing"
        for name in benchmark.metrics
        if name not in names and name not in benchmark.optional
    ]
    problems += [f"{benchmark.name}/{name} is unknown" for name in sorted(set(names) - set(benchmark.metrics))]
    return ", ".join(problems)
