"""The training stage, from a cache to SAE artefacts: unchanged variants are reused, the rest trained in few passes."""

import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from compute.cluster import connect, workers_of
from compute.code_version import tell_if_edited
from compute.device import product_dtype
from compute.memory import default_budget
from store.atomic import read_json, write_json
from store.cache.manifest import Manifest
from store.cache.moments import Moments
from store.cache.norm_summary import norm_summary
from store.cache.outlier_rows import DECIDING_SHARE
from store.care.dvc_versions import earlier_outputs, files_in
from store.errors import StoreError
from store.files.open import CachePlace, place_of
from store.lease import exclusive_lock
from store.read.cache import ActivationCache
from store.replace import check_target, replace_folder
from store.sae.artefact import load_card
from train.checkpoint import checkpoints_in
from train.config import (
    TrainConfig,
    VariantConfig,
    check_against_data,
    check_variant_name,
    check_variant_names,
    shape_key,
    steps_warning,
)
from train.dispatch import run_here, run_on_cluster
from train.plan import plan_groups, plan_passes, spread
from train.reuse import take_earlier
from train.steps.make import group_bytes
from train.task import (
    Plan,
    Task,
    TrainingResources,
    plan_run,
    stop_file,
    tasks_folder,
    trained_folder,
    training_software,
)
from train.telemetry import check_sinks
from train.variants import ResolvedVariant, resolve_variants
from train.version import TRAIN_VERSION

PLAN_FILE = "plan.json"

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
    plan = plan_run(config, manifest, opened.files)  # settings that do not fit the cache end here
    num_steps = plan.num_steps
    if num_steps < FEW_STEPS:
        print(
            f"train: {num_steps} steps of {config.batch_rows} rows are few for an SAE. For a small cache, lower "
            "train.batch_rows (and lr with its square root), raise num_epochs, or harvest more rows",
            file=sys.stderr,
        )
    resolved = resolve_variants(
        config,
        variants,
        cache_digest=manifest.digest,
        product_dtype=str(product_dtype(torch.device(resources.device))).removeprefix("torch."),
    )
    for variant in resolved:
        _check_variant(variant, d_model=manifest.spec.model.d_model)
    _tell_norms(manifest.moments[config.hook], plan, hook=config.hook)
    warning = steps_warning({variant.name: variant.settings for variant in resolved}, num_steps=num_steps)
    if warning:
        print(f"train: {warning}", file=sys.stderr)
    with exclusive_lock(scratch):
        check_target(output, scratch, nbytes=_weights_nbytes(resolved, d_model=manifest.spec.model.d_model))
        assembly = scratch / "models"
        shutil.rmtree(assembly, ignore_errors=True)
        assembly.mkdir(parents=True)
        missing = _taken_over(resolved, output, assembly, reuse=reuse)
        missing = take_earlier(missing, [files_in(trained_folder(scratch))], folder=assembly)
        if missing:
            _train(
                _unique(missing), config, cache=cache, manifest=manifest, scratch=scratch,
                resources=resources, budget_bytes=budget_bytes, scheduler=scheduler,
            )  # fmt: skip
            left = take_earlier(missing, [files_in(trained_folder(scratch))], folder=assembly)
            assert not left, left
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


def _weights_nbytes(variants: Sequence[ResolvedVariant], *, d_model: int) -> int:
    """Of the encoders and decoders, which are nearly all that the output takes."""
    return sum(2 * 4 * d_model * variant.settings.d_sae for variant in variants)


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


