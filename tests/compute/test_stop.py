"""Requests to stop, by signal and by file."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compute.stop import StopRequest, stop_on_signals
from tests.imports import ROOT


def test_a_signal_is_noted_and_the_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as request:
        assert request.reason() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.reason() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_terminal_asks_to_stop_as_sigterm_does() -> None:
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.reason() == "SIGHUP"
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.reason() is None
    finally:
        signal.signal(signal.SIGHUP, former)


WATCHED = """
import sys, time
from pathlib import Path
from tqdm import tqdm
from compute.stop import stop_on_signals
with stop_on_signals() as request, tqdm(total=10**6, file=sys.stderr, mininterval=0) as bar:
    Path(sys.argv[1]).write_text("started")
    while request.reason() is None:
        time.sleep(0.01)
    for _ in range(100):
        bar.update(1)
    Path(sys.argv[1]).write_text(f"kept after {request.reason()}")
"""


def test_what_is_kept_after_a_closed_terminal_is_kept_though_nothing_can_be_printed(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    told = tmp_path / "told"
    command = [sys.executable, "-c", WATCHED, str(told)]
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        deadline = time.monotonic() + 60
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.close(master)  # the terminal goes
        process.wait(60)
        while "kept" not in told.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert told.read_text() == "kept after SIGHUP"


def test_a_second_ctrl_c_does_not_wait() -> None:
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.reason() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_file_counts_and_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    request = StopRequest(tmp_path / "stop")
    assert request.reason() is None
    (tmp_path / "stop").write_text("SIGTERM")
    now = 100.5
    assert request.reason() is None
    now = 101.0
    assert request.reason() == "SIGTERM"
