"""Orders are pure functions of their keys, the same on every machine."""

import numpy as np

from store.layout import chunk_order, disk_order, keyed_permutation, pool_order


def test_a_keyed_permutation_is_a_permutation() -> None:
    for num_items in (0, 1, 2, 1000):
        assert sorted(keyed_permutation(num_items, 7).tolist()) == list(range(num_items))


def test_the_order_on_disk_is_part_of_the_format_and_never_changes() -> None:
    assert disk_order(0, 8).tolist() == [3, 5, 2, 0, 6, 4, 1, 7]
    assert disk_order(1, 8).tolist() == [0, 7, 4, 1, 6, 2, 5, 3]


def test_seed_epoch_and_pool_each_change_the_order() -> None:
    orders = [
        chunk_order(50, seed=0, epoch=0),
        chunk_order(50, seed=1, epoch=0),
        chunk_order(50, seed=0, epoch=1),
        pool_order(50, seed=0, epoch=0, pool=0),
        pool_order(50, seed=0, epoch=0, pool=1),
    ]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_the_hash_of_an_item_is_splitmix64() -> None:
    # First outputs of splitmix64 seeded with 0 (Steele, Lea & Flood 2014): 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
    from store.layout import _splitmix64

    golden = 0x9E3779B97F4A7C15
    hashes = _splitmix64(np.array([0, golden], dtype=np.uint64))
    assert [int(h) for h in hashes] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
