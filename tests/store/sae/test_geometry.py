"""The penalty and its gradient against the naive Gram and autograd, and geometry that can be computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from store.sae.geometry import (
    best_match_cosines,
    decoder_geometry,
    gram_penalty,
    gram_penalty_and_gradient,
    gram_penalty_bound,
    unit_rows,
)

SHAPES = [(5, 12), (12, 12), (40, 12)]  # F below, equal to and above d


def naive_penalty(W_dec: Tensor) -> Tensor:
    D = W_dec / W_dec.norm(dim=1, keepdim=True)
    gram = D @ D.T
    return (gram - torch.eye(len(D), dtype=D.dtype)).square().sum()


def random_decoder(*shape: int, seed: int = 0) -> Tensor:
    """Rows of lengths from about 0.1 to 10, so that the normalisation matters."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(shape, generator=generator, dtype=torch.float64)
    return directions * torch.exp(torch.randn((*shape[:-1], 1), generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("num_latents", "d_model"), SHAPES)
def test_the_penalty_and_its_gradient_equal_the_naive_gram_and_autograd(num_latents: int, d_model: int) -> None:
    W_dec = random_decoder(num_latents, d_model).requires_grad_()
    expected = naive_penalty(W_dec)
    (expected_gradient,) = torch.autograd.grad(expected, W_dec)
    penalty, excess, gradient = gram_penalty_and_gradient(W_dec.detach())
    torch.testing.assert_close(penalty, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(excess, expected.detach() - gram_penalty_bound(num_latents, d_model))


@pytest.mark.parametrize(("num_latents", "d_model"), SHAPES)
def test_stacked_decoders_give_what_each_gives_alone(num_latents: int, d_model: int) -> None:
    stacked = random_decoder(3, num_latents, d_model)
    penalties, _, gradients = gram_penalty_and_gradient(stacked)
    for variant in range(3):
        penalty, _, gradient = gram_penalty_and_gradient(stacked[variant])
        torch.testing.assert_close(penalties[variant], penalty)
        torch.testing.assert_close(gradients[variant], gradient)


def test_two_latents_at_sixty_degrees_have_a_penalty_of_one_half() -> None:
    # cos 60 = 1/2; the Gram has two off-diagonal entries of 1/2, so P = 2 * 1/4.
    W_dec = torch.tensor([[3.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    assert float(gram_penalty(W_dec)) == pytest.approx(0.5)


def test_near_zero_the_penalty_does_not_cancel_even_in_float32() -> None:
    # Two unit rows at an angle whose cosine is 1e-4: P = 2e-8. ||C||^2 - F in float32 would be off by about 1e-7.
    W_dec = torch.eye(4)
    W_dec[0, 1] = 1e-4
    assert float(gram_penalty(W_dec)) == pytest.approx(2e-8, rel=1e-3)


def test_a_tight_frame_reaches_the_lower_bound() -> None:
    # Three unit vectors at 120 degrees in the plane: F^2/d - F = 4.5 - 3.
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)
    penalty, excess, _ = gram_penalty_and_gradient(frame)
    assert float(penalty) == pytest.approx(1.5)
    assert gram_penalty_bound(3, 2) == pytest.approx(1.5)
    assert float(excess) == pytest.approx(0.0, abs=1e-12)
    assert gram_penalty_bound(2, 3) == 0.0


def test_an_orthonormal_decoder_has_no_penalty_and_full_rank() -> None:
    geometry = decoder_geometry(torch.eye(6) * 3.0)
    assert geometry.penalty == geometry.excess == geometry.mean_abs_cosine == geometry.mean_max_cosine == 0.0
    assert geometry.effective_rank == pytest.approx(6.0)


def test_duplicated_latents_are_seen_by_the_largest_cosine_not_by_the_mean() -> None:
    W_dec = torch.cat([torch.eye(4), torch.eye(4)[:1] * 2.0])
    geometry = decoder_geometry(W_dec, num_bins=20)
    assert geometry.max_cosine.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 1.0])
    assert geometry.mean_abs_cosine == pytest.approx(1 / 10)  # one pair of ten
    assert int(geometry.histogram_counts.sum()) == 10
    assert int(geometry.histogram_counts[-1]) == 1
    assert geometry.penalty == pytest.approx(2.0)


def test_statistics_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = random_decoder(50, 8)
    whole = decoder_geometry(W_dec)
    monkeypatch.setattr("store.sae.geometry.BLOCK_ROWS", 7)
    blocks = decoder_geometry(W_dec)
    torch.testing.assert_close(whole.max_cosine, blocks.max_cosine)
    assert whole.histogram_counts.tolist() == blocks.histogram_counts.tolist()
    D = unit_rows(W_dec)
    cosines = (D @ D.T)[~torch.eye(50, dtype=torch.bool)]
    assert whole.mean_abs_cosine == pytest.approx(float(cosines.abs().mean()))


def test_best_matches_find_permuted_latents() -> None:
    W_dec = random_decoder(9, 5)
    permuted = W_dec.flip(0) * 4.0
    torch.testing.assert_close(best_match_cosines(W_dec, permuted), torch.ones(9, dtype=torch.float64))
    with pytest.raises(ValueError, match="one d_model"):
        best_match_cosines(W_dec, torch.ones(3, 4))


def test_one_latent_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="at least two latents"):
        decoder_geometry(torch.ones(1, 4))
