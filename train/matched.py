"""Controls whose lambda is constant, and the mean or the last value of another variant's that follows training.

    adaptive-mean:  {lambda: {kind: matched, of: adaptive, take: mean}}

If such a control does as well as the variant it matches, what helped was the size of lambda, and not that it followed
training. Both have to agree in all else. In a grid each control therefore has its own partner: the variant with the
lambda of `of`, and the control's own seed, l1 and so on. Controls are trained in a second round, on the same batches.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from store.sae.artefact import load_card
from train.config import TrainConfig, VariantConfig, VariantSettings, resolve
from train.lambdas import FOLLOWS_TRAINING, MatchedLambda
from train.variants import relevant

CARD_FIELDS = {"mean": "lambda_mean", "final": "lambda"}
"""Where a card has what `take` names."""


def partners(train: TrainConfig, variants: Mapping[str, VariantConfig]) -> dict[str, str]:
    """The variant that each control matches, by the control's name; ValueError where one has none."""
    controls = {name: v.schedule for name, v in variants.items() if isinstance(v.schedule, MatchedLambda)}
    if not controls:
        return {}
    settings = {name: resolve(train, variant) for name, variant in variants.items()}
    return {name: _partner(name, schedule, settings) for name, schedule in controls.items()}


def _partner(control: str, schedule: MatchedLambda, settings: Mapping[str, VariantSettings]) -> str:
    where = f"variant {control}: lambda.of"
    following = [name for name, other in settings.items() if isinstance(other.schedule, FOLLOWS_TRAINING)]
    some = ", ".join(following[:8]) or "none of these variants"
    if schedule.of not in settings:
        raise ValueError(
            f"{where}: expected the name of a variant whose lambda follows training ({some}), got {schedule.of!r}. "
            "Correct it"
        )
    wanted = settings[schedule.of].schedule
    if not isinstance(wanted, FOLLOWS_TRAINING):
        why = (
            "which is a control itself"
            if isinstance(wanted, MatchedLambda)
            else f"whose lambda of kind {wanted.kind} is known before training"
        )
        raise ValueError(
            f"{where}: expected a variant whose lambda follows training ({some}), got {schedule.of}, {why}. Choose "
            "another, or give the control a lambda of its own"
        )
    asked = relevant(settings[control].model_copy(update={"schedule": wanted}))
    for name, other in settings.items():
        if other.schedule == wanted and relevant(other) == asked:
            return name
    nearest = relevant(settings[schedule.of])
    apart = [key for key in asked if asked[key] != nearest.get(key)]
    raise ValueError(
        f"{where}: expected a variant with the lambda of {schedule.of} and all else as in {control}, found none: "
        f"{schedule.of} itself differs in {', '.join(apart)}. Give both the same, or vary both in one grid"
    )


def values_taken(
    variants: Mapping[str, VariantConfig], partner_of: Mapping[str, str], *, folder: Path
) -> dict[str, float]:
    """The lambda of each control, by name; NaN where its partner diverged.

    Args:
        variants: those of the study, controls included.
        partner_of: of `partners`.
        folder: where the partners' SAEs are, by name.
    """
    found = {}
    for control, partner in partner_of.items():
        schedule = variants[control].schedule
        assert isinstance(schedule, MatchedLambda)
        value = load_card(folder / partner).final.get(CARD_FIELDS[schedule.take])
        found[control] = float(value) if isinstance(value, int | float) else math.nan
    return found
