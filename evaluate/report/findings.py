"""The sentences of the report: what happened, in words, from the metrics. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluate.report.metrics import best

DEAD_L0 = 0.01  # fewer active latents per row than this: the SAE outputs its bias
MOSTLY_DEAD = 0.5
AT_BOUND_WITHIN = 0.05  # of the bound
NEAR_DUPLICATE_COSINE = 0.9
MOST_LISTED = 12
SPARSE_L0 = (20.0, 200.0)
LEAST_LOSS_GAP = 0.1  # nats per token

Kind = Literal["warning", "result", "note"]


@dataclass(frozen=True)
class Finding:
    """One sentence or a few; a warning changes how the metrics may be read."""

    kind: Kind
    text: str


def dead_finding(name: str, *, d_sae: int, metrics: Mapping[str, float]) -> Finding | None:
    """Says that an SAE is dead (nothing fires, or nothing varies), or that much of it is."""
    num_dead, num_constant = int(metrics["core/num_dead_latents"]), int(metrics["core/num_constant_latents"])
    rows = f"{int(metrics['core/num_rows'])} held-out rows"
    if num_dead == d_sae or metrics["core/l0"] < DEAD_L0:
        return Finding(
            "warning",
            f"{name}: this SAE is dead. L0 is {number(metrics['core/l0'])} and {num_dead} of {d_sae} latents never "
            f"fire on {rows}; its output is its bias for every input. Its other metrics describe that bias.",
        )
    if num_constant == d_sae:
        return Finding(
            "warning",
            f"{name}: this SAE is dead. All {d_sae} latents are constant on {rows}, so its output does not depend on "
            "its input.",
        )
    if num_dead > MOSTLY_DEAD * d_sae:
        return Finding(
            "warning", f"{name}: most of this SAE is dead. {num_dead} of {d_sae} latents never fire on {rows}."
        )
    return None


def diverged_finding(diverged: Mapping[str, int]) -> Finding | None:
    """Names the variants that could not be trained."""
    if not diverged:
        return None
    parts = [f"{name} at step {step}" for name, step in diverged.items()]
    return Finding(
        "warning",
        f"Diverged in training: {listed(parts)}. Their loss or weights stopped being finite; they have no metrics and "
        "are in no table or figure. Lower their lr, l1 or lambda.",
    )


def dead_latents_finding(num_dead: Mapping[str, float], d_sae: Mapping[str, int]) -> Finding:
    """Dead latents of all treatments in one sentence, the mean over seeds of each."""
    if not any(num_dead.values()):
        return Finding("result", "No variant has latents that never fire on the held-out rows.")
    parts = [f"{name} {number(count)} of {d_sae[name]}" for name, count in num_dead.items() if count]
    return Finding("result", f"Latents that never fire on the held-out rows, mean over seeds: {listed(parts)}.")


def baseline_sparsity_finding(l0: float, *, outliers: bool = False) -> Finding | None:
    """Warns when the baseline is outside the range in which SAEs are usually read.

    `outliers`: a few rows decide the figures, so that another l1 would be no remedy.
    """
    low, high = SPARSE_L0
    if low <= l0 <= high:
        return None
    advice = f"{'Raise' if l0 > high else 'Lower'} l1 before drawing conclusions from the rest."
    if outliers:
        advice = "Its l1 was weighed against the few rows that decide the figures: leave it until they are gone."
    return Finding(
        "warning",
        f"The baseline's L0 is {number(l0)}, outside the {low:.0f} to {high:.0f} in which SAEs are usually studied. "
        f"{advice}",
    )


def loss_gap_finding(metrics: Mapping[str, Mapping[str, float]]) -> Finding | None:
    """Warns when the language model hardly needs the activation, so that CE recovered divides by next to nothing."""
    values = next(iter(metrics.values()))
    gap = values["core/ce_loss_with_ablation"] - values["core/ce_loss_without_sae"]
    if gap >= LEAST_LOSS_GAP:
        return None
    return Finding(
        "warning",
        f"The language model's cross-entropy changes by {number(gap)} nats when this activation is set to zero. CE "
        "recovered divides by that number, so it means little here: use KL and explained variance.",
    )


def trade_finding(metrics: Mapping[str, Mapping[str, float]], reference: Mapping[str, str | None]) -> Finding | None:
    """The treatment with the most separate latents, and what that cost against its baseline, in means over seeds."""
    name = best("geometry/mean_max_cosine", metrics)[0]
    other = reference[name]
    if other is None:
        return None
    if other == name:
        return Finding("result", f"No penalty gave a lower mean cosine with the nearest other latent than {name} has.")
    found, base = metrics[name], metrics[other]
    cosines = [values["geometry/mean_max_cosine"] for values in (found, base)]
    variances = [values["core/explained_variance"] for values in (found, base)]
    scores = [values["core/ce_loss_score"] for values in (found, base) if "core/ce_loss_score" in values]
    recovered = f" and CE recovered by {scores[0] - scores[1]:+.4f}" if scores else ""
    return Finding(
        "result",
        f"Most separate latents: {name}, whose nearest other latent is at a mean cosine of "
        f"{cosines[0]:.3f}, against {cosines[1]:.3f} in {other}. Against it, explained variance changes by "
        f"{variances[0] - variances[1]:+.4f}{recovered}, at an L0 of "
        f"{number(found['core/l0'])} against {number(base['core/l0'])}.",
    )


def geometry_finding(metrics: Mapping[str, Mapping[str, float]], duplicates: Mapping[str, float]) -> Finding:
    """P of every treatment against its lower bound, and near-duplicates that P does not see.

    Args:
        metrics: means over seeds.
        duplicates: latents with another one at a cosine above `NEAR_DUPLICATE_COSINE`, mean over seeds.
    """
    parts = [f"{name} {number(values['geometry/penalty'])}" for name, values in metrics.items()]
    bounds = sorted({values["geometry/lower_bound"] for values in metrics.values()})
    text = f"P ended at {listed(parts)}; its lower bound is {listed([number(bound) for bound in bounds])}"
    text += ", which no decoder of this shape can go below." if max(bounds) > 0 else ", an orthogonal decoder."
    reached = [name for name, values in metrics.items() if at_bound(values)]
    if reached:
        text += f" {listed(reached)} {'is' if len(reached) == 1 else 'are'} within {AT_BOUND_WITHIN:.0%} of the bound."
    if any(duplicates.values()):
        counts = listed([f"{name} {number(count)}" for name, count in duplicates.items() if count])
        text += f" Latents with a near-duplicate (cosine above {NEAR_DUPLICATE_COSINE}): {counts}."
        hidden = [name for name in reached if duplicates[name]]
        if hidden:
            text += f" In {listed(hidden)} P is at its bound nevertheless: P does not see them."
    else:
        text += f" No latent has a near-duplicate (cosine above {NEAR_DUPLICATE_COSINE})."
    return Finding("result", text)


def at_bound(values: Mapping[str, float]) -> bool:
    """Whether P exceeds its lower bound, where that is not 0, by less than `AT_BOUND_WITHIN` of it."""
    bound = values["geometry/lower_bound"]
    return bound > 0 and values["geometry/excess"] <= AT_BOUND_WITHIN * bound


def identical_finding(weights_sha256: Mapping[str, str]) -> Finding | None:
    """Names variants whose SAEs are the same to the byte: their settings made no difference."""
    names: dict[str, list[str]] = {}
    for name, sha256 in weights_sha256.items():
        names.setdefault(sha256, []).append(name)
    same = [listed(group) for group in names.values() if len(group) > 1]
    if not same:
        return None
    return Finding("warning", f"The same SAE to the byte: {'; '.join(same)}. Their settings made no difference.")


def number(value: float) -> str:
    """Four significant digits, without an exponent where that stays readable."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.2e}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of many the first, and how many more there are."""
    if len(parts) > MOST_LISTED:
        return f"{', '.join(parts[: MOST_LISTED - 1])} and {len(parts) - MOST_LISTED + 1} more"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
