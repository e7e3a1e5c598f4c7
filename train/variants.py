"""What identifies a variant: its settings filled in, and the key of all that decides its artefact."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.record import digest, plain
from train.architectures import SELECTS, USES_L1
from train.config import (
    TrainConfig,
    VariantConfig,
    VariantSettings,
    resolve,
)
from train.lambdas import NO_PENALTY, FixedLambda, LearnedLambda, MatchedLambda, follows_lambda_lr
from train.version import TRAIN_VERSION


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant with every setting filled in."""

    name: str
    settings: VariantSettings
    """Of a control with the lambda that it took."""
    key: str
    """Digest of all that decides the artefact but the name."""
    own: dict[str, Any]
    """The settings that matter for this variant, as plain JSON."""
    shared: dict[str, Any]
    """The settings of the run, as plain JSON."""


def run_wide(train: TrainConfig) -> dict[str, Any]:
    """The settings that are the same for all variants: data, order, log. `seed` is that of the order of the batches."""
    own = set(VariantSettings.model_fields) - {"seed"}
    return {name: value for name, value in plain(train).items() if name not in own}


def relevant(settings: VariantSettings) -> dict[str, Any]:
    """The settings of a variant that can touch it, as plain JSON."""
    found: dict[str, Any] = plain(settings)
    if not isinstance(settings.schedule, LearnedLambda):
        del found["lambda_regularizer"]
    if not follows_lambda_lr(settings.schedule):
        del found["lambda_lr"]
    if settings.schedule == NO_PENALTY:
        del found["penalty"]
    if not isinstance(settings.architecture, USES_L1):
        del found["l1"]
    if isinstance(settings.architecture, SELECTS):
        del found["sparsity_warm_up_fraction"]
    return found


def resolve_variants(
    train: TrainConfig,
    variants: Mapping[str, VariantConfig],
    *,
    cache_digest: str,
    product_dtype: str = "float32",
    matched: Mapping[str, float] | None = None,
) -> list[ResolvedVariant]:
    """Fills in what each variant takes from the profile, and derives its key.

    A setting that cannot touch a variant is no part of its key. The number format of the products is, though the device
    chooses it: variants of different formats must not be compared. Of a control the key holds the lambda that it took,
    so that it is trained again when the variant it matches comes to another; its own settings say which that is.

    Args:
        matched: lambda of each control among the variants (matched.py), NaN where what it matches diverged.
    """
    shared = run_wide(train) | {"product_dtype": product_dtype}
    resolved = []
    for name, variant in variants.items():
        settings = resolve(train, variant)
        own = relevant(settings)
        decides = own
        if isinstance(settings.schedule, MatchedLambda):
            value = (matched or {})[name]
            decides = own | {"lambda": own["lambda"] | {"value": value if math.isfinite(value) else None}}
            # Without a check: NaN, which no setting may be, makes the control diverge at its first step.
            taken = FixedLambda.model_construct(kind="fixed", value=value)
            settings = settings.model_copy(update={"schedule": taken})
        key = digest(
            {**TRAIN_VERSION.identity("train_version"), "cache": cache_digest, "train": shared, "variant": decides}
        )
        resolved.append(ResolvedVariant(name=name, settings=settings, key=key, own=own, shared=shared))
    return resolved
