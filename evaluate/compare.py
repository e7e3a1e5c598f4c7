"""Variants against the baseline: differences, spread over seeds, and which latents they share. Pure functions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from store.record import digest
from store.sae.artefact import SAECard
from store.sae.geometry import best_match_cosines

BASELINE = "baseline"
# Differences below this share of the baseline's value are not called better or worse: one seed cannot tell them apart.
SAME_WITHIN = 0.01
MATCHED_L0_WITHIN = 0.10
# Settings that are the treatment under study; two variants that agree in all others differ by the treatment alone.
TREATMENT = ("lambda", "penalty", "penalty_scale", "lambda_regularizer", "lambda_lr")
MANY = 12
"""Above this number of variants the page draws some of them, and its sentences count instead of naming all."""

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
        "explained_variance", "Explained variance", "higher", 4,
        "1 - sum ||x - x_hat||^2 / sum ||x - mean x||^2 over held-out rows. 1 is perfect, 0 is as good as the mean.",
    ),
    Metric(
        "ce_loss_score", "CE recovered", "higher", 4,
        "Share of the language model's loss that is won back when the SAE's output replaces the activation, between "
        "setting the activation to zero (0) and leaving it alone (1).",
    ),
    Metric(
        "kl_div_with_sae", "KL with SAE", "lower", 4,
        "Divergence, in nats per token, of the language model's predictions with the SAE from those without it.",
    ),
    Metric("l0", "L0", "neither", 1, "Mean number of latents above zero per row. Compare variants of similar L0."),
    Metric("mse", "MSE", "lower", 2, "Mean of ||x - x_hat||^2 over rows, in the units of the raw activations."),
    Metric("num_dead_latents", "Dead latents", "lower", 0, "Latents that never fire on the held-out rows."),
    Metric(
        "penalty", "P", "lower", 1,
        "The orthogonality penalty ||G - I||^2 over decoder directions: the sum of squared cosines over ordered pairs.",
    ),
    Metric(
        "mean_abs_cosine", "Mean |cos|", "lower", 4, "Mean absolute cosine over all pairs of decoder directions."
    ),
    Metric(
        "mean_max_cosine", "Mean max cos", "lower", 4,
        "Mean over latents of the cosine with the nearest other latent. Near-duplicates push it towards 1.",
    ),
    Metric(
        "effective_rank", "Effective rank", "neither", 1,
        "Number of dimensions that the decoder directions fill evenly; at most min(d_sae, d_model).",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One figure and how it compares."""

    value: float
    difference: float | None
    """Minus the baseline's; None for the baseline itself."""
    verdict: Verdict


def compare(metrics: Mapping[str, float], baseline: Mapping[str, float] | None) -> dict[str, Cell]:
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


def all_settings(card: SAECard) -> dict[str, Any]:
    """The variant's settings and those of its run, the variant's own where both have one."""
    return {**card.train, **card.variant}


def treatment(card: SAECard) -> str:
    """Identity of what was done to a variant, whatever its seed: variants that share it differ by seed alone."""
    settings = {key: value for key, value in all_settings(card).items() if key != "seed"}
    return digest({"settings": settings, "hook": card.hook, "d_sae": card.d_sae})


def untreated(card: SAECard, *but: str) -> str:
    """Identity of all settings that are no `TREATMENT`, and none of `but`."""
    left_out = (*TREATMENT, *but)
    settings = {key: value for key, value in all_settings(card).items() if key not in left_out}
    return digest({"settings": settings, "hook": card.hook, "d_sae": card.d_sae})


def baseline_of(variant: str, cards: Mapping[str, SAECard]) -> str | None:
    """What to compare `variant` with: the baseline's lambda with all else (l1, seed, ...) as in `variant`.

    Where no such variant was trained, the baseline's treatment at the same seed; else `baseline` itself.
    """
    if BASELINE not in cards:
        return None
    card, base = cards[variant], cards[BASELINE]
    plain = [name for name, each in cards.items() if each.variant["lambda"] == base.variant["lambda"]]
    alike = [name for name in plain if untreated(cards[name]) == untreated(card)]
    same_seed = [name for name in plain if cards[name].seed == card.seed and treatment(cards[name]) == treatment(base)]
    return next(iter([*alike, *same_seed, BASELINE]))


