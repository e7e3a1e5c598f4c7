"""What the first stage finds out about a checkpoint without loading a weight, against what loading it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from language_model.checkpoint import ModelUnavailable, UnusableModel, tensor_headers, weight_files
from language_model.families import FAMILIES as FAMILIES_BY_TYPE
from language_model.families import Family
from language_model.load import identify, load_bridge, load_model, resolve
from language_model.structure import bridge_architectures, check_structure
from tests.language_model.checkpoints import byte_level, copied, edit, in_shards, save_model, save_tokenizer

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 8},
    "Gemma3": {},
    "Mixtral": {"num_local_experts": 2},
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("llama"), "Llama")
    save_tokenizer(folder, byte_level(), "GPT2Tokenizer")
    return folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return copied(llama, tmp_path / "copy")


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> Path:
    """Puts tensors into the weights, and takes those out that are None."""
    path = folder / "model.safetensors"
    changed = load_file(path) | tensors
    save_file({name: t for name, t in changed.items() if t is not None}, path, metadata={"format": "pt"})
    return folder


def refused(folder: Path) -> str:
    """What the first stage says of a folder; loading it must be refused as well."""
    with pytest.raises(UnusableModel) as caught:
        identify(resolve(str(folder), None), str(folder), None)
    with pytest.raises(UnusableModel):
        load_model(folder, dtype=torch.float32, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2", "Olmo2", "Granite", "Mixtral", "Phi3", "Qwen3"])
def test_whole_checkpoints_pass_in_every_form_that_the_loader_takes(family: str, tied: bool, tmp_path: Path) -> None:
    settings = {"tie_word_embeddings": tied}
    folder = save_model(tmp_path / "whole", family, **settings)
    check_structure(folder, tensor_headers(folder))
    tensors = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in tensors) == (not tied)
    # Saved from the base model: no "model." in front of the names. The loader takes it where the head is tied.
    base = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(base, folder / "model.safetensors", metadata={"format": "pt"})
    check_structure(folder, tensor_headers(folder))
    load_model(folder, dtype=torch.float32, device="cpu")
    # Without the head that is not tied, which transformers would fill with random numbers.
    if not tied:
        change(folder, {"lm_head.weight": None})
        with pytest.raises(UnusableModel, match=r"is missing: lm_head\.weight"):
            check_structure(folder, tensor_headers(folder))
    else:
        change(folder, {"lm_head.weight": base["embed_tokens.weight"].clone()})  # written twice, as older ones are
        check_structure(folder, tensor_headers(folder))
        load_model(folder, dtype=torch.float32, device="cpu")


def test_missing_tensors_are_named(folder: Path) -> None:
    message = refused(change(folder, {Q_PROJ: None}))
    assert f"is missing: {Q_PROJ}. Fetch the model again" in message
    assert "random numbers" in message


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    names = [name for name in tensor_headers(folder) if ".layers.1." in name]
    assert f"and {len(names) - 3} more" in refused(change(folder, dict.fromkeys(names)))


def test_tensors_of_another_shape_are_named_with_both(folder: Path) -> None:
    message = refused(change(folder, {Q_PROJ: torch.zeros(16, 8)}))
    assert f"has another shape: {Q_PROJ} [16, 8] for [16, 16]" in message


def test_tensors_that_the_model_lacks_are_named(folder: Path) -> None:
    message = refused(change(folder, {"model.layers.2.self_attn.q_proj.weight": torch.zeros(16, 16)}))
    assert "is not part of the model: model.layers.2.self_attn.q_proj.weight" in message


def test_a_config_of_more_layers_than_there_are_is_found(folder: Path) -> None:
    assert "is missing: model.layers.2." in refused(edit(folder, "config.json", num_hidden_layers=3, layer_types=...))


def test_no_weight_is_read_to_find_out(folder: Path) -> None:
    """The bytes behind the headers are those of another file system's hole: nobody looks at them."""
    path = folder / "model.safetensors"
    size = path.stat().st_size
    begin = min(header.start for header in tensor_headers(folder).values())
    with path.open("r+b") as file:
        file.truncate(begin)
        file.truncate(size)
    check_structure(folder, tensor_headers(folder))


