"""Orders are pure functions of their keys, the same on every machine."""

import dataclasses

import numpy as np
import pytest

from store.cache.order import EpochPlan, disk_order, inverse, keyed_permutation

PLAN = EpochPlan(num_rows=106, rows_per_chunk=10, chunks_per_pool=3, seed=0, epoch=0)  # 11 chunks, the last of 6 rows


def test_a_keyed_permutation_is_a_permutation() -> None:
    for num_items in (0, 1, 2, 1000):
        assert sorted(keyed_permutation(num_items, 7).tolist()) == list(range(num_items))
    with pytest.raises(ValueError, match="expected 0 to 2\\^31 items to permute, got -1"):
        keyed_permutation(-1, 7)


def test_every_place_is_equally_likely() -> None:
    # 8000 permutations of 8: each item is expected 1000 times at each place, with a standard deviation of 29.6.
    counts = np.zeros((8, 8), dtype=int)
    for key in range(8000):
        counts[np.arange(8), keyed_permutation(8, key)] += 1
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_order_on_disk_is_part_of_the_format_and_never_changes() -> None:
    assert disk_order(0, 8).tolist() == [6, 1, 0, 5, 2, 4, 3, 7]
    assert disk_order(1, 8).tolist() == [6, 7, 0, 1, 2, 3, 5, 4]
    assert disk_order(0, 8, split="held_out").tolist() == [6, 0, 5, 4, 3, 7, 1, 2]


def test_an_inverse_undoes_a_permutation() -> None:
    assert inverse(np.array([2, 0, 1])).tolist() == [1, 2, 0]


def test_an_epoch_reads_every_chunk_once_and_fills_every_slot_of_its_pools() -> None:
    pools = PLAN.pools()
    assert [len(pool) for pool in pools] == [3, 3, 3, 2]
    assert sorted(np.concatenate(pools).tolist()) == list(range(11))
    for number, chunks in enumerate(pools):
        filled = [slots for _, slots in PLAN.slots(number, chunks)]
        assert [len(slots) for slots in filled] == [6 if chunk == 10 else 10 for chunk in chunks]
        assert sorted(np.concatenate(filled).tolist()) == list(range(sum(map(len, filled))))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"rank": 1, "num_ranks": 2}])
def test_seed_epoch_and_rank_each_change_the_order(change: dict[str, int]) -> None:
    assert dataclasses.replace(PLAN, **change).chunks().tolist() != PLAN.chunks().tolist()


def test_ranks_share_no_chunk_and_have_the_same_number_of_batches() -> None:
    ranks = [dataclasses.replace(PLAN, rank=rank, num_ranks=3) for rank in range(3)]
    assert sorted(np.concatenate([plan.chunks() for plan in ranks]).tolist()) == list(range(11))
    # Three ranks have 4, 4 and 3 chunks; the least is 2 whole chunks and the one of 6 rows: 26 rows, 5 batches of 5.
    assert [plan.batches_per_epoch(5) for plan in ranks] == [5, 5, 5]
    assert PLAN.batches_per_epoch(5) == 21  # 106 rows


def test_the_hash_of_an_item_is_splitmix64() -> None:
    # First outputs of splitmix64 seeded with 0 (Steele, Lea & Flood 2014): 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
    from store.cache.order import _splitmix64

    hashes = [int(_splitmix64(np.uint64(state))) for state in (0, 0x9E3779B97F4A7C15)]
    assert hashes == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
