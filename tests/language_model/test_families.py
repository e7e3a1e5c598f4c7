"""Every row of families.py: activations at every site against forward hooks on the plain model and TransformerLens."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import core_model_loading

from benchmarks.miniatures import (
    BOS,
    D_MODEL,
    NUM_LAYERS,
    POSITIONS,
    SIZES,
    VOCAB_SIZE,
    plain_activations,
    save_miniature,
)
from harvest.activations import cut_model, hidden_states, load_cut_model
from language_model.checkpoint import UnusableModel, tensor_headers
from language_model.families import FAMILIES
from language_model.hooks import SITES, check_sites
from language_model.load import identify, load_bridge, load_decoder, load_model, max_positions, resolve
from language_model.sites import attach
from language_model.structure import decoder_layers
from tests.language_model.checkpoints import edit, in_shards

Miniature = Callable[[str], Path]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """The folder of a family's miniature, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_miniature(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder


@pytest.fixture
def tokens() -> Tensor:
    """(3, 20), BOS first: longer than the windows of the layers with sliding attention."""
    made = torch.randint(BOS + 1, 259, (3, 20), generator=torch.Generator().manual_seed(0))
    made[:, 0] = BOS
    return made


def hooks_of(kind: str) -> list[str]:
    sites = [site for site in SITES if kind != "granite" or site.startswith("resid")]
    return [f"blocks.{layer}.hook_{site}" for layer in range(NUM_LAYERS) for site in sites]


