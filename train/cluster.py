"""Runs tasks: one after another in this process, or side by side on the workers of a Dask cluster.

Workers see the cache and the scratch folder under the same paths. A task that loses its worker is begun again on
another one and continues from its last checkpoint. Nothing of a task's result depends on where it ran, but for the last
bits that depend on the machine.
"""

import contextlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.interrupt import StopRequest, stop_on_signals
from train.task import Task, run_task, stop_file
from train.telemetry import METRICS_FILE

CONNECT_SECONDS = 15.0
_LOOK_EVERY_SECONDS = 2.0


def run_here(tasks: Sequence[Task]) -> str | None:
    """Runs the tasks in this process, one after another; what stopped them, if anything did."""
    for task in tasks:
        stopped = run_task(task)
        if stopped is not None:
            return stopped
    return None


@contextlib.contextmanager
def connect(scheduler: str) -> Iterator[Any]:
    """A client of the Dask scheduler at this address; ValueError where none answers or it has no workers."""
    from distributed import Client  # takes a second: not for those who do without

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a Dask scheduler at {scheduler}, found none ({error}). Start one with `dask scheduler`, or "
            "leave --scheduler out"
        ) from error
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ValueError(
                f"expected workers at the Dask scheduler {scheduler}, found none. Start some with "
                f"`dask worker {scheduler} --nthreads 1`"
            )
        yield client
    finally:
        client.close()


def workers_of(client: Any) -> list[str]:  # noqa: ANN401 - distributed has no types
    """The addresses of the cluster's workers."""
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def run_on(client: Any, tasks: Sequence[Task], *, num_rows: int) -> str | None:  # noqa: ANN401 - no types there
    """Runs the tasks on the cluster, one at a time on each worker; what stopped them, if anything did.

    `num_rows`: that each variant sees, for the estimate of the time left. A signal to this process stops the tasks on
    all workers, each after writing a checkpoint.
    """
    waiting, free = deque(tasks), deque(workers_of(client))
    running: dict[Any, tuple[Task, str]] = {}
    stop = stop_file(tasks[0].scratch)
    stop.unlink(missing_ok=True)
    stopped = None
    with stop_on_signals() as request, _bar(tasks, num_rows) as bar:
        try:
            while running or (waiting and stopped is None):
                while waiting and free and stopped is None:
                    task, worker = waiting.popleft(), free.popleft()
                    future = client.submit(run_task, task, workers=[worker], allow_other_workers=True, pure=False)
                    running[future] = (task, worker)
                for future in _finished(running):
                    task, worker = running.pop(future)
                    free.append(worker)
                    stopped = _result(future, task) or stopped
                stopped = _pass_on(request, stop) or stopped
                bar.update(max(0, _tokens_seen(tasks) - bar.n))
        except BaseException:
            stop.write_text("the failure of another task")
            _await_all(list(running))
            raise
        finally:
            stop.unlink(missing_ok=True)
    return stopped


def _result(future: Any, task: Task) -> str | None:  # noqa: ANN401 - distributed has no types
    """What a task returned; raises what it raised."""
    from distributed.scheduler import KilledWorker

    try:
        stopped: str | None = future.result()
    except KilledWorker as error:
        raise ValueError(
            f"expected a worker to survive the training of {', '.join(variant.name for variant in task.variants)}, but "
            f"several died of it ({error}). Look at their logs; lower --memory-gib if they ran out of memory"
        ) from error
    return stopped


def _finished(running: dict[Any, tuple[Task, str]]) -> list[Any]:
    """Futures that are done, waiting a moment for the first."""
    from distributed import TimeoutError as NotYet
    from distributed import wait

    with contextlib.suppress(NotYet):
        wait(list(running), timeout=_LOOK_EVERY_SECONDS, return_when="FIRST_COMPLETED")
    return [future for future in running if future.done()]


def _await_all(futures: list[Any]) -> None:
    from distributed import TimeoutError as NotYet
    from distributed import wait

    if futures:
        with contextlib.suppress(NotYet):
            wait(futures, timeout=60.0)


def _pass_on(request: StopRequest, stop: Path) -> str | None:
    """Writes the stop file once a signal has come."""
    if request.signal_name is not None and not stop.exists():
        stop.write_text(request.signal_name)
        print(f"train: {request.signal_name}: the workers write checkpoints and stop", file=sys.stderr)
    return f"stopped by {request.signal_name}" if request.signal_name is not None else None


def _bar(tasks: Sequence[Task], num_rows: int) -> "tqdm[Any]":
    return tqdm(
        desc=f"train, {len(tasks)} tasks on workers",
        total=num_rows * sum(len(task.variants) for task in tasks),
        unit=" SAE-tokens",
        unit_scale=True,
        dynamic_ncols=True,
        file=sys.stderr,
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
