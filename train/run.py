"""The training stage, from a cache to SAE artefacts: unchanged variants are reused, the rest trained in few passes.

Controls that match another variant's lambda (matched.py) are trained in a second round: what they take is known then.
"""

import functools
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from compute.code_version import tell_if_edited
from compute.device import product_dtype
from store.cache.moments import Moments
from store.cache.norm_summary import norm_summary
from store.cache.outlier_rows import DECIDING_SHARE
from store.care.dvc_versions import earlier_outputs, files_in
from store.files.open import CachePlace
from store.lease import exclusive_lock
from store.read.cache import ActivationCache
from store.replace import check_target, replace_folder
from store.sae.artefact import load_card
from train.config import (
    TrainConfig,
    VariantConfig,
    VariantSettings,
    check_against_data,
    check_variant_name,
    check_variant_names,
    resolve,
    steps_warning,
)
from train.matched import partners, values_taken
from train.reuse import take_earlier
from train.rounds import PLAN_FILE, train_missing, variants_by_hook
from train.task import (
    Plan,
    TrainingResources,
    plan_run,
    tasks_folder,
    trained_folder,
)
from train.telemetry import check_sinks
from train.variants import ResolvedVariant, resolve_variants
from train.version import TRAIN_VERSION

FEW_STEPS = 500
"""An SAE that takes fewer has hardly begun to learn, which is said."""


def run(
    config: TrainConfig,
    variants: Mapping[str, VariantConfig],
    *,
    cache: CachePlace | Path | str,
    output: Path,
    scratch: Path,
    resources: TrainingResources,
    reuse: bool,
    budget_bytes: int | None = None,
    scheduler: str | None = None,
) -> list[str]:
    """Trains the variants on the cache and puts one folder per variant into `output`, which is replaced as a whole.

    A killed run continues from its last checkpoint in `scratch` and ends with the same bytes. On SIGTERM, SIGINT or
    SIGHUP a checkpoint is written and SystemExit raised.

    Args:
        config: what all variants share, and defaults.
        variants: by name.
        cache: a complete activation cache: a folder, a URL, or a place with more said about how it is read.
        output: the folder `models`.
        scratch: for checkpoints and unfinished output; locked while the run lasts.
        resources: device, threads, checkpoints, where metrics go.
        reuse: whether variants of earlier outputs that still fit are linked in.
        budget_bytes: memory that one pass may take; None is a share of the machine's, see compute/memory.py.
        scheduler: address of a Dask scheduler whose workers train; None trains in this process.

    Returns the names of the variants that diverged, whose cards say at which step.

    Raises:
        ValueError: settings that do not fit the cache, or all variants diverged.
        StoreError: (a ValueError) a cache that is incomplete or damaged, or another run in the same scratch folder.
    """
    check_variant_names({check_variant_name(name): variant for name, variant in variants.items()})
    check_sinks(resources.sinks)
    tell_if_edited(TRAIN_VERSION, stage="train", where="train/version.py")
    opened = ActivationCache(cache)
    manifest = opened.manifest
    partner_of = partners(config, variants)
    resolved_with = functools.partial(
        resolve_variants,
        config,
        cache_digest=manifest.digest,
        product_dtype=str(product_dtype(torch.device(resources.device))).removeprefix("torch."),
    )
    resolved = resolved_with({name: variant for name, variant in variants.items() if name not in partner_of})
    controls = {name: variants[name] for name in partner_of}
    by_hook = variants_by_hook(resolved)
    # Settings that do not fit the cache end here.
    plans = {hook: plan_run(config, manifest, opened.files, hook=hook) for hook in by_hook}
    fewest = min(plan.num_steps for plan in plans.values())
    if fewest < FEW_STEPS:
        print(
            f"train: {fewest} steps of {config.batch_rows} rows are few for an SAE. For a small cache, lower "
            "train.batch_rows (and lr with its square root), raise num_epochs, or harvest more rows",
            file=sys.stderr,
        )
    for variant in resolved:
        _check_variant(variant, d_model=manifest.spec.model.d_model)
    for hook, plan in plans.items():
        _tell_norms(manifest.moments[hook], plan, hook=hook)
    settings = {name: resolve(config, variant) for name, variant in variants.items()}
    warning = steps_warning(settings, num_steps=fewest)
    if warning:
        print(f"train: {warning}", file=sys.stderr)
    with exclusive_lock(scratch):
        check_target(output, scratch, nbytes=_weights_nbytes(settings.values(), d_model=manifest.spec.model.d_model))
        assembly = scratch / "models"
        shutil.rmtree(assembly, ignore_errors=True)
        assembly.mkdir(parents=True)

        def train_round(this_round: Sequence[ResolvedVariant], *, title: str) -> None:
            """Puts the variants into `assembly`: reused, or trained."""
            missing = _taken_over(this_round, output, assembly, reuse=reuse)
            missing = take_earlier(missing, [files_in(trained_folder(scratch))], folder=assembly)
            if missing:
                train_missing(
                    _unique(missing), config, cache=cache, manifest=manifest, scratch=scratch, resources=resources,
                    budget_bytes=budget_bytes, scheduler=scheduler, title=title,
                )  # fmt: skip
                left = take_earlier(missing, [files_in(trained_folder(scratch))], folder=assembly)
                assert not left, left

        train_round(resolved, title="train")
        if controls:
            values = values_taken(variants, partner_of, folder=assembly)
            _tell_controls(values, partner_of)
            resolved += resolved_with(controls, matched=values)
            train_round(resolved[-len(controls) :], title="train controls")
        diverged = _diverged(assembly, resolved)
        replace_folder(assembly, output)
        for done_with in (trained_folder(scratch), tasks_folder(scratch)):
            shutil.rmtree(done_with, ignore_errors=True)
        (scratch / PLAN_FILE).unlink(missing_ok=True)
    return diverged