def plain(folder: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return plain_activations(load_model(folder, dtype=dtype, device="cpu"), tokens)


def largest_difference(states: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over hooks, relative to the largest activation of each."""
    return max(float((states[hook] - expected[hook]).abs().max() / expected[hook].abs().max()) for hook in states)


def test_every_row_of_the_table_has_a_miniature() -> None:
    assert SIZES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_site_equals_the_plain_models_to_the_bit_at_the_same_batch_shape(
    kind: str, miniature: Miniature, tokens: Tensor
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        expected = plain(miniature(kind), tokens, dtype)
        states = hidden_states(load_cut_model(miniature(kind), hooks_of(kind), dtype=dtype, device="cpu"), tokens)
        assert states.keys() == set(hooks_of(kind))
        for hook, found in states.items():
            assert torch.equal(found, expected[hook]), hook
            assert found.dtype == dtype


@pytest.mark.parametrize("kind", FAMILIES)
def test_another_batch_shape_changes_the_last_bits_at_most(kind: str, miniature: Miniature, tokens: Tensor) -> None:
    expected = plain(miniature(kind), tokens)
    model = load_cut_model(miniature(kind), hooks_of(kind), dtype=torch.float32, device="cpu")
    one_by_one = [hidden_states(model, window[None]) for window in tokens]
    states = {hook: torch.cat([part[hook] for part in one_by_one]) for hook in hooks_of(kind)}
    assert largest_difference(states, expected) < 1e-5


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformer_lens_has_the_same_activations_under_the_same_names(
    kind: str, miniature: Miniature, tokens: Tensor
) -> None:
    folder, hooks = miniature(kind), hooks_of(kind)
    identify(resolve(str(folder), None), str(folder), None)  # what the first stage lets pass, evaluation can run
    with torch.inference_mode():
        _, cache = load_bridge(folder, dtype=torch.float32, device="cpu").run_with_cache(tokens)
    states = hidden_states(load_cut_model(folder, hooks, dtype=torch.float32, device="cpu"), tokens)
    # The bridge computes attention step by step, and for GPT-2 and GPT-Neo in an order of its own.
    assert largest_difference(states, cache) < 1e-5
    if FAMILIES[kind].attention == "eager" and kind != "gpt_neo":
        assert all(torch.equal(states[hook], cache[hook]) for hook in hooks)


SETTINGS_OF_RESIDUALS: list[tuple[str, dict[str, bool]]] = [
    *((kind, {}) for kind in FAMILIES if kind != "granite"),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_parallel_residual": True}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS_OF_RESIDUALS)
def test_attention_and_mlp_add_up_to_the_change_of_the_residual_stream(
    kind: str, settings: dict[str, bool], tokens: Tensor, tmp_path: Path
) -> None:
    folder = save_miniature(tmp_path, kind, **settings)
    states = hidden_states(load_cut_model(folder, hooks_of(kind), dtype=torch.float32, device="cpu"), tokens)
    for layer in range(NUM_LAYERS):
        pre, attention, mlp, post = (states[f"blocks.{layer}.hook_{site}"] for site in SITES)
        assert torch.allclose(pre + attention + mlp, post, rtol=0, atol=1e-6 * float(post.abs().max()))
        assert min(float(part.abs().max()) for part in (attention, mlp)) > 0.01 * float(post.abs().max())


@pytest.mark.parametrize("kind", FAMILIES)
def test_tensors_of_deeper_layers_and_of_the_head_are_not_read(
    kind: str, miniature: Miniature, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read: list[int] = []
    read = core_model_loading._materialize_copy  # what makes a tensor of the bytes of a file

    def counted(tensor: Any, *arguments: Any, **keywords: Any) -> Tensor:  # noqa: ANN401 - passed on as they are
        copied: Tensor = read(tensor, *arguments, **keywords)
        num_read.append(copied.numel() * 4)
        return copied

    monkeypatch.setattr(core_model_loading, "_materialize_copy", counted)
    headers = tensor_headers(miniature(kind))
    load_model(miniature(kind), dtype=torch.float32, device="cpu")
    assert sum(num_read) == sum(header.nbytes for header in headers.values())
    num_read.clear()
    load_cut_model(miniature(kind), ["blocks.0.hook_resid_post"], dtype=torch.float32, device="cpu")
    unread = re.compile(r"\.(layers|h)\.[12]\.|^(lm_head|embed_out)\.")
    assert sum(num_read) == sum(header.nbytes for name, header in headers.items() if not unread.search(name))
    assert sum(num_read) < 0.7 * sum(header.nbytes for header in headers.values())


def test_a_deepest_attn_out_needs_no_mlp_and_the_input_of_a_layer_not_the_layer(
    miniature: Miniature, tokens: Tensor
) -> None:
    expected, num_runs = plain(miniature("gemma2"), tokens), []
    for hook, ran in (
        ("blocks.1.hook_attn_out", ["layers.0.mlp", "layers.1"]),
        ("blocks.1.hook_mlp_out", ["layers.0.mlp", "layers.1.mlp", "layers.1"]),
        ("blocks.2.hook_resid_pre", ["layers.0.mlp", "layers.1.mlp", "layers.1"]),
        ("blocks.0.hook_resid_pre", []),
    ):
        model = load_model(miniature("gemma2"), dtype=torch.float32, device="cpu")
        for name, module in model.base_model.named_modules():
            if name in ("layers.0.mlp", "layers.1.mlp", "layers.1", "layers.2", "norm"):
                module.register_forward_hook(lambda *_, name=name: num_runs.append(name))
        num_runs.clear()
        assert torch.equal(hidden_states(cut_model(model, [hook]), tokens)[hook], expected[hook])
        assert num_runs == ran


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma2"])
def test_weights_in_several_files_and_under_the_base_models_names_are_the_same_model(
    kind: str, miniature: Miniature, tokens: Tensor, tmp_path: Path
) -> None:
    folder = shutil.copytree(miniature(kind), tmp_path / "copy")
    prefix = re.compile(r"^(model|transformer|gpt_neox)\.")
    tensors = {prefix.sub("", name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    in_shards(folder)
    identify(resolve(str(folder), None), str(folder), None)
    expected = plain(miniature(kind), tokens)
    states = hidden_states(load_cut_model(folder, hooks_of(kind), dtype=torch.float32, device="cpu"), tokens)
    assert all(torch.equal(found, expected[hook]) for hook, found in states.items())


@pytest.mark.parametrize(
    ("kind", "prefix", "old"),
    [
        ("gpt2", "transformer.h.0.attn.", {"bias": torch.ones(1, 1, 4, 4), "masked_bias": torch.tensor(-1e9)}),
        ("gpt_neo", "transformer.h.0.attn.attention.", {"bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}),
        (
            "gpt_neox",
            "gpt_neox.layers.0.attention.",
            {"bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), "rotary_emb.inv_freq": torch.ones(8)},
        ),
        ("llama", "model.layers.0.self_attn.", {"rotary_emb.inv_freq": torch.ones(8)}),
    ],
)
def test_masks_and_frequencies_that_older_files_hold_are_no_weights(
    kind: str, prefix: str, old: dict[str, Tensor], miniature: Miniature, tokens: Tensor, tmp_path: Path
) -> None:
    folder = shutil.copytree(miniature(kind), tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors") | {prefix + name: tensor for name, tensor in old.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    identify(resolve(str(folder), None), str(folder), None)
    found, expected = plain(folder, tokens), plain(miniature(kind), tokens)
    assert all(torch.equal(found[hook], expected[hook]) for hook in hooks_of(kind))
    odd = {f"{prefix}other.bias": torch.zeros(8)}
    save_file(tensors | odd, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnusableModel, match=r"is not part of the model: .*other\.bias"):
        identify(folder, str(folder), None)


@pytest.mark.parametrize("kind", FAMILIES)
def test_identity_and_longest_sequence_are_read_under_the_familys_names(kind: str, miniature: Miniature) -> None:
    identity = identify(miniature(kind), str(miniature(kind)), None)
    assert (identity.d_model, identity.num_layers, identity.vocab_size) == (D_MODEL, NUM_LAYERS, VOCAB_SIZE)
    assert identity.bos_token_id == BOS
    assert identity.name.startswith(f"{kind}-")
    assert max_positions(miniature(kind)) == POSITIONS


def test_a_model_type_without_a_row_is_refused_with_the_list(miniature: Miniature, tmp_path: Path) -> None:
    folder = edit(shutil.copytree(miniature("llama"), tmp_path / "copy"), "config.json", model_type="helium")
    with pytest.raises(UnusableModel, match=r"of the types gemma, gemma2, .*stablelm, got the model type 'helium' in"):
        identify(folder, str(folder), None)


def test_a_family_without_a_site_refuses_hooks_there(miniature: Miniature) -> None:
    check_sites(("blocks.0.hook_resid_pre",), FAMILIES["granite"], model_name="toy")
    with pytest.raises(ValueError, match=r"on resid_pre or resid_post of toy, got 'blocks\.1\.hook_attn_out': no part"):
        check_sites(("blocks.1.hook_attn_out",), FAMILIES["granite"], model_name="toy")
    layer = decoder_layers(load_model(miniature("granite"), dtype=torch.float32, device="cpu"))[0]
    with pytest.raises(ValueError, match="expected resid_pre or resid_post in GraniteDecoderLayer, got mlp_out"):
        attach(layer, "mlp_out", FAMILIES["granite"], lambda _: None)


def test_more_layers_than_there_are_cannot_be_loaded(miniature: Miniature) -> None:
    with pytest.raises(UnusableModel, match=r"expected 1 to 3 layers of the model in .*, got 4. Correct harvest.hooks"):
        load_decoder(miniature("llama"), num_layers=4, dtype=torch.float32, device="cpu")


def test_attention_is_fused_where_scores_are_not_capped() -> None:
    assert {kind for kind, family in FAMILIES.items() if family.attention == "eager"} == {"gemma2", "gpt_neo"}
