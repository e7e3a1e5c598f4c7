"""Batches: every row once an epoch, in a reproducible order, continued bit-identically from any position."""

import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from store.cache.order import EpochPlan, disk_order
from store.care.info import describe
from store.care.verify import verify
from store.errors import DamagedFile, IncompleteCache
from store.files.local import Mode
from store.read.batches import Position
from store.read.cache import ActivationCache
from tests.store.cache_fixture import HOOKS, NUM_SEQUENCES, rows_of, tokens_of

MakeCache = Callable[..., Path]
NUM_ROWS = NUM_SEQUENCES * 8


def read_all(folder: Path, *, start: Position | None = None, **options: int) -> list[bytes]:
    settings = {"batch_rows": 50, "seed": 1, "num_epochs": 3, "pool_bytes": 20_000} | options
    with ActivationCache(folder).batches(HOOKS[0], start=start, **settings) as stream:
        return [batch.tobytes() for batch in stream]


@pytest.mark.parametrize("pool_bytes", [1, 20_000, 10**7])
def test_an_epoch_has_every_row_once_but_for_the_last_incomplete_batch(cache_folder: Path, pool_bytes: int) -> None:
    batches = read_all(cache_folder, num_epochs=1, pool_bytes=pool_bytes, batch_rows=41)
    assert len(batches) == NUM_ROWS // 41 == 8  # 328 rows are exactly 8 batches of 41
    row_nbytes = 48 * 2
    rows = [batch[i : i + row_nbytes] for batch in batches for i in range(0, len(batch), row_nbytes)]
    assert Counter(rows) == Counter(row.tobytes() for row in rows_of(HOOKS[0], NUM_SEQUENCES))


def test_only_the_first_rows_are_read_in_whole_chunks_where_so_many_are_asked_for(cache_folder: Path) -> None:
    # 130 rows are 4 chunks of 32: the shard of 96 rows, and the first 32 of the next one as they lie on disk.
    batches = read_all(cache_folder, num_epochs=1, num_rows=130, batch_rows=16)
    assert len(batches) == 8
    row_nbytes = 48 * 2
    rows = [batch[i : i + row_nbytes] for batch in batches for i in range(0, len(batch), row_nbytes)]
    all_rows = rows_of(HOOKS[0], NUM_SEQUENCES)
    expected = np.concatenate([all_rows[:96], all_rows[96:192][disk_order(1, 96)[:32]]])
    assert Counter(rows) == Counter(row.tobytes() for row in expected)
    assert read_all(cache_folder, num_rows=NUM_ROWS) == read_all(cache_folder)
    for wrong in (31, NUM_ROWS + 1):
        with pytest.raises(
            ValueError, match=rf"expected num_rows between a chunk \(32\) and all 328 rows .*got {wrong}"
        ):
            read_all(cache_folder, num_rows=wrong)


def test_epochs_and_seeds_differ_and_repeat(cache_folder: Path) -> None:
    batches = read_all(cache_folder)
    assert batches == read_all(cache_folder, num_threads=4)
    assert batches[:6] != batches[6:12]
    assert batches != read_all(cache_folder, seed=2)


