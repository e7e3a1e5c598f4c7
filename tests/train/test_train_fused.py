"""The stacked step against plain implementations: autograd in float64, single SAEs, the store's encode and decode."""

import itertools

import pytest
import torch
from torch import Tensor

from store.geometry import gram_penalty_and_gradient, unit_rows
from store.sae import SAEWeights, decode, encode, fold_scale
from train.fused import FusedStep
from train.initialise import StackedWeights, initial_weights
from train.optimizer import StackedAdam, remove_parallel_part_, renormalise_

V, B, D = 3, 32, 8
SHAPES = pytest.mark.parametrize("F", [5, 8, 20])  # below, equal to and above D


def random_weights(F: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> StackedWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return StackedWeights(
        W_enc=draw(V, F, D), b_enc=0.3 * draw(V, F), W_dec=unit_rows(draw(V, F, D)), b_dec=0.5 * draw(V, D)
    )


def random_rows(dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def single(weights: StackedWeights, variant: int) -> SAEWeights:
    return SAEWeights(
        W_enc=weights.W_enc[variant].T.clone(),
        b_enc=weights.b_enc[variant].clone(),
        W_dec=weights.W_dec[variant].clone(),
        b_dec=weights.b_dec[variant].clone(),
    )


def plain_loss(sae: SAEWeights, x: Tensor, l1: float) -> Tensor:
    a = encode(sae, x)
    error = x - decode(sae, a)
    return error.square().sum(1).mean() + l1 * a.sum(1).mean()


def autograd(sae: SAEWeights, x: Tensor, l1: float) -> tuple[Tensor, list[Tensor]]:
    leaves = [tensor.requires_grad_() for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
    loss = plain_loss(sae, x, l1)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def stepped(weights: StackedWeights, x: Tensor, l1s: Tensor, dtype: torch.dtype) -> FusedStep:
    fused = FusedStep(weights, batch_rows=B, l1_V=l1s, product_dtype=dtype)
    fused.input_DB.copy_(x.T)
    fused.forward()
    fused.backward()
    return fused


@SHAPES
def test_loss_and_gradients_equal_autograd_in_float64(F: int) -> None:
    weights, x, l1s = random_weights(F), random_rows(), torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    fused = stepped(weights, x, l1s, torch.float64)
    mse, sums, gradients = fused.squared_error(), fused.activation_sum_VF.sum(1) / B, fused.gradients()
    for variant in range(V):
        loss, expected = autograd(single(weights, variant), x, float(l1s[variant]))
        torch.testing.assert_close(mse[variant] + l1s[variant] * sums[variant], loss, rtol=1e-12, atol=0)
        W_enc, b_enc, W_dec, b_dec = expected
        torch.testing.assert_close(gradients["W_enc"][variant], W_enc.T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients["b_enc"][variant], b_enc, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients["W_dec"][variant], W_dec, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients["b_dec"][variant], b_dec, rtol=1e-10, atol=1e-12)


def test_a_second_step_on_the_same_buffers_forgets_the_first() -> None:
    weights, l1s = random_weights(20), torch.full((V,), 0.3, dtype=torch.float64)
    fused = stepped(weights, random_rows(seed=5), l1s, torch.float64)
    fused.input_DB.copy_(random_rows(seed=6).T)
    fused.forward()
    fused.backward()
    fresh = stepped(weights, random_rows(seed=6), l1s, torch.float64)
    for name, gradient in fused.gradients().items():
        assert torch.equal(gradient, fresh.gradients()[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_gradients_in_the_dtypes_of_training_stay_close_to_float64(dtype: torch.dtype, tolerance: float) -> None:
    # bfloat16 products round at 2^-9 = 0.002 per number; the tolerance is relative to the norm of a whole gradient.
    exact, l1s = random_weights(20), torch.tensor([0.0, 0.3, 2.0])
    rounded = StackedWeights(**{name: tensor.to(torch.float32) for name, tensor in exact.tensors().items()})
    fused = stepped(rounded, random_rows(torch.float32), l1s, dtype)
    reference = stepped(exact, random_rows(), l1s.to(torch.float64), torch.float64)
    for name, gradient in fused.gradients().items():
        expected = reference.gradients()[name]
        assert float((gradient - expected).norm() / expected.norm()) < tolerance, name


def test_biases_and_l1_ride_through_bfloat16_products_with_float32_precision() -> None:
    # With zero weights pre is the carried bias alone, and the gradient of a positive pre the carried l1 / B.
    F, l1 = 4, 0.1234567
    b_enc = torch.tensor([[0.777777, 1.234567, 1e-4, 3.3333333]])
    weights = StackedWeights(torch.zeros(1, F, D), b_enc, torch.zeros(1, F, D), torch.zeros(1, D))
    fused = FusedStep(weights, batch_rows=B, l1_V=torch.tensor([l1]), product_dtype=torch.bfloat16)
    torch.testing.assert_close(fused._dec_VFK[0, :, D:].float().sum(1), torch.full((F,), l1 / B), rtol=1e-6, atol=0)
    fused.forward()
    torch.testing.assert_close(fused._enc_VFK[0, :, D:].float().sum(1), b_enc[0], rtol=1e-6, atol=0)


@SHAPES
def test_the_counts_of_the_forward_are_those_of_single_saes(F: int) -> None:
    weights, x = random_weights(F), random_rows()
    fused = stepped(weights, x, torch.zeros(V, dtype=torch.float64), torch.float64)
    for variant in range(V):
        a = encode(single(weights, variant), x)
        assert float(fused.num_active()[variant]) == pytest.approx(float((a > 0).sum(1).double().mean()))
        assert torch.equal(fused.activation_sum_VF[variant] > 0, (a > 0).any(0))


@SHAPES
def test_training_with_the_penalty_follows_autograd_of_the_whole_objective(F: int) -> None:
    # As the group does it: lambda dP/dW_dec is added to the reconstruction's gradient before the projection.
    weights, x, lam = random_weights(F), random_rows(), 0.7
    fused = stepped(weights, x, torch.full((V,), 0.3, dtype=torch.float64), torch.float64)
    _, _, penalty_gradient = gram_penalty_and_gradient(weights.W_dec)
    total = fused.W_dec_gradient_VFD + lam * penalty_gradient
    for variant in range(V):
        sae = single(weights, variant)
        W_dec = sae.W_dec.requires_grad_()
        directions = W_dec / W_dec.norm(dim=1, keepdim=True)
        gram = directions @ directions.T - torch.eye(F, dtype=torch.float64)
        loss = plain_loss(sae, x, 0.3) + lam * gram.square().sum()
        (expected,) = torch.autograd.grad(loss, [W_dec])
        torch.testing.assert_close(total[variant], expected, rtol=1e-9, atol=1e-10)


def test_what_is_left_of_a_gradient_is_orthogonal_to_its_decoder_row() -> None:
    # Row (1, 0), gradient (3, 4): the part along the row goes, (0, 4) stays.
    W_dec = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    gradient = torch.tensor([[[3.0, 4.0], [0.6, 0.8]]])
    remove_parallel_part_(gradient, W_dec, scratch_VFD=torch.empty_like(gradient))
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 4.0], [0.0, 0.0]]]), rtol=0, atol=1e-7)


