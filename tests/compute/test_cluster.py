"""Workers of this machine that die while they start."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compute.cluster import WorkersDied, connect, local_cluster, workers_of


@pytest.fixture
def killed() -> Iterator[list[int]]:
    """Kills the first worker process that starts from now on; holds its number."""
    victims: list[int] = []
    before = set(psutil.Process().children(recursive=True))
    ended = threading.Event()

    def kill_the_first() -> None:
        while not victims and not ended.wait(0.01):
            for child in set(psutil.Process().children(recursive=True)) - before:
                if not victims and "spawn_main" in str(child.cmdline()):
                    child.kill()
                    victims.append(child.pid)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    yield victims
    ended.set()
    killer.join()


def test_a_worker_that_is_killed_while_it_starts_is_replaced(
    killed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with local_cluster(2, scratch=tmp_path) as address, connect(address) as client:
        deadline = time.monotonic() + 60.0
        while len(workers_of(client)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers_of(client)) == 2
    assert len(killed) == 1
    assert "a worker died while it started; all are started again" in capsys.readouterr().err


def test_workers_that_never_start_end_in_one_error_that_says_what_to_do(
    killed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.cluster.START_TRIES", 1)
    with (
        pytest.raises(WorkersDied, match=r"expected 1 worker processes to start.*ran out of memory.*ask for fewer"),
        local_cluster(1, scratch=tmp_path),
    ):
        pytest.fail("it started")
    assert len(killed) == 1
