"""The reader over a bucket: the batches of the folder, also from a bucket that fails, and from the local copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from store.care.info import describe, summary
from store.care.verify import verify
from store.errors import DamagedFile, IncompleteCache
from store.files.open import CachePlace, open_files
from store.read.batches import Position
from store.read.cache import ActivationCache
from tests.faults.emulated_s3 import Fault, ObjectServer, Request, reach
from tests.store.cache_fixture import HOOKS
from tests.store.files.test_range_cache import used


def batches(cache: ActivationCache, start: Position | None = None, num_epochs: int = 2) -> list[NDArray[np.uint16]]:
    with cache.batches(
        HOOKS[0], batch_rows=40, seed=3, start=start, num_epochs=num_epochs, pool_bytes=30_000
    ) as stream:
        return [batch.copy() for batch in stream]


def same(left: list[NDArray[np.uint16]], right: list[NDArray[np.uint16]]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_batches_and_rows_and_tokens_are_those_of_the_folder(bucket_url: str, cache_folder: Path) -> None:
    there, here = ActivationCache(bucket_url), ActivationCache(cache_folder)
    assert same(batches(there), batches(here))
    numbers = np.arange(0, there.manifest.num_rows, 7)
    assert np.array_equal(there.rows(HOOKS[1], numbers), here.rows(HOOKS[1], numbers))
    assert np.array_equal(there.tokens(), here.tokens())
    assert np.array_equal(there.held_out_tokens(), here.held_out_tokens())


def test_a_bucket_is_described_and_verified_as_the_folder_is(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path
) -> None:
    files = open_files(bucket_url)
    assert summary(files) | {"location": ""} == summary(cache_folder) | {"location": ""}
    assert f"activation cache {bucket_url}" in describe(files)
    assert verify(files, full=True, num_threads=2) == []
    bucket.fault = lambda request: "flipped" if request.name == "tokens/c/1/0" else None
    (problem,) = verify(files, full=True, num_threads=2)
    assert problem.startswith(f"{bucket_url}/tokens/c/1/0: expected SHA-256")


def test_a_stream_over_a_bucket_continues_where_it_stopped(bucket_url: str, cache_folder: Path) -> None:
    whole = batches(ActivationCache(cache_folder))
    with ActivationCache(bucket_url).batches(HOOKS[0], batch_rows=40, seed=3, pool_bytes=30_000) as stream:
        for _ in range(11):
            next(stream)
        position = stream.position
    assert position == Position(epoch=1, batch=3)  # 41 * 8 rows are 8 batches of 40
    assert same(batches(ActivationCache(bucket_url), start=position), whole[11:])


@pytest.mark.parametrize("fault", ["unavailable", "cut", "flipped"])
def test_a_bucket_that_fails_now_and_then_gives_the_same_batches(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, fault: Fault
) -> None:
    cache = ActivationCache(bucket_url)
    seen: dict[Request, int] = {}

    def every_first_time(request: Request) -> Fault:
        seen[request] = seen.get(request, 0) + 1
        return fault if seen[request] == 1 else None

    bucket.fault = every_first_time
    assert same(batches(cache, num_epochs=1), batches(ActivationCache(cache_folder), num_epochs=1))
    assert min(seen.values()) >= 2  # every range was asked for again, an index by more than one thread


def test_the_second_epoch_and_the_next_run_ask_the_bucket_for_no_rows(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, tmp_path: Path
) -> None:
    files = CachePlace(bucket_url, range_cache=tmp_path, range_cache_bytes=10**7).open()
    assert same(batches(ActivationCache(files), num_epochs=1), batches(ActivationCache(cache_folder), num_epochs=1))
    bucket.requests.clear()
    again = CachePlace(bucket_url, range_cache=tmp_path, range_cache_bytes=10**7).open()
    assert same(batches(ActivationCache(again), num_epochs=3), batches(ActivationCache(cache_folder), num_epochs=3))
    assert {request.name for request in bucket.requests} == {"manifest.json"}


def test_a_budget_below_the_cache_is_kept_and_still_serves_what_fits(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, tmp_path: Path
) -> None:
    cache = ActivationCache(CachePlace(bucket_url, range_cache=tmp_path, range_cache_bytes=15_000).open())
    assert same(batches(cache, num_epochs=1), batches(ActivationCache(cache_folder), num_epochs=1))
    assert 10_000 < used(tmp_path) <= 15_000
    first = len(bucket.requests)
    assert same(batches(cache, num_epochs=1), batches(ActivationCache(cache_folder), num_epochs=1))
    again = len(bucket.requests) - first
    assert 0 < again < first - 1  # the manifest and the indices aside, half of it was here
    assert used(tmp_path) <= 15_000


def test_a_damaged_local_copy_is_replaced(
    bucket: ObjectServer, bucket_url: str, cache_folder: Path, tmp_path: Path
) -> None:
    def open_cached() -> ActivationCache:
        return ActivationCache(CachePlace(bucket_url, range_cache=tmp_path))

    expected = batches(open_cached(), num_epochs=1)
    for number, path in enumerate(sorted(tmp_path.glob("??/*/*-*"))):
        stored = bytearray(path.read_bytes())
        stored[number % len(stored)] ^= 255
        path.write_bytes(stored if number % 2 else stored[: number % len(stored)])
    assert same(batches(open_cached(), num_epochs=1), expected)


def test_a_shard_that_is_missing_damaged_or_short_in_the_bucket_is_named(
    bucket: ObjectServer, bucket_url: str, make_cache: Callable[..., Path]
) -> None:
    bucket.folder = make_cache()
    bucket.listing = False  # so that it is found by reading and not on opening
    name = f"{HOOKS[0]}/c/1/0"
    path = bucket.folder / name
    whole = path.read_bytes()
    cache = ActivationCache(bucket_url)
    path.unlink()
    with pytest.raises(IncompleteCache, match=f"expected the file {bucket_url}/{name}, found none"):
        batches(cache)
    path.write_bytes(whole[:-100])
    with pytest.raises(DamagedFile, match=f"{bucket_url}/{name}"):
        batches(cache)
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(DamagedFile, match=f"expected checksum .* for chunk 0 of {bucket_url}/{name}, got"):
        batches(cache)


def test_a_listing_finds_a_partial_upload_on_opening(bucket: ObjectServer, make_cache: Callable[..., Path]) -> None:
    bucket.folder = make_cache()
    (bucket.folder / "tokens/c/2/0").unlink()
    url = reach(bucket.endpoint).url
    with pytest.raises(IncompleteCache, match=f"expected {url}/tokens/c/2/0, which the manifest lists, found none"):
        ActivationCache(url)
