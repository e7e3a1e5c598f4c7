"""Requests to stop a training, by a signal or by a file: they are noted, and the training stops after its step."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_LOOK_EVERY_SECONDS = 1.0


class StopRequest:
    """Who has asked to stop, if anybody."""

    def __init__(self, stop_file: Path | None = None) -> None:
        """`stop_file`: its existence asks to stop, wherever this runs."""
        self.signal_name: str | None = None
        self._stop_file = stop_file
        self._looked_at = 0.0

    def reason(self) -> str | None:
        """SIGTERM, SIGINT, SIGHUP, the text of the stop file, or None. The file is looked at once a second."""
        if self.signal_name is None and self._stop_file is not None:
            now = time.monotonic()
            if now - self._looked_at >= _LOOK_EVERY_SECONDS:
                self._looked_at = now
                with contextlib.suppress(FileNotFoundError):
                    return self._stop_file.read_text() or "a stop file"
        return self.signal_name


@contextlib.contextmanager
def stop_on_signals(stop_file: Path | None = None) -> Iterator[StopRequest]:
    """Notes SIGTERM, SIGINT and SIGHUP in the request it yields; a second SIGINT interrupts at once.

    SIGHUP, which comes when a terminal is closed, stays ignored where it is (nohup). Handlers are restored at the end.
    Only the main thread can set handlers; elsewhere only the file counts.
    """
    request = StopRequest(stop_file)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name

    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    former = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
