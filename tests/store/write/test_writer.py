"""A cache is standard zarr, appears whole or not at all, and grows without touching what is there."""

import resource
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from store.atomic import clear_leftovers
from store.cache.manifest import load_manifest
from store.cache.moments import ShardSums, combine_moments
from store.cache.order import disk_order
from store.care.dvc_versions import files_in
from store.codec.names import CODEC_NAMES, CodecName
from store.errors import StoreError
from store.lease import exclusive_lock
from store.write.encoder import ShardPipeline
from tests.store.cache_fixture import HOOKS, NUM_SEQUENCES, fill, finish, make_writer, rows_of, tokens_of

MakeCache = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_plain_zarr_reads_the_same_numbers(make_cache: MakeCache, codec: CodecName) -> None:
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


def test_a_larger_budget_keeps_full_shards_and_replaces_the_partial_one(make_cache: MakeCache, tmp_path: Path) -> None:
    small, large = make_cache("small", num_sequences=30), make_cache("large", num_sequences=41)
    writer = make_writer(tmp_path / "grown")
    assert writer.reuse_shards(files_in(small)) == [("training", 0), ("training", 1), ("held_out", 0), ("held_out", 1)]
    assert writer.missing_shards() == [2, 3]
    finish(writer)
    assert contents(tmp_path / "grown") == contents(large)


def test_shards_of_another_spec_or_with_other_bytes_are_not_reused(make_cache: MakeCache, tmp_path: Path) -> None:
    folder = make_cache()
    shard = folder / HOOKS[1] / "c/1/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    reused = make_writer(tmp_path / "a").reuse_shards(files_in(folder))
    assert [shard for split, shard in reused if split == "training"] == [0, 2, 3]
    assert make_writer(tmp_path / "b", harvest_version=2).reuse_shards(files_in(folder)) == []


def test_of_a_cache_with_fewer_hooks_only_the_new_one_is_written(make_cache: MakeCache, tmp_path: Path) -> None:
    one, both = make_cache("one", hooks=HOOKS[:1]), make_cache("both")
    with make_writer(tmp_path / "grown") as writer:
        assert writer.reuse_shards(files_in(one)) == []
        assert writer.missing_shards() == [0, 1, 2, 3]
        assert {writer.missing_hooks(shard) for shard in range(4)} == {HOOKS[1:]}
        assert writer.missing_hooks(1, "held_out") == HOOKS[1:]
        kept = {shard: (one / HOOKS[0] / f"c/{shard}/0").stat().st_ino for shard in range(4)}
        finish(writer)
    assert contents(tmp_path / "grown") == contents(both)
    assert {shard: (tmp_path / "grown" / HOOKS[0] / f"c/{shard}/0").stat().st_ino for shard in range(4)} == kept


