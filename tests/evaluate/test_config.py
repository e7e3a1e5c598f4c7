"""What people can get wrong in the evaluate section of params.yaml."""

import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import EvaluateConfig

GOOD = {
    "core": {"num_reconstruction_sequences": 64, "num_sparsity_sequences": 128, "batch_sequences": 32},
    "geometry": {"num_bins": 100},
    "autointerp": {
        "judge": {"kind": "lexical"},
        "num_latents": 10,
        "num_sequences": 64,
        "batch_sequences": 16,
    },
    "latents": {
        "num_held_out_sequences": 64,
        "num_training_sequences": 0,
        "num_top_contexts": 10,
        "num_sampled_firings": 100,
        "num_contexts_per_quantile": 1,
        "tokens_before": 16,
        "tokens_after": 8,
    },
} | dict.fromkeys(set(BENCHMARKS) - {"core", "geometry", "autointerp", "latents"})


def test_good_settings_are_taken_as_they_are() -> None:
    config = EvaluateConfig.model_validate(GOOD)
    assert config.core.num_sparsity_sequences == 128


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("core", {"batch_size": 3}, "core.batch_size\n  Extra inputs are not permitted"),
        ("core", {"batch_sequences": 0}, "core.batch_sequences\n  Input should be greater than 0"),
        ("core", {"num_sparsity_sequences": -32}, "core.num_sparsity_sequences\n  Input should be greater than 0"),
        ("core", {"batch_sequences": "32"}, "core.batch_sequences\n  Input should be a valid integer"),
        ("autointerp", {"judge": {"kind": "oracle"}}, "Input tag 'oracle' found using 'kind' does not match any of"),
        ("autointerp", {"judge": {"kind": "lexical", "key": "sk"}}, "key\n  Extra inputs are not permitted"),
        ("autointerp", {"judge": {"kind": "openai-compatible"}}, "openai-compatible.model\n  Field required"),
        (
            "autointerp",
            {"num_sequences": 11},
            "expected num_sequences of at least 12, since",
        ),
        ("geometry", {"num_bins": 2}, "geometry.num_bins\n  Input should be greater than or equal to 10"),
        ("latents", {"num_top_contexts": 0}, "latents.num_top_contexts\n  Input should be greater than or equal to 1"),
        ("latents", {"num_sampled_firings": 9}, "latents.num_sampled_firings\n  Input should be greater than or equal"),
    ],
)
def test_an_unknown_key_a_wrong_type_and_a_size_out_of_range_are_refused(
    section: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        EvaluateConfig.model_validate(GOOD | {section: GOOD[section] | change})
    assert message in str(refused.value)


def test_sequences_that_do_not_fill_their_batches_are_refused_with_the_nearest_number_that_does() -> None:
    uneven = {"num_reconstruction_sequences": 64, "num_sparsity_sequences": 100, "batch_sequences": 32}
    with pytest.raises(ValidationError) as refused:
        EvaluateConfig.model_validate(GOOD | {"core": uneven})
    assert (
        "expected num_sparsity_sequences to be a multiple of batch_sequences = 32, got 100. Set it to 96, "
        "or change batch_sequences"
    ) in str(refused.value)


def test_every_benchmark_has_settings_of_its_name() -> None:
    assert set(BENCHMARKS) == set(EvaluateConfig.model_fields)


def test_every_benchmark_of_the_installed_sae_bench_is_there() -> None:
    package = importlib.util.find_spec("sae_bench")
    assert package is not None
    assert package.submodule_search_locations is not None
    (folder,) = package.submodule_search_locations
    found = {path.parent.name for path in (Path(folder) / "evals").glob("*/eval_config.py")}
    found = (found - {"scr_and_tpp"}) | {"scr", "tpp"}  # two benchmarks in one folder
    assert len(found) == 11
    assert found == set(BENCHMARKS) - {"geometry", "latents", "recovery"}
