"""Batches: every row once an epoch, in a reproducible order, continued bit-identically from any position."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from store.errors import DamagedFile, IncompleteCache
from store.inspect import describe, verify
from store.reader import ActivationCache, Position
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
    assert min(distinct) >= 18


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


def test_verify_finds_missing_files_and_strangers(make_cache: MakeCache) -> None:
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
