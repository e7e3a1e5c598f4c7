"""Decoder directions against known ones, by hand and against sae_lens.synthetic."""

import numpy as np
import pytest
import torch
from sae_lens.synthetic import feature_uniqueness, mean_correlation_coefficient

from evaluate.recovery.directions import chance_correlation, correlation, match, mean_leak, uniqueness

FEATURES = np.eye(3, dtype=np.float32)


def test_mcc_matches_one_to_one_and_takes_absolute_cosines() -> None:
    # Two latents near feature 0 (cosines 1 and 0.6), one that points away from feature 2.
    decoder = torch.tensor([[2.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -5.0]])
    assert correlation(decoder, FEATURES) == pytest.approx((1.0 + 0.8 + 1.0) / 3)
    assert uniqueness(decoder, FEATURES) == 1.0  # features 0, 1 and 2
    found = match(decoder, FEATURES)
    assert found.best_latent.tolist()[:2] == [0, 1]
    assert found.best_cosine == pytest.approx([1.0, 0.8, 0.0])  # a latent that points away stands for nothing


def test_one_latent_may_stand_for_several_features_and_one_of_no_length_for_none() -> None:
    found = match(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), FEATURES)
    assert found.best_latent.tolist() == [0, 0, 0]
    assert found.best_cosine == pytest.approx([0.6, 0.8, 0.0])


def test_uniqueness_is_at_most_n_over_f() -> None:
    decoder = torch.cat([torch.eye(3), torch.eye(3)])
    assert uniqueness(decoder, FEATURES) == 3 / 6
    assert uniqueness(torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1]]), FEATURES) == 0.5


def test_the_figures_are_those_of_the_library() -> None:
    generator = torch.Generator().manual_seed(3)
    decoder, features = torch.randn(40, 16, generator=generator), torch.randn(24, 16, generator=generator)
    assert correlation(decoder, features.numpy()) == pytest.approx(mean_correlation_coefficient(decoder, features))
    assert uniqueness(decoder, features.numpy()) == pytest.approx(feature_uniqueness(decoder, features))


def test_chance_is_what_random_decoders_reach_and_rises_with_their_number() -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.nn.functional.normalize(torch.randn(128, 64, generator=generator), dim=1).numpy()
    few, deviation = chance_correlation(features, num_latents=128)
    many, _ = chance_correlation(features, num_latents=512)
    assert few == pytest.approx(0.33, abs=0.01)
    assert deviation < 0.01
    assert many > few + 0.03
    mine = correlation(torch.randn(128, 64, generator=generator), features)
    assert abs(mine - few) < 4 * deviation


def test_leak_is_how_much_more_the_child_s_latent_points_to_the_parent() -> None:
    # Feature 1 is a child of feature 0, at a right angle to it; its latent has a cosine of 0.6 with the parent.
    parents = np.array([-1, 0, -1])
    assert mean_leak(match(torch.eye(3), FEATURES), FEATURES, parents) == pytest.approx(0.0)
    leaky = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    assert mean_leak(match(leaky, FEATURES), FEATURES, parents) == pytest.approx(0.6)
    # Where the child itself has a cosine of 0.6 with the parent, a latent that equals it leaks nothing.
    tilted = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    assert mean_leak(match(leaky, tilted), tilted, parents) == pytest.approx(0.0, abs=1e-7)