def _tell_norms(moments: Moments, plan: Plan, *, hook: str) -> None:
    """Says how unequal the rows are, which are left out, and where a few that are not would decide everything."""
    summary = norm_summary(moments)
    if summary is None:
        return
    print(f"train: rows of {hook}: {summary}", file=sys.stderr)
    limit, above = plan.limit, summary.above
    if limit is not None:
        print(
            f"train: {limit.num_rows_above:,} of {limit.num_rows:,} rows have a norm of {limit.norm:,.4g} or more "
            f"({limit.times_median:g} times the median) and are left out of training, scale and mean",
            file=sys.stderr,
        )
    if above is not None and above.variance_share_above > DECIDING_SHARE and limit is None:
        print(
            f"train: {above}: the loss, the scale of the input and the weight of l1 are about these rows. Another l1 "
            f"is no remedy: set train.max_norm: {{times_median: {above.times_median:g}}} to leave them out",
            file=sys.stderr,
        )


def _weights_nbytes(settings: Iterable[VariantSettings], *, d_model: int) -> int:
    """Of the encoders and decoders, which are nearly all that the output takes."""
    return sum(2 * 4 * d_model * variant.d_sae for variant in settings)


def _tell_controls(values: Mapping[str, float], partner_of: Mapping[str, str]) -> None:
    for control, value in values.items():
        if math.isfinite(value):
            said = f"has a constant lambda of {value:.6g}, that of {partner_of[control]}"
        else:
            said = f"has no lambda, since {partner_of[control]} diverged, and will count as diverged too"
        print(f"train: {control} {said}", file=sys.stderr)


def _check_variant(variant: ResolvedVariant, *, d_model: int) -> None:
    try:
        check_against_data(variant.settings, d_model=d_model)
    except ValueError as error:
        raise ValueError(f"variant {variant.name}: {error}") from error


def _taken_over(
    variants: Sequence[ResolvedVariant], output: Path, assembly: Path, *, reuse: bool
) -> list[ResolvedVariant]:
    """Puts unchanged variants of earlier outputs into `assembly`; those that are left."""
    if not reuse:
        return list(variants)
    missing = take_earlier(variants, earlier_outputs(str(output)), folder=assembly)
    for variant in variants:
        if variant not in missing:
            print(f"train: {variant.name} is unchanged and reused", file=sys.stderr)
    return missing


def _unique(variants: Sequence[ResolvedVariant]) -> list[ResolvedVariant]:
    """One variant per key: those that differ in name alone are trained once."""
    return list({variant.key: variant for variant in reversed(variants)}.values())[::-1]


def _diverged(assembly: Path, variants: Sequence[ResolvedVariant]) -> list[str]:
    """Names of the variants that diverged; ValueError if all did."""
    steps = {variant.name: load_card(assembly / variant.name).final.get("diverged_at_step") for variant in variants}
    names = [name for name, step in steps.items() if step is not None]
    if len(names) == len(variants):
        raise ValueError(
            f"expected at least one variant to train to the end, but all diverged: "
            f"{', '.join(f'{name} at step {steps[name]}' for name in names)}. Lower lr, l1 or lambda. Nothing was put "
            "in place"
        )
    return names