@pytest.mark.parametrize("pool_bytes", [1, 20_000, 10**7])
def test_a_stream_continues_bit_identically_from_any_position(cache_folder: Path, pool_bytes: int) -> None:
    batches = read_all(cache_folder, pool_bytes=pool_bytes)
    per_epoch = NUM_ROWS // 50
    assert len(batches) == 3 * per_epoch
    for done in range(3 * per_epoch):
        start = Position(epoch=done // per_epoch, batch=done % per_epoch)
        assert read_all(cache_folder, pool_bytes=pool_bytes, start=start) == batches[done:]


def test_the_position_of_a_stream_is_that_of_its_next_batch(cache_folder: Path) -> None:
    with ActivationCache(cache_folder).batches(HOOKS[0], batch_rows=150, seed=0) as stream:
        positions = [stream.position]
        for _ in range(3):
            next(stream)
            positions.append(stream.position)
    assert [(p.epoch, p.batch) for p in positions] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_stream_that_begins_at_its_end_is_empty(cache_folder: Path) -> None:
    assert read_all(cache_folder, start=Position(epoch=3, batch=0)) == []


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(cache_folder: Path) -> None:
    with ActivationCache(cache_folder).batches(HOOKS[0], batch_rows=50, seed=0, num_epochs=4, pool_bytes=1) as stream:
        for batch in stream:
            before = batch.copy()
            while any(not future.done() for future in stream._batches._pending):
                pass
            np.testing.assert_array_equal(batch, before)


def test_a_batch_mixes_far_more_sequences_than_neighbours_would(cache_folder: Path) -> None:
    # 50 neighbouring rows in sequence order come from 7 or 8 sequences of 8 rows; uniform sampling gives about 29.
    number = {row.tobytes(): i // 8 for i, row in enumerate(rows_of(HOOKS[0], NUM_SEQUENCES))}
    with ActivationCache(cache_folder).batches(
        HOOKS[0], batch_rows=50, seed=0, num_epochs=1, pool_bytes=30_000
    ) as stream:
        distinct = [len({number[row.tobytes()] for row in batch}) for batch in stream]
    assert distinct == [31, 25, 29, 26, 27, 21]


def test_rows_are_found_by_number_and_with_their_tokens(cache_folder: Path) -> None:
    cache = ActivationCache(cache_folder)
    wanted = [0, 327, 95, 96, 5, 5]
    np.testing.assert_array_equal(cache.rows(HOOKS[1], wanted), rows_of(HOOKS[1], NUM_SEQUENCES)[wanted])
    assert cache.locate(17) == (2, 2)  # rows 16 to 23 belong to sequence 2, positions 1 to 8
    np.testing.assert_array_equal(cache.tokens([40, 2]), tokens_of(NUM_SEQUENCES)[[40, 2]])
    np.testing.assert_array_equal(cache.held_out_tokens(), tokens_of(514)[500:])
    with pytest.raises(IndexError, match="from 0 to 327"):
        cache.rows(HOOKS[0], [328])


def test_an_unknown_hook_and_impossible_batches_are_refused(cache_folder: Path) -> None:
    cache = ActivationCache(cache_folder)
    with pytest.raises(ValueError, match=r"expected a hook of the cache .*blocks\.1.*got 'blocks\.7"):
        cache.batches("blocks.7.hook_resid_post", batch_rows=5, seed=0)
    with pytest.raises(ValueError, match="expected batches of 1 to 328 rows"):
        cache.batches(HOOKS[0], batch_rows=329, seed=0)
    with pytest.raises(ValueError, match="expected a position inside 6 batches"):
        cache.batches(HOOKS[0], batch_rows=50, seed=0, start=Position(epoch=0, batch=6))


def test_a_missing_or_short_file_is_found_on_opening(make_cache: MakeCache) -> None:
    folder = make_cache()
    shard = folder / HOOKS[0] / "c/1/0"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(DamagedFile, match=rf"c/1/0 to have {len(data)} bytes, got {len(data) - 1}"):
        ActivationCache(folder)
    shard.unlink()
    with pytest.raises(IncompleteCache, match="c/1/0, which the manifest lists, found none"):
        ActivationCache(folder)
    with pytest.raises(IncompleteCache, match="no such folder"):
        ActivationCache(folder / "nowhere")


def test_a_cache_with_held_out_files_alone_opens_for_them_and_for_nothing_else(make_cache: MakeCache) -> None:
    folder = make_cache()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and not name.startswith("held_out/"):
            path.unlink()
    cache = ActivationCache(folder, splits=("held_out",))
    expected = rows_of(HOOKS[1], 514)[500 * 8 :]
    np.testing.assert_array_equal(cache.rows(HOOKS[1], np.arange(112), split="held_out"), expected)
    np.testing.assert_array_equal(cache.tokens(split="held_out"), tokens_of(514)[500:])
    with cache.batches(HOOKS[1], batch_rows=28, seed=0, num_epochs=1, split="held_out") as stream:
        assert Counter(row.tobytes() for batch in stream for row in batch) == Counter(row.tobytes() for row in expected)
    with pytest.raises(IncompleteCache, match=r"expected the file .*c/0/0, found none"):
        cache.rows(HOOKS[1], [0])
    for splits in (("training",), ("training", "held_out")):
        with pytest.raises(IncompleteCache, match="which the manifest lists, found none: the cache is only part"):
            ActivationCache(folder, splits=splits)
    (folder / "held_out/tokens/c/0/0").unlink()
    with pytest.raises(IncompleteCache, match=r"expected .*held_out/tokens/c/0/0, which the manifest lists, found"):
        ActivationCache(folder, splits=("held_out",))


@pytest.mark.parametrize("where", [10, -30, -2])
def test_a_flipped_bit_is_found_on_reading_and_named(make_cache: MakeCache, where: int) -> None:
    folder = make_cache()
    shard = folder / HOOKS[0] / "c/2/0"
    data = bytearray(shard.read_bytes())
    data[where] ^= 4
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedFile, match=r"expected checksum [0-9a-f]{8} for .*c/2/0, got [0-9a-f]{8}"):
        read_all(folder)
    assert verify(folder, full=False, num_threads=2) == []
    (problem,) = verify(folder, full=True, num_threads=2)
    assert "c/2/0: expected SHA-256" in problem


def test_verify_finds_missing_files_and_files_that_are_not_listed(make_cache: MakeCache) -> None:
    folder = make_cache()
    (folder / "tokens/c/0/0").unlink()
    (folder / HOOKS[0] / "c/9").mkdir()
    (folder / HOOKS[0] / "c/9/0").write_bytes(b"zarr would read this")
    problems = verify(folder, full=False, num_threads=2)
    assert len(problems) == 2
    assert "found no file" in problems[0]
    assert "c/9/0: expected no such file" in problems[1]


def test_a_cache_describes_itself(cache_folder: Path) -> None:
    text = describe(cache_folder)
    assert "41 of 9 tokens for training, 14 held out" in text
    assert "blocks.1.hook_resid_post: 328 rows" in text
    assert "times smaller than raw" in text


def values_of(hook: str, rows: list[int]) -> np.ndarray:
    return (rows_of(hook, NUM_SEQUENCES)[rows].astype(np.uint32) << 16).view(np.float32)


def test_rows_of_several_hooks_belong_to_the_same_tokens(cache_folder: Path) -> None:
    numbers = [{row.tobytes(): i for i, row in enumerate(rows_of(hook, NUM_SEQUENCES))} for hook in HOOKS]
    with ActivationCache(cache_folder).aligned_batches(
        HOOKS, batch_rows=50, seed=3, num_epochs=2, pool_bytes=40_000
    ) as stream:
        batches = [
            [[number[row.tobytes()] for row in rows] for number, rows in zip(numbers, batch, strict=True)]
            for batch in stream
        ]
    assert len(batches) == 2 * (NUM_ROWS // 50)
    for first, second in batches:
        assert first == second


def test_held_out_rows_are_a_split_of_their_own(cache_folder: Path) -> None:
    cache = ActivationCache(cache_folder)
    expected = rows_of(HOOKS[0], 514)[500 * 8 :]
    np.testing.assert_array_equal(cache.rows(HOOKS[0], np.arange(112), split="held_out"), expected)
    with cache.batches(HOOKS[0], batch_rows=28, seed=0, num_epochs=1, split="held_out") as stream:
        rows = [row.tobytes() for batch in stream for row in batch]
    assert Counter(rows) == Counter(row.tobytes() for row in expected)
    with pytest.raises(IndexError, match="expected row numbers from 0 to 111, got"):
        cache.rows(HOOKS[0], [112], split="held_out")


def test_ranks_share_no_row_and_have_as_many_batches(cache_folder: Path) -> None:
    shares = []
    for rank in range(3):
        with ActivationCache(cache_folder).batches(
            HOOKS[0], batch_rows=10, seed=0, num_epochs=1, rank=rank, num_ranks=3, pool_bytes=20_000
        ) as stream:
            shares.append([row.tobytes() for batch in stream for row in batch])
    # 11 chunks of 32 rows, the last of 8: the least that a rank can get is 3 chunks, one of them the last: 72 rows.
    assert [len(share) for share in shares] == [70, 70, 70]
    assert len(set(shares[0]) | set(shares[1]) | set(shares[2])) == 210
    with pytest.raises(ValueError, match="expected a rank from 0 to num_ranks - 1, got rank 3 of 3"):
        ActivationCache(cache_folder).batches(HOOKS[0], batch_rows=10, seed=0, rank=3, num_ranks=3)


def test_the_tokens_around_a_row_are_those_of_its_sequence(cache_folder: Path) -> None:
    cache = ActivationCache(cache_folder)
    window = tokens_of(NUM_SEQUENCES)[2]
    around, place = cache.context(17, before=1, after=2)  # row 17 is position 2 of sequence 2
    assert around.tolist() == window[1:5].tolist()
    assert place == 1
    around, place = cache.context(23, before=100, after=100)  # its last position, 8
    assert (around.tolist(), place) == (window.tolist(), 8)
    with pytest.raises(IndexError, match="expected row numbers from 0 to 327, got"):
        cache.context(328, before=1, after=1)


def test_a_dask_array_has_the_values_in_sequence_order_and_no_zeros_for_what_is_missing(make_cache: MakeCache) -> None:
    folder = make_cache()
    array = ActivationCache(folder).dask_array(HOOKS[1])
    assert array.shape == (NUM_ROWS, 48)
    assert array.chunks[0] == (96, 96, 96, 40)
    np.testing.assert_array_equal(array[[0, 95, 96, 327]].compute(), values_of(HOOKS[1], [0, 95, 96, 327]))
    cache = ActivationCache(folder)
    (folder / HOOKS[1] / "c/1/0").unlink()
    with pytest.raises(IncompleteCache, match=r"expected the file .*c/1/0, found none"):
        cache.dask_array(HOOKS[1])[:200].compute()


def test_by_pread_the_batches_are_the_same_and_a_truncated_file_is_an_error(make_cache: MakeCache) -> None:
    folder = make_cache()
    cache = ActivationCache(folder, mode="pread")
    with cache.batches(HOOKS[0], batch_rows=50, seed=1, num_epochs=3, pool_bytes=20_000) as stream:
        assert [batch.tobytes() for batch in stream] == read_all(folder)
    shard = folder / HOOKS[0] / "c/2/0"
    shard.write_bytes(shard.read_bytes()[:1000])  # while the cache is open
    with (
        pytest.raises(DamagedFile, match=r"c/2/0.*the file was cut short"),
        cache.batches(HOOKS[0], batch_rows=50, seed=1, num_epochs=1) as stream,
    ):
        list(stream)


def test_an_error_of_a_decoding_thread_is_raised_again_and_again(make_cache: MakeCache) -> None:
    folder = make_cache()
    shard = folder / HOOKS[0] / "c/2/0"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    cache = ActivationCache(folder)
    num_rows, rows_per_chunk = cache.manifest.num_rows, cache.spec.rows_per_chunk
    plan = functools.partial(EpochPlan, num_rows, rows_per_chunk, chunks_per_pool=1, epoch=0)
    # The damaged shard holds chunks 6 to 8; a pool of one chunk must not begin with them.
    seed = next(seed for seed in range(100) if not {6, 7, 8} & set(plan(seed=seed).chunks()[:4].tolist()))
    with cache.batches(HOOKS[0], batch_rows=30, seed=seed, pool_bytes=1) as stream:
        with pytest.raises(DamagedFile, match="c/2/0"):
            list(stream)
        with pytest.raises(DamagedFile, match="c/2/0"):
            next(stream)


def open_files_below(folder: Path) -> list[str]:
    """Files below a folder that this process holds open or mapped (Linux)."""
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    held += Path("/proc/self/maps").read_text().split()
    return [name for name in held if name.startswith(f"{folder}/")]


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_a_cache_that_nobody_has_any_more_holds_no_file_open(make_cache: MakeCache, mode: Mode) -> None:
    folder = make_cache()
    cache = ActivationCache(folder, mode=mode)
    cache.rows(HOOKS[0], range(NUM_ROWS))
    assert open_files_below(folder)
    del cache
    assert not open_files_below(folder)
