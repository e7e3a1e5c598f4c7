"""Which model it is: bytes that count, wherever they lie, and hashed once."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from language_model import identity as identity_module
from language_model import memory, structure
from language_model.checkpoint import TensorHeader, UnusableModel, tensor_headers
from language_model.identity import fingerprint, tensor_digests, weights_digest
from language_model.load import identify
from store.cache.spec import CacheSpec, check_spec
from store.errors import MismatchedCache
from store.identity import ModelIdentity
from store.record import digest, plain
from tests.language_model.checkpoints import byte_level, copied, edit, in_shards, save_model, save_tokenizer

find_memory_file = memory.memory_file


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("llama"), "Llama")
    save_tokenizer(folder, byte_level(), "GPT2Tokenizer")
    return folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return copied(llama, tmp_path / "another name")


def rename_entries(folder: Path) -> None:
    edit(folder, "config.json", _name_or_path="elsewhere", transformers_version="4.0", torch_dtype="float16", dtype=...)


def add_files(folder: Path) -> None:
    save_file({"x": torch.ones(3)}, folder / "consolidated.safetensors")
    (folder / "tokenizer.model").write_bytes(b"the older form")
    (folder / "README.md").write_text("words")


def add_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


def reordered(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    metadata = {"format": "pt", "saved by": "somebody"}
    save_file(dict(reversed(tensors.items())), folder / "model.safetensors", metadata=metadata)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))


@pytest.mark.parametrize("change", [lambda folder: None, rename_entries, add_files, add_index, reordered, in_shards])
def test_the_same_tensors_and_settings_are_the_same_model(
    llama: Path, folder: Path, change: Callable[[Path], object]
) -> None:
    expected = identify(llama, str(llama), None)
    change(folder)
    assert identify(folder, str(folder), None) == expected
    assert expected.name == f"llama-{expected.weights_sha256[:8]}"
    assert digest(plain(identify(folder, str(folder), None))) == digest(plain(expected))


def one_bit(folder: Path) -> None:
    path, header = folder / "model.safetensors", tensor_headers(folder)["model.norm.weight"]
    data = bytearray(path.read_bytes())
    data[header.start] ^= 1
    path.write_bytes(data)


def another_format(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.double() for name, tensor in tensors.items()}, folder / "model.safetensors")


def swapped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [one_bit, another_format, swapped, lambda folder: edit(folder, "config.json", rms_norm_eps=1e-3)],
)
def test_another_bit_format_order_or_setting_is_another_model(
    llama: Path, folder: Path, change: Callable[[Path], object]
) -> None:
    expected = identify(llama, str(llama), None)
    change(folder)
    found = identify(folder, str(folder), None)
    assert found.weights_sha256 != expected.weights_sha256
    assert found.tokenizer_sha256 == expected.tokenizer_sha256


def test_two_tensors_cannot_trade_names_or_shapes(tmp_path: Path) -> None:
    """The digest is over (name, format, shape, bytes) of each, so equal bytes in other places differ."""
    digests = set()
    for number, tensors in enumerate(
        (
            {"a": torch.zeros(2, 3), "b": torch.ones(2, 3)},
            {"b": torch.zeros(2, 3), "a": torch.ones(2, 3)},
            {"a": torch.zeros(3, 2), "b": torch.ones(2, 3)},
            {"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.ones(2, 3)},
            {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones(2, 3)},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file(tensors, folder / "model.safetensors")
        digests.add(weights_digest(folder))
    assert len(digests) == 5


def spec_of(model: ModelIdentity) -> CacheSpec:
    return CacheSpec(
        model=model, hooks=("blocks.1.hook_resid_post",), text={"kind": "none"}, context_length=8,
        excluded_positions=("bos",), packing="p", held_out_fraction=0.1, compute_dtype="float32",
        forward_batch_sequences=1, sequences_per_chunk=1, chunks_per_shard=1, codec="none", harvest_version=2,
    )  # fmt: skip


def test_labels_are_no_part_of_a_caches_identity_and_everything_else_is(llama: Path) -> None:
    model = identify(llama, str(llama), None)
    spec, hub = spec_of(model), spec_of(model.model_copy(update={"name": "owner/name", "revision": "0" * 40}))
    assert spec.digest == hub.digest
    check_spec(spec, hub, where="here")
    for change in (
        {"tokenizer_sha256": "0" * 64},
        {"bos_token_id": 3},
        {"d_model": 8},
        {"weights_sha256": "1:tensors"},
    ):
        other = spec_of(model.model_copy(update=change))
        assert other.digest != spec.digest
        [name] = change
        with pytest.raises(MismatchedCache, match=rf"expected here to have model\.{name}"):
            check_spec(other, spec, where="here")


def test_an_identity_of_an_earlier_version_keeps_its_digest_with_its_labels(llama: Path) -> None:
    old = identify(llama, str(llama), None).model_copy(update={"weights_sha256": "0" * 64})
    assert spec_of(old).digest == digest(spec_of(old))
    assert spec_of(old).digest != spec_of(old.model_copy(update={"name": "another"})).digest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the tensors that are hashed. Files of any size are remembered, in a folder of this test."""
    hashed: list[str] = []
    plain_read = identity_module._read

    def read(headers: dict[str, TensorHeader]) -> dict[str, str]:
        hashed.extend(headers)
        return plain_read(headers)

    monkeypatch.setattr(identity_module, "_read", read)
    monkeypatch.setattr(identity_module, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(memory, "memory_file", lambda: tmp_path / "cache" / "memory.json")
    return hashed


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds later: no file was written just now."""
    now = time.time_ns
    monkeypatch.setattr(identity_module.time, "time_ns", lambda: now() + 10**10)


@pytest.mark.usefixtures("later")
def test_weights_are_hashed_once_and_again_when_size_or_times_change(folder: Path, hashed: list[str]) -> None:
    path, headers = folder / "model.safetensors", tensor_headers(folder)
    first = tensor_digests(headers)
    assert sorted(hashed) == sorted(headers)
    hashed.clear()
    assert tensor_digests(headers) == first
    assert hashed == []
    before = path.stat()
    one_bit(folder)  # the same size; then the time of the last change is set back, as tools that copy do
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = tensor_digests(headers)
    assert {name for name in headers if changed[name] != first[name]} == {"model.norm.weight"}
    assert hashed != []


def test_a_file_that_was_written_just_now_is_not_remembered(folder: Path, hashed: list[str]) -> None:
    for _ in range(2):
        tensor_digests(tensor_headers(folder))
    assert len(hashed) == 2 * len(tensor_headers(folder))


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["{", "[]", '{"entries": 3}', '{"entries": [[1]]}', "of other tensors"])
def test_a_memory_that_holds_nonsense_is_no_memory(folder: Path, hashed: list[str], damage: str) -> None:
    headers = tensor_headers(folder)
    first = tensor_digests(headers)
    key = f"tensors of {(folder / 'model.safetensors').resolve()}"
    assert memory.recall(key) == {"state": fingerprint(folder / "model.safetensors"), **first}
    if damage == "of other tensors":
        damage = json.dumps({"entries": [[key, {"state": fingerprint(folder / "model.safetensors"), "a": "b"}]]})
    memory.memory_file().write_text(damage)
    hashed.clear()
    assert tensor_digests(headers) == first
    assert hashed != []


def test_the_oldest_of_too_many_entries_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "memory_file", lambda: tmp_path / "memory.json")
    for number in range(260):
        memory.remember({str(number): number})
    assert memory.recall("3") is None
    assert memory.recall("4") == 4
    assert memory.recall("259") == 259


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("place", ["a file", "", "~nobody-here"])
def test_nothing_goes_wrong_where_nothing_can_be_written(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(identity_module, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(memory, "memory_file", find_memory_file)
    (tmp_path / "a file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file") if place == "a file" else place)
    monkeypatch.setenv("HOME", "")
    assert tensor_digests(tensor_headers(folder)) == tensor_digests(tensor_headers(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "another name"]


def test_a_structure_is_checked_once_and_again_for_another_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "memory_file", lambda: tmp_path / "memory.json")
    checked: list[Path] = []
    monkeypatch.setattr(structure, "check_structure", lambda folder, headers: checked.append(folder))
    for _ in range(3):
        structure.check_structure_once(folder, tensor_headers(folder))
    assert len(checked) == 1
    edit(folder, "config.json", num_hidden_layers=3)
    structure.check_structure_once(folder, tensor_headers(folder))
    assert len(checked) == 2


def test_a_structure_that_is_refused_is_refused_every_time(folder: Path) -> None:
    edit(folder, "config.json", num_hidden_layers=3, layer_types=...)
    for _ in range(2):
        with pytest.raises(UnusableModel, match="is missing"):
            identify(folder, str(folder), None)
