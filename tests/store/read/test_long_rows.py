"""Batches without the rows above a norm: full, each of the others once, continued bit-identically from any position."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from store.codec.row_norms import squared_norms
from store.errors import DamagedFile
from store.read.batches import Position
from store.read.cache import ActivationCache
from store.read.long_rows import RowsWithin, close_gaps
from tests.store.cache_fixture import HOOKS, NUM_SEQUENCES, rows_of

NUM_ROWS = NUM_SEQUENCES * 8


def within(share: float) -> RowsWithin:
    """The limit that keeps about this share of the rows."""
    squared = squared_norms(rows_of(HOOKS[0], NUM_SEQUENCES), np.arange(NUM_ROWS))
    limit = float(np.quantile(squared, share, method="nearest"))
    return RowsWithin(limit, int((squared < limit).sum()))


def read(
    folder: Path, limit: RowsWithin | None, *, pool_bytes: int = 20_000, start: Position | None = None, rows: int = 50
) -> list[tuple[Position, bytes]]:
    """The batches of three epochs, each with the position it is at."""
    with ActivationCache(folder).batches(
        HOOKS[0], batch_rows=rows, seed=1, num_epochs=3, pool_bytes=pool_bytes, start=start, within=limit
    ) as stream:
        found = []
        while True:
            position = stream.position
            batch = next(stream, None)
            if batch is None:
                return found
            found.append((position, batch.tobytes()))


@pytest.mark.parametrize("pool_bytes", [1, 20_000, 10**7])
@pytest.mark.parametrize("share", [0.99, 0.5, 0.05])
def test_an_epoch_has_every_row_within_the_limit_once(cache_folder: Path, pool_bytes: int, share: float) -> None:
    limit = within(share)
    batches = [batch for _, batch in read(cache_folder, limit, pool_bytes=pool_bytes, rows=limit.num_rows)]
    rows = rows_of(HOOKS[0], NUM_SEQUENCES)
    kept = rows[squared_norms(rows, np.arange(NUM_ROWS)) < limit.squared_norm]
    assert 0 < len(kept) < NUM_ROWS
    assert len(batches) == 3
    for batch in batches:
        assert Counter(batch[i : i + 96] for i in range(0, len(batch), 96)) == Counter(row.tobytes() for row in kept)
    assert len(set(batches)) == 3


@pytest.mark.parametrize("pool_bytes", [1, 20_000, 10**7])
def test_a_stream_continues_bit_identically_from_any_position(cache_folder: Path, pool_bytes: int) -> None:
    limit = within(0.8)
    batches = read(cache_folder, limit, pool_bytes=pool_bytes)
    assert len(batches) == 3 * (limit.num_rows // 50)
    for number, (position, _) in enumerate(batches):
        assert read(cache_folder, limit, pool_bytes=pool_bytes, start=position) == batches[number:]


def test_a_limit_above_all_rows_changes_no_batch(cache_folder: Path) -> None:
    above_all = RowsWithin(1e30, NUM_ROWS)
    assert [batch for _, batch in read(cache_folder, above_all)] == [batch for _, batch in read(cache_folder, None)]


def test_fewer_rows_within_the_limit_than_the_manifest_counts_are_an_error_and_no_endless_wait(
    cache_folder: Path,
) -> None:
    limit = within(0.5)
    for rows in (limit.num_rows + 10, 50):
        with pytest.raises(DamagedFile, match=f"expected {NUM_ROWS} rows within the norm limit"):
            read(cache_folder, RowsWithin(limit.squared_norm, NUM_ROWS), rows=rows)


def test_what_cannot_be_read_within_a_limit_is_refused(cache_folder: Path) -> None:
    cache, limit = ActivationCache(cache_folder), within(0.5)
    with pytest.raises(ValueError, match=r"expected one hook and one rank .*, got 2 hooks and 1 ranks"):
        cache.aligned_batches(HOOKS, batch_rows=10, seed=0, within=limit)
    with pytest.raises(ValueError, match=r"the whole cache within the norm limit"):
        cache.batches(HOOKS[0], batch_rows=limit.num_rows + 1, seed=0, within=limit)
    with pytest.raises(ValueError, match=r"expected a position of a stream that leaves out the same rows"):
        cache.batches(HOOKS[0], batch_rows=10, seed=0, start=Position(batch=1), within=limit)


def test_gaps_are_closed_with_the_last_rows_in_order() -> None:
    pool = np.arange(8, dtype=np.uint16)[:, None]
    assert close_gaps([pool], np.array([6, 1, 3]), 8) == 5
    assert pool[:5, 0].tolist() == [0, 5, 2, 7, 4]
