"""Chooses and orders the sentences of the report."""

from collections.abc import Mapping
from statistics import fmean

from evaluate.compare.comparisons import Comparisons
from evaluate.compare.treatments import BASELINE, all_settings, digest_without_treatment
from evaluate.report.benchmark_tables import remarks
from evaluate.report.findings import (
    NEAR_DUPLICATE_COSINE,
    Finding,
    baseline_sparsity_finding,
    dead_finding,
    dead_latents_finding,
    diverged_finding,
    geometry_finding,
    identical_finding,
    listed,
    loss_gap_finding,
    trade_finding,
)
from evaluate.report.inputs import ReportInputs
from evaluate.report.learned_lambda import (
    controls_finding,
    ends_finding,
    lambda_finding,
    others_finding,
    starts_finding,
    states_finding,
)
from evaluate.report.outliers import limit_finding, outliers_finding, outliers_in
from evaluate.report.recovery import recovery_findings
from evaluate.report.references import reference_findings
from store.errors import StoreError
from store.sae.artefact import SAECard

FEW_LEARNED = 4
"""Up to so many learned lambdas have a sentence of their own."""


def findings(inputs: ReportInputs, comparisons: Comparisons) -> list[Finding]:
    """All sentences but the verdict: first what limits the rest, then what was found, then what is not known."""
    cards, means = inputs.cards, comparisons.means()
    has_core, has_geometry = "core" in inputs.results, "geometry" in inputs.results
    references = [] if inputs.manifest.spec.is_synthetic else inputs.references  # of language models
    found = [diverged_finding(inputs.diverged), *recovery_findings(inputs, comparisons)]
    if has_core:
        found += core_findings(inputs, means)
    if has_core and has_geometry:
        found.append(trade_finding(means, comparisons.baseline))
    if BASELINE not in cards:
        why = "The baseline diverged" if BASELINE in inputs.diverged else "No variant is named baseline"
        found.append(Finding("warning", f"{why}, so no variant is compared with an SAE without penalty."))
    found.append(unpaired_finding(comparisons))
    if has_geometry:
        results = inputs.results["geometry"]
        duplicates = {
            name: fmean(
                sum(value > NEAR_DUPLICATE_COSINE for value in results[variant].detail_numbers("max_cosine"))
                for variant in group.variants
            )
            for name, group in comparisons.groups.items()
        }
        found.append(geometry_finding(means, duplicates))
    found += [
        *learned_findings(inputs),
        others_finding(cards),
        controls_finding(cards),
        identical_finding({name: card.weights_sha256 for name, card in cards.items()}),
        *remark_findings(inputs),
        *reference_findings(references),
        not_run_finding(inputs),
    ]
    return [finding for finding in found if finding is not None]


def core_findings(inputs: ReportInputs, means: Mapping[str, Mapping[str, float]]) -> list[Finding | None]:
    """What `core` measured. `means` are over seeds, by treatment."""
    metrics, cards = inputs.metrics(), inputs.cards
    # All variants were judged on the same rows.
    outliers = outliers_in(next(iter(inputs.results["core"].values())))
    if all(card.norm_limit is not None for card in cards.values()):
        outliers = None  # the figures leave them out
    synthetic = inputs.manifest.spec.is_synthetic  # there are no losses, and the true sparsity is known
    found = [outliers_finding(outliers), limit_finding(cards, metrics)]
    found += [dead_finding(name, d_sae=cards[name].d_sae, metrics=metrics[name]) for name in cards]
    if not synthetic:
        found.append(loss_gap_finding(metrics))
        if BASELINE in means:
            found.append(baseline_sparsity_finding(means[BASELINE]["core/l0"], outliers=outliers is not None))
    found.append(
        dead_latents_finding(
            {name: values["core/num_dead_latents"] for name, values in means.items()},
            {name: card.d_sae for name, card in cards.items()},
        )
    )
    return found


def unpaired_finding(comparisons: Comparisons) -> Finding | None:
    """Names treatments that no SAE of the same seed can be compared with."""
    names = [
        name for name, base in comparisons.baseline.items() if base not in (None, name) and not comparisons.pairs[name]
    ]
    if not names:
        return None
    return Finding(
        "warning",
        f"Not compared with a baseline, because none was trained with their seeds: {listed(names)}. Differences "
        "between seeds would be taken for those of treatments.",
    )


def remark_findings(inputs: ReportInputs) -> list[Finding | None]:
    """What benchmarks say about how their results may be read, the first remark of each; all are with its table.

    `core` has sentences of its own.
    """
    found: list[Finding | None] = []
    for name, results in inputs.results.items():
        first, *others = remarks(results) or [""]
        if first and name != "core":
            more = f" {len(others)} more such remarks are with its table, under Benchmarks." if others else ""
            found.append(Finding("warning", f"{name}, {first}{more}"))
    return found


def not_run_finding(inputs: ReportInputs) -> Finding | None:
    """Names what was not measured."""
    names = list(inputs.not_run)
    if not names:
        return None
    if inputs.manifest.spec.is_synthetic:
        return Finding(
            "note",
            f"Not run, as most of it needs a language model: {listed(names)}. The section on benchmarks says why.",
        )
    return Finding(
        "note",
        f"Whether the latents are better features is only partly measured here: {listed(names)} "
        f"{'was' if len(names) == 1 else 'were'} not run. The section on benchmarks says why.",
    )


def learned_findings(inputs: ReportInputs) -> list[Finding | None]:
    """Where the learned lambdas ended: one sentence per variant where they are few, counts where they are many."""
    learned = [card for card in inputs.cards.values() if is_learned(card)]
    ends = learned_ends(inputs.cards)
    if len(learned) > FEW_LEARNED:
        return [states_finding(learned), ends_finding(ends)]
    sentences = [
        lambda_finding(
            card,
            inputs.logs[card.name],
            penalty=float(card.final["scaled_penalty"]),
            regularization=regularization(card),
        )
        for card in learned
    ]
    return [*sentences, *(starts_finding(starts_and_ends) for starts_and_ends in ends)]


def learned_ends(cards: Mapping[str, SAECard]) -> list[dict[str, tuple[float, float]]]:
    """(start, end) of learned lambdas by variant, for every set of variants that differ in the treatment alone."""
    by_settings: dict[str, dict[str, tuple[float, float]]] = {}
    for name, card in cards.items():
        settings = card.variant["lambda"]
        if is_learned(card) and isinstance(settings, dict):
            start = _number(settings["start"], "lambda.start", card)
            by_settings.setdefault(digest_without_treatment(card), {})[name] = (start, float(card.final["lambda"]))
    return list(by_settings.values())


def is_learned(card: SAECard) -> bool:
    """Whether the variant's lambda follows a gradient."""
    settings = card.variant["lambda"]
    return isinstance(settings, Mapping) and settings["kind"] == "learned"


def regularization(card: SAECard) -> float:
    """c of the term c (log lambda)^2 that keeps a learned lambda near 1."""
    return _number(all_settings(card)["lambda_regularizer"], "lambda_regularizer", card)


def _number(value: object, name: str, card: SAECard) -> float:
    if not isinstance(value, float | int):
        raise StoreError(f"expected a number as {name} in the card of {card.name}, got {value!r}. Train it again")
    return float(value)
