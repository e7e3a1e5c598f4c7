"""Every mistake that can be made in the harvest section of params.yaml, each with its message."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from harvest.config import HarvestConfig
from harvest.text_config import FilesText, HubText, MixtureText

HUB = {
    "kind": "hub",
    "dataset": "someone/stories",
    "config": None,
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "split": "train",
    "column": "text",
}


def test_the_settings_are_read_from_python_values_and_from_json(harvest_settings: dict[str, Any]) -> None:
    config = HarvestConfig.model_validate(harvest_settings)
    assert config.hooks == ("blocks.1.hook_resid_post",)
    assert config.rows_per_sequence == 7
    assert config.num_sequences == 20
    assert HarvestConfig.model_validate_json(json.dumps(harvest_settings)) == config


def test_the_budget_is_rounded_down_to_whole_sequences(harvest_settings: dict[str, Any]) -> None:
    assert HarvestConfig.model_validate(harvest_settings | {"num_rows": 27}).num_sequences == 3  # 3 * 7 = 21


def test_as_many_rows_are_stored_as_positions_are_kept(harvest_settings: dict[str, Any]) -> None:
    for number, rows_per_sequence in ((0, 8), (1, 7), (6, 2)):
        config = HarvestConfig.model_validate(harvest_settings | {"num_positions_left_out": number})
        assert config.rows_per_sequence == rows_per_sequence
        assert config.num_sequences == 140 // rows_per_sequence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_token": "eos"}, "first_token\n  Input should be 'bos' or 'text'"),
        ({"num_positions_left_out": -1}, "num_positions_left_out\n  Input should be greater than or equal to 0"),
        (
            {"num_positions_left_out": 7},
            "expected a context_length of at least 9, two more than the positions",
        ),
        ({"num_row": 5}, "num_row\n  Extra inputs are not permitted"),
        ({"num_rows": "many"}, "num_rows\n  Input should be a valid integer"),
        ({"num_rows": -140}, "num_rows\n  Input should be greater than 0"),
        ({"num_rows": 6}, "num_rows of at least one sequence (7 rows with context_length 8), got 6"),
        ({"context_length": 1}, "context_length\n  Input should be greater than or equal to 3"),
        ({"num_held_out_sequences": 0}, "num_held_out_sequences\n  Input should be greater than 0"),
        ({"held_out_fraction": 0.0}, "held_out_fraction\n  Input should be greater than 0"),
        ({"held_out_fraction": 1.0}, "held_out_fraction\n  Input should be less than 1"),
        ({"held_out_fraction": float("nan")}, "held_out_fraction\n  Input should be a finite number"),
        ({"hooks": []}, "hooks\n  Tuple should have at least 1 item"),
        ({"hooks": [3]}, "hooks.0\n  Input should be a valid string"),
        ({"hooks": ["blocks.1.hook_resid_post"] * 2}, "every hook once, got 'blocks.1.hook_resid_post' more than once"),
        ({"hooks": ["layer 5"]}, "layer 5"),
        ({"forward_batch_sequences": 3}, "expected forward_batch_sequences to divide the 8 sequences of a shard"),
        ({"codec": "gzip"}, "codec\n  Input should be 'bf16_planes_v1', 'pcodec', 'zstd', 'blosc' or 'none'"),
        ({"text": {"kind": "web"}}, "'standard-library', 'files', 'hub', 'mixture'"),
        ({"text": {"kind": "standard-library", "column": "text"}}, "column\n  Extra inputs are not permitted"),
    ],
)
def test_a_wrong_setting_is_refused(harvest_settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HarvestConfig.model_validate(harvest_settings | change)
    assert message in str(caught.value)


def test_a_missing_setting_is_named(harvest_settings: dict[str, Any]) -> None:
    del harvest_settings["codec"]
    with pytest.raises(ValidationError, match=r"codec\n  Field required"):
        HarvestConfig.model_validate(harvest_settings)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"paths": []}, "at least 1 item"),
        ({"paths": ["a.txt", "a.txt"]}, "expected every path once, got 'a.txt' more than once"),
        (
            {"paths": ["a.txt"], "split_characters": 7},
            "split_characters\n  Input should be greater than or equal to 100",
        ),
        ({"paths": ["a.txt"], "shuffle": {"seed": -1}}, "shuffle.seed\n  Input should be greater than or equal to 0"),
        ({"paths": ["a.txt"], "weight": 0.0}, "weight\n  Input should be greater than 0"),
        (
            {"paths": ["a.txt"], "filter": {"min_characters": 9, "max_characters": 8}},
            "expected min_characters of at most max_characters 8, got 9",
        ),
    ],
)
def test_wrong_local_files_are_refused(files: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match="1 validation error") as caught:
        FilesText.model_validate({"kind": "files"} | files)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "main"}, "expected a full commit hash of 40 hexadecimal digits, got 'main'"),
        ({"revision": None}, "revision\n  Input should be a valid string"),
        ({"dataset": "../stories"}, "expected a data set's hub id such as 'owner/name', got '../stories'"),
    ],
)
def test_a_hub_data_set_needs_a_name_and_a_fixed_revision(change: dict[str, Any], message: str) -> None:
    assert HubText.model_validate(HUB).split == "train"
    with pytest.raises(ValidationError) as caught:
        HubText.model_validate(HUB | change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("d_model", "context_length", "batch", "expected"),
    [
        (192, 128, 32, (64, 82)),  # the embedded model: 48,768 bytes a sequence, 3.1 MB a chunk, 255.9 MB a shard
        (2304, 128, 64, (4, 96)),  # gemma-2-2b: 585,216 bytes a sequence; 64 sequences are 16 chunks: 224.7 MB
        (2304, 1024, 8, (1, 48)),  # a sequence of 4.7 MB is a chunk of its own
        (8192, 2048, 16, (1, 16)),  # 33.5 MB a sequence: one forward pass is more than a shard should have
    ],
)
def test_chunks_of_2_to_4_mib_and_shards_of_at_most_256_mb_are_chosen_from_the_rows(
    harvest_settings: dict[str, Any], d_model: int, context_length: int, batch: int, expected: tuple[int, int]
) -> None:
    sizes = {"context_length": context_length, "num_rows": 10**6, "forward_batch_sequences": batch}
    unset = {"sequences_per_chunk": None, "chunks_per_shard": None}
    config = HarvestConfig.model_validate(harvest_settings | sizes | unset)
    assert config.chunking(d_model=d_model) == expected
    assert expected[0] * expected[1] % batch == 0
    fixed = HarvestConfig.model_validate(harvest_settings | sizes | {"sequences_per_chunk": 16, "chunks_per_shard": 4})
    assert fixed.chunking(d_model=d_model) == (16, 4)


def test_a_mixture_has_several_sources_and_a_single_source_no_weight(harvest_settings: dict[str, Any]) -> None:
    source = {"kind": "files", "paths": ["a.txt"], "weight": 2}
    mixture = {"kind": "mixture", "sources": [source, HUB]}
    text = HarvestConfig.model_validate(harvest_settings | {"text": mixture}).text
    assert isinstance(text, MixtureText)
    assert [source.weight for source in text.sources] == [2.0, 1.0]
    for wrong, message in (
        ({"kind": "mixture", "sources": [source]}, "Tuple should have at least 2 items"),
        (source, "expected no weight for a source that stands alone, got 2"),
        ({"kind": "standard-library", "filter": {"columns": {"a": 1}}}, "expected no filter.columns for the standard"),
    ):
        with pytest.raises(ValidationError) as caught:
            HarvestConfig.model_validate(harvest_settings | {"text": wrong})
        assert message in str(caught.value)
