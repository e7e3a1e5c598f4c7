"""Fixtures of the store's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store.cache_fixture import write_cache


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., Path]:
    """Writes a cache: make_cache("name", num_sequences=41, codec="zstd") -> its folder."""

    def make(name: str = "cache", **changes: Any) -> Path:  # noqa: ANN401 - fields of the spec
        return write_cache(tmp_path / name, **changes)

    return make


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache, to be read only."""
    return write_cache(tmp_path_factory.mktemp("store") / "cache")
