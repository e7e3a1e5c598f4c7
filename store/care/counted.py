"""What long work on a cache counts, for whoever shows it: the store itself shows nothing.

`compute.progress.progress` is a StartCount.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Counter(Protocol):
    """A count on its way to a total. Threads may update it."""

    def update(self, count: float, /) -> object:
        """Counts so many more as finished."""
        ...


class StartCount(Protocol):
    """Begins a count of units (in the singular) up to a total, of which some are `done` already."""

    def __call__(
        self, title: str, /, *, total: float, unit: str, done: float = 0.0
    ) -> AbstractContextManager[Counter]: ...


class _Unseen:
    def update(self, _count: float, /) -> None:
        """Nobody looks."""


@contextlib.contextmanager
def unseen(_title: str, /, *, total: float, unit: str, done: float = 0.0) -> Iterator[Counter]:
    """Shows nothing."""
    del total, unit, done
    yield _Unseen()