def test_a_cache_with_more_hooks_gives_whole_shards_and_an_unfinished_one_what_it_has(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    one, both = make_cache("one", hooks=HOOKS[1:]), make_cache("both")
    with make_writer(tmp_path / "less", hooks=HOOKS[1:]) as writer:
        assert len(writer.reuse_shards(files_in(both))) == 6  # 4 and 2 held out
        writer.finish()
    assert contents(tmp_path / "less") == contents(one)
    with make_writer(tmp_path / "unfinished", hooks=HOOKS[1:]) as writer:
        fill(writer, 2)
    with make_writer(tmp_path / "grown") as writer:
        writer.reuse_shards(files_in(tmp_path / "unfinished"))
        assert [writer.missing_hooks(shard) for shard in range(4)] == [HOOKS, HOOKS, HOOKS[:1], HOOKS]
        assert list(writer.taken) == [("training", 2)]
        # A worker in another process is told what was taken, and commits whole shards.
        with make_writer(tmp_path / "grown", taken=writer.taken) as worker:
            fill(worker, 2)
        assert writer.missing_shards() == [0, 1, 3]
        finish(writer)
    assert contents(tmp_path / "grown") == contents(both)


def test_rows_that_belong_to_other_tokens_are_not_mixed(make_cache: MakeCache, tmp_path: Path) -> None:
    one = make_cache("one", hooks=HOOKS[:1])
    with make_writer(tmp_path / "grown") as writer:
        writer.reuse_shards(files_in(one))
        tokens = tokens_of(12)
        tokens[0, 1] += 1
        rows = {HOOKS[1]: rows_of(HOOKS[1], 12)}
        sums = {HOOKS[1]: ShardSums(num_rows=96, sum=[0.0] * 48, sum_of_squares=[1.0] * 48)}
        with pytest.raises(StoreError, match=r"the tokens that the earlier rows of .* in training shard 0 belong to"):
            writer.submit_shard(0, tokens=tokens, rows=rows, sums=sums).result()


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
        writer.submit_shard(0, tokens=tokens_of(12), rows={HOOKS[0]: rows_of(HOOKS[0], 12)}, sums=sums).result()


def shard_0(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """What `submit_shard` is given for the first shard, 96 rows of 48 channels at two hooks."""
    sums = ShardSums(num_rows=96, sum=[0.0] * 48, sum_of_squares=[0.0] * 48)
    given = {"tokens": tokens_of(12), "rows": {hook: rows_of(hook, 12) for hook in HOOKS}}
    return {**given, "sums": dict.fromkeys(HOOKS, sums)} | changes


@pytest.mark.parametrize("codec", ["bf16_planes_v1", "zstd", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, ">u2", torch.float32, torch.float16])
def test_rows_that_are_no_bfloat16_are_refused_and_never_cast(tmp_path: Path, codec: str, dtype: Any) -> None:  # noqa: ANN401
    ours = rows_of(HOOKS[0], 12)
    rows = torch.zeros(ours.shape, dtype=dtype) if isinstance(dtype, torch.dtype) else ours.astype(dtype)
    with (
        make_writer(tmp_path / "cache", codec=codec) as writer,
        pytest.raises(ValueError, match=r"expected rows \(n, d\), d >= 1, that are uint16 .* of shape \(96, 48\)"),
    ):
        writer.submit_shard(0, **shard_0(rows={HOOKS[0]: ours, HOOKS[1]: rows}))


def test_tokens_that_would_have_to_be_cast_are_refused(tmp_path: Path) -> None:
    with (
        make_writer(tmp_path / "cache") as writer,
        pytest.raises(ValueError, match="expected uint32 tokens for shard 0, got int64"),
    ):
        writer.submit_shard(0, **shard_0(tokens=tokens_of(12).astype(np.int64)))


def test_sums_of_other_rows_do_not_commit_a_shard(tmp_path: Path) -> None:
    sums = ShardSums(num_rows=95, sum=[0.0] * 48, sum_of_squares=[0.0] * 48)
    with make_writer(tmp_path / "cache") as writer:
        with pytest.raises(ValueError, match=r"expected sums for shard 0 .* \(96, 48, 48\).*, got .* \(95, 48, 48\)"):
            writer.submit_shard(0, **shard_0(sums=dict.fromkeys(HOOKS, sums))).result()
        assert writer.missing_shards() == [0, 1, 2, 3]


def test_sums_that_cannot_be_computed_do_not_commit_a_shard(tmp_path: Path) -> None:
    def sums() -> dict[str, ShardSums]:
        raise ArithmeticError("overflow")

    with make_writer(tmp_path / "cache") as writer:
        with pytest.raises(ArithmeticError, match="overflow"):
            writer.submit_shard(0, **shard_0(sums=sums)).result()
        assert writer.missing_shards() == [0, 1, 2, 3]
        with pytest.raises(ArithmeticError, match="overflow"):
            writer.finish()


def test_rows_of_any_layout_in_memory_are_stored_as_the_same_bytes(tmp_path: Path) -> None:
    folders = ("rows", "columns", "tensor")
    for folder in folders:
        with make_writer(tmp_path / folder) as writer:
            rows: dict[str, Any] = {hook: rows_of(hook, 12) for hook in HOOKS}
            if folder != "rows":
                rows = {hook: np.asfortranarray(bits) for hook, bits in rows.items()}
            if folder == "tensor":
                rows = {hook: torch.from_numpy(bits) for hook, bits in rows.items()}
            writer.submit_shard(0, **shard_0(rows=rows)).result()
    first, *others = (contents(tmp_path / folder) for folder in folders)
    assert all(first == other for other in others)


def test_a_worker_that_starts_spares_all_that_others_under_its_lease_are_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    seen = []

    def replace_when_another_worker_starts(self: Path, target: Path) -> Path:
        seen.append(target.name)
        clear_leftovers(tmp_path / "cache", token=lease.token)
        return replace(self, target)

    with exclusive_lock(tmp_path) as lease:
        made = make_writer(tmp_path / "cache", num_sequences=12, lease=lease)
        monkeypatch.setattr(Path, "replace", replace_when_another_worker_starts)
        with made as writer:
            finish(writer)
        monkeypatch.undo()
    assert {"0", "00000.json", "manifest.json"} <= set(seen)


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


def test_rows_that_are_tensors_are_stored_as_the_same_bytes(make_cache: MakeCache, tmp_path: Path) -> None:
    with make_writer(tmp_path / "tensors") as writer:
        submit = writer.submit_shard

        def from_tensors(shard: int, **given: Any) -> Future[None]:  # noqa: ANN401
            rows = {hook: torch.from_numpy(rows).view(torch.bfloat16) for hook, rows in given.pop("rows").items()}
            return submit(shard, rows=rows, **given)

        writer.submit_shard = from_tensors  # type: ignore[method-assign]
        finish(writer)
    assert contents(tmp_path / "tensors") == contents(make_cache())


def test_a_producer_waits_while_too_many_rows_are_pending() -> None:
    release = threading.Event()

    def slow() -> None:
        release.wait(10)

    with ShardPipeline(num_threads=1, max_pending_bytes=100) as pipeline:
        pipeline.submit(60, slow)
        waiting = threading.Thread(target=pipeline.submit, args=(50, slow))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()  # 60 + 50 bytes are more than 100
        release.set()
        waiting.join(10)
        assert not waiting.is_alive()
        pipeline.wait()


def test_the_first_shard_that_failed_is_the_one_that_is_reported() -> None:
    go_on = threading.Event()

    def fail_late() -> None:
        go_on.wait(10)
        raise ValueError("first")

    def fail() -> None:
        raise ValueError("second")

    with ShardPipeline(num_threads=1, max_pending_bytes=10**9) as pipeline:
        pipeline.submit(1, fail_late)
        assert isinstance(pipeline.submit(1, fail).exception(10), ValueError)
        go_on.set()
        for _ in range(2):
            with pytest.raises(ValueError, match="first"):
                pipeline.wait()
        with pytest.raises(ValueError, match="first"):
            pipeline.submit(1, fail)


def test_a_shard_that_was_given_up_does_not_say_that_it_is_committed() -> None:
    fail = threading.Event()

    def full() -> None:
        fail.wait(10)
        raise OSError("full")

    with ShardPipeline(num_threads=1, max_pending_bytes=10**9) as pipeline:
        futures = [pipeline.submit(1, full), pipeline.submit(1, full), pipeline.submit(1, lambda: None)]
        fail.set()
        assert [str(future.exception(10)) for future in futures] == ["full"] * 3


def test_a_pipeline_that_was_closed_takes_nothing_and_waits_for_nothing() -> None:
    pipeline = ShardPipeline(num_threads=1, max_pending_bytes=100)
    pipeline.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pipeline.submit(60, lambda: None)
    pipeline.wait()


def test_a_disk_that_is_full_is_one_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "cache")
    fill(writer, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match=r"could not write .*c/1/0: File too large\. Raise the limit of file sizes"):
            fill(writer, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    writer.close()
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    again = make_writer(tmp_path / "cache")
    assert again.missing_shards() == [1, 2, 3]
    finish(again)
