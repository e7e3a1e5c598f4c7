"""One streamed pass over batches against a plain computation that holds everything."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluate.latents.best import priorities
from evaluate.latents.collect import Collected, Contexts, LatentCollector
from evaluate.latents.one_pass import Text, collect, groups
from store.read.cache import ActivationCache
from store.sae.weights import encode

S, T, F = 23, 9, 6
CONTEXTS = Contexts(num_top=3, num_sampled=20, num_per_quantile=1, tokens_before=2, tokens_after=1)


@pytest.fixture
def activations() -> NDArray[np.float32]:
    """(S, T, F): latent 0 is dead, 1 fires once, 2 always, the others often and with many equal values."""
    generator = np.random.default_rng(1)
    latents = generator.integers(0, 4, size=(S, T, F)).astype(np.float32) / 2
    latents[:, :, 0] = 0.0
    latents[:, :, 1] = 0.0
    latents[11, 4, 1] = 2.5
    latents[:, :, 2] = generator.random((S, T)) + 0.1
    return latents


def streamed(
    latents: NDArray[np.float32], counted: NDArray[np.bool_], order: list[int], batch: int, device: str = "cpu"
) -> Collected:
    collector = LatentCollector(CONTEXTS, num_latents=F, device=torch.device(device))
    for start in range(0, S, batch):
        sequences = np.array(order[start : start + batch])
        rows, are_counted = (torch.from_numpy(part[sequences]).to(device) for part in (latents, counted))
        collector.add(rows, are_counted, sequences)
    return collector.collected()


def plain_window(latents: NDArray[np.float32], place: int, latent: int) -> list[float]:
    sequence, position = divmod(place, T)
    around = range(position - CONTEXTS.tokens_before, position + CONTEXTS.tokens_after + 1)
    return [float(latents[sequence, at, latent]) if 0 <= at < T else 0.0 for at in around]


def plain_places(latents: NDArray[np.float32], latent: int) -> list[int]:
    """By sorting everything: top contexts, one of a sequence, then one of each tenth of the sampled firings."""
    firings = [(s, t) for s in range(S) for t in range(T) if latents[s, t, latent] > 0]
    first_of_sequence = {}
    for s, t in sorted(firings, key=lambda at: (-latents[*at, latent], at)):
        first_of_sequence.setdefault(s, (s, t))
    top = [s * T + t for s, t in list(first_of_sequence.values())[: CONTEXTS.num_top]]
    places = np.array([s * T + t for s, t in firings], dtype=np.int64)
    drawn = [int(place) for place in places[np.argsort(-priorities(places))][: CONTEXTS.num_sampled]]
    by_value = sorted(drawn, key=lambda place: (latents[place // T, place % T, latent], place))
    tenths: list[list[int]] = [[] for _ in range(10)]
    for number, place in enumerate(by_value):
        tenths[number * 10 // len(by_value)].append(place)
    of_tenths = [min(tenth, key=drawn.index) if tenth else -1 for tenth in tenths]
    return top + [-1] * (CONTEXTS.num_top - len(top)) + of_tenths


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("batch", "shuffled"), [(1, False), (4, False), (4, True), (S, False)])
def test_it_finds_what_a_plain_computation_finds(
    activations: NDArray[np.float32], batch: int, shuffled: bool, device: str
) -> None:
    counted = np.ones((S, T), dtype=bool)
    counted[:, 0] = False
    counted[3, 5] = False
    order = np.random.default_rng(2).permutation(S).tolist() if shuffled else list(range(S))
    found = streamed(activations, counted, order, batch, device)
    rows = activations * counted[:, :, None]
    assert found.num_rows == S * (T - 1) - 1
    assert found.num_firing.tolist() == (rows > 0).sum(axis=(0, 1)).tolist()
    assert found.sum == pytest.approx(rows.sum(axis=(0, 1), dtype=np.float64))
    assert found.largest.tolist() == rows.max(axis=(0, 1)).tolist()
    assert found.bin_counts.sum(axis=1).tolist() == found.num_firing.tolist()
    for latent in range(F):
        places = plain_places(rows, latent)
        assert found.places[latent].tolist() == places
        for slot, place in enumerate(places):
            wanted = plain_window(rows, place, latent) if place >= 0 else [0.0] * CONTEXTS.width
            assert found.windows[latent, slot].tolist() == pytest.approx(wanted)


def test_quantiles_are_tenths_of_the_firings_and_their_ranges_follow_each_other() -> None:
    latents = np.zeros((S, T, F), dtype=np.float32)
    latents[:20, 4, 3] = np.arange(1, 21)  # twenty firings: all are sampled, two in each tenth
    found = streamed(latents, np.ones((S, T), dtype=bool), list(range(S)), 5)
    assert found.quantile_ranges[3].tolist() == [[2 * i + 1, 2 * i + 2] for i in range(10)]
    values = found.windows[3, CONTEXTS.num_top :, CONTEXTS.tokens_before]
    assert all(low <= value <= high for value, (low, high) in zip(values, found.quantile_ranges[3], strict=True))


def test_all_saes_share_the_rows_and_each_finds_what_it_finds_alone(
    study: SimpleNamespace, saes: SimpleNamespace
) -> None:
    cache = ActivationCache(study.cache)
    tokens = np.concatenate([cache.held_out_tokens(), cache.tokens(range(3))])
    text = Text(tokens, (("held_out", 8), ("training", 3)))
    caches = {"held_out": cache, "training": cache}
    weights = {"a": saes.random(1), "b": saes.random(2, spread=0.2), "dead": saes.dead()}
    read = []

    def look(some: dict) -> dict[str, Collected]:  # type: ignore[type-arg]
        return collect(
            some, text=text, hook=study.manifest.spec.hooks[0], caches=caches, contexts=CONTEXTS,
            ignored=frozenset({0, 1, 2}), device=torch.device("cpu"), progress=read.append,
        )  # fmt: skip

    together = look(weights)
    assert sum(read) == 6  # a batch of held-out sequences and one of training sequences for each SAE
    for name, of_one in weights.items():
        alone = look({name: of_one})[name]
        for field in ("num_firing", "sum", "largest", "bin_counts", "places", "windows"):
            assert np.array_equal(getattr(together[name], field), getattr(alone, field)), (name, field)
    hook = study.manifest.spec.hooks[0]
    bits = np.concatenate([cache.rows(hook, np.arange(88), split="held_out"), cache.rows(hook, np.arange(33))])
    values = encode(weights["a"], torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))).numpy()
    is_row = ~np.isin(tokens[:, 1:], [0, 1, 2]).reshape(-1)  # one of the tokens is an EOS
    assert together["a"].num_rows == 11 * 11 - 1 == is_row.sum()
    assert together["a"].num_firing.tolist() == (values[is_row] > 0).sum(axis=0).tolist()
    assert together["a"].num_firing.sum() > 0
    assert together["dead"].num_firing.sum() == 0


def test_saes_that_do_not_fit_in_memory_together_take_another_pass(saes: SimpleNamespace) -> None:
    weights = {name: saes.random(1) for name in "abcde"}
    needed = CONTEXTS.nbytes(64)
    assert groups(weights, CONTEXTS, budget=2 * needed) == [["a", "b"], ["c", "d"], ["e"]]
    assert groups(weights, CONTEXTS, budget=1) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert groups(weights, CONTEXTS) == [["a", "b", "c", "d", "e"]]
