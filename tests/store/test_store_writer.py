"""A cache is standard zarr, appears whole or not at all, and grows without touching what is there."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from store.errors import StoreError
from store.layout import disk_order
from store.manifest import ShardSums, combine_moments, load_manifest
from tests.store.cache_fixture import HOOKS, NUM_SEQUENCES, fill, finish, make_writer, rows_of, tokens_of

MakeCache = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("codec", ["bf16_planes_v1", "zstd", "blosc", "pcodec", "none"])
def test_plain_zarr_reads_the_same_numbers(make_cache: MakeCache, codec: str) -> None:
    folder = make_cache(codec=codec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        group = zarr.open_group(folder, mode="r")
        stored = np.asarray(group[HOOKS[0]][:])
    rows_per_shard = 12 * 8
    expected = rows_of(HOOKS[0], NUM_SEQUENCES)
    for shard in range(4):
        rows = expected[shard * rows_per_shard : (shard + 1) * rows_per_shard]
        here = stored[shard * rows_per_shard : (shard + 1) * rows_per_shard]
        np.testing.assert_array_equal(here, rows[disk_order(shard, len(rows))])
    np.testing.assert_array_equal(np.asarray(group["tokens"][:]), tokens_of(NUM_SEQUENCES))
    np.testing.assert_array_equal(np.asarray(group["held_out/tokens"][:]), tokens_of(514)[500:])
    held_out = rows_of(HOOKS[0], 514)[500 * 8 :]  # 14 sequences: a shard of 12 and one of 2
    order = np.concatenate([disk_order(0, 96, split="held_out"), 96 + disk_order(1, 16, split="held_out")])
    np.testing.assert_array_equal(np.asarray(group[f"held_out/{HOOKS[0]}"][:]), held_out[order])


def test_two_writings_of_one_cache_are_the_same_bytes(make_cache: MakeCache) -> None:
    assert contents(make_cache("first")) == contents(make_cache("second"))


def test_nothing_that_is_hashed_holds_a_path_or_a_time(make_cache: MakeCache, tmp_path: Path) -> None:
    for name, data in contents(make_cache()).items():
        assert str(tmp_path).encode() not in data, name


def test_a_larger_budget_keeps_full_shards_and_remakes_the_partial_one(make_cache: MakeCache, tmp_path: Path) -> None:
    small, large = make_cache("small", num_sequences=30), make_cache("large", num_sequences=41)
    writer = make_writer(tmp_path / "grown")
    earlier = {p.relative_to(small).as_posix(): p for p in small.rglob("*") if p.is_file()}
    assert writer.adopt(earlier) == [("training", 0), ("training", 1), ("held_out", 0), ("held_out", 1)]
    assert writer.missing_shards() == [2, 3]
    finish(writer)
    assert contents(tmp_path / "grown") == contents(large)


def test_shards_of_another_spec_or_with_other_bytes_are_not_adopted(make_cache: MakeCache, tmp_path: Path) -> None:
    folder = make_cache()
    shard = folder / HOOKS[1] / "c/1/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    earlier = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    adopted = make_writer(tmp_path / "a").adopt(earlier)
    assert [shard for split, shard in adopted if split == "training"] == [0, 2, 3]
    assert make_writer(tmp_path / "b", harvest_version=2).adopt(earlier) == []


def test_a_writer_continues_after_the_shards_that_are_committed(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "cache")
    fill(writer, 1)
    (tmp_path / "cache" / HOOKS[0] / "c/2").mkdir(parents=True)
    (tmp_path / "cache" / HOOKS[0] / "c/2/0.1234.tmp").write_bytes(b"half")
    again = make_writer(tmp_path / "cache")
    assert again.missing_shards() == [0, 2, 3]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_shard_without_its_record_is_not_there(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "cache")
    fill(writer, 0)
    record = tmp_path / "cache" / "shards/00000.json"
    record.write_bytes(record.read_bytes()[:-20])  # damaged
    assert writer.missing_shards() == [0, 1, 2, 3]
    record.unlink()
    assert writer.missing_shards() == [0, 1, 2, 3]


def test_an_unfinished_cache_cannot_be_finished_or_opened(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "cache")
    fill(writer, 0)
    with pytest.raises(
        StoreError,
        match=r"expected every shard of .*cache, missing are training 1, .*held_out 0",
    ):
        writer.finish()
    with pytest.raises(StoreError, match=r"manifest\.json, found none: the cache is not finished"):
        load_manifest(tmp_path / "cache")


def test_the_manifest_lists_every_file_but_itself(make_cache: MakeCache) -> None:
    folder = make_cache()
    assert set(load_manifest(folder).files) == set(contents(folder)) - {"manifest.json"}


def test_rows_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "cache")
    sums = {hook: ShardSums(num_rows=1, sum=[], sum_of_squares=[]) for hook in HOOKS}
    with pytest.raises(ValueError, match="for shard 0, got tokens"):
        writer.write_shard(0, tokens=tokens_of(12), rows={HOOKS[0]: rows_of(HOOKS[0], 12)}, sums=sums)


def test_moments_are_those_of_all_rows(make_cache: MakeCache) -> None:
    moments = load_manifest(make_cache()).moments[HOOKS[0]]
    values = (rows_of(HOOKS[0], NUM_SEQUENCES).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert moments.num_rows == NUM_SEQUENCES * 8
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    assert moments.mean_squared_norm == pytest.approx((values**2).sum(axis=1).mean(), rel=1e-12)


def test_combined_moments_by_hand() -> None:
    # Rows (1, 2) and (3, 4), then (5, 6): means 3 and 4, mean squares 35/3 and 56/3, E||x||^2 = 91/3.
    shards = [
        ShardSums(num_rows=2, sum=[4.0, 6.0], sum_of_squares=[10.0, 20.0]),
        ShardSums(num_rows=1, sum=[5.0, 6.0], sum_of_squares=[25.0, 36.0]),
    ]
    moments = combine_moments(shards)
    assert (moments.mean, moments.mean_square) == ([3.0, 4.0], [35 / 3, 56 / 3])
    assert moments.mean_squared_norm == pytest.approx(91 / 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda m: m | {"format": "activation-cache/9"},
            "expected format 'activation-cache/2'.*got 'activation-cache/9'",
        ),
        (lambda m: {"hello": 1}, "expected format 'activation-cache/2'.*got None"),
        (lambda m: {**m, "num_rows": "many"}, "to hold a Manifest, but num_rows: "),
        (lambda m: [], "expected format"),
    ],
)
def test_foreign_manifests_are_refused(make_cache: MakeCache, damage: Callable[..., object], message: str) -> None:
    path = make_cache() / "manifest.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(StoreError, match=message):
        load_manifest(path.parent)


def test_a_manifest_that_is_no_json_is_named(make_cache: MakeCache) -> None:
    path = make_cache() / "manifest.json"
    path.write_text("{")
    with pytest.raises(StoreError, match=r"expected JSON in .*manifest\.json"):
        load_manifest(path.parent)
