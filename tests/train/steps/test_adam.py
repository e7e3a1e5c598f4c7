"""Adam per variant against torch's own, unit rows, clipping; where training starts; resampling."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from train.config import VariantSettings
from train.steps.adam import StackedAdam, clip_, remove_parallel_part_, renormalise_
from train.steps.initialise import initial_weights
from train.steps.make import make_step
from train.steps.resample import draw_rows, resample_

Resolved = Callable[..., VariantSettings]


def test_what_is_left_of_a_gradient_is_orthogonal_to_its_decoder_row() -> None:
    # Row (1, 0), gradient (3, 4): the part along the row goes, (0, 4) stays.
    W_dec = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    gradient = torch.tensor([[[3.0, 4.0], [0.6, 0.8]]])
    remove_parallel_part_(gradient, W_dec)
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 4.0], [0.0, 0.0]]]), rtol=0, atol=1e-7)


def test_rows_become_unit_and_rows_of_zeros_stay() -> None:
    W_dec = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    renormalise_(W_dec)
    torch.testing.assert_close(W_dec, torch.tensor([[[0.6, 0.8], [0.0, 0.0]]]))


def test_every_variant_follows_torchs_own_adam_at_its_own_rate_betas_and_epsilon(resolved: Resolved) -> None:
    differences = [
        {"lr": 1e-3},
        {"lr": 3e-3, "adam_beta1": 0.5},
        {"lr": 1e-3, "adam_beta2": 0.9, "adam_eps": 1e-3},
        {"lr": 1e-3},
    ]
    start = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    weights = {"W": start.clone(), "b": start[:, :, 0].clone()}
    adam = StackedAdam(weights, [resolved(**difference) for difference in differences])
    alone = [[start[v].clone(), start[v, :, 0].clone()] for v in range(4)]
    optimizers = [
        torch.optim.Adam(leaves, lr=0.5 * s.lr, betas=(s.adam_beta1, s.adam_beta2), eps=s.adam_eps)
        for leaves, s in zip(alone, [resolved(**difference) for difference in differences], strict=True)
    ]
    for step in range(20):
        gradient = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(step))
        adam.step({"W": gradient, "b": gradient[:, :, 1].contiguous()}, lr_factors=[0.5] * 4)
        for v, optimizer in enumerate(optimizers):
            alone[v][0].grad, alone[v][1].grad = gradient[v].clone(), gradient[v, :, 1].clone()
            optimizer.step()
    for v in range(4):
        torch.testing.assert_close(weights["W"][v], alone[v][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weights["b"][v], alone[v][1], rtol=1e-5, atol=1e-6)


def test_a_gradient_is_shortened_as_a_whole_and_for_its_variant_only() -> None:
    # Lengths 5 (3 in W, 4 in b) and 5; the second may be as long as it is, the first at most 1.
    gradients = {"W": torch.tensor([[[3.0]], [[3.0]]]), "b": torch.tensor([[4.0], [4.0]])}
    clip_(gradients, torch.tensor([1.0, torch.inf], dtype=torch.float64))
    torch.testing.assert_close(gradients["W"].flatten(), torch.tensor([0.6, 3.0]))
    torch.testing.assert_close(gradients["b"].flatten(), torch.tensor([0.8, 4.0]))


def test_all_variants_of_one_seed_start_from_the_same_weights() -> None:
    weights = initial_weights(seeds=[3, 4, 3], d_sae=20, mean=[0.5] * 8, scale=2.0, device=torch.device("cpu"))
    for tensor in vars(weights).values():
        assert torch.equal(tensor[0], tensor[2])
    assert not torch.equal(weights.W_dec[0], weights.W_dec[1])
    assert torch.equal(weights.W_enc, weights.W_dec)
    torch.testing.assert_close(weights.W_dec.norm(dim=-1), torch.ones(3, 20))
    assert torch.equal(weights.b_enc, torch.zeros(3, 20))
    assert torch.equal(weights.b_dec, torch.ones(3, 8))  # mean 0.5 times scale 2


def test_rows_are_drawn_by_their_squared_error_and_the_same_again() -> None:
    # Squared errors 0, 1, 3: probabilities 0, 1/10, 9/10
    drawn = draw_rows(torch.tensor([0.0, 1.0, 3.0]), 10_000, seed=1, step=2)
    assert np.bincount(drawn, minlength=3) / 10_000 == pytest.approx([0.0, 0.1, 0.9], abs=0.02)
    assert (drawn == draw_rows(torch.tensor([0.0, 1.0, 3.0]), 10_000, seed=1, step=2)).all()
    for seed, step in ((1, 3), (2, 2)):
        assert (drawn != draw_rows(torch.tensor([0.0, 1.0, 3.0]), 10_000, seed=seed, step=step)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_rows_are_drawn_alike_where_their_errors_say_nothing(value: float) -> None:
    # A variant that diverged between two log records must not end the training of the others.
    drawn = draw_rows(torch.tensor([value, value, 0.0]), 3_000, seed=1, step=2)
    assert np.bincount(drawn, minlength=3) == pytest.approx([1000, 1000, 1000], rel=0.1)


@pytest.mark.parametrize("kind", [{"kind": "relu"}, {"kind": "jumprelu", "l0": 1.0, "start_threshold": 0.25}])
def test_a_dead_latent_starts_again_at_a_row_and_the_others_stay(kind: dict[str, object], resolved: Resolved) -> None:
    settings = [resolved(architecture=kind, d_sae=5, batch_rows=4)] * 2
    step = make_step(settings, batch_rows=4, scale=1.0, mean=[0.0] * 3, device=torch.device("cpu"))
    adam = StackedAdam(step.parameters, settings)
    for moments in (*adam.first.values(), *adam.second.values()):
        moments.fill_(1.0)
    step.input_DB.copy_(torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    step.compute(sparsity_V=torch.zeros(2, dtype=torch.float64), dead_VF=None)
    before = {name: tensor.clone() for name, tensor in step.parameters.items()}
    dead = torch.tensor([False, True, False, False, True])
    resample_(step, adam, 1, dead_F=dead, encoder_scale=0.2, seed=0, step_number=9)
    direction = torch.tensor([0.6, 0.8, 0.0])  # of the only row with an error
    for latent in (1, 4):
        torch.testing.assert_close(step.W_dec[1, latent], direction)
        torch.testing.assert_close(step.W_enc[1, latent], 0.2 * direction)
    for name, tensor in step.parameters.items():
        assert torch.equal(tensor[0], before[name][0]), name
        if name != "b_dec":
            assert torch.equal(tensor[1, ~dead], before[name][1, ~dead]), name
            assert float(adam.first[name][1, dead].abs().sum()) == 0.0
            assert float(adam.first[name][1, ~dead].min()) == 1.0
    if "threshold" in step.parameters:
        assert step.parameters["threshold"][1].tolist() == [0.25] * 5


def test_nothing_is_resampled_where_nothing_is_dead(resolved: Resolved) -> None:
    settings = [resolved(d_sae=5, batch_rows=4)]
    step = make_step(settings, batch_rows=4, scale=1.0, mean=[0.0] * 3, device=torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in step.parameters.items()}
    alive = torch.zeros(5, dtype=torch.bool)
    resample_(step, StackedAdam(step.parameters, settings), 0, dead_F=alive, encoder_scale=0.2, seed=0, step_number=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.parameters.items())