def families(cards: Mapping[str, SAECard]) -> dict[str, list[str]]:
    """Variants that differ in seed and sparsity (l1, k, l0) alone, under the name of the first of each family."""
    by_treatment: dict[str, list[str]] = {}
    for name, card in cards.items():
        settings = {key: value for key, value in all_settings(card).items() if key not in ("seed", "l1")}
        architecture = settings.get("architecture")
        if isinstance(architecture, dict):
            settings["architecture"] = {key: value for key, value in architecture.items() if key not in ("k", "l0")}
        by_treatment.setdefault(digest({"settings": settings, "d_sae": card.d_sae}), []).append(name)
    return {names[0]: names for names in by_treatment.values()}


def shown_in_full(cards: Mapping[str, SAECard]) -> list[str]:
    """The variants that curves and matrices show: all of a few; of many, those that differ from the baseline by the
    treatment alone, and at most `MANY`."""
    if len(cards) <= MANY:
        return list(cards)
    reference = cards.get(BASELINE) or next(iter(cards.values()))
    alike = [name for name, card in cards.items() if untreated(card) == untreated(reference)]
    return (alike if len(alike) > 1 else list(cards))[:MANY]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one figure over the seeds of one treatment."""

    mean: float
    deviation: float | None
    """None with a single seed."""


@dataclass(frozen=True)
class SeedGroup:
    """The variants of one treatment."""

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    """Without repetition."""
    figures: dict[str, Spread]


def seed_groups(cards: Mapping[str, SAECard], metrics: Mapping[str, Mapping[str, float]]) -> list[SeedGroup]:
    """Variants grouped by treatment, in the order given; a group of several seeds has a spread."""
    grouped: dict[str, list[str]] = {}
    for name, card in cards.items():
        grouped.setdefault(treatment(card), []).append(name)
    groups = []
    for names in grouped.values():
        of_seed = {cards[name].seed: name for name in reversed(names)}  # one setting under two names counts once
        seeds = tuple(dict.fromkeys(cards[name].seed for name in names))
        figures = {}
        for metric in METRICS:
            values = [metrics[of_seed[seed]][metric.key] for seed in seeds]
            deviation = statistics.stdev(values) if len(seeds) > 1 else None
            figures[metric.key] = Spread(statistics.fmean(values), deviation)
        groups.append(SeedGroup(tuple(names), seeds, figures))
    return groups


def differing_sparsity(l0: Mapping[str, float], reference: Mapping[str, str | None]) -> dict[str, float]:
    """Variants whose L0 is further from their baseline's than `MATCHED_L0_WITHIN`, with the relative difference."""
    found = {}
    for name, value in l0.items():
        other = reference[name]
        if other is None or other == name:
            continue
        relative = value / l0[other] - 1.0 if l0[other] > 0 else math.inf
        if abs(relative) > MATCHED_L0_WITHIN:
            found[name] = relative
    return found


def shared_latents(decoders: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean over the latents of the first variant of the largest cosine with a latent of the second.

    `decoders` holds W_dec (F, d) per variant. Variants of one seed begin from the same weights, which raises it.
    """
    return {
        first: {second: float(best_match_cosines(decoders[first], decoders[second]).mean()) for second in decoders}
        for first in decoders
    }


def chance_best_match(d_sae: int, d_model: int) -> float:
    """About what `shared_latents` gives for decoders of random directions.

    A cosine of random directions is near normal with deviation 1 / sqrt(d); the largest of F normals is expected at
    the quantile (F - 3/8) / (F + 1/4) (Blom 1958).
    """
    quantile = statistics.NormalDist().inv_cdf((d_sae - 0.375) / (d_sae + 0.25))
    return min(1.0, quantile / math.sqrt(d_model))


def best(metric: str, metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Variants with the best value of `metric`, several if they are equal."""
    better = next(item.better for item in METRICS if item.key == metric)
    choose = max if better == "higher" else min
    target = choose(values[metric] for values in metrics.values())
    return [name for name, values in metrics.items() if values[metric] == target]


def series(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field of a training log, without the lines that do not have it."""
    points = [(float(line["step"]), float(line[key])) for line in log if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
