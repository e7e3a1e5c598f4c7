"""What was done to a variant, and which variant it is compared with. Pure functions."""

from collections.abc import Mapping
from typing import Any

from store.record import digest
from store.sae.artefact import SAECard

BASELINE = "baseline"
TREATMENT = ("lambda", "penalty", "penalty_scale", "lambda_regularizer", "lambda_lr", "decoder")
"""Settings that are under study; two variants that agree in all others differ by the treatment alone."""
MOST_SHOWN = 12
"""The page draws at most so many variants one by one."""


def all_settings(card: SAECard) -> dict[str, Any]:
    """The variant's settings and those of its run, the variant's own where both have one."""
    return {**card.train, **card.variant}


def shared_and_own(
    settings: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings that all variants share, and the rest by variant. Lambda is always a variant's own."""
    first, *others = settings.values()
    shared = {
        key: value
        for key, value in first.items()
        if key != "lambda" and all(key in other and other[key] == value for other in others)
    }
    own = {
        name: {key: value for key, value in values.items() if key not in shared} for name, values in settings.items()
    }
    return shared, own


def treatment(card: SAECard) -> str:
    """Digest of all settings but the seed: variants that share it differ by seed alone."""
    settings = {key: value for key, value in all_settings(card).items() if key != "seed"}
    return digest({"settings": settings, "hook": card.hook, "d_sae": card.d_sae})


def digest_without_treatment(card: SAECard) -> str:
    """Digest of all settings that are not the `TREATMENT`, the seed included."""
    settings = {key: value for key, value in all_settings(card).items() if key not in TREATMENT}
    return digest({"settings": settings, "hook": card.hook, "d_sae": card.d_sae})


def _lambda_and_decoder(card: SAECard) -> tuple[Any, Any]:
    """What makes a baseline one; a decoder that is trained is not named in a card."""
    return card.variant["lambda"], card.variant.get("decoder")


def baseline_of(variant: str, cards: Mapping[str, SAECard]) -> str | None:
    """What to compare `variant` with: the baseline's lambda and decoder with all else (l1, seed, ...) as in `variant`.

    Where no such variant was trained, the baseline's treatment at the same seed; else `baseline` itself.
    """
    if BASELINE not in cards:
        return None
    card, base = cards[variant], cards[BASELINE]
    kept = _lambda_and_decoder(base)
    baselines = {name: other for name, other in cards.items() if _lambda_and_decoder(other) == kept}
    settings = digest_without_treatment(card)
    same_settings = [name for name, other in baselines.items() if digest_without_treatment(other) == settings]
    same_seed = [
        name for name, other in baselines.items() if other.seed == card.seed and treatment(other) == treatment(base)
    ]
    return [*same_settings, *same_seed, BASELINE][0]


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
    """The variants that curves and matrices show, at most `MOST_SHOWN`.

    Where there are more, those that differ from the baseline by the treatment alone.
    """
    if len(cards) <= MOST_SHOWN:
        return list(cards)
    reference = cards.get(BASELINE) or next(iter(cards.values()))
    settings = digest_without_treatment(reference)
    same_settings = [name for name, card in cards.items() if digest_without_treatment(card) == settings]
    return (same_settings if len(same_settings) > 1 else list(cards))[:MOST_SHOWN]
