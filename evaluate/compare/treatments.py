"""What was done to a variant, and which variant it is compared with. Pure functions."""

from collections.abc import Mapping
from typing import Any

from store.record import digest
from store.sae.artefact import SAECard

BASELINE = "baseline"
# Settings that are the treatment under study; two variants that agree in all others differ by the treatment alone.
TREATMENT = ("lambda", "penalty", "penalty_scale", "lambda_regularizer", "lambda_lr")
MANY = 12
"""Above this number of variants the page draws some of them, and its sentences count instead of naming all."""


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
