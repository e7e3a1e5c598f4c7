"""Signals that ask a training to stop: they are noted, and obeyed between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Which signal has asked to stop, if any."""

    signal_name: str | None = None
    """SIGTERM, SIGINT or None."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Notes SIGTERM and SIGINT in the request it yields; a second SIGINT interrupts at once. Handlers are restored.

    Only the main thread can set handlers; elsewhere nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
