"""The best entries of a stream are those of the whole, and a random sample is a fixed one."""

import numpy as np
import pytest

from evaluate.latents.best import BestEntries, Entries, best_of_each, priorities


def entries(latent: list[int], key: list[float], place: list[int]) -> Entries:
    keys = np.array(key, dtype=np.float64)
    window = keys.astype(np.float32)[:, None]
    return Entries(np.array(latent, dtype=np.int64), keys, np.array(place, dtype=np.int64), window)


def test_the_best_of_each_group_come_first_and_the_earlier_of_equal_ones_wins() -> None:
    group, key, place = np.array([1, 0, 1, 1, 0]), np.array([5.0, 2.0, 7.0, 5.0, 2.0]), np.array([9, 4, 8, 3, 1])
    assert best_of_each(group, key, place, count=2).tolist() == [4, 1, 2, 3]
    assert best_of_each(group, key, place, count=1).tolist() == [4, 2]


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_best_of_a_stream_are_those_of_the_whole_in_any_order(batch: int) -> None:
    generator = np.random.default_rng(0)
    latent, key = generator.integers(0, 5, 1000), generator.integers(0, 20, 1000).astype(float)
    place = generator.permutation(1000)
    best = BestEntries(num_latents=6, count=3, width=1)
    for start in range(0, 1000, batch):
        part = slice(start, start + batch)
        good = key[part] >= best.least[latent[part]]
        best.add(entries(latent[part][good].tolist(), key[part][good].tolist(), place[part][good].tolist()))
    found = best.best()
    wanted = [
        (of, number, -where)
        for of in range(5)
        for number, where in sorted(((key[i], -place[i]) for i in np.flatnonzero(latent == of)), reverse=True)[:3]
    ]
    assert list(zip(found.latent.tolist(), found.key.tolist(), found.place.tolist(), strict=True)) == wanted
    assert best.least[5] == -np.inf


def test_priorities_are_spread_evenly_and_never_change() -> None:
    drawn = priorities(np.arange(100_000))
    assert len(set(drawn.tolist())) == 100_000
    assert np.histogram(drawn, bins=10, range=(0.0, 1.0))[0].tolist() == pytest.approx([10_000] * 10, rel=0.03)
    # The generator's published first outputs for the seed 0 are 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
    assert drawn[:2].tolist() == [(0xE220A8397B1DCDAF >> 11) / 2**53, (0x6E789E6AA1B965F4 >> 11) / 2**53]
