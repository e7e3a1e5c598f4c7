"""Which variants need not be trained: the key of all that decides a variant, and the search for SAEs that carry it."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.atomic import link_or_copy, read_json
from store.errors import StoreError
from store.record import digest, plain
from store.sae import CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE, load_sae
from train.config import LambdaSchedule, LearnedLambda, TrainConfig, VariantConfig

TRAIN_VERSION = 1
"""Raised by hand when the same inputs give other weights or another log."""


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant with every setting filled in."""

    name: str
    schedule: LambdaSchedule
    l1: float
    lr: float
    seed: int
    key: str
    """Digest of all that decides the artefact but the name."""
    settings: dict[str, Any]
    """The variant's own settings as plain JSON."""
    shared: dict[str, Any]
    """The settings shared by all variants that matter for this one, as plain JSON."""


def resolve_variants(
    config: TrainConfig, variants: Mapping[str, VariantConfig], *, cache_digest: str, product_dtype: str = "float32"
) -> list[ResolvedVariant]:
    """Fills in what each variant takes from the profile, and derives its key.

    A setting that cannot touch a variant is no part of its key: the profile's l1 and lr where the variant has its own,
    and what concerns learned lambdas where its lambda is not learned. The number format of the products does, though
    the device chooses it: variants of different formats must not be compared.
    """
    resolved = []
    for name, variant in variants.items():
        l1 = config.l1 if variant.l1 is None else variant.l1
        lr = config.lr if variant.lr is None else variant.lr
        seed = config.seed if variant.seed is None else variant.seed
        settings = {"lambda": plain(variant.schedule), "l1": l1, "lr": lr, "seed": seed}
        shared = {field: value for field, value in plain(config).items() if field not in ("l1", "lr")}
        shared["product_dtype"] = product_dtype
        if not isinstance(variant.schedule, LearnedLambda):
            del shared["lambda_regularizer"], shared["lambda_lr"]
        key = digest({"train_version": TRAIN_VERSION, "cache": cache_digest, "train": shared, "variant": settings})
        resolved.append(
            ResolvedVariant(
                name=name, schedule=variant.schedule, l1=l1, lr=lr, seed=seed, key=key, settings=settings, shared=shared
            )
        )
    return resolved


def _take(files: Mapping[str, Path], variant: ResolvedVariant, folder: Path) -> bool:
    """Links an earlier SAE of this name and key into `folder`; False where there is none or it is damaged."""
    sources = {name: files.get(f"{variant.name}/{name}") for name in (CARD_FILE, LOG_FILE, SAELENS_FILE, WEIGHTS_FILE)}
    present = {name: source for name, source in sources.items() if source is not None}
    if len(present) < len(sources):
        return False
    try:
        found = read_json(present[CARD_FILE])
        if not isinstance(found, dict) or found.get("key") != variant.key or found.get("name") != variant.name:
            return False
        for name, source in present.items():
            link_or_copy(source, folder / name)
        load_sae(folder)
    except (StoreError, OSError) as error:
        print(f"train: {variant.name} of an earlier run cannot be reused ({error})", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def reuse_variants(
    variants: list[ResolvedVariant], earlier: Iterator[dict[str, Path]], *, folder: Path
) -> list[ResolvedVariant]:
    """Links every variant that an earlier output holds into `folder`/<name>; the variants that are left to train."""
    missing = list(variants)
    while missing:
        files = next(earlier, None)
        if files is None:
            break
        missing = [variant for variant in missing if not _take(files, variant, folder / variant.name)]
    return missing
