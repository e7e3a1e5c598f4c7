"""The files of a checkpoint folder: which of them are read, whether they are whole, and what their headers say.

Nothing here loads a weight or imports a large library. What is refused here would otherwise be found late, or never:
transformers follows some entries of config.json and some files silently, to weights that nobody named.
"""

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from language_model.families import FAMILIES, Family
from store.atomic import parse_json, read_json
from store.errors import StoreError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FLOATS: Final = ("F64", "F32", "F16", "BF16")
"""Number formats of weights that are no packed integers."""


class ModelUnavailable(ValueError):
    """The language model is not on this machine whole, and cannot be fetched."""


class UnusableModel(ValueError):
    """A checkpoint that this pipeline cannot run, or whose files contradict each other."""


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    """As safetensors spells it: "F32", "BF16", ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte in the file."""
    nbytes: int


def check_files(folder: Path, name: str) -> None:
    """Refuses a folder that lacks a part of a checkpoint, or holds a damaged one.

    Raises:
        ModelUnavailable: a file is missing, cut short, or an index that does not fit its files.
        StoreError: a file that should hold JSON does not.
    """
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    missing += [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        raise ModelUnavailable(
            f"expected a checkpoint of {name!r} in {folder}, but it lacks {', '.join(missing)}. "
            "Fetch the model again, or name another folder in language_model.name"
        )
    for path in (folder / "config.json", folder / "tokenizer.json"):
        read_object(path)
    headers = tensor_headers(folder)
    if (index := _index(folder)) is not None:
        listed = {tensor: folder / file for tensor, file in index.items()}
        found = {tensor: header.file for tensor, header in headers.items()}
        if odd := [tensor for tensor in listed.keys() | found.keys() if listed.get(tensor) != found.get(tensor)]:
            raise ModelUnavailable(
                f"expected {folder / INDEX_FILE} to list the tensors of the files that it names, got another list "
                f"({named(odd)}). Fetch the model again; files of two checkpoints are mixed"
            )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no such file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise StoreError(f"expected a JSON object in {path}, found {type(value).__name__}. Fetch the model again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files that the weights are loaded from, whatever else lies in the folder.

    As transformers chooses them: model.safetensors where there is one, otherwise the files that the index names.
    """
    index = _index(folder)
    return [folder / SINGLE_FILE] if index is None else [folder / file for file in sorted(set(index.values()))]


def _index(folder: Path) -> dict[str, str] | None:
    """File names by tensor, from the index; None where the index is not what the weights are loaded by."""
    path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not path.is_file():
        return None
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelUnavailable(
            f"expected a weight_map in {path}: the file of each tensor, got {_spelled(weight_map)}. "
            "Fetch the model again"
        )
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelUnavailable(
                f"expected the name of a safetensors file beside {path} for {tensor}, got {_spelled(file)}. "
                "Fetch the model again; weights in other formats are never loaded"
            )
    return weight_map


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the weight files by name, from their headers alone.

    Raises:
        ModelUnavailable: a file is cut short or no safetensors file, or two files hold the same tensor.
    """
    headers: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy"):
                pass  # checks that the header is consistent and that the file holds all that it announces
        except SafetensorError as error:
            raise ModelUnavailable(
                f"expected whole safetensors in {path}: {error}. Fetch the model again; the file is damaged"
            ) from error
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            entries = parse_json(file.read(size), where=str(path))
        for tensor, entry in entries.items():
            if tensor == "__metadata__":
                continue
            if tensor in headers:
                raise ModelUnavailable(
                    f"expected every tensor once, got {tensor} in {headers[tensor].file} and in {path}. "
                    "Fetch the model again; files of two checkpoints are mixed"
                )
            start, end = entry["data_offsets"]
            headers[tensor] = TensorHeader(entry["dtype"], tuple(entry["shape"]), path, 8 + size + start, end - start)
    return headers


def check_config(folder: Path) -> dict[str, Any]:
    """config.json, if it says of a model what a later stage needs, and nothing that would change the model silently.

    Raises:
        UnusableModel: quantised weights, an adapter, weights elsewhere, or a model whose config lacks a number.
    """
    path = folder / "config.json"
    config = read_object(path)
    if "quantization_config" in config:
        method = config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise UnusableModel(
            f"expected weights in float32, float16 or bfloat16, but {path} says that they are quantised ({method}). "
            "Choose the model's unquantised checkpoint in language_model.name"
        )
    for file in ("adapter_config.json", ".metadata"):
        if (folder / file).exists():
            raise UnusableModel(
                f"expected the weights of a model in {folder}, but {file} names others: an adapter, or a checkpoint of "
                "a distributed training. Merge or convert it first, and save it without that file"
            )
    if "transformers_weights" in config:
        raise UnusableModel(
            f"expected the weights in {SINGLE_FILE}, or in the files of {INDEX_FILE}, but {path} names others: "
            f"transformers_weights {config['transformers_weights']!r}. Remove that entry, or rename the weights"
        )
    family = model_family(folder)
    needed = (family.d_model, family.num_layers, family.vocab_size, family.max_positions)
    if missing := [key for key in needed if type(config.get(key)) is not int or config[key] < 1]:
        raise UnusableModel(
            f"expected {path} to state {', '.join(missing)} as a number, as models of its type "
            f"({config['model_type']}) do. Fetch the model again, or choose another language_model.name"
        )
    return config


def model_family(folder: Path) -> Family:
    """What the parts and settings of a folder's model are called.

    Raises:
        UnusableModel: a model type without a row in families.py, with the list of those that have one.
    """
    kind = read_object(folder / "config.json").get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    brought = [file for file in ("config.json", "tokenizer_config.json") if "auto_map" in read_object(folder / file)]
    code = f"; the code that {' and '.join(brought)} names (auto_map) is never run" if brought else ""
    raise UnusableModel(
        f"expected a causal language model of the types {', '.join(FAMILIES)}, got the model type {kind!r} in "
        f"{folder / 'config.json'}{code}. Choose another language_model.name, or add a row to families.py"
    )


def check_dtypes(headers: dict[str, TensorHeader]) -> None:
    """Refuses weights that are packed integers or 8-bit numbers, whatever config.json says."""
    if odd := [f"{name} {header.dtype}" for name, header in headers.items() if header.dtype not in FLOATS]:
        raise UnusableModel(
            f"expected weights in {', '.join(FLOATS)}, got {named(odd)}: they are quantised. Choose the model's "
            "unquantised checkpoint in language_model.name"
        )


def named(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _spelled(value: object) -> str:
    return json.dumps(value)[:100]
