"""The `geometry` benchmark: angles between the decoder directions of one SAE. Needs no language model."""

from typing import Annotated

from pydantic import Field

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from store.record import Record
from store.sae.geometry import decoder_geometry

_DIGITS = 6  # of the per-latent cosines: finer than any difference that a figure or a table shows


class GeometryConfig(Record):
    """How finely the `geometry` benchmark bins cosines."""

    num_bins: Annotated[int, Field(ge=10, le=1000)]
    """Bins of the histogram of pairwise cosines, from -1 to 1."""


def measure(sae: EvaluatedSAE, config: GeometryConfig, context: BenchmarkContext, shared: None) -> Measurement:
    """Statistics of `W_dec` (F, d), as defined in store/sae/geometry.py.

    Metrics: penalty (P), lower_bound, excess, mean_abs_cosine, mean_max_cosine, largest_cosine, effective_rank.
    Details: max_cosine per latent (F), histogram_counts (num_bins) of unordered pairs and histogram_edges.
    """
    del context, shared
    geometry = decoder_geometry(sae.weights.W_dec, num_bins=config.num_bins)
    return Measurement(
        metrics={
            "penalty": geometry.penalty,
            "lower_bound": geometry.lower_bound,
            "excess": geometry.excess,
            "mean_abs_cosine": geometry.mean_abs_cosine,
            "mean_max_cosine": geometry.mean_max_cosine,
            "largest_cosine": float(geometry.max_cosine.max()),
            "effective_rank": geometry.effective_rank,
        },
        basis={"latents": len(geometry.max_cosine)},
        details={
            "max_cosine": [round(value, _DIGITS) for value in geometry.max_cosine.tolist()],
            "histogram_counts": geometry.histogram_counts.tolist(),
            "histogram_edges": [round(value, _DIGITS) for value in geometry.histogram_edges.tolist()],
        },
    )


BENCHMARK = Benchmark(
    name="geometry",
    config=GeometryConfig,
    needs=frozenset({"decoder"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/geometry.py",
            "store/sae/geometry.py",
        ),
        code_sha256="51aea0da7dea92c9cb2a964ea254b7de67b4f8b265533866c921fffd984e5c53",
    ),
    metrics={
        "penalty": "lower",
        "lower_bound": "neither",
        "excess": "lower",
        "mean_abs_cosine": "lower",
        "mean_max_cosine": "lower",
        "largest_cosine": "lower",
        "effective_rank": "neither",
    },
    headlines=("mean_max_cosine",),
    measures="Angles between decoder directions: pairwise cosines, the nearest other latent, the penalty P against its "
    "lower bound, effective rank.",
    measure=measure,
)
