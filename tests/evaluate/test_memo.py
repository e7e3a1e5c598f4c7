"""The memo around the language model: bit for bit what the model gives, and nothing for text that was not kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.loaded_model import LoadedModel
from evaluate.memo import LanguageModelMemo, keep_activations

HOOK = "blocks.1.hook_resid_post"
CPU = torch.device("cpu")


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def model(tiny_model_folder: Path, request: pytest.FixtureRequest) -> LoadedModel:
    return LoadedModel(tiny_model_folder, name="tiny", dtype=request.param, device=CPU)


@pytest.fixture
def tokens() -> np.ndarray:  # type: ignore[type-arg]
    windows = np.random.default_rng(0).integers(4, 300, size=(10, 12), dtype=np.uint32)
    windows[:, 0] = 2
    return windows


def memo_of(model: LoadedModel, tokens: np.ndarray, folder: Path) -> LanguageModelMemo:  # type: ignore[type-arg]
    steps: list[int] = []
    keep_activations(
        folder, model.hooked, tokens, hook=HOOK, dtype=model.dtype, d_model=32, batch_sequences=4, device=CPU,
        progress=steps.append,
    )  # fmt: skip
    assert steps == [1, 1, 1]
    return LanguageModelMemo(folder, tokens, hook=HOOK, dtype=model.dtype, tokenizer=model.tokenizer(), device=CPU)


def test_it_gives_what_the_model_gave_in_the_same_batches_and_reads_alone_where_it_is_asked_otherwise(
    model: LoadedModel,
    tokens: np.ndarray,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    memo = memo_of(model, tokens, tmp_path)
    for first in (0, 4, 8):
        batch = torch.from_numpy(tokens[first : first + 4].astype(np.int64))
        _, plain = model.bridge.run_with_cache(batch, stop_at_layer=2, names_filter=HOOK)
        _, kept = memo.run_with_cache(batch, stop_at_layer=2, names_filter=HOOK)
        assert kept[HOOK].dtype == model.dtype
        assert torch.equal(kept[HOOK], plain[HOOK])
    mixed = torch.from_numpy(tokens[[9, 0, 9]].astype(np.int64))
    _, kept = memo.run_with_cache(mixed, stop_at_layer=2, names_filter=HOOK)
    assert torch.equal(kept[HOOK], memo.activations(np.array([9, 0, 9])))


def test_other_text_and_another_hook_are_refused(
    model: LoadedModel,
    tokens: np.ndarray,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    memo = memo_of(model, tokens, tmp_path)
    other = torch.from_numpy(tokens[:1].astype(np.int64))
    with pytest.raises(ValueError, match=r"expected activations of blocks.1.hook_resid_post to be asked for, got"):
        memo.run_with_cache(other, stop_at_layer=1, names_filter="blocks.0.hook_resid_post")
    other[0, 3] += 1
    with pytest.raises(ValueError, match="expected text whose activations were kept, got other tokens"):
        memo.run_with_cache(other, stop_at_layer=2, names_filter=HOOK)


def test_tokens_are_spelled_as_the_model_spells_them(
    model: LoadedModel,
    tokens: np.ndarray,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    memo = memo_of(model, tokens, tmp_path)
    window = torch.from_numpy(tokens[3].astype(np.int64))
    assert memo.to_str_tokens(window) == model.bridge.to_str_tokens(window)
