"""Runs tasks side by side on the workers of a Dask cluster. What a task does is its owner's affair.

Workers see the same folders under the same paths. A task that loses its worker is begun again on another one; whether
it continues there is up to what it left in its folders.
"""

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from compute.software import OtherSoftware, Software
from compute.stop import StopRequest, stop_on_signals

CONNECT_SECONDS = 15.0
_LOOK_EVERY_SECONDS = 2.0

Task = TypeVar("Task")


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


def refuse_other_software(
    client: Any,  # noqa: ANN401 - distributed has no types
    expected: Software,
    software: Callable[[], Software],
) -> None:
    """OtherSoftware unless every worker has the expected software. One that joins later has to look itself.

    `software`: gives that of the process that calls it.
    """
    for address, found in sorted(client.run(software, on_error="return").items()):
        if isinstance(found, Exception):
            raise OtherSoftware(
                f"expected the worker {address} to run the code of {expected.place}, but it cannot: "
                f"{found}. Start it again from the same checkout, with the same packages"
            ) from found
        expected.refuse_other(found)


def run_on_workers(
    client: Any,  # noqa: ANN401 - distributed has no types
    function: Callable[[Task], str | None],
    tasks: Sequence[Task],
    *,
    stop_file: Path,
    describe: Callable[[Task], str],
    on_wait: Callable[[], object],
) -> str | None:
    """Calls `function` on every task, one at a time on each worker; what stopped them, if anything did.

    A signal to this process, or the failure of a task, stops those on all workers by way of `stop_file`, which they
    look at themselves.

    Args:
        client: of the cluster.
        function: returns None, or what stopped it.
        tasks: plain data, which travels to a worker.
        stop_file: exists while tasks are to stop; every worker sees it under this path.
        describe: a task in words, for messages.
        on_wait: called every few seconds, for a progress bar.
    """
    waiting, free = deque(tasks), deque(workers_of(client))
    running: dict[Any, tuple[Task, str]] = {}
    stop_file.unlink(missing_ok=True)
    stopped = None
    with stop_on_signals() as request:
        try:
            while running or (waiting and stopped is None):
                while waiting and free and stopped is None:
                    task, worker = waiting.popleft(), free.popleft()
                    future = client.submit(function, task, workers=[worker], allow_other_workers=True, pure=False)
                    running[future] = (task, worker)
                for future in _finished(running):
                    task, worker = running.pop(future)
                    free.append(worker)
                    stopped = _result(future, describe(task)) or stopped
                stopped = _pass_on(request, stop_file) or stopped
                on_wait()
        except BaseException:
            stop_file.write_text("the failure of another task")
            _await_all(list(running))
            raise
        finally:
            stop_file.unlink(missing_ok=True)
    return stopped


def _result(future: Any, description: str) -> str | None:  # noqa: ANN401 - distributed has no types
    """What a task returned; raises what it raised."""
    from distributed.scheduler import KilledWorker

    try:
        stopped: str | None = future.result()
    except KilledWorker as error:
        raise ValueError(
            f"expected a worker to survive {description}, but several died of it ({error}). Look at their logs; lower "
            "--memory-gib if they ran out of memory"
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


def _pass_on(request: StopRequest, stop_file: Path) -> str | None:
    """Writes the stop file once a signal has come."""
    if request.signal_name is not None and not stop_file.exists():
        stop_file.write_text(request.signal_name)
        print(f"{request.signal_name}: the workers save their state and stop", file=sys.stderr)
    return f"stopped by {request.signal_name}" if request.signal_name is not None else None
