"""The loop over steps: each batch is read once and steps every group; records out, checkpoints on the way.

A variant whose loss or weights stop being finite is frozen at the log record that shows it, and only that variant.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compute.progress import Progress, progress
from compute.stop import StopRequest
from store.errors import StoreError
from store.read.batches import Position
from store.read.device import DeviceBatches
from train.checkpoint import load_newest, save_checkpoint
from train.group import VariantGroup
from train.metrics import COLUMNS, COSINE_EVERY_RECORDS, diverged, log_lines
from train.telemetry import Telemetry

_NEVER = -1


@dataclass
class GroupRun:
    """A group in training, with its log records and divergences so far."""

    group: VariantGroup
    names: Sequence[str]
    """Names of its variants, in their order."""
    records: list[Tensor] = field(default_factory=list)
    """Log records, one (V, columns) tensor per logged step."""
    diverged_at: dict[int, int] = field(default_factory=dict)
    """The step at which a variant was found to have diverged, by its place in the group."""

    def take_record(self, record: Tensor, *, step: int) -> None:
        """Appends a log record; freezes the variants that it shows to have diverged."""
        self.records.append(record)
        for index in sorted({*diverged(record, self.group.frozen), *self.group.not_finite()}):
            self.diverged_at[index] = step
            self.group.freeze(index)
            print(
                f"train: {self.names[index]} diverged at step {step}: its loss or weights are not finite. It is not "
                "trained further; the others go on. Lower its lr, l1 or lambda",
                file=sys.stderr,
            )

    def lines(self) -> dict[str, dict[str, Any]]:
        """The last record by variant, without those that have diverged."""
        last = self.records[-1][None]
        return {
            name: log_lines(last, index)[0] for index, name in enumerate(self.names) if index not in self.diverged_at
        }

    def log_of(self, index: int) -> list[dict[str, Any]]:
        """The whole log of one variant, up to the record that showed it to have diverged."""
        lines = log_lines(torch.stack(self.records), index)
        end = self.diverged_at.get(index)
        return lines if end is None else [line for line in lines if line.get("step", math.inf) < end]

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged_at) == len(self.names)

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold of this group."""
        log = torch.stack(self.records) if self.records else torch.zeros(0, dtype=torch.float64)
        steps = torch.tensor([self.diverged_at.get(index, _NEVER) for index in range(len(self.names))])
        return {**self.group.state(), "log": log, "diverged_at": steps}

    def restore(self, state: dict[str, Tensor], *, num_steps_done: int) -> None:
        """Continues from a `state`."""
        log, steps = state.pop("log"), state.pop("diverged_at").tolist()
        self.records = list(log.reshape(-1, len(self.names), len(COLUMNS)).unbind())
        self.group.restore(state, num_steps_done=num_steps_done)
        self.diverged_at = {index: step for index, step in enumerate(steps) if step != _NEVER}


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where and how often checkpoints are written, and how many are kept. None of it can change a result."""

    folder: Path
    key: str
    """Digest of all inputs of the groups; a checkpoint of another key is not used."""
    every_seconds: float
    """0 saves after every step."""
    num_kept: int
    """The newest so many are kept."""


def train_to_end(
    runs: Sequence[GroupRun],
    *,
    open_stream: Callable[[Position], DeviceBatches],
    num_steps: int,
    batch_rows: int,
    log_every_steps: int,
    checkpoints: CheckpointPolicy,
    open_telemetry: Callable[[int], Telemetry],
    request: StopRequest,
    title: str = "train",
) -> str | None:
    """Trains all groups to step `num_steps`, from the newest checkpoint if there is one.

    Args:
        runs: the groups, as initialised; their records and divergences are filled in.
        checkpoints: where and how often they are written.
        open_stream: the batches from a position on.
        open_telemetry: where the metrics go, from a step on.
        request: looked at after every step.

    Returns None, or who asked to stop: a checkpoint was written then.
    """
    start = resume(runs, checkpoints)
    first_step = runs[0].group.num_steps_done
    telemetry = open_telemetry(first_step)
    tokens_per_step = batch_rows * sum(len(run.names) for run in runs)
    saved_at = time.monotonic()
    try:
        with (
            open_stream(start) as stream,
            progress_bar(title, num_steps, tokens_per_step, num_steps_done=first_step) as bar,
        ):
            for step in range(first_step, num_steps):
                last = step == num_steps - 1
                log = last or step % log_every_steps == 0
                rows_BD = next_batch(stream, runs, checkpoints)
                step_all(runs, rows_BD, step=step, log=log, last=last)
                bar.update(tokens_per_step)
                if log:
                    lines = {name: line for run in runs for name, line in run.lines().items()}
                    telemetry.write(lines)
                    bar.detail(summary(lines))
                if all(run.all_diverged for run in runs):
                    break
                reason = request.reason()
                if reason is not None or time.monotonic() - saved_at >= checkpoints.every_seconds:
                    write_checkpoint(runs, checkpoints, position=stream.position)
                    saved_at = time.monotonic()
                if reason is not None:
                    return f"stopped by {reason} after step {step + 1} of {num_steps}"
    finally:
        telemetry.close()
    return None


def next_batch(stream: DeviceBatches, runs: Sequence[GroupRun], checkpoints: CheckpointPolicy) -> Tensor:
    """The next batch; where the cache turns out to be damaged, what was trained until then is kept first."""
    try:
        return next(stream)
    except StoreError:
        write_checkpoint(runs, checkpoints, position=stream.position)
        raise


def step_all(runs: Sequence[GroupRun], rows_BD: Tensor, *, step: int, log: bool, last: bool) -> None:
    """One step of every group on one batch of the store."""
    for run in runs:
        log_cosines = last or len(run.records) % COSINE_EVERY_RECORDS == 0
        record = run.group.step(rows_BD, log=log, log_cosines=log_cosines)
        if record is not None:
            run.take_record(record, step=step)


def resume(runs: Sequence[GroupRun], checkpoints: CheckpointPolicy) -> Position:
    """Puts the groups where the newest sound checkpoint left them; the next batch. Without one, the beginning."""
    found = load_newest(checkpoints.folder, key=checkpoints.key)
    if found is None:
        return Position()
    head, tensors = found
    for place, run in enumerate(runs):
        prefix = f"{place}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        run.restore(own, num_steps_done=head.num_steps_done)
    print(f"train: continues after step {head.num_steps_done} of a stopped training", file=sys.stderr)
    return head.position


def write_checkpoint(runs: Sequence[GroupRun], checkpoints: CheckpointPolicy, *, position: Position) -> None:
    """Writes a checkpoint. One that cannot be written is reported and the training goes on; the earlier ones remain."""
    num_steps_done = runs[0].group.num_steps_done
    tensors = {f"{place}.{name}": t for place, run in enumerate(runs) for name, t in run.state().items()}
    try:
        save_checkpoint(
            checkpoints.folder,
            key=checkpoints.key,
            num_steps_done=num_steps_done,
            position=position,
            tensors=tensors,
            num_kept=checkpoints.num_kept,
        )
    except OSError as error:
        print(f"train: no checkpoint after step {num_steps_done}: {error}", file=sys.stderr)


def progress_bar(
    title: str, num_steps: int, tokens_per_step: int, *, num_steps_done: int
) -> AbstractContextManager[Progress]:
    """Progress in SAE-tokens (rows times variants), with rate and estimate, on stderr."""
    return progress(title, total=num_steps * tokens_per_step, unit="SAE-token", done=num_steps_done * tokens_per_step)


def summary(lines: Mapping[str, Mapping[str, float]]) -> str:
    """The spread over the variants of explained variance and L0 in one record, for the progress bar."""
    explained = [line["explained_variance"] for line in lines.values()]
    l0 = [line["l0"] for line in lines.values()]
    if not lines or not all(map(math.isfinite, [*explained, *l0])):
        return ""
    return f"EV {min(explained):.3f}..{max(explained):.3f}, L0 {min(l0):.0f}..{max(l0):.0f}"
