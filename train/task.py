"""One pass over the data: what a single process trains, here or on a worker, from a cache to finished SAEs.

A task is plain data, so that it can travel to another machine that sees the same places.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compute.software import Software, software_here
from compute.stop import stop_on_signals
from store.cache.manifest import Manifest
from store.cache.norm_limit import NormLimit, within_limit
from store.errors import MismatchedCache
from store.files.open import CachePlace
from store.files.protocol import Files
from store.lease import exclusive_lock
from store.read.batches import Position, rows_in_use
from store.read.cache import ActivationCache
from store.read.device import DeviceBatches
from store.read.long_rows import RowsWithin
from store.read.rows_above import most_rows_above
from store.record import digest
from store.replace import replace_folder
from train.artefacts import save_group
from train.config import TrainConfig
from train.group import make_group
from train.loop import CheckpointPolicy, GroupRun, train_to_end
from train.steps.input import activation_scale
from train.telemetry import JSON_LINES_ONLY, MetricsSinks, Telemetry, open_telemetry
from train.variants import ResolvedVariant
from train.version import TRAIN_VERSION


@dataclass(frozen=True)
class TrainingResources:
    """What a training is computed with: device, threads, checkpoints, where metrics go. None of it decides a result."""

    device: str
    """Name of a torch device. On cuda products are bfloat16, weights and optimiser float32."""
    num_threads: int
    """Threads of torch's products, and of decoding."""
    checkpoint_every_seconds: float = 120.0
    num_checkpoints: int = 2
    """Checkpoints kept."""
    sinks: MetricsSinks = JSON_LINES_ONLY
    """Where metrics go."""


@dataclass(frozen=True)
class Task:
    """Groups of variants that are trained in one pass over the rows of one hook."""

    groups: tuple[tuple[ResolvedVariant, ...], ...]
    config: TrainConfig
    cache: CachePlace
    cache_digest: str
    scratch: Path
    resources: TrainingResources
    software: Software
    """Of the process that planned it."""
    title: str = "train"
    """What the progress bar says."""

    @property
    def key(self) -> str:
        """Digest of all inputs but names, and of the software: a checkpoint that other code made is not continued."""
        keys = [[variant.key for variant in group] for group in self.groups]
        return digest({"groups": keys, "software": self.software.deciding()})

    @property
    def folder(self) -> Path:
        """Where its checkpoints and metrics are."""
        return tasks_folder(self.scratch) / self.key[:16]

    @property
    def hook(self) -> str:
        """The hook whose rows all its variants are trained on."""
        return self.groups[0][0].settings.hook

    @property
    def variants(self) -> list[ResolvedVariant]:
        return [variant for group in self.groups for variant in group]


def stop_file(scratch: Path) -> Path:
    """While it exists, tasks of this scratch folder stop, on whatever machine they run."""
    return scratch / "stop"


def tasks_folder(scratch: Path) -> Path:
    """Where tasks work: one folder each, for checkpoints and metrics."""
    return scratch / "tasks"


def trained_folder(scratch: Path) -> Path:
    """Where finished SAEs wait until all of a run are finished: <task>/<variant>, a task's all at once."""
    return scratch / "trained"


def training_software() -> Software:
    """The code and packages with which this process trains."""
    return software_here(TRAIN_VERSION.files)


def run_task(task: Task) -> str | None:
    """Trains the task's groups to the end and leaves its SAEs in `trained_folder`; or says what stopped it.

    Raises:
        OtherSoftware: (a ValueError) the task was planned with other code or packages than those here.
        ValueError: the cache is not the one that the run was planned for, or is damaged (the error names the file).
        Busy: another process trains the same.
    """
    task.software.refuse_other(training_software())
    torch.set_num_threads(task.resources.num_threads)
    cache = ActivationCache(task.cache)
    if cache.manifest.digest != task.cache_digest:
        raise MismatchedCache(
            f"expected the activation cache {task.cache_digest[:12]} in {task.cache}, found "
            f"{cache.manifest.digest[:12]}. It was replaced while the training ran, or this machine sees another folder"
        )
    config, plan = task.config, plan_run(task.config, cache.manifest, cache.files, hook=task.hook)
    with exclusive_lock(task.folder), stop_on_signals(stop_file(task.scratch)) as request:
        runs = [
            GroupRun(
                make_group(
                    [variant.settings for variant in group],
                    num_steps=plan.num_steps,
                    batch_rows=config.batch_rows,
                    scale=plan.scale,
                    mean=plan.mean,
                    device=torch.device(task.resources.device),
                ),
                [variant.name for variant in group],
            )
            for group in task.groups
        ]
        stopped = train_to_end(
            runs,
            open_stream=functools.partial(
                cache_batches,
                cache,
                config,
                hook=task.hook,
                device=torch.device(task.resources.device),
                num_threads=task.resources.num_threads,
                within=plan.rows_within,
            ),
            num_steps=plan.num_steps,
            batch_rows=config.batch_rows,
            log_every_steps=config.log_every_steps,
            checkpoints=CheckpointPolicy(
                task.folder,
                key=task.key,
                every_seconds=task.resources.checkpoint_every_seconds,
                num_kept=task.resources.num_checkpoints,
            ),
            open_telemetry=functools.partial(_telemetry, task),
            request=request,
            title=task.title,
        )
        if stopped is None:
            _save(task, runs, plan=plan, manifest=cache.manifest)
            if request.signal_name is not None:  # it came too late for this pass, and not for the next
                stopped = f"stopped by {request.signal_name} after the last step of a pass"
    return stopped


