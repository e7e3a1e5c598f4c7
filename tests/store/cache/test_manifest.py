"""A manifest is refused with the reason when a byte of it changed, it contradicts itself, or is no cache's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.cache.manifest import Manifest, ShardRecord, load_manifest
from store.errors import DamagedFile, IncompleteCache, MismatchedCache, StoreError
from store.record import digest
from store.record_file import read_record_file
from tests.store.cache_fixture import HOOKS, make_spec

MakeCache = Callable[..., Path]
SHARD = f"{HOOKS[0]}/c/0/0"


def with_new_digest(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file of a record after a change by somebody who writes the right digest into it."""
    value = json.loads(data)
    del value["self_sha256"]
    change(value)
    value["self_sha256"] = digest(value)
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def put(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Sets the item under `keys`."""

    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def rename(record: dict[str, Any], name: str) -> None:
    record["files"][name] = record["files"].pop(SHARD)


@pytest.mark.parametrize("name", ["manifest.json", "shards/00002.json"])
def test_every_changed_byte_of_a_record_is_found(cache_folder: Path, tmp_path: Path, name: str) -> None:
    data = (cache_folder / name).read_bytes()
    kind = Manifest if name == "manifest.json" else ShardRecord
    path = tmp_path / "manifest.json"
    for place in range(0, len(data), 97):
        for bit in (0, 1, 4, 5):  # one after another; 5 makes a capital of a letter, 4 and 1 a tab or quote of a space
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(StoreError, match=r"manifest\.json"):
                read_record_file(kind, path)


@pytest.mark.parametrize(
    "respelled",
    [
        lambda data: data.replace(b" ", b"  ", 1),
        lambda data: data.replace(b"toy", b"\\u0074oy", 1),
        lambda data: data.replace(b'"num_rows": 328', b'"num_rows": 328.0', 1),
        lambda data: data.replace(b'"num_rows": 328', b'"num_rows": 1, "num_rows": 328', 1),
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: b"\xef\xbb\xbf" + data,
    ],
)
def test_a_record_is_accepted_in_one_spelling_only(make_cache: MakeCache, respelled: Callable[[bytes], bytes]) -> None:
    path = make_cache() / "manifest.json"
    data = path.read_bytes()
    path.write_bytes(respelled(data))
    assert path.read_bytes() != data
    with pytest.raises(StoreError, match=r"expected .*manifest\.json"):
        load_manifest(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("num_rows", value=327), r"expected num_rows 328, from 41 sequences of 8 rows, got 327"),
        (put("num_sequences", value=-1), r"num_sequences: Input should be greater than or equal to 1"),
        (put("num_sequences", value=2**80), r"num_sequences: Input should be less than or equal to"),
        (put("num_held_out_sequences", value="5"), r"num_held_out_sequences"),
        (put("spec", "context_length", value=1), r"spec.context_length: Input should be greater than"),
        (put("spec", "chunks_per_shard", value=0), r"spec.chunks_per_shard: Input should be greater than"),
        (put("spec", "sequences_per_chunk", value=1), r"expected 84 files for 19 shards and 2 hooks, got 32"),
        (put("spec", "chunks_per_shard", value=10), r"expected 20 files for 3 shards and 2 hooks, got 32"),
        (put("spec", "excluded_positions", value=[]), r"expected num_rows 369, from 41 sequences of 9 rows, got 328"),
        (put("spec", "excluded_positions", value=["bos", "2"]), r"to be the first ones of 9, such as \('bos',\), got"),
        (put("spec", "excluded_positions", value=["0"]), r"the first ones of 9, such as \('bos',\), got \('0',\)"),
        (put("spec", "first_token", value="text"), r"to be the first ones of 9, such as \('0',\), got \('bos',\)"),
        (put("spec", "model", "bos_token_id", value=None), r"as the model has no BOS, got first_token 'bos'"),
        (put("spec", "hooks", value=["../../etc"]), r"spec.hooks.0: expected a hook such as .* got '../../etc'"),
        (put("spec", "hooks", value=["tokens"]), r"expected a hook such as .* got 'tokens'"),
        (put("spec", "hooks", value=[HOOKS[0], HOOKS[0]]), r"expected every hook once"),
        (put("spec", "codec", value="none"), r"expected 9280 bytes for blocks.1.hook_resid_post/c/0/0"),
        (put("spec", "codec", value="lossy"), r"spec.codec"),
        (put("files", SHARD, "nbytes", value=51), r"expected at least 52 bytes for blocks.1.hook_resid_post/c/0/0"),
        (put("files", SHARD, "nbytes", value=-5), r"nbytes: Input should be greater than or equal to 0"),
        (put("files", SHARD, "sha256", value="A" * 64), r"sha256: String should match pattern"),
        (lambda m: rename(m, "../outside"), r"expected the file blocks.1.hook_resid_post/c/0/0 to be listed"),
        (lambda m: rename(m, "/etc/passwd"), r"expected the file blocks.1.hook_resid_post/c/0/0 to be listed"),
        (lambda m: m["files"].update(extra={"nbytes": 1, "sha256": "0" * 64}), r"expected 32 files .*, got 33"),
        (lambda m: m["moments"].pop(HOOKS[1]), r"expected moments of the hooks blocks.1.*, blocks.2"),
        (lambda m: m["moments"][HOOKS[0]]["mean"].pop(), r"expected moments of 328 rows and 48 channels for blocks.1"),
        (put("moments", HOOKS[0], "mean_squared_norm", value=1.0), r"to be the sum of mean_square, got 1.0"),
        (put("unheard", value=1), r"unheard: Extra inputs"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(
    make_cache: MakeCache, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = make_cache() / "manifest.json"
    path.write_bytes(with_new_digest(path.read_bytes(), change))
    with pytest.raises(StoreError, match=rf"expected .*manifest\.json to hold a Manifest, but .*{message}"):
        load_manifest(path.parent)


def test_numbers_that_are_none_and_numbers_too_long_are_refused(make_cache: MakeCache) -> None:
    path = make_cache() / "manifest.json"
    data = path.read_bytes()
    for number in (b"NaN", b"Infinity", b"1e999", b"9" * 10_000):
        path.write_bytes(data.replace(b'"num_rows": 328,', b'"num_rows": ' + number + b","))
        with pytest.raises(StoreError, match=r"manifest\.json"):
            load_manifest(path.parent)


def test_huge_counts_cost_nothing(make_cache: MakeCache) -> None:
    path = make_cache() / "manifest.json"

    def enlarge(manifest: dict[str, Any]) -> None:
        manifest["num_sequences"], manifest["num_rows"] = 2**36, 8 * 2**36  # 6 thousand million shards

    path.write_bytes(with_new_digest(path.read_bytes(), enlarge))
    with pytest.raises(StoreError, match="expected 22906492264 files for 5726623064 shards and 2 hooks, got 32"):
        load_manifest(path.parent)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b'{"format": "activation-cache/9"}',
            "expected format 'activation-cache/3'.*got 'activation-cache/9'. Use the",
        ),
        (b'{"format": "activation-cache/1"}', "got 'activation-cache/1'. Use the version .* or harvest again"),
        (b'{"hello": 1}', "got 'None'. It is another software's"),
        (b"[]", "expected format"),
        (b"{", "expected JSON in"),
        (b"[" * 100_000, "expected JSON in"),
        (b"", "expected JSON in"),
        (b'{"format": "activation-cache/3"}', "expected .* to hold a Manifest with its digest in 'self_sha256'"),
    ],
)
def test_other_versions_and_other_softwares_manifests_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(StoreError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], IncompleteCache, "found an empty folder"),
        (["zarr.json", "x/zarr.json"], MismatchedCache, r"found a zarr group of another software \(x, zarr.json\)"),
        (["dataset_info.json", "data-0.arrow"], MismatchedCache, "found a Hugging Face data set"),
        (["config.json", "model.safetensors"], MismatchedCache, "found a language model or an SAE"),
        (["a", "b", "c", "d", "e", "f"], MismatchedCache, r"found something else \(a, b, c, d, e, ...\)"),
        (["shards/00000.json"], IncompleteCache, "not finished or only partly pulled. Run `dvc repro harvest`"),
    ],
)
def test_folders_that_are_no_cache_are_called_what_they_are(
    tmp_path: Path, files: list[str], error: type[StoreError], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(error, match=message):
        load_manifest(folder)


def test_what_is_not_there_or_no_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "pulled.dvc").write_bytes(b"")
    with pytest.raises(MismatchedCache, match="got the file"):
        load_manifest(tmp_path / "file")
    with pytest.raises(IncompleteCache, match=r"found no such folder. Harvest or pull it first"):
        load_manifest(tmp_path / "nothing")
    with pytest.raises(IncompleteCache, match=r"no such folder. Run `dvc pull .*pulled`"):
        load_manifest(tmp_path / "pulled")


def test_a_cache_of_another_spec_is_refused_with_the_setting_that_differs(cache_folder: Path) -> None:
    assert load_manifest(cache_folder, expected=make_spec()).num_rows == 328
    with pytest.raises(MismatchedCache, match="to have compute_dtype 'bfloat16', got 'float32'"):
        load_manifest(cache_folder, expected=make_spec(compute_dtype="bfloat16"))
    with pytest.raises(MismatchedCache, match=r"to have text\.kind 'files', got 'toy'"):
        load_manifest(cache_folder, expected=make_spec(text={"kind": "files"}))


def test_a_shard_record_cannot_name_files_elsewhere(cache_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "00000.json"
    data = (cache_folder / "shards/00000.json").read_bytes()
    path.write_bytes(with_new_digest(data, lambda record: rename(record, "../../outside")))
    with pytest.raises(StoreError, match=r"expected the file blocks.1.hook_resid_post/c/0/0 to be listed, it is not"):
        read_record_file(ShardRecord, path)
    path.write_bytes(data.replace(b'"shard": 0', b'"shard": 1'))
    with pytest.raises(DamagedFile, match=r"to have the digest '[0-9a-f]{64}' that it states, got [0-9a-f]{64}"):
        read_record_file(ShardRecord, path)
