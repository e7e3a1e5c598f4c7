"""Objects that hold threads and give them back at the end of a `with` block."""

from types import TracebackType
from typing import Self


class Closing:
    """`with` closes what inherits from this and has a `close` of its own."""

    def close(self) -> None:
        """Gives back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
