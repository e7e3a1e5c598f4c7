"""Penalties by hand, and the partition that makes a resumed run draw the same."""

import math

import pytest
import torch

from store.sae.geometry import gram_penalty_and_gradient, nearest, unit_rows
from train.penalties import GramPenalty, MaxCosinePenalty, latent_chunks
from train.penalty_term import PenaltyTerm, penalty_slices

GRAM = GramPenalty(kind="gram")
NEAREST = MaxCosinePenalty(kind="max-cosine")


def evaluate(penalty: GramPenalty | MaxCosinePenalty, W_dec: torch.Tensor, **more: int) -> torch.Tensor:
    weight = torch.zeros(1)
    return penalty.add_gradients_(
        W_dec[None], torch.zeros_like(W_dec)[None], weight_V=weight, unit=True, seeds=[more.get("seed", 0)],
        step=more.get("step", 0),
    )[0]  # fmt: skip


def three_in_the_plane() -> torch.Tensor:
    """Directions at 0, 60 and 90 degrees: cosines 1/2, 0 and sqrt(3)/2."""
    angles = torch.tensor([0.0, math.pi / 3, math.pi / 2])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_gram_sums_squared_cosines_over_ordered_pairs() -> None:
    assert float(evaluate(GRAM, three_in_the_plane())) == pytest.approx(2 * (1 / 4 + 0 + 3 / 4), rel=1e-6)


def test_max_cosine_is_the_mean_squared_cosine_with_the_nearest() -> None:
    # nearest cosines 1/2, sqrt(3)/2, sqrt(3)/2: (1/4 + 3/4 + 3/4) / 3
    assert float(evaluate(NEAREST, three_in_the_plane())) == pytest.approx(7 / 12, rel=1e-6)


def test_the_nearest_is_the_largest_signed_cosine() -> None:
    cosines, partners = nearest(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
    assert cosines.tolist() == [0.0, 0.0, 0.0]  # not -1, which is larger only in size
    assert partners[0] == 2


def test_latents_of_other_chunks_do_not_count() -> None:
    W_dec = unit_rows(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    chunked = MaxCosinePenalty(kind="max-cosine", chunk_latents=4)
    chunks = latent_chunks(10, 4, seed=3, step=5)
    by_hand = sum(float(evaluate(NEAREST, W_dec[torch.from_numpy(chunk)])) for chunk in chunks) / 3
    assert float(evaluate(chunked, W_dec, seed=3, step=5)) == pytest.approx(by_hand, rel=1e-6)


def test_a_latent_alone_in_its_chunk_has_no_neighbour() -> None:
    alone = MaxCosinePenalty(kind="max-cosine", chunk_latents=1)
    assert float(evaluate(alone, three_in_the_plane())) == 0.0


def test_a_partition_holds_every_latent_once_and_is_new_in_each_step_and_seed() -> None:
    chunks = latent_chunks(10, 4, seed=0, step=0)
    assert [len(chunk) for chunk in chunks] == [4, 3, 3]
    assert sorted(latent for chunk in chunks for latent in chunk.tolist()) == list(range(10))
    firsts = {tuple(latent_chunks(10, 4, seed=seed, step=step)[0]) for seed in (0, 1) for step in range(5)}
    assert len(firsts) == 10
    again = latent_chunks(10, 4, seed=0, step=0)
    assert all((a == b).all() for a, b in zip(chunks, again, strict=True))


def test_every_nth_step_carries_n_times_the_coefficient() -> None:
    fifth = MaxCosinePenalty(kind="max-cosine", every_steps=5)
    assert [fifth.factor(step) for step in range(11)] == [5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5]
    assert [GRAM.factor(step) for step in range(3)] == [1, 1, 1]


def test_a_step_without_the_penalty_adds_nothing_and_the_weight_is_the_same_on_average(resolved: object) -> None:
    make = resolved
    assert callable(make)
    settings = [
        make({"kind": "fixed", "value": 0.25}, d_sae=6, penalty={"kind": "max-cosine", "every_steps": every})
        for every in (1, 5)
    ]
    W_dec = unit_rows(torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).repeat(2, 1, 1)
    term = PenaltyTerm(settings, d_model=4, device=torch.device("cpu"))
    added = []
    for step in range(10):
        gradient = torch.zeros_like(W_dec)
        term.add_gradients_(W_dec, gradient, lambda_V=torch.full((2,), 0.25, dtype=torch.float64), step=step)
        added.append(gradient)
    lengths = torch.stack(added).flatten(2).norm(dim=2)  # (steps, variants)
    assert bool((lengths[:, 0] > 0).all())
    assert (lengths[:, 1] > 0).tolist() == [True, False, False, False, False] * 2
    torch.testing.assert_close(added[0][1], 5.0 * added[0][0])
    mean = torch.stack(added).mean(0)  # of directions that stand still
    torch.testing.assert_close(mean[1], mean[0])
    by_hand = float((W_dec[0] @ W_dec[0].T - 9 * torch.eye(6)).amax(1).square().mean())
    assert term.scaled_V.tolist() == pytest.approx(
        [by_hand, by_hand], rel=1e-6
    )  # also in steps that did not compute it


@pytest.mark.parametrize("F", [6, 20])
def test_the_fast_gram_gradient_differs_from_the_exact_one_only_along_the_rows(F: int) -> None:
    W_dec = unit_rows(torch.randn(2, F, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    gradient, weight = torch.ones_like(W_dec), torch.tensor([0.3, 2.0], dtype=torch.float64)
    penalty = GRAM.add_gradients_(W_dec, gradient, weight_V=weight, unit=True, seeds=[0, 0], step=0)
    exact_penalty, _, exact = gram_penalty_and_gradient(W_dec)
    torch.testing.assert_close(penalty, exact_penalty, rtol=1e-10, atol=1e-10)
    added = gradient - 1.0
    across = added - (added * W_dec).sum(-1, keepdim=True) * W_dec
    torch.testing.assert_close(across, weight[:, None, None] * exact, rtol=1e-9, atol=1e-10)


def test_neighbours_with_one_penalty_are_computed_at_once_as_far_as_memory_allows(resolved: object) -> None:
    make = resolved
    assert callable(make)
    one, other = {"kind": "fixed", "value": 1.0}, {"kind": "max-cosine"}
    settings = [make(), make(one), make(one), make(one, penalty=other), make(), make(one), make(one), make(one)]
    assert penalty_slices(settings, numbers_per_variant=4) == [slice(1, 3), slice(3, 4), slice(5, 8)]
    assert penalty_slices(settings, numbers_per_variant=2**21) == [slice(1, 3), slice(3, 4), slice(5, 7), slice(7, 8)]
