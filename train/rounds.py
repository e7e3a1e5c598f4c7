"""One round of a training: the variants that are missing, planned as tasks and run, here or on workers."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from compute.cluster import connect, workers_of
from compute.memory import default_budget
from store.atomic import read_json, write_json
from store.cache.manifest import Manifest
from store.errors import StoreError
from store.files.open import CachePlace, place_of
from store.read.cache import ActivationCache
from train.checkpoint import checkpoints_in
from train.config import TrainConfig, shape_key
from train.dispatch import run_here, run_on_cluster
from train.plan import plan_groups, plan_passes, spread
from train.steps.make import group_bytes
from train.task import (
    Task,
    TrainingResources,
    plan_run,
    stop_file,
    tasks_folder,
    trained_folder,
    training_software,
)
from train.variants import ResolvedVariant

PLAN_FILE = "plan.json"


def variants_by_hook(variants: Sequence[ResolvedVariant]) -> dict[str, list[ResolvedVariant]]:
    """The variants of each hook, in the order given."""
    found: dict[str, list[ResolvedVariant]] = {}
    for variant in variants:
        found.setdefault(variant.settings.hook, []).append(variant)
    return found


def train_missing(
    missing: Sequence[ResolvedVariant],
    config: TrainConfig,
    *,
    cache: CachePlace | Path | str,
    manifest: Manifest,
    scratch: Path,
    resources: TrainingResources,
    budget_bytes: int | None,
    scheduler: str | None,
    title: str,
) -> None:
    """Trains the variants; each is in its folder of `scratch`/trained when this returns. SystemExit if stopped.

    Args:
        missing: no two of the same key.
        title: what the progress bar says.
    The others are those of train.run.run.
    """
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
                titled,
            )
            for groups, titled in zip(compositions, _titles(title, len(compositions)), strict=True)
        ]

    if scheduler is None:
        tasks = planned(1)
        _announce(tasks, budget)
        stopped = run_here(tasks)
    else:
        files = ActivationCache(cache).files
        with connect(scheduler) as client:
            tasks = planned(len(workers_of(client)))
            _announce(tasks, budget)
            num_tokens = sum(
                plan_run(config, manifest, files, hook=task.hook).num_steps * config.batch_rows * len(task.variants)
                for task in tasks
            )
            stopped = run_on_cluster(client, tasks, num_tokens=num_tokens)
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
    """Variants by group, groups by task; the groups of a task have one hook."""
    passes = []
    for members in variants_by_hook(missing).values():
        groups = plan_groups(
            members,
            shape=lambda variant: shape_key(variant.settings),
            num_bytes=lambda some: group_bytes(
                [variant.settings for variant in some],
                d_model=d_model,
                batch_rows=config.batch_rows,
                device=torch.device(resources.device),
            ),
            budget=budget,
        )
        passes += plan_passes(groups, budget=budget)
    tasks = spread(passes, num_workers)
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


def _titles(title: str, count: int) -> list[str]:
    return [title] if count == 1 else [f"{title} {index + 1}/{count}" for index in range(count)]


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
