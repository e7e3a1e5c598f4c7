"""Verification finds everything that is not as written, and says it by file; a summary says what a cache holds."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.cache.manifest import load_manifest
from store.cache.moments import Moments
from store.care.info import statistics, summary
from store.care.sample import format_sample, sample_rows
from store.care.verify import verify
from store.read.cache import ActivationCache
from store.record_file import record_bytes
from tests.store.cache.test_manifest import with_new_digest
from tests.store.cache_fixture import HOOKS, NUM_SEQUENCES, rows_of, tokens_of

MakeCache = Callable[..., Path]


def test_a_whole_cache_has_no_problems(cache_folder: Path) -> None:
    assert verify(cache_folder, full=False, num_threads=2) == []
    assert verify(cache_folder, full=True, num_threads=2) == []


def test_a_full_check_counts_every_byte_and_shows_nothing_itself(
    cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted: list[float] = []

    class Counter:
        def update(self, count: float, /) -> None:
            counted.append(count)

    @contextlib.contextmanager
    def start(title: str, /, *, total: float, unit: str, done: float = 0.0) -> Iterator[Counter]:
        assert (title, total, unit, done) == ("verify", nbytes, "byte", 0.0)
        yield Counter()

    nbytes = sum(file.nbytes for file in load_manifest(cache_folder).files.values())
    assert verify(cache_folder, full=True, num_threads=2, progress=start) == []
    assert sum(counted) == nbytes
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "found_fast"),
    [
        (f"{HOOKS[0]}/c/1/0", False),
        (f"held_out/{HOOKS[1]}/c/0/0", False),
        ("tokens/c/0/0", False),
        ("held_out/tokens/c/1/0", False),
        ("tokens/zarr.json", True),
        ("zarr.json", True),
        ("shards/00003.json", True),
        ("held_out/shards/00000.json", True),
    ],
)
def test_a_changed_byte_is_found_in_every_kind_of_file(make_cache: MakeCache, name: str, found_fast: bool) -> None:
    path = make_cache() / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    folder = path.parents[len(Path(name).parts) - 1]
    assert len(verify(folder, full=False, num_threads=1)) == (1 if found_fast else 0)
    (problem,) = verify(folder, full=True, num_threads=1)
    assert problem.startswith(f"{path}: expected ")


def test_a_file_that_cannot_be_read_is_a_problem_and_not_the_end(make_cache: MakeCache) -> None:
    folder = make_cache()
    path = folder / "tokens/c/0/0"
    path.unlink()
    path.mkdir()
    (problem,) = verify(folder, full=True, num_threads=1)
    assert problem == f"{path}: expected {load_manifest(folder).files['tokens/c/0/0'].nbytes} bytes, found no file"


def fewer_hooks(record: dict[str, Any]) -> None:
    del record["files"][f"{HOOKS[1]}/c/1/0"], record["sums"][HOOKS[1]]


def no_rows(record: dict[str, Any]) -> None:
    record["sums"][HOOKS[0]]["num_rows"] = 0


def other_spec(record: dict[str, Any]) -> None:
    record["spec_digest"] = "0" * 64


@pytest.mark.parametrize("change", [fewer_hooks, no_rows, other_spec])
def test_records_of_another_cache_are_found_even_where_the_manifest_lists_them(
    make_cache: MakeCache, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = make_cache()
    name = "shards/00001.json"
    foreign = with_new_digest((folder / name).read_bytes(), change)
    (folder / name).write_bytes(foreign)

    def relist(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["files"][name] = {"nbytes": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}

    path = folder / "manifest.json"
    path.write_bytes(with_new_digest(path.read_bytes(), relist))
    (problem,) = verify(folder, full=False, num_threads=1)
    assert "shards/00001.json: expected the record of shard 1 of this cache, got another's" in problem


def test_moments_that_are_not_those_of_the_shards_are_found(make_cache: MakeCache) -> None:
    path = make_cache() / "manifest.json"

    def shift(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["moments"][HOOKS[1]]["mean"][0] += 1.0

    path.write_bytes(with_new_digest(path.read_bytes(), shift))
    (problem,) = verify(path.parent, full=False, num_threads=1)
    assert problem == f"{path}: expected the moments of {HOOKS[1]} to be those of its shards"


def test_statistics_by_hand() -> None:
    # Channels with means 1 and -2 and mean squares 10 and 5: variances 9 and 1; the norm of the mean is sqrt(5).
    moments = Moments(num_rows=4, mean=[1.0, -2.0], mean_square=[10.0, 5.0], mean_squared_norm=15.0)
    assert statistics(moments) == {
        "mean_squared_norm": 15.0,
        "norm_of_mean": pytest.approx(5**0.5),
        "total_variance": 10.0,
        "variance_share_of_top_1": 0.9,
        "variance_share_of_top_10": 1.0,
        "variance_share_of_top_percent": 0.9,
    }


def test_a_summary_holds_what_the_manifest_and_the_rows_say(cache_folder: Path) -> None:
    known = json.loads(json.dumps(summary(cache_folder)))
    assert (known["num_tokens"], known["num_rows"], known["num_held_out_rows"]) == (41 * 9, 328, 112)
    assert known["nbytes"] == sum(path.stat().st_size for path in cache_folder.rglob("*") if path.is_file())
    assert known["num_files"] == sum(path.is_file() for path in cache_folder.rglob("*"))
    facts = known["hooks"][HOOKS[0]]
    assert facts["raw_nbytes"] == (328 + 112) * 48 * 2
    values = (rows_of(HOOKS[0], NUM_SEQUENCES).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert facts["total_variance"] == pytest.approx(values.var(axis=0).sum())
    assert facts["norm_of_mean"] == pytest.approx(np.linalg.norm(values.mean(axis=0)))
    assert known["lineage"] == []


def test_a_sample_is_the_rows_with_the_tokens_that_they_belong_to(cache_folder: Path) -> None:
    sampled = sample_rows(ActivationCache(cache_folder), HOOKS[1], num_rows=20, seed=3)
    rows, tokens = rows_of(HOOKS[1], NUM_SEQUENCES), tokens_of(NUM_SEQUENCES)
    assert len({item.row for item in sampled}) == 20
    for item in sampled:
        assert item.row == item.sequence * 8 + item.position - 1
        window = tokens[item.sequence].tolist()
        assert (item.before, item.token) == (window[: item.position], window[item.position])
        assert item.after == window[item.position + 1 : item.position + 4]
        np.testing.assert_array_equal(item.bits, rows[item.row])
    assert [item.row for item in sampled][:5] == [10, 12, 26, 29, 37]  # another seed gives others
    other = sample_rows(ActivationCache(cache_folder), HOOKS[1], num_rows=5, seed=4)
    assert [item.row for item in other] == [167, 235, 287, 306, 308]
    first = sampled[0]
    assert f"row {first.row}: sequence {first.sequence}, position {first.position}" in format_sample(
        [first], decode=None
    )
    assert "['t']" in format_sample([first], decode=lambda tokens: "t" * len(tokens))


def test_a_sample_of_more_rows_than_there_are_is_refused(cache_folder: Path) -> None:
    with pytest.raises(ValueError, match="expected a sample of 1 to 328 rows, which the cache has, got 329"):
        sample_rows(ActivationCache(cache_folder), HOOKS[0], num_rows=329, seed=0)


def test_a_manifest_is_the_bytes_that_writing_it_again_gives(cache_folder: Path) -> None:
    assert record_bytes(load_manifest(cache_folder)) == (cache_folder / "manifest.json").read_bytes()
