"""What a command is doing, said on stderr while it does it: phases before they begin, and counts with a rate and an
estimate.

On a terminal a count is a bar. Elsewhere (a log file, DVC, a batch system) it is one line every half minute: redrawn
bars fill logs, and lines that come only with an update do not come while one forward pass takes minutes.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:  # pipeline.py says its first line before torch is imported
    from torch import nn

EVERY_SECONDS = 30.0
"""Between two lines where stderr is no terminal, or while a phase lasts."""
_WORTH_SAYING_SECONDS = 5.0


def say(stage: str, what: str) -> None:
    """One line on stderr: `stage: what`."""
    print(f"{stage}: {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def phase(stage: str, what: str) -> Iterator[None]:
    """Says `what` (such as "loading the language model") before it begins, every half minute while it lasts, and how
    long it took where that was more than a moment.
    """
    say(stage, f"{what} ...")
    started = time.monotonic()
    with _repeated(lambda: say(stage, f"still {what} ({duration(time.monotonic() - started)}) ...")):
        yield
    took = time.monotonic() - started
    if took >= _WORTH_SAYING_SECONDS:
        say(stage, f"{what} took {duration(took)}")


class Progress:
    """A count on its way to a total. Threads may update it; `progress` makes one."""

    def __init__(self, title: str, *, total: float | None, unit: str, done: float) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = done
        """What is finished, what an earlier run did included."""
        self._begun_with, self._started = done, time.monotonic()
        self._within, self._detail, self._said = 0.0, "", False
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=title, total=total, initial=done, unit=f" {unit}", unit_scale=True, dynamic_ncols=True,
                file=sys.stderr,
            )  # fmt: skip

    def update(self, count: float) -> None:
        """Counts `count` more as finished; what `within` said of them is contained in it."""
        with self._lock:
            self.done += count
            self._within = 0.0
            self._show()

    def reach(self, done: float) -> None:
        """Counts `done` in all as finished, if that is more than before."""
        self.update(max(0.0, done - self.done))

    def within(self, count: float) -> None:
        """Counts `count` more as under way: shown, and finished only by the next `update`."""
        with self._lock:
            self._within += count
            self._show()

    def detail(self, text: str) -> None:
        """What is shown behind the count, such as a loss."""
        with self._lock:
            self._detail = text
            if self._bar is not None:
                self._bar.set_postfix_str(text, refresh=False)

    def line(self) -> str:
        """The count, its share of the total, the rate, the estimate of the time left, and the detail."""
        shown, seconds = self.done + self._within, time.monotonic() - self._started
        rate = (shown - self._begun_with) / seconds if seconds > 0 else 0.0
        parts = [f"{amount(shown)} {self.unit}s"]
        if self.total is not None:
            share = f" ({shown / self.total:.0%})" if self.total else ""
            parts = [f"{amount(shown)} of {amount(self.total)} {self.unit}s{share}"]
        parts.append(f"{amount(rate)} {self.unit}s/s")
        if self.total is not None and rate > 0:
            parts.append(f"{duration(max(0.0, self.total - shown) / rate)} left")
        return ", ".join([*parts, self._detail] if self._detail else parts)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self.done + self._within - self._bar.n)

    def _say_line(self) -> None:
        if self._bar is None:
            self._said = True
            say(self.title, self.line())

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._said or time.monotonic() - self._started >= _WORTH_SAYING_SECONDS:
            took = time.monotonic() - self._started
            rate = (self.done - self._begun_with) / took if took > 0 else 0.0
            say(self.title, f"{amount(self.done)} {self.unit}s in {duration(took)}, {amount(rate)} {self.unit}s/s")


@contextlib.contextmanager
def progress(title: str, *, total: float | None, unit: str, done: float = 0.0) -> Iterator[Progress]:
    """Shows a count while the block runs.

    Args:
        title: the stage, and what it does where that is not all of it: "train", "evaluate core, set-up".
        total: to be reached; None where nobody knows.
        unit: what is counted, in the singular: "row".
        done: what an earlier run has finished; no part of the rate.
    """
    count = Progress(title, total=total, unit=unit, done=done)
    with _repeated(count._say_line):
        try:
            yield count
        finally:
            count._close()


@contextlib.contextmanager
def counting_layers(
    layers: "Iterable[nn.Module]", count: Callable[[float], object], *, per_sequence: float
) -> Iterator[None]:
    """While the block runs, gives `count` a share of `per_sequence` for each sequence behind each layer of a forward
    pass, so that a bar moves within a batch that takes minutes. `Progress.within` is such a function.
    """
    layers = list(layers)
    share = per_sequence / max(1, len(layers))

    def behind(_layer: object, _inputs: object, output: Any) -> None:  # noqa: ANN401 - a tensor, or a tuple of some
        states = output[0] if isinstance(output, tuple) else output
        count(share * len(states))  # the last batch of a shard is a smaller one

    handles = [layer.register_forward_hook(behind) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def amount(number: float) -> str:
    """A number with three digits and k, M, G or T: 12.3M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            scaled = number / factor
            return f"{scaled:,.0f}{letter}" if scaled >= 100 else f"{scaled:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """A time in the two units that matter: 4.2 s, 3 min 20 s, 6 h 12 min, 2 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for unit, large, small in (("min", 60, "s"), ("h", 3600, "min"), ("d", 86400, "h")):
        step = {"s": 1, "min": 60, "h": 3600}[small]
        whole, rest = divmod(round(seconds / step), large // step)
        if unit == "d" or whole < {"min": 60, "h": 24}[unit]:
            break
    return f"{whole} {unit} {rest} {small}"


@contextlib.contextmanager
def _repeated(function: Callable[[], object]) -> Iterator[None]:
    """Calls `function` every half minute from a thread while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(EVERY_SECONDS):
            function()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
