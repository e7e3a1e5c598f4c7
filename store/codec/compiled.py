"""Functions compiled by numba, whose machine code is kept on disk where that is possible and compiled anew elsewhere.

numba keeps machine code beside the source, else below HOME, and raises at import where neither can be written, as in a
container with read-only code. Keeping it only saves time (about a second for each function), so nothing here may stop
a program: where no folder can be written, where the disk is full or where the files belong to somebody else, functions
are compiled in each process. They are not kept in a folder for temporary files, which others can write to as well.
`NUMBA_CACHE_DIR` names a folder of one's own.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles a function at its first call, without Python's lock. Its results do not depend on what is on disk."""
    dispatcher: Any = numba.njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # no folder can be written
        dispatcher._cache = _OptionalCache(function)  # as numba's enable_caching does with its own
    result: Function = dispatcher
    return result


class _OptionalCache(FunctionCache):
    """numba's files of machine code; one that cannot be read or written is as good as none."""

    def load_overload(self, *arguments: Any) -> Any:  # noqa: ANN401 - numba's types
        with contextlib.suppress(OSError, EOFError):  # EOFError: a machine went down while the file was written
            return super().load_overload(*arguments)
        return None

    def save_overload(self, *arguments: Any) -> None:  # noqa: ANN401 - as above
        with contextlib.suppress(OSError, EOFError):
            super().save_overload(*arguments)