def adam_steps(weights: StackedWeights, lrs: list[float], num_steps: int) -> StackedWeights:
    """Some steps on random rows, as the group makes them, from a copy of the weights."""
    copy = StackedWeights(**{name: tensor.clone() for name, tensor in weights.tensors().items()})
    adam = StackedAdam(copy, lrs=lrs, betas=(0.9, 0.999), eps=1e-8)
    l1s = torch.full((len(lrs),), 0.3)
    fused = FusedStep(copy, batch_rows=B, l1_V=l1s, product_dtype=torch.float32)
    scratch = torch.empty_like(copy.W_dec)
    for step in range(num_steps):
        fused.input_DB.copy_(random_rows(torch.float32, seed=step).T)
        fused.forward()
        fused.backward()
        remove_parallel_part_(fused.W_dec_gradient_VFD, copy.W_dec, scratch_VFD=scratch)
        adam.step(fused.gradients(), lr_factor=0.5)
        renormalise_(copy.W_dec)
    return copy


def test_stacked_adam_equals_torchs_own_adam_of_each_sae() -> None:
    weights = random_weights(20, torch.float32)
    lrs = [1e-3, 3e-3, 1e-3]
    trained = adam_steps(weights, lrs, 20)
    for variant, lr in enumerate(lrs):
        sae = single(weights, variant)
        leaves = [tensor.requires_grad_() for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
        optimizer = torch.optim.Adam(leaves, lr=0.5 * lr, betas=(0.9, 0.999), eps=1e-8)
        for step in range(20):
            optimizer.zero_grad()
            plain_loss(sae, random_rows(torch.float32, seed=step), 0.3).backward()
            gradient, row = sae.W_dec.grad, sae.W_dec.detach()
            assert gradient is not None
            gradient -= (gradient * row).sum(1, keepdim=True) * row
            optimizer.step()
            with torch.no_grad():
                sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        torch.testing.assert_close(trained.W_dec[variant], sae.W_dec.detach(), rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(trained.W_enc[variant].T, sae.W_enc.detach(), rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(trained.b_dec[variant], sae.b_dec.detach(), rtol=1e-3, atol=2e-5)


def test_decoder_rows_stay_unit() -> None:
    trained = adam_steps(random_weights(20, torch.float32), [1e-2] * V, 50)
    torch.testing.assert_close(trained.W_dec.norm(dim=-1), torch.ones(V, 20), rtol=0, atol=1e-6)


def test_all_variants_of_one_seed_start_from_the_same_weights() -> None:
    mean = [0.5] * D
    weights = initial_weights(seeds=[3, 4, 3], d_sae=20, mean=mean, scale=2.0, device=torch.device("cpu"))
    for tensor in weights.tensors().values():
        assert torch.equal(tensor[0], tensor[2])
    assert not torch.equal(weights.W_dec[0], weights.W_dec[1])
    assert torch.equal(weights.W_enc, weights.W_dec)
    assert weights.W_enc.data_ptr() != weights.W_dec.data_ptr()
    assert weights.b_dec.unique().tolist() == [1.0]  # the mean 0.5 at scale 2
    torch.testing.assert_close(weights.W_dec.norm(dim=-1), torch.ones(3, 20))


@SHAPES
def test_the_exported_sae_does_on_raw_rows_what_training_did_on_scaled_ones(F: int) -> None:
    scale = 0.037
    weights, x = random_weights(F), random_rows()
    fused = stepped(weights, x, torch.zeros(V, dtype=torch.float64), torch.float64)
    for variant in range(V):
        exported, raw = fold_scale(single(weights, variant), scale), x / scale
        a = encode(exported, raw)
        torch.testing.assert_close(a * scale, fused.activations_VFB[variant].T, rtol=1e-9, atol=1e-12)
        scaled_error = (decode(exported, a) - raw) * scale
        torch.testing.assert_close(scaled_error, fused.error_VDB[variant].T * (B / 2), rtol=1e-9, atol=1e-11)


def test_no_two_buffers_of_the_step_share_memory_with_the_weights() -> None:
    weights = random_weights(8, torch.float32)
    fused = FusedStep(weights, batch_rows=B, l1_V=torch.zeros(V), product_dtype=torch.float32)
    tensors = [*weights.tensors().values(), *fused.gradients().values(), fused.activations_VFB]
    pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert all(a != b for a, b in itertools.combinations(pointers, 2))
