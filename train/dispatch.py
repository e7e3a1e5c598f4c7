"""Where the tasks of a training run: one after another in this process, or on the workers of a Dask cluster.

Nothing of a task's result depends on where it ran, but for the last bits that depend on the machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compute.cluster import refuse_other_software, run_on_workers
from compute.progress import progress
from train.task import Task, run_task, stop_file, training_software
from train.telemetry import METRICS_FILE


def run_here(tasks: Sequence[Task]) -> str | None:
    """Runs the tasks in this process, one after another; what stopped them, if anything did."""
    for task in tasks:
        stopped = run_task(task)
        if stopped is not None:
            return stopped
    return None


def run_on_cluster(client: Any, tasks: Sequence[Task], *, num_tokens: int) -> str | None:  # noqa: ANN401 - no types there
    """Runs the tasks on the workers of a cluster; what stopped them, if anything did.

    A task that lost its worker continues from its last checkpoint, and one that is stopped writes one.

    Args:
        client: of compute.cluster.connect.
        tasks: of one scratch folder.
        num_tokens: SAE-tokens of all tasks, for the estimate of the time left.

    Raises OtherSoftware (a ValueError) where a worker's code or packages are not those here.
    """
    refuse_other_software(client, tasks[0].software, training_software)
    with progress(f"train, {len(tasks)} tasks on workers", total=num_tokens, unit="SAE-token") as count:
        return run_on_workers(
            client,
            run_task,
            tasks,
            stop_file=stop_file(tasks[0].scratch),
            describe=lambda task: f"the training of {', '.join(variant.name for variant in task.variants)}",
            on_wait=lambda: count.reach(_tokens_seen(tasks)),
        )


def _tokens_seen(tasks: Sequence[Task]) -> int:
    """SAE-tokens that the metrics of all tasks account for."""
    return sum(_last_rows(task.folder / METRICS_FILE) * len(task.variants) for task in tasks)


def _last_rows(path: Path) -> int:
    """`rows` of the last whole line of a metrics file; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            whole = file.read().split(b"\n")[:-1]
        return int(json.loads(whole[-1])["rows"]) if whole else 0
    except (OSError, ValueError, KeyError):
        return 0