@pytest.mark.parametrize(("family", "kind"), [("Helium", "helium"), ("Starcoder2", "starcoder2")])
def test_a_model_that_a_later_stage_cannot_run_is_refused_before_anything_else(
    family: str, kind: str, folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    save_model(folder, family)
    with pytest.raises(UnusableModel, match=rf"got the model type '{kind}' in .*language_model\.name, or add a row"):
        identify(resolve(str(folder), None), str(folder), None)


def test_a_row_that_names_a_part_the_layers_lack_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tensor_headers(folder)
    for changes, message in (
        ({"layers": "h"}, r"expected a decoder with \.h and a final \.norm, got LlamaForCausalLM"),
        ({"attn_out": "attn"}, "expected every layer of LlamaForCausalLM to have attn, got layers without"),
    ):
        monkeypatch.setitem(FAMILIES_BY_TYPE, "llama", Family(**changes))
        with pytest.raises(UnusableModel, match=message):
            check_structure(folder, headers)


def test_a_model_that_transformer_lens_does_not_know_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("language_model.structure.bridge_architectures", frozenset)
    with pytest.raises(UnusableModel, match=r"that TransformerLens has an adapter for, .*, got LlamaForCausalLM in"):
        check_structure(folder, tensor_headers(folder))


def test_quantised_weights_are_refused_by_config_and_by_header(folder: Path) -> None:
    change(folder, {Q_PROJ: torch.zeros(16, 16, dtype=torch.int8)})
    with pytest.raises(
        UnusableModel, match=rf"expected weights in F64, F32, F16, BF16, got {Q_PROJ} I8: they are quant"
    ):
        identify(folder, str(folder), None)
    edit(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnusableModel, match=r"says that they are quantised \(gptq\)\. Choose the model's unquantised"):
        identify(folder, str(folder), None)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "expected a weight_map in .*: the file of each tensor, got null"),
        ({"weight_map": []}, r"expected a weight_map in .*, got \[\]"),
        ({"weight_map": {"a": 1}}, "expected the name of a safetensors file beside .* for a, got 1"),
        ({"weight_map": {"a": "../x.safetensors"}}, "expected the name of a safetensors file beside"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "weights in other formats are never loaded"),
        ({"weight_map": {"a": "part.safetensors"}}, "it lacks part.safetensors"),
    ],
)
def test_an_index_that_is_none_is_one_message(folder: Path, index: object, message: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=message):
        resolve(str(folder), None)


def test_an_index_must_list_the_tensors_of_its_files(folder: Path) -> None:
    in_shards(folder)
    resolve(str(folder), None)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map[Q_PROJ]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelUnavailable, match=rf"another list \({Q_PROJ}\). Fetch the model again; files of two"):
        resolve(str(folder), None)


def test_a_single_file_beside_an_index_is_what_counts_for_us_as_for_transformers(folder: Path) -> None:
    single = (folder / "model.safetensors").read_bytes()
    in_shards(folder)
    change_all = {name: torch.zeros_like(tensor) for name, tensor in load_file(weight_files(folder)[0]).items()}
    save_file(change_all, weight_files(folder)[0], metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(single)
    assert weight_files(folder) == [folder / "model.safetensors"]
    loaded = load_model(folder, dtype=torch.float32, device="cpu").state_dict()
    expected = load_file(folder / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}, "adapter_config.json names others: an adapter"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "transformers_weights 'other.safetensors'"),
        ("config.json", {"hidden_size": "16"}, "to state hidden_size as a number"),
        ("config.json", {"num_hidden_layers": 0}, "to state num_hidden_layers as a number"),
        ("config.json", {"max_position_embeddings": None}, "to state max_position_embeddings as a number"),
        ("config.json", {"hidden_size": 18}, "has another shape"),
        ("config.json", {"hidden_size": 17}, "hidden size (17) is not a multiple of the number of attention heads (2)"),
        ("config.json", {"model_type": "bert"}, "got"),
        ("config.json", {"model_type": ...}, "got the model type None in"),
        ("config.json", {"hidden_act": "nonsense"}, "nonsense"),
    ],
)
def test_a_config_that_means_another_model_is_one_message(
    folder: Path, file: str, entries: dict[str, object], message: str
) -> None:
    edit(folder, file, **entries)
    with pytest.raises(UnusableModel) as caught:
        identify(folder, str(folder), None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_of_a_checkpoint_never_runs_and_nobody_is_asked(folder: Path, tmp_path: Path) -> None:
    auto_map = {
        "AutoConfig": "code.Config",
        "AutoModelForCausalLM": "code.Model",
        "AutoTokenizer": ["code.T", "code.T"],
    }
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder, "tokenizer_config.json", auto_map=auto_map)
    program = (
        "import pathlib, torch\nfrom language_model.load import identify, load_bridge, load_model\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "for load in (lambda: identify(folder, str(folder), None), lambda: load_model(folder, dtype=torch.float32,"
        " device='cpu'), lambda: load_bridge(folder, dtype=torch.float32, device='cpu')):\n"
        "    try: load()\n"
        "    except ValueError as error: print(error)\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    said = {}
    for kind in ("llama", "mine"):  # known to transformers, which then uses its own code, and unknown
        edit(folder, "config.json", model_type=kind, auto_map=auto_map)
        done = subprocess.run(
            command, input="y\n" * 9, text=True, capture_output=True, env=environment, cwd=ROOT, check=True
        )
        assert "[y/N]" not in done.stdout + done.stderr
        said[kind] = done.stdout
    assert not (tmp_path / "ran").exists()
    assert said["llama"] == ""
    assert said["mine"].count("model type 'mine'") == 3
    assert "the code that config.json and tokenizer_config.json names (auto_map) is never run" in said["mine"]


def test_the_list_of_adapters_is_transformer_lenss_own() -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    assert bridge_architectures() == set(SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_first_stage_lets_pass_runs_in_transformer_lens_with_the_same_numbers(
    family: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / family, family, **FAMILIES[family])
    save_tokenizer(folder, byte_level(), "GPT2Tokenizer")
    identify(resolve(str(folder), None), str(folder), None)
    tokens = torch.tensor([[2, 10, 20, 30, 40]])
    hook = "blocks.0.hook_resid_post"
    _, cache = load_bridge(folder, dtype=torch.float32, device="cpu").run_with_cache(tokens, names_filter=hook)
    plain = load_model(folder, dtype=torch.float32, device="cpu", attention="eager")
    expected = plain(tokens, output_hidden_states=True).hidden_states[1]
    assert torch.equal(cache[hook], expected)
