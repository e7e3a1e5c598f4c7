"""The files below a folder. A folder that cannot be read is an error: `Path.rglob` leaves it out without a word."""

import os
from collections.abc import Iterator
from pathlib import Path

from store.machine import explain
from store.replace import NOT_OURS, PARTIAL


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links to files too; none where there is no such folder.

    Left out is what file systems keep at their root, and what a replacement of the folder keeps in it.
    """
    if not folder.is_dir():
        return
    for where, folders, names in os.walk(folder, onerror=_fail):
        if Path(where) == folder:
            folders[:] = [name for name in folders if name not in (PARTIAL, *NOT_OURS)]
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            if path.is_file():
                yield path


def _fail(error: OSError) -> None:
    raise explain(error, f"list {error.filename}") from error