def _telemetry(task: Task, first_step: int) -> Telemetry:
    return open_telemetry(
        task.folder,
        task.resources.sinks,
        settings={variant.name: variant.own for variant in task.variants},
        keys={variant.name: variant.key for variant in task.variants},
        first_step=first_step,
    )


def _save(task: Task, runs: Sequence[GroupRun], *, plan: "Plan", manifest: Manifest) -> None:
    """Puts all SAEs of the task in place by one rename, so that a kill leaves all or none of them."""
    unfinished = task.folder / "trained"
    shutil.rmtree(unfinished, ignore_errors=True)
    for run, group in zip(runs, task.groups, strict=True):
        save_group(
            run,
            variants=group,
            manifest=manifest,
            hook=task.hook,
            scale=plan.scale,
            limit=plan.limit,
            num_steps=plan.num_steps,
            batch_rows=task.config.batch_rows,
            folder=unfinished,
        )
    replace_folder(unfinished, trained_folder(task.scratch) / task.key[:16])


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from the settings and the cache."""

    num_steps: int
    scale: float
    """What rows are multiplied with, so that E||x||^2 = d_model."""
    mean: list[float]
    """Mean of the raw training rows, (d_model,)."""
    num_rows: int
    """Rows that are sure to be there in an epoch."""
    limit: NormLimit | None
    """Rows above it are left out of all this; None: there is no limit."""

    @property
    def rows_within(self) -> RowsWithin | None:
        """What the reader has to know of the limit; None where no row is above it."""
        if self.limit is None or not self.limit.num_rows_above:
            return None
        return RowsWithin(self.limit.squared_norm, self.num_rows)


def plan_run(config: TrainConfig, manifest: Manifest, files: Files, *, hook: str) -> Plan:
    """Checks the settings against the cache and derives steps and scale; ValueError where they do not fit.

    `files` are those of the cache: where a part of it is used, the rows above `max_norm` are counted by shard.
    """
    if hook not in manifest.spec.hooks:
        raise ValueError(
            f"expected train.hook to be one of the cached hooks {', '.join(manifest.spec.hooks)}, got {hook}. "
            "Choose one of them, or add it to harvest.hooks"
        )
    moments = manifest.moments[hook]
    num_rows = rows_in_use(manifest, "training", config.num_rows)
    mean, mean_squared_norm, limit = moments.mean, moments.mean_squared_norm, None
    if config.max_norm is not None:
        within = within_limit(moments, config.max_norm.times_median)
        mean, mean_squared_norm, limit = within.mean, within.mean_squared_norm, within.limit
        num_rows -= most_rows_above(files, manifest, hook, limit, num_rows=num_rows)
    steps_per_epoch = max(0, num_rows) // config.batch_rows
    if steps_per_epoch == 0:
        left_out = limit is not None and limit.num_rows_above > 0
        raise ValueError(
            f"expected train.batch_rows of at most the {max(0, num_rows)} rows of the cache that are trained on"
            f"{', those above train.max_norm left out' * left_out}, got "
            f"{config.batch_rows}. Lower it, or raise harvest.num_rows"
            + ("" if config.num_rows is None else " and train.num_rows")
        )
    return Plan(
        num_steps=steps_per_epoch * config.num_epochs,
        scale=activation_scale(d_model=len(mean), mean_squared_norm=mean_squared_norm),
        mean=list(mean),
        num_rows=num_rows,
        limit=limit,
    )


def cache_batches(
    cache: ActivationCache,
    config: TrainConfig,
    start: Position,
    *,
    hook: str,
    device: torch.device,
    num_threads: int,
    within: RowsWithin | None = None,
) -> DeviceBatches:
    """The batches of the run from `start` on, on the device that trains; `within`: see store/read/long_rows.py."""
    batches = cache.batches(
        hook,
        batch_rows=config.batch_rows,
        seed=config.seed,
        start=start,
        num_epochs=config.num_epochs,
        pool_bytes=config.pool_bytes,
        num_rows=config.num_rows,
        num_threads=num_threads,
        within=within,
    )
    return DeviceBatches(batches, device)
