"""What was found out about a checkpoint before, in one small file in the user's cache folder.

Nothing depends on it: where it cannot be read or written, everything is found out again. Each entry says for which
state of which files it holds, and is never trusted for another.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, Final

from store.atomic import read_json, write_json
from store.errors import StoreError

_NUM_ENTRIES: Final = 256


def memory_file() -> Path:
    """Where it lies: below XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "activation-study" / "checkpoints.json"


def recall(key: str) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """What was remembered under a key; None for nothing."""
    return _load().get(key)


def remember(entries: dict[str, Any]) -> None:
    """Keeps entries, and forgets the oldest of too many."""
    path = memory_file()
    if not entries or not path.is_absolute():  # a user without a home
        return
    kept = {key: value for key, value in _load().items() if key not in entries} | entries
    with contextlib.suppress(OSError):
        write_json(path, {"entries": list(kept.items())[-_NUM_ENTRIES:]})


def _load() -> dict[str, Any]:
    try:
        return dict(read_json(memory_file())["entries"])
    except (KeyError, OSError, StoreError, TypeError, ValueError):
        return {}
