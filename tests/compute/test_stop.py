"""Requests to stop, by signal and by file."""

import os
import signal
from pathlib import Path

import pytest

from compute.stop import StopRequest, stop_on_signals


def test_a_signal_is_noted_and_the_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as request:
        assert request.reason() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.reason() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


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
