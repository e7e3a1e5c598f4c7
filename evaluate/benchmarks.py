"""The benchmarks: those that run, and those that this version does not run yet, with what each of them measures.

A benchmark is one module with a function `measure(subject, config, laboratory) -> Measurement`, one entry in
`BENCHMARKS`, and one field of the same name in `EvaluateConfig`. Modules are imported when they are needed, because
sae-bench takes many seconds to import and the report needs none of it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from store.record import Record
from store.sae.artefact import SAECard
from store.sae.weights import SAEWeights


@dataclass(frozen=True)
class Subject:
    """The SAE under test."""

    variant: str
    weights: SAEWeights
    card: SAECard


@dataclass(frozen=True)
class Laboratory:
    """What benchmarks need beside the SAE: the language model and text that training never saw. Set up once."""

    bridge: Any
    """The language model as a transformer_lens TransformerBridge."""
    tokens: NDArray[np.uint32]
    """Held-out sequences, (sequences, context), each beginning with BOS."""
    ignored_token_ids: frozenset[int]
    """BOS, EOS and padding: positions that SAEs were not trained on and that no figure counts."""
    device: torch.device
    on_batch: Callable[[], object]
    """Called after every batch, for the progress bar."""


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found out about one SAE."""

    metrics: dict[str, float]
    """The figures that are compared between variants; all finite."""
    details: dict[str, JsonValue] = field(default_factory=dict)
    """Distributions, the benchmark library's own output, and how the figures were made."""


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
            module="evaluate.core",
            version=1,
            needs_language_model=True,
            measures="How well the SAE reconstructs held-out activations, how sparse it is, and what the language "
            "model loses when it runs on the reconstruction (sae-bench core).",
        ),
        Benchmark(
            name="geometry",
            module="evaluate.geometry",
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


def measure(benchmark: Benchmark, subject: Subject, config: Record, laboratory: Laboratory | None) -> Measurement:
    """Runs `benchmark` on one SAE. A figure that is not a finite number is an error that names it."""
    measurement: Measurement = importlib.import_module(benchmark.module).measure(subject, config, laboratory)
    broken = {name: value for name, value in measurement.metrics.items() if not np.isfinite(value)}
    if broken:
        raise ValueError(f"expected finite figures, got {broken}. Nothing was recorded")
    return measurement
