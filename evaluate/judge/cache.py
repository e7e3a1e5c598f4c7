"""Replies of a judge on disk, by what was asked: a question that was answered once is never paid for again."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store.atomic import read_json, write_json
from store.errors import StoreError
from store.record import Record, digest


class Reply(Record):
    """One answer."""

    text: str
    answered_by: str
    """The model, as the server named it in its answer."""


class Replies:
    """`<folder>/<first two characters>/<key>.json`, the key being the digest of model, messages and parameters."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, request: dict[str, Any]) -> Reply | None:
        """The answer to this request; None where there is none, or where its file is damaged."""
        try:
            return Reply.model_validate(read_json(self._path(request)))
        except (FileNotFoundError, StoreError, ValidationError):
            return None

    def keep(self, request: dict[str, Any], reply: Reply) -> None:
        """Writes the answer, whole or not at all."""
        write_json(self._path(request), reply)

    def _path(self, request: dict[str, Any]) -> Path:
        key = digest(request)
        return self._folder / key[:2] / f"{key}.json"
