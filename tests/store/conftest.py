"""Fixtures of the store's tests."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.files import remote
from tests.faults.emulated_s3 import ObjectServer, reach
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


@pytest.fixture
def bucket(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server of `cache_folder` as an S3 bucket and over HTTP, with the environment that reaches it."""
    with ObjectServer(cache_folder) as objects:
        thread = threading.Thread(target=objects.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        for name, value in reach(objects.endpoint).environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.01)
        yield objects
        objects.shutdown()


@pytest.fixture(params=["s3", "http"])
def bucket_url(request: pytest.FixtureRequest, bucket: ObjectServer) -> str:
    """The URL of the served cache: s3:// and then http://."""
    there = reach(bucket.endpoint)
    return there.url if request.param == "s3" else there.http_url
