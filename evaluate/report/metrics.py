"""The columns of the report's table, and how a value compares with the baseline's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Differences below this share of the baseline's value are not called better or worse: one seed cannot tell them apart.
SAME_WITHIN = 0.01

Better = Literal["higher", "lower", "neither"]
Verdict = Literal["baseline", "better", "worse", "same", "neutral"]


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    key: str
    label: str
    better: Better
    digits: int
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "core/explained_variance", "Explained variance", "higher", 4,
        "1 - sum ||x - x_hat||^2 / sum ||x - mean x||^2 over held-out rows. 1 is perfect, 0 is as good as the mean.",
    ),
    Metric(
        "core/ce_loss_score", "CE recovered", "higher", 4,
        "Share of the language model's loss that is recovered when the SAE's output replaces the activation, between "
        "setting the activation to zero (0) and leaving it alone (1).",
    ),
    Metric(
        "core/kl_div_with_sae", "KL with SAE", "lower", 4,
        "Divergence, in nats per token, of the language model's predictions with the SAE from those without it.",
    ),
    Metric("core/l0", "L0", "neither", 1, "Mean number of latents above zero per row. Compare variants of similar L0."),
    Metric("core/mse", "MSE", "lower", 2, "Mean of ||x - x_hat||^2 over rows, in the units of the raw activations."),
    Metric("core/num_dead_latents", "Dead latents", "lower", 0, "Latents that never fire on the held-out rows."),
    Metric(
        "geometry/penalty", "P", "lower", 1,
        "The orthogonality penalty ||G - I||^2 over decoder directions: the sum of squared cosines over ordered pairs.",
    ),
    Metric(
        "geometry/mean_abs_cosine", "Mean |cos|", "lower", 4,
        "Mean absolute cosine over all pairs of decoder directions.",
    ),
    Metric(
        "geometry/mean_max_cosine", "Mean max cos", "lower", 4,
        "Mean over latents of the cosine with the nearest other latent. Near-duplicates bring it close to 1.",
    ),
    Metric(
        "geometry/effective_rank", "Effective rank", "neither", 1,
        "Number of dimensions that the decoder directions fill evenly; at most min(d_sae, d_model).",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One value and how it compares."""

    value: float
    difference: float | None
    """Minus the baseline's; None for the baseline itself."""
    verdict: Verdict


def table_row(metrics: Mapping[str, float], baseline: Mapping[str, float] | None) -> dict[str, Cell]:
    """The cells of one variant. `baseline` None marks the baseline itself, or that there is none to compare with."""
    cells = {}
    for metric in METRICS:
        value = metrics[metric.key]
        if baseline is None:
            cells[metric.key] = Cell(value, None, "baseline")
            continue
        difference = value - baseline[metric.key]
        cells[metric.key] = Cell(value, difference, verdict(metric.better, difference, baseline[metric.key]))
    return cells


def verdict(better: Better, difference: float, reference: float) -> Verdict:
    """Better, worse, or the same within `SAME_WITHIN` of the reference; neutral where neither direction is better."""
    if better == "neither":
        return "neutral"
    if abs(difference) <= SAME_WITHIN * abs(reference):
        return "same"
    return "better" if (difference > 0) == (better == "higher") else "worse"


def best(metric: str, metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Variants with the best value of `metric`, several if they are equal."""
    better = next(item.better for item in METRICS if item.key == metric)
    choose = max if better == "higher" else min
    target = choose(values[metric] for values in metrics.values())
    return [name for name, values in metrics.items() if values[metric] == target]
