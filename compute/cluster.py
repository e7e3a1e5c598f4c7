"""Runs tasks side by side on the workers of a Dask cluster. What a task does is its owner's affair.

Workers see the same folders under the same paths. A task that loses its worker is begun again on another one; whether
it continues there is up to what it left in its folders.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from compute.software import OtherSoftware, Software
from compute.stop import StopRequest, stop_on_signals

CONNECT_SECONDS = 15.0
WAIT_FOR_WORKERS_SECONDS = 300.0
LOST_WORKER_SECONDS = 120.0
"""A worker of this machine may be gone for so long: a busy machine needs a while to restart one."""
DEAD_WORKER_SECONDS = 5.0
"""One that has no process for so long will have none."""
START_TRIES = 3
"""To start the workers of this machine."""
_LOOK_EVERY_SECONDS = 2.0
_LOOK_FOR_WORKERS_SECONDS = 0.2
_LOST_SECONDS = 5.0
_RESULT_SECONDS = 10.0
_ALLOWED_LOSSES = 3

Task = TypeVar("Task")


class WorkersDied(ValueError):
    """Several workers died while they had the same task, or while they started."""


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


@contextlib.contextmanager
def local_cluster(num_workers: int, *, scratch: Path) -> Iterator[str]:
    """The address of a cluster of processes of this machine, which are replaced when they die.

    Their memory is not limited: Dask counts mapped files as memory, and would pause workers that read them.

    Args:
        num_workers: processes, named 0, 1, ...
        scratch: for Dask's own files.

    Raises:
        WorkersDied: (a ValueError) workers died while they started, again and again.
    """
    import dask
    from distributed import LocalCluster  # before `set`, which would take back what this import adds

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_WORKER_SECONDS:g}s"}),
        _started(LocalCluster, num_workers, scratch=scratch) as cluster,
        _replacing(cluster, num_workers),
    ):
        yield cluster.scheduler_address


def _started(kind: Any, num_workers: int, *, scratch: Path) -> Any:  # noqa: ANN401 - distributed has no types
    """A cluster whose workers are there. Where one dies while it starts, Dask gives up all: they start again."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            return kind(
                n_workers=num_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",  # None would ask for Dask's usual port, and warn where another has it
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            if not tries_left:
                raise WorkersDied(
                    f"expected {num_workers} worker processes to start, but each of {START_TRIES} times one died while "
                    f"it started ({error}). Look whether the machine ran out of memory (dmesg), or ask for fewer"
                ) from error
            print("a worker died while it started; all are started again", file=sys.stderr)
    raise AssertionError(START_TRIES)


