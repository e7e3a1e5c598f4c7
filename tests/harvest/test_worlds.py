"""Known features: samples are functions of their number, children need their parents, no SAE begins at the answer."""

import numpy as np
import pytest
import torch
from sae_lens.synthetic import mean_correlation_coefficient

from harvest.synthetic_config import SyntheticConfig
from harvest.worlds import World, identity_of, make_worlds
from tests.synthetic_cache import synthetic_settings

CONFIG = SyntheticConfig.model_validate(synthetic_settings()["synthetic"])


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return make_worlds(CONFIG)


def test_a_sample_is_a_function_of_seed_world_and_number(worlds: dict[str, World]) -> None:
    again = make_worlds(CONFIG)
    assert identity_of(CONFIG, again) == identity_of(CONFIG, worlds)
    for hook, world in worlds.items():
        torch.manual_seed(1)
        first = world.magnitudes(64, 64)
        torch.manual_seed(2)
        assert torch.equal(again[hook].magnitudes(64, 64), first)
        assert not torch.equal(world.magnitudes(128, 64), first)
    other = CONFIG.model_copy(update={"seed": 1})
    assert identity_of(other, make_worlds(other)) != identity_of(CONFIG, worlds)


def test_sampling_leaves_torch_s_generator_as_it_was(worlds: dict[str, World]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    worlds["synthetic.hierarchy"].rows(0, 64)
    make_worlds(CONFIG)
    assert torch.equal(torch.rand(3), expected)


def test_worlds_are_the_same_where_gradients_are_switched_off(worlds: dict[str, World]) -> None:
    with torch.no_grad():
        again = make_worlds(CONFIG)
    assert all(torch.equal(again[hook].directions, world.directions) for hook, world in worlds.items())


def test_a_row_is_the_sum_of_the_directions_that_are_on(worlds: dict[str, World]) -> None:
    for world in worlds.values():
        magnitudes, rows = world.magnitudes(0, 64).double(), world.rows(0, 64)
        by_hand = sum(magnitudes[:, i : i + 1] * world.directions[i] for i in range(24))
        assert torch.allclose(rows, torch.as_tensor(by_hand), atol=1e-12)
        assert torch.allclose(world.directions.norm(dim=1), torch.ones(24, dtype=torch.float64), atol=1e-6)


def test_orthogonal_directions_are_a_tight_frame_and_random_ones_are_not(worlds: dict[str, World]) -> None:
    bound = 24**2 / 16 - 24  # 12, what 24 directions in 16 channels cannot go below
    penalty = {}
    for hook, world in worlds.items():
        gram = world.directions @ world.directions.T - torch.eye(24, dtype=torch.float64)
        penalty[hook] = float(gram.square().sum())
    assert penalty["synthetic.orthogonal"] == pytest.approx(bound, rel=0.01)
    assert penalty["synthetic.correlated"] > 2 * bound  # 24 * 23 / 16 = 34.5 is expected


def test_features_fire_as_often_as_zipf_says(worlds: dict[str, World]) -> None:
    ranks = np.arange(1, 25) ** -0.5
    expected = 0.05 + 0.35 * (ranks - ranks[-1]) / (ranks[0] - ranks[-1])
    fires = torch.cat([worlds["synthetic.orthogonal"].magnitudes(64 * n, 64) for n in range(400)]) > 0
    measured = fires.double().mean(dim=0).numpy()
    assert np.abs(measured - expected).max() < 5 * (0.25 / len(fires)) ** 0.5


def test_features_of_the_correlated_world_fire_together_and_others_do_not(worlds: dict[str, World]) -> None:
    spread = {}
    for hook in ("synthetic.orthogonal", "synthetic.correlated"):
        fires = torch.cat([worlds[hook].magnitudes(64 * n, 64) for n in range(400)]) > 0
        together = np.corrcoef(fires.numpy().T.astype(float)) - np.eye(24)
        spread[hook] = float(np.sqrt((together**2).mean()))
    assert spread["synthetic.orthogonal"] < 0.01  # 1 / sqrt(25600) = 0.006 by chance
    assert spread["synthetic.correlated"] > 0.03


def test_a_child_is_on_only_where_its_parent_is(worlds: dict[str, World]) -> None:
    world = worlds["synthetic.hierarchy"]
    # Three roots with two children each, which have two each: 3 + 6 + 12 = 21 features; three are in no tree.
    assert world.parents.tolist() == [-1] * 3 + [0, 0, 1, 1, 2, 2] + [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8] + [-1] * 3
    fires = torch.cat([world.magnitudes(64 * n, 64) for n in range(100)]) > 0
    for child, parent in enumerate(world.parents):
        if parent >= 0:
            assert fires[:, child].any()
            assert not (fires[:, child] & ~fires[:, parent]).any()


def test_no_seed_of_torch_gives_an_sae_the_directions_to_begin_with() -> None:
    """With the library's own seeding the first would be 1; here every seed is as far from the truth as chance is."""
    from train.steps.initialise import initial_decoder

    settings = CONFIG.model_copy(update={"d_model": 64, "num_features": 128})
    directions = make_worlds(settings)["synthetic.correlated"].directions.float()
    found = [
        mean_correlation_coefficient(initial_decoder(d_sae=128, d_model=64, seed=seed), directions)
        for seed in (0, 1, 2, settings.seed)
    ]
    assert max(found) < 0.36  # chance is 0.33
    library = torch.nn.functional.normalize(torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert mean_correlation_coefficient(initial_decoder(d_sae=128, d_model=64, seed=0), library) > 0.999
