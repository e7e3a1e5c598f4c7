"""Harvested rows against what the plain model computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from harvest.activations import CutModel, cut_model, harvest_rows, hidden_states, stored_rows
from language_model.load import load_model

HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(3))
CONTEXT_LENGTH, D_MODEL = 9, 32


def plain_model(folder: Path) -> PreTrainedModel:
    return load_model(folder, dtype=torch.float32, device="cpu")


def cut(folder: Path, *hooks: str) -> CutModel:
    return cut_model(plain_model(folder), hooks)


@pytest.fixture
def windows() -> NDArray[np.uint32]:
    """(10, 9) random tokens behind a BOS."""
    tokens = np.random.default_rng(0).integers(4, 512, size=(10, CONTEXT_LENGTH), dtype=np.uint32)
    tokens[:, 0] = 2
    return tokens


def harvest(model: CutModel, windows: NDArray[np.uint32], *, batch_sequences: int) -> dict[str, NDArray[np.uint16]]:
    return harvest_rows(
        model,
        windows,
        d_model=D_MODEL,
        rows_per_sequence=CONTEXT_LENGTH - 1,
        batch_sequences=batch_sequences,
        device="cpu",
        on_progress=lambda num_rows: None,
    )


def test_a_middle_layer_is_bit_equal_to_the_plain_models_hidden_states(
    tiny_model_folder: Path, windows: NDArray[np.uint32]
) -> None:
    tokens = torch.from_numpy(windows.astype(np.int64))
    with torch.inference_mode():
        plain = plain_model(tiny_model_folder)(input_ids=tokens, output_hidden_states=True).hidden_states
    states = hidden_states(cut(tiny_model_folder, HOOKS[0], HOOKS[1]), tokens)
    # plain[0] is the embedding, so plain[layer + 1] is the output of a layer; the last of them is after the norm.
    assert torch.equal(states[HOOKS[0]], plain[1])
    assert torch.equal(states[HOOKS[1]], plain[2])
    assert states[HOOKS[1]].dtype == torch.float32


def test_the_last_layer_is_bit_equal_to_a_forward_hook_on_the_plain_model(
    tiny_model_folder: Path, windows: NDArray[np.uint32]
) -> None:
    tokens = torch.from_numpy(windows.astype(np.int64))
    plain, outputs = plain_model(tiny_model_folder), []

    def keep(_layer: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    plain.base_model.get_submodule("layers.2").register_forward_hook(keep)
    with torch.inference_mode():
        plain(input_ids=tokens)
    assert torch.equal(hidden_states(cut(tiny_model_folder, HOOKS[2]), tokens)[HOOKS[2]], outputs[0])


def test_numbers_are_rounded_to_the_nearest_bfloat16_and_ties_to_even_and_bos_is_left_out() -> None:
    # bfloat16 has steps of 2**-7 at 1: the numbers below lie on a step, on two ties, below and above a tie.
    states = torch.tensor([[[99.0], [1.0], [1 + 2**-8], [1 + 3 * 2**-8], [1 + 2**-8 - 2**-20], [1 + 2**-8 + 2**-20]]])
    assert stored_rows(states, rows_per_sequence=5).tolist() == [[0x3F80], [0x3F80], [0x3F82], [0x3F80], [0x3F81]]
    assert stored_rows(states, rows_per_sequence=2).tolist() == [[0x3F80], [0x3F81]]
    assert stored_rows(states, rows_per_sequence=6)[0].tolist() == [0x42C6]  # 99 = 1.546875 * 2**6


def test_rows_are_the_rounded_states_of_all_positions_but_bos_in_sequence_order(
    tiny_model_folder: Path, windows: NDArray[np.uint32]
) -> None:
    rows = harvest(cut(tiny_model_folder, HOOKS[1]), windows, batch_sequences=4)[HOOKS[1]]
    assert rows.shape == (10 * (CONTEXT_LENGTH - 1), D_MODEL)
    assert rows.dtype == np.uint16
    plain = plain_model(tiny_model_folder)
    for start, end in ((0, 4), (4, 8), (8, 10)):  # the same batch shapes, as other shapes may differ in the last bits
        tokens = torch.from_numpy(windows[start:end].astype(np.int64))
        with torch.inference_mode():
            states = plain(input_ids=tokens, output_hidden_states=True).hidden_states[2]
        rounded = states[:, 1:].to(torch.bfloat16).view(torch.uint16).numpy().reshape(-1, D_MODEL)
        assert np.array_equal(rows[start * 8 : end * 8], rounded)


def test_several_hooks_in_one_pass_equal_a_pass_for_each(tiny_model_folder: Path, windows: NDArray[np.uint32]) -> None:
    together = harvest(cut(tiny_model_folder, HOOKS[2], HOOKS[0]), windows, batch_sequences=4)
    assert list(together) == [HOOKS[2], HOOKS[0]]
    for hook in together:
        alone = harvest(cut(tiny_model_folder, hook), windows, batch_sequences=4)
        assert np.array_equal(together[hook], alone[hook])


def test_windows_at_a_batchs_begin_give_the_same_rows_alone_as_among_others(
    tiny_model_folder: Path, windows: NDArray[np.uint32]
) -> None:
    model = cut(tiny_model_folder, HOOKS[1])
    rows = harvest(model, windows[:8], batch_sequences=4)[HOOKS[1]]
    assert np.array_equal(harvest(model, windows[4:8], batch_sequences=4)[HOOKS[1]], rows[4 * 8 :])


def test_layers_behind_the_deepest_hook_do_not_run(tiny_model_folder: Path, windows: NDArray[np.uint32]) -> None:
    plain, num_runs = plain_model(tiny_model_folder), []
    for name, module in plain.named_modules():
        if name in ("model.layers.1", "model.layers.2", "model.norm", "lm_head"):
            module.register_forward_hook(lambda *_, name=name: num_runs.append(name))
    harvest(cut_model(plain, [HOOKS[1]]), windows, batch_sequences=10)
    assert num_runs == ["model.layers.1"]


def test_a_hook_behind_the_last_layer_and_a_model_without_layers_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"hooks at layers 0 to 2 of this model, got 'blocks.3.hook_resid_post'"):
        cut(tiny_model_folder, HOOKS[0], "blocks.3.hook_resid_post")
    other = BertLMHeadModel(
        BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=16, is_decoder=True)
    )
    with pytest.raises(ValueError, match=r"expected a model of the types gemma, .*, got 'bert'"):
        cut_model(other, HOOKS)