@contextlib.contextmanager
def _replacing(cluster: Any, num_workers: int) -> Iterator[None]:  # noqa: ANN401 - distributed has no types
    """Keeps the number of workers. Dask restarts one that dies, but gives up one that dies while it starts."""
    ended = threading.Event()
    dead_since: dict[Any, float] = {}

    def replace() -> None:  # in the cluster's own thread
        for name, nanny in list(cluster.workers.items()):
            if nanny.process is not None and nanny.process.is_alive():
                dead_since.pop(nanny, None)
            elif time.monotonic() - dead_since.setdefault(nanny, time.monotonic()) > DEAD_WORKER_SECONDS:
                del cluster.workers[name]
                asyncio.ensure_future(nanny.close())  # noqa: RUF006 - it needs nothing of it
        cluster.scale(num_workers)

    def repeat() -> None:
        while not ended.wait(_LOOK_EVERY_SECONDS):
            cluster.loop.add_callback(replace)

    thread = threading.Thread(target=repeat, name="replace-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def worker_name() -> str | int | None:
    """The name of the worker that runs this task, a number where the cluster is local; None outside of one."""
    from distributed import get_worker

    try:
        name: str | int = get_worker().name
    except ValueError:
        return None
    return name


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
    begin_again: Callable[[Task], bool] = lambda _: False,
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
        begin_again: of a task that Dask gave up because so many workers died while they had it: whether it got on in
            the meantime, so that another try is worth it.

    Workers that join later are used too.
    """
    waiting, lost = deque(tasks), _LostTasks()
    num_lost: dict[int, int] = {}
    seen_workers = time.monotonic()
    running: dict[Any, tuple[Task, str]] = {}
    stop_file.unlink(missing_ok=True)
    stopped = None
    with stop_on_signals() as request:
        try:
            while running or (waiting and stopped is None):
                workers = workers_of(client)
                seen_workers = time.monotonic() if workers else seen_workers
                if time.monotonic() - seen_workers > WAIT_FOR_WORKERS_SECONDS:
                    raise ValueError(
                        f"expected workers, found none for {WAIT_FOR_WORKERS_SECONDS:g} s. Start some, and run the "
                        "same command again to continue"
                    )
                busy = {worker for _, worker in running.values()}
                free = [worker for worker in workers if worker not in busy]
                while waiting and free and stopped is None:
                    task, worker = waiting.popleft(), free.pop()
                    future = client.submit(function, task, workers=[worker], allow_other_workers=True, pure=False)
                    running[future] = (task, worker)
                for future in lost.among(client, running, workers):
                    task, _ = running.pop(future)
                    future.cancel()
                    num_lost[id(task)] = num_lost.get(id(task), 0) + 1
                    if num_lost[id(task)] > _ALLOWED_LOSSES and not begin_again(task):
                        raise WorkersDied(
                            f"expected a worker to survive {describe(task)}, but {num_lost[id(task)]} died of it. Look "
                            "at their logs; lower --memory-gib if they ran out of memory"
                        )
                    waiting.appendleft(task)
                for future in _finished(running):
                    task, _ = running[future]
                    try:
                        stopped = _result(future, describe(task)) or stopped
                    except WorkersDied:
                        if not begin_again(task):
                            raise
                        waiting.appendleft(task)
                    except TimeoutError:
                        continue  # the worker that held the result has died, and the task runs again
                    del running[future]
                stopped = _pass_on(request, stop_file) or stopped
                on_wait()
        except BaseException:
            stop_file.write_text("the failure of another task")
            _await_all(list(running))
            raise
        finally:
            stop_file.unlink(missing_ok=True)
    return stopped


class _LostTasks:
    """Tasks that no worker has. Dask leaves a task alone whose worker dies when there is no other, though some join."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}

    def among(self, client: Any, running: Mapping[Any, tuple[Any, str]], workers: list[str]) -> list[Any]:  # noqa: ANN401
        """Futures of those that no worker has had for some seconds, while there are workers."""
        suspects = [future for future, (_, worker) in running.items() if worker not in workers and not future.done()]
        if not suspects or not workers:
            self._since.clear()
            return []
        assigned = {str(key) for keys in client.processing().values() for key in keys}
        unassigned = [future for future in suspects if str(future.key) not in assigned]
        now = time.monotonic()
        self._since = {future: self._since.get(future, now) for future in unassigned}
        return [future for future, since in self._since.items() if now - since > _LOST_SECONDS]


def _result(future: Any, description: str) -> str | None:  # noqa: ANN401 - distributed has no types
    """What a task returned; raises what it raised, and TimeoutError where the result is gone."""
    from distributed.scheduler import KilledWorker

    try:
        stopped: str | None = future.result(timeout=_RESULT_SECONDS)
    except KilledWorker as error:
        raise WorkersDied(
            f"expected a worker to survive {description}, but several died of it ({error}). Look at their logs; lower "
            "--memory-gib if they ran out of memory"
        ) from error
    return stopped


def _finished(running: dict[Any, tuple[Task, str]]) -> list[Any]:
    """Futures that are done, waiting a moment for the first."""
    if not running:
        time.sleep(_LOOK_FOR_WORKERS_SECONDS)
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
