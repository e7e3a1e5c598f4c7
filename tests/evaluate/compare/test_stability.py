"""Latents over seeds: matchings that can be checked by hand, and chance."""

import itertools

import pytest
import torch

from evaluate.compare import stability as module
from evaluate.compare.comparisons import compare
from evaluate.compare.stability import chance, greedy_one_to_one, match, stability
from tests.evaluate.compare.test_compare import ONE, ZERO, by_name, card


def test_a_latent_that_two_share_counts_twice_as_best_match_and_once_one_to_one() -> None:
    first = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    second = torch.eye(3)
    found = match(first, second)
    assert found.best == pytest.approx(1.0)
    assert found.one_to_one == pytest.approx(2 / 3)  # one of the two has the third axis, at cosine 0


def test_the_matching_is_the_best_of_all_permutations_and_the_greedy_one_at_most_that() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 4, generator=generator)
    cosines = torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
    best = max(
        sum(float(cosines[row, partner]) for row, partner in enumerate(order)) / 6
        for order in itertools.permutations(range(6))
    )
    assert match(first, second).one_to_one == pytest.approx(best, abs=1e-6)
    assert greedy_one_to_one(first, second) <= best + 1e-6


def test_the_greedy_matching_is_near_the_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(256, 32, generator=generator)
    second = first[torch.randperm(256, generator=generator)] + 0.5 * torch.randn(256, 32, generator=generator)
    exact = match(first, second).one_to_one
    monkeypatch.setattr(module, "EXACT_LATENTS", 100)
    assert match(first, second).one_to_one == pytest.approx(exact, abs=0.01)


def test_seeds_are_matched_with_each_other_and_with_the_baseline_of_the_same_and_of_other_seeds() -> None:
    cards = by_name(*(card(f"{name}{seed or ''}", schedule, seed=seed)
                      for name, schedule in (("baseline", ZERO), ("fixed", ONE)) for seed in (0, 1)))  # fmt: skip
    decoders = {"baseline": torch.eye(4)[:2], "baseline1": torch.eye(4)[2:], "fixed": torch.eye(4)[:2],
                "fixed1": torch.eye(4)[:2]}  # fmt: skip
    metrics = {name: {"core/l0": 1.0} for name in cards}
    comparisons = compare(cards, metrics, errors={}, without_one={})
    seeds = {name: variant.seed for name, variant in cards.items()}
    found = stability(comparisons, seeds, decoders, ["baseline", "fixed"])
    base, fixed = found["baseline"], found["fixed"]
    assert base.seeds is not None
    assert fixed.seeds is not None
    assert (base.seeds.best, base.with_baseline) == (0.0, None)
    assert fixed.seeds.one_to_one == 1.0
    assert fixed.with_baseline is not None
    assert fixed.with_baseline.one_to_one == 0.5  # the same at seed 0, orthogonal at seed 1
    one = {name: cards[name] for name in ("baseline", "fixed")}
    assert stability(compare(one, metrics, errors={}, without_one={}), seeds, decoders, ["baseline", "fixed"]) == {}


def test_chance_is_the_same_every_time_and_far_from_one() -> None:
    assert chance(64, 32) == chance(64, 32)
    assert 0.2 < chance(64, 32).one_to_one < chance(64, 32).best < 0.5
