"""Chooses and orders the sentences of the report."""

from collections.abc import Mapping

from evaluate.benchmarks import NOT_RUN_YET
from evaluate.compare import BASELINE, baseline_of, seed_groups
from evaluate.evidence import Evidence
from evaluate.findings import (
    Finding,
    baseline_sparsity_finding,
    dead_finding,
    dead_latents_finding,
    geometry_finding,
    identical_finding,
    listed,
    loss_gap_finding,
    reconstruction_finding,
    seeds_finding,
    sparsity_finding,
    trade_finding,
)
from evaluate.learned import lambda_finding, starts_finding
from store.sae import SAECard


def findings(evidence: Evidence) -> list[Finding]:
    """All sentences, the most consequential first: what cannot be trusted, what was found, what is not known."""
    metrics, cards = evidence.metrics(), evidence.cards
    reference = {name: baseline_of(name, cards) for name in cards}
    l0 = {name: values["l0"] for name, values in metrics.items()}
    max_cosines = {
        name: [float(value) for value in _numbers(result.details["max_cosine"])]
        for name, result in evidence.results["geometry"].items()
    }
    maybe = [dead_finding(name, d_sae=cards[name].d_sae, metrics=metrics[name]) for name in cards]
    maybe += [loss_gap_finding(metrics), reconstruction_finding(metrics), trade_finding(metrics, reference)]
    if BASELINE in cards:
        maybe += [sparsity_finding(l0, reference), baseline_sparsity_finding(l0[BASELINE])]
    else:
        maybe.append(Finding("warning", "No variant is named baseline, so nothing is compared with a plain SAE."))
    maybe += [
        geometry_finding(metrics, max_cosines),
        *(lambda_sentence(evidence, name, metrics[name]["penalty"]) for name in cards if is_learned(cards[name])),
        *(starts_finding(ends) for ends in learned_ends(cards)),
        dead_latents_finding(
            {name: int(values["num_dead_latents"]) for name, values in metrics.items()},
            {name: card.d_sae for name, card in cards.items()},
        ),
        identical_finding({name: card.weights_sha256 for name, card in cards.items()}),
        seeds_finding(seed_groups(cards, metrics)),
        Finding(
            "note",
            "Whether the latents are better features is only partly measured here: "
            f"{listed([planned.name for planned in NOT_RUN_YET])} are not run yet.",
        ),
    ]
    return [finding for finding in maybe if finding is not None]


def lambda_sentence(evidence: Evidence, name: str, penalty: float) -> Finding:
    """Where the learned lambda of one variant ended."""
    card = evidence.cards[name]
    return lambda_finding(
        card,
        evidence.logs[name],
        penalty=penalty * penalty_factor(card),
        regularization=regularization(card),
    )


def learned_ends(cards: Mapping[str, SAECard]) -> list[dict[str, tuple[float, float]]]:
    """(start, end) of every learned lambda, apart for each seed."""
    by_seed: dict[int, dict[str, tuple[float, float]]] = {}
    for name, card in cards.items():
        settings = card.variant["lambda"]
        if is_learned(card) and isinstance(settings, dict):
            start = settings["start"]
            assert isinstance(start, float | int)
            by_seed.setdefault(card.seed, {})[name] = (float(start), float(card.final["lambda"]))
    return list(by_seed.values())


def is_learned(card: SAECard) -> bool:
    """Whether the variant's lambda follows a gradient."""
    settings = card.variant["lambda"]
    return isinstance(settings, Mapping) and settings["kind"] == "learned"


def penalty_factor(card: SAECard) -> float:
    """What P is multiplied with before lambda is: 1, or 1 / F where the penalty is per latent."""
    return 1.0 / card.d_sae if card.train["penalty_scale"] == "per_latent" else 1.0


def regularization(card: SAECard) -> float:
    """c of the term c (log lambda)^2 that a learned lambda is held by."""
    value = card.train["lambda_regularizer"]
    assert isinstance(value, float | int)
    return float(value)


def _numbers(value: object) -> list[float]:
    assert isinstance(value, list)
    return value
