"""The loop over steps: batches in, log records out, checkpoints on the way, a clear end when something goes wrong."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from store.errors import DamagedFile, MismatchedCache
from store.reader import BatchStream, Position
from train.checkpoint import load_checkpoint, save_checkpoint
from train.group import VariantGroup
from train.interrupt import StopRequest, stop_on_signals
from train.metrics import COLUMNS, COSINE_EVERY_RECORDS, first_divergence
from train.schedule import lr_factor


def train_to_end(
    group: VariantGroup,
    *,
    names: Sequence[str],
    open_stream: Callable[[Position], BatchStream],
    num_steps: int,
    batch_rows: int,
    warm_up_fraction: float,
    decay_fraction: float,
    log_every_steps: int,
    checkpoint: Path,
    key: str,
    checkpoint_every_seconds: float,
) -> Tensor:
    """Trains the group to step `num_steps`, from `checkpoint` if there is one: its log, (num_records, V, columns).

    Args:
        names: of the variants, for messages.
        open_stream: the batches from a position on.
        key: digest of all inputs of the group; a checkpoint with another key is not used.
        checkpoint_every_seconds: cannot change the result; 0 saves after every step.

    Raises:
        ValueError: a variant diverged.
        SystemExit: a signal asked to stop; a checkpoint was written.
    """
    start, records = resume(group, checkpoint, key=key, num_variants=len(names))
    saved_at = time.monotonic()
    with (
        open_stream(start) as stream,
        stop_on_signals() as request,
        progress_bar(num_steps, batch_rows * len(names), num_steps_done=group.num_steps_done) as bar,
    ):
        for step in range(group.num_steps_done, num_steps):
            last = step == num_steps - 1
            record = group.step(
                next(stream),
                lr_factor=lr_factor(
                    step, num_steps=num_steps, warm_up_fraction=warm_up_fraction, decay_fraction=decay_fraction
                ),
                log=last or step % log_every_steps == 0,
                log_cosines=last or len(records) % COSINE_EVERY_RECORDS == 0,
            )
            bar.update(batch_rows * len(names))
            if record is not None:
                refuse_divergence(first_divergence(record, names), step=step, every=log_every_steps)
                records.append(record)
                bar.set_postfix_str(summary(record))
            if request.signal_name is not None or time.monotonic() - saved_at >= checkpoint_every_seconds:
                keep(group, records, names=names, path=checkpoint, key=key, position=stream.position)
                saved_at = time.monotonic()
            stop_if_asked(request, step=step, num_steps=num_steps)
    refuse_broken_weights(group, names)
    return torch.stack(records)


def resume(group: VariantGroup, checkpoint: Path, *, key: str, num_variants: int) -> tuple[Position, list[Tensor]]:
    """Puts the group where `checkpoint` left it: the next batch and the log so far. Without one, the beginning.

    A damaged or foreign checkpoint is named on stderr and not used.
    """
    if not checkpoint.exists():
        return Position(), []
    try:
        head, tensors = load_checkpoint(checkpoint, key=key)
    except (DamagedFile, MismatchedCache) as error:
        print(f"train: {error}. It is ignored and training starts from the beginning", file=sys.stderr)
        return Position(), []
    records = tensors.pop("log")
    group.restore(tensors, num_steps_done=head.num_steps_done)
    print(f"train: continues after step {head.num_steps_done} of a stopped training", file=sys.stderr)
    return head.position, list(records.reshape(-1, num_variants, len(COLUMNS)).unbind())


def keep(
    group: VariantGroup, records: list[Tensor], *, names: Sequence[str], path: Path, key: str, position: Position
) -> None:
    """Writes a checkpoint. One that cannot be written is reported and the training goes on; the former one remains."""
    refuse_broken_weights(group, names)
    log = torch.stack(records) if records else torch.zeros(0, dtype=torch.float64)
    try:
        save_checkpoint(
            path, key=key, num_steps_done=group.num_steps_done, position=position, tensors={**group.state(), "log": log}
        )
    except OSError as error:
        print(f"train: no checkpoint after step {group.num_steps_done}: {error}", file=sys.stderr)


def refuse_divergence(name: str | None, *, step: int, every: int) -> None:
    """ValueError that names the variant whose loss is not finite."""
    if name is not None:
        raise ValueError(
            f"expected a finite loss, got one that is not for variant {name!r} at step {step} (losses are looked at "
            f"every {every} steps). Lower its lr, l1 or lambda"
        )


def refuse_broken_weights(group: VariantGroup, names: Sequence[str]) -> None:
    """ValueError that names the first variant with a weight that is not finite."""
    broken = group.first_not_finite()
    if broken is not None:
        raise ValueError(
            f"expected finite weights, got some that are not for variant {names[broken]!r} after step "
            f"{group.num_steps_done - 1}. Lower its lr, l1 or lambda"
        )


def stop_if_asked(request: StopRequest, *, step: int, num_steps: int) -> None:
    """SystemExit with a message once a signal has asked for it."""
    if request.signal_name is not None:
        raise SystemExit(
            f"train: stopped by {request.signal_name} after step {step + 1} of {num_steps}. "
            "Run the same command again to continue"
        )


def progress_bar(num_steps: int, tokens_per_step: int, *, num_steps_done: int) -> "tqdm[Any]":
    """Progress in SAE-tokens (rows times variants), with rate and estimate, on stderr."""
    return tqdm(
        total=num_steps * tokens_per_step,
        initial=num_steps_done * tokens_per_step,
        desc="train",
        unit=" SAE-tokens",
        unit_scale=True,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def summary(record: Tensor) -> str:
    """The spread over the variants of explained variance and L0 in one record, for the progress bar."""
    explained = record[:, COLUMNS.index("explained_variance")]
    l0 = record[:, COLUMNS.index("l0")]
    return f"EV {explained.min():.3f}..{explained.max():.3f}, L0 {l0.min():.0f}..{l0.max():.0f}"