def _train(
    missing: Sequence[ResolvedVariant],
    config: TrainConfig,
    *,
    cache: CachePlace | Path | str,
    manifest: Manifest,
    scratch: Path,
    resources: TrainingResources,
    budget_bytes: int | None,
    scheduler: str | None,
) -> None:
    """Trains the variants; each is in its folder of `scratch`/trained when this returns. SystemExit if stopped."""
    budget = budget_bytes or default_budget(torch.device(resources.device))
    stop_file(scratch).unlink(missing_ok=True)  # of a run that was killed while it stopped its workers

    def planned(num_workers: int) -> list[Task]:
        compositions = _kept_plan(scratch, missing) or _plan(
            missing, config, budget, d_model=manifest.spec.model.d_model, resources=resources, num_workers=num_workers
        )
        _write_plan(scratch, compositions)
        return [
            Task(
                groups,
                config,
                place_of(cache).absolute(),
                manifest.digest,
                scratch.resolve(),
                resources,
                training_software(),
                title,
            )
            for groups, title in zip(compositions, _titles(len(compositions)), strict=True)
        ]

    if scheduler is None:
        tasks = planned(1)
        _announce(tasks, budget)
        stopped = run_here(tasks)
    else:
        with connect(scheduler) as client:
            tasks = planned(len(workers_of(client)))
            _announce(tasks, budget)
            num_rows = plan_run(config, manifest, ActivationCache(cache).files).num_steps * config.batch_rows
            stopped = run_on_cluster(client, tasks, num_rows=num_rows)
    if stopped is not None:
        raise SystemExit(f"train: {stopped}. Run the same command again to continue")


def _plan(
    missing: Sequence[ResolvedVariant],
    config: TrainConfig,
    budget: int,
    *,
    d_model: int,
    resources: TrainingResources,
    num_workers: int,
) -> list[tuple[tuple[ResolvedVariant, ...], ...]]:
    """Variants by group, groups by task."""
    groups = plan_groups(
        missing,
        shape=lambda variant: shape_key(variant.settings),
        num_bytes=lambda some: group_bytes(
            [variant.settings for variant in some],
            d_model=d_model,
            batch_rows=config.batch_rows,
            device=torch.device(resources.device),
        ),
        budget=budget,
    )
    tasks = spread(plan_passes(groups, budget=budget), num_workers)
    return [tuple(group.members for group in task) for task in tasks]


def _kept_plan(
    scratch: Path, missing: Sequence[ResolvedVariant]
) -> list[tuple[tuple[ResolvedVariant, ...], ...]] | None:
    """What an interrupted run had planned, without the tasks it finished, if that is what is missing now.

    What is trained together decides the last bits of the weights, so that a run continues as it began, though memory or
    workers may have changed.
    """
    try:
        tasks = read_json(scratch / PLAN_FILE)
    except (FileNotFoundError, StoreError):
        return None
    by_key = {variant.key: variant for variant in missing}
    left = [task for task in tasks if any(key in by_key for group in task for key in group)]
    if sorted(key for task in left for group in task for key in group) != sorted(by_key):
        return None
    return [tuple(tuple(by_key[key] for key in group) for group in task) for task in left]


def _write_plan(scratch: Path, tasks: Sequence[Sequence[Sequence[ResolvedVariant]]]) -> None:
    write_json(scratch / PLAN_FILE, [[[variant.key for variant in group] for group in task] for task in tasks])


def _titles(count: int) -> list[str]:
    return ["train"] if count == 1 else [f"train {index + 1}/{count}" for index in range(count)]


def _announce(tasks: Sequence[Task], budget: int) -> None:
    _say_what_is_not_continued(tasks)
    groups = list(itertools.chain.from_iterable(task.groups for task in tasks))
    print(
        f"train: {sum(map(len, groups))} variants in {len(groups)} group{'s' * (len(groups) > 1)} of "
        f"{', '.join(str(len(group)) for group in groups)}; {len(tasks)} pass{'es' * (len(tasks) > 1)} over the data "
        f"(memory for one: {budget / 2**30:.3g} GiB); metrics in {tasks[0].folder.parent}/*/metrics.jsonl",
        file=sys.stderr,
    )


def _say_what_is_not_continued(tasks: Sequence[Task]) -> None:
    """Names checkpoints that no task of this run can continue."""
    scratch = tasks[0].scratch
    finished = {path.name for path in trained_folder(scratch).glob("*")}
    own = {task.folder for task in tasks}
    others = [
        folder
        for folder in tasks_folder(scratch).glob("*")
        if folder not in own and folder.name not in finished and checkpoints_in(folder)
    ]
    if others:
        print(
            f"train: {len(others)} unfinished pass{'es' * (len(others) > 1)} in {tasks_folder(scratch)} "
            f"{'were' if len(others) > 1 else 'was'} begun with other settings, data, code or packages and cannot be "
            "continued with these",
            file=sys.stderr,
        )


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
