"""Every mistake that can be made about known features in params.yaml, each with its message."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from harvest.config import HarvestConfig
from tests.synthetic_cache import synthetic_settings


def test_the_settings_are_read_and_every_token_is_a_row() -> None:
    config = HarvestConfig.model_validate(synthetic_settings())
    assert config.synthetic is not None
    assert list(config.synthetic.worlds) == ["orthogonal", "correlated", "hierarchy"]
    assert (config.rows_per_sequence, config.num_sequences) == (64, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hooks": ["synthetic.other"]},
            "expected hooks among the worlds of synthetic: synthetic.orthogonal, synthetic",
        ),
        ({"hooks": ["blocks.1.hook_resid_post"]}, "expected hooks among the worlds of synthetic"),
        ({"text": {"kind": "standard-library"}}, "expected text: null with known features"),
        ({"held_out_fraction": 0.1}, "expected held_out_fraction: null with known features"),
        ({"first_token": "bos"}, "expected first_token: text with known features"),
        ({"num_positions_left_out": 1}, "expected num_positions_left_out: 0 with known features"),
        ({"separator": "<eos>"}, "expected separator: null with known features"),
        ({"num_rows": 2**31 + 64}, "expected at most 2147483648 samples of known features in each split"),
        ({"synthetic": None}, "expected text, as synthetic names no known features, got null"),
        (
            {"synthetic": None, "text": {"kind": "standard-library"}},
            "expected held_out_fraction, as synthetic names no known features, got null",
        ),
        (
            {"synthetic": None, "text": {"kind": "standard-library"}, "held_out_fraction": 0.1},
            "expected hooks of a language model, as synthetic names no known features, got 'synthetic.orthogonal'",
        ),
    ],
)
def test_a_mistake_has_one_message(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HarvestConfig.model_validate(synthetic_settings() | change)


@pytest.mark.parametrize(
    ("world", "change", "message"),
    [
        ("orthogonal", {"min_probability": 0.4}, "expected a min_probability below max_probability = 0.4, got 0.4"),
        (
            "hierarchy",
            {"hierarchy": {"num_roots": 24, "num_children": 2, "depth": 1}},
            "expected fewer roots in worlds.hierarchy.hierarchy than the 24 features, got 24",
        ),
        ("orthogonal", {"zipf_exponent": 0.0}, "zipf_exponent\n  Input should be greater than 0"),
        ("correlated", {"corelation": None}, "corelation\n  Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_a_world_has_one_message(world: str, change: dict[str, Any], message: str) -> None:
    settings = copy.deepcopy(synthetic_settings())
    settings["synthetic"]["worlds"][world] |= change
    with pytest.raises(ValidationError, match=message):
        HarvestConfig.model_validate(settings)
