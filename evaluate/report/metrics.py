"""The columns of the report's tables, and how a value compares with the baseline's."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from evaluate.benchmarks.benchmark import Better
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import Comparison, Comparisons, Verdict


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    key: str
    label: str
    digits: int
    meaning: str

    @property
    def better(self) -> Better:
        """Which direction is the good one."""
        benchmark, name = self.key.split("/")
        return BENCHMARKS[benchmark].metrics[name]


METRICS: tuple[Metric, ...] = (
    Metric(
        "core/explained_variance", "Explained variance", 4,
        "1 - sum ||x - x_hat||^2 / sum ||x - mean x||^2 over held-out rows. 1 is perfect, 0 is as good as the mean.",
    ),
    Metric(
        "core/ce_loss_score", "CE recovered", 4,
        "Share of the language model's loss that is recovered when the SAE's output replaces the activation, between "
        "setting the activation to zero (0) and leaving it alone (1). Predictions made from BOS are left out.",
    ),
    Metric(
        "core/kl_div_with_sae", "KL with SAE", 4,
        "Divergence, in nats per token, of the language model's predictions with the SAE from those without it.",
    ),
    Metric("core/l0", "L0", 1, "Mean number of latents above zero per row. Compare variants of similar L0."),
    Metric("core/mse", "MSE", 2, "Mean of ||x - x_hat||^2 over rows, in the units of the raw activations."),
    Metric("core/num_dead_latents", "Dead latents", 0, "Latents that never fire on the held-out rows."),
    Metric(
        "geometry/penalty", "P", 1,
        "The orthogonality penalty ||G - I||^2 over decoder directions: the sum of squared cosines over ordered pairs.",
    ),
    Metric(
        "geometry/mean_abs_cosine", "Mean |cos|", 4,
        "Mean absolute cosine over all pairs of decoder directions.",
    ),
    Metric(
        "geometry/mean_max_cosine", "Mean max cos", 4,
        "Mean over latents of the cosine with the nearest other latent. Near-duplicates bring it close to 1.",
    ),
    Metric(
        "geometry/effective_rank", "Effective rank", 1,
        "Number of dimensions that the decoder directions fill evenly; at most min(d_sae, d_model).",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a treatment has on one metric, and how that compares."""

    value: float
    """The mean over its seeds."""
    deviation: float | None
    """Sample standard deviation over seeds; None of one seed."""
    comparison: Comparison | None
    """With its baseline; None for a baseline, or where no SAE of the same seed has the metric."""

    @property
    def verdict(self) -> Verdict:
        """How it compares."""
        return "baseline" if self.comparison is None else self.comparison.verdict

    @property
    def difference(self) -> float | None:
        """Minus the baseline's, over the seeds that both have."""
        return None if self.comparison is None else self.comparison.difference.value

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval around the difference."""
        return None if self.comparison is None else self.comparison.difference.half_width()

    @property
    def p_value(self) -> float | None:
        """Corrected for the number of comparisons."""
        return None if self.comparison is None else self.comparison.p_corrected


def columns(benchmarks: Collection[str]) -> tuple[Metric, ...]:
    """The columns of the main table, of benchmarks that were run."""
    return tuple(metric for metric in METRICS if metric.key.split("/")[0] in benchmarks)


def cell(comparisons: Comparisons, treatment: str, metric: str) -> Cell | None:
    """One cell; None where no SAE of the treatment has the metric."""
    spread = comparisons.groups[treatment].spreads.get(metric)
    if spread is None:
        return None
    return Cell(spread.mean, spread.deviation, comparisons.of(treatment, metric))


def best(metric: str, metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Variants with the best value of `metric`, several if they are equal."""
    better = next(item.better for item in METRICS if item.key == metric)
    choose = max if better == "higher" else min
    target = choose(values[metric] for values in metrics.values())
    return [name for name, values in metrics.items() if values[metric] == target]
