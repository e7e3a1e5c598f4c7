"""What is computed once for all SAEs of a sweep and kept on disk under a key, within a number of bytes.

`data/.evaluation/<benchmark>-<key>/` holds the files of one set-up and `kept.json`, which is written last and lists
them with sizes and SHA-256: a set-up without it, or with other files than it lists, is made again.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from store.atomic import file_sha256, read_json, write_json
from store.errors import StoreError
from store.identity import Count
from store.lease import exclusive_lock, read_lease
from store.record import Record, digest

_RECORD: Final = "kept.json"
_LEASE: Final = ".lease"


class KeptFile(Record):
    """One file of a set-up."""

    nbytes: Count
    sha256: str


class KeptRecord(Record):
    """What a finished set-up holds, and what it was made from."""

    inputs: dict[str, JsonValue]
    files: dict[str, KeptFile]
    """By name, relative to its folder."""


class KeptSetUp:
    """The folder of one set-up. While it is not complete it is the caller's to fill."""

    def __init__(self, path: Path, inputs: Mapping[str, JsonValue]) -> None:
        self.path = path
        self._inputs = dict(inputs)
        self.is_complete = self._is_whole()

    def finish(self) -> None:
        """Says that all files are there: from now on they are found again."""
        files = {
            name.as_posix(): KeptFile(nbytes=(self.path / name).stat().st_size, sha256=file_sha256(self.path / name))
            for name in self._names()
        }
        write_json(self.path / _RECORD, KeptRecord(inputs=self._inputs, files=files))
        self.is_complete = True

    def empty(self) -> None:
        """Removes what an interrupted run left: half a file looks like a whole one to most libraries."""
        for entry in self.path.iterdir():
            if entry.name == _LEASE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _names(self) -> list[Path]:
        found = (path.relative_to(self.path) for path in sorted(self.path.rglob("*")) if path.is_file())
        return [name for name in found if name.parts[0] not in (_RECORD, _LEASE)]

    def _is_whole(self) -> bool:
        try:
            record = KeptRecord.model_validate(read_json(self.path / _RECORD))
        except (FileNotFoundError, StoreError, ValidationError):
            return False
        if record.inputs != self._inputs or set(record.files) != {name.as_posix() for name in self._names()}:
            return False
        return all(
            (self.path / name).stat().st_size == kept.nbytes and file_sha256(self.path / name) == kept.sha256
            for name, kept in record.files.items()
        )


class KeptSetUps:
    """All set-ups below `folder`, together at most `budget_bytes` after each run."""

    def __init__(self, folder: Path, *, budget_bytes: int) -> None:
        self.folder = folder
        self._budget_bytes = budget_bytes
        self._in_use: set[Path] = set()

    @contextlib.contextmanager
    def open(self, benchmark: str, inputs: Mapping[str, JsonValue]) -> Iterator[KeptSetUp]:
        """The set-up of `inputs`: complete, or empty and this process's to fill and to `finish`.

        Its folder may be read until the end of the run, after the block as well. What is filled in the block and not
        finished, because of an error or a signal, is made again the next time.

        Raises:
            Busy: another process makes the same set-up just now.
        """
        path = self.folder / f"{benchmark}-{digest(dict(inputs))[:16]}"
        path.mkdir(parents=True, exist_ok=True)
        self._in_use.add(path)
        kept = KeptSetUp(path, inputs)
        if not kept.is_complete:
            with exclusive_lock(path):
                kept = KeptSetUp(path, inputs)
                if not kept.is_complete:
                    kept.empty()
                yield kept
        else:
            (path / _RECORD).touch()  # its last use
            yield kept  # without a lock: many processes may read what is finished

    def make_room(self) -> None:
        """Removes set-ups, those first that were not used for longest, until the rest fits the budget.

        What another process is just filling stays, and counts.
        """
        folders = [path for path in self.folder.glob("*") if path.is_dir()] if self.folder.is_dir() else []
        sizes = {path: _nbytes(path) for path in folders}
        for path in sorted(folders, key=lambda path: (path in self._in_use, _last_use(path))):
            if sum(sizes.values()) <= self._budget_bytes:
                return
            if read_lease(path) is not None:
                continue
            print(
                f"evaluate: removes the set-up {path.name} ({sizes[path] / 1e6:,.1f} MB), because set-ups may take "
                f"{self._budget_bytes / 1e6:,.0f} MB (--set-up-gib). It is computed again when it is needed",
                file=sys.stderr,
            )
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _last_use(folder: Path) -> float:
    record = folder / _RECORD
    return record.stat().st_mtime if record.exists() else 0.0
