"""The `geometry` benchmark: angles between the decoder directions of one SAE. Needs no language model."""

from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE, Measurement
from evaluate.config import GeometryConfig
from store.sae.geometry import decoder_geometry

_DIGITS = 6  # of the per-latent cosines: finer than any difference that a figure or a table shows


def num_batches(config: GeometryConfig) -> int:
    """One step per SAE, for the progress bar."""
    del config
    return 1


def measure(sae: EvaluatedSAE, config: GeometryConfig, context: BenchmarkContext | None) -> Measurement:
    """Statistics of `W_dec` (F, d), as defined in store/sae/geometry.py.

    Metrics: penalty (P), lower_bound, excess, mean_abs_cosine, mean_max_cosine, largest_cosine, effective_rank.
    Details: max_cosine per latent (F), histogram_counts (num_bins) of unordered pairs and histogram_edges.
    """
    del context
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
        details={
            "max_cosine": [round(value, _DIGITS) for value in geometry.max_cosine.tolist()],
            "histogram_counts": geometry.histogram_counts.tolist(),
            "histogram_edges": [round(value, _DIGITS) for value in geometry.histogram_edges.tolist()],
        },
    )
