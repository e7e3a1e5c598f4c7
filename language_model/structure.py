"""What a checkpoint is as a model: its layers, the names and shapes of its tensors, its adapter in TransformerLens.

The model is built without memory for its weights (torch's "meta" device), and filled by transformers' own loader with
tensors that have shapes and no content: so the loader's renaming, its splits and joins, and its tied weights are known
exactly, and no weight is read.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from huggingface_hub.errors import StrictDataclassError

from language_model import families
from language_model.checkpoint import TensorHeader, UnusableModel, model_family, named, read_object
from language_model.families import FAMILIES, Family
from language_model.memory import recall, remember
from store.atomic import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_config(folder: Path) -> "PreTrainedConfig":
    """The configuration of a folder as transformers has it; code that the folder brings along is never run.

    Raises:
        UnusableModel: a model type without a row in families.py, or settings that transformers cannot read.
    """
    from transformers import AutoConfig

    model_family(folder)
    path = folder / "config.json"
    kind = read_object(path)["model_type"]
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise UnusableModel(
            f"expected the settings of a {kind!r} model in {path}, got: {_line(error)}. Correct it"
        ) from error


def check_structure(folder: Path, headers: dict[str, TensorHeader]) -> None:
    """Refuses a checkpoint that a later stage could not run, or whose tensors are not those of its config.

    Raises:
        UnusableModel: names the layers, the tensors or the architecture that are not as they must be.
    """
    config = load_config(folder)
    model, information = _without_weights(config, headers, folder)
    stated = read_object(folder / "config.json")[model_family(folder).num_layers]
    num_layers, found = stated, len(decoder_layers(model))
    if found != num_layers:
        raise UnusableModel(f"expected {num_layers} layers, as {folder / 'config.json'} says, got {found}. Correct it")
    check_loading(information, folder)
    if (name := type(model).__name__) not in bridge_architectures():
        raise UnusableModel(
            f"expected a model that TransformerLens has an adapter for, as evaluation runs it there, got {name} in "
            f"{folder}. Choose another language_model.name"
        )


def check_structure_once(folder: Path, headers: dict[str, TensorHeader]) -> None:
    """`check_structure`, but for what was found in order before: torch and transformers take seconds to import."""
    names = sorted((name, header.dtype, header.shape) for name, header in headers.items())
    libraries = [version(name) for name in ("torch", "transformers", "transformer-lens")]
    rules = [file_sha256(Path(__file__)), file_sha256(Path(families.__file__))]
    state = json.dumps([read_object(folder / "config.json"), names, libraries, rules], sort_keys=True)
    key = f"structure {hashlib.sha256(state.encode()).hexdigest()}"
    if recall(key) is not True:
        check_structure(folder, headers)
        remember({key: True})


def decoder_layers(model: "PreTrainedModel") -> Any:  # noqa: ANN401 - a ModuleList, of a library imported late
    """The decoder layers of a model, each of which gives the residual stream behind it.

    Raises:
        UnusableModel: the model has no such layers, no norm behind them, or layers without a part that its row names.
    """
    from torch import nn

    decoder, family = model.base_model, family_of(model)
    layers = getattr(decoder, family.layers, None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(decoder, family.final_norm):
        raise UnusableModel(
            f"expected a decoder with .{family.layers} and a final .{family.final_norm}, got {type(model).__name__}, "
            "whose layers have other names. The installed transformers is not the one that families.py was written for"
        )
    parts = {part for part in (family.attn_out, family.mlp_out, family.mlp) if part is not None}
    if missing := sorted(part for part in parts if not all(hasattr(layer, part) for layer in layers)):
        raise UnusableModel(
            f"expected every layer of {type(model).__name__} to have {', '.join(missing)}, got layers without. The "
            "installed transformers is not the one that families.py was written for"
        )
    return layers


def family_of(model: "PreTrainedModel") -> Family:
    """The row of a model that was loaded. Raises UnusableModel where there is none."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise UnusableModel(f"expected a model of the types {', '.join(FAMILIES)}, got {kind!r}. Load another one")
    return FAMILIES[kind]


def _without_weights(
    config: "PreTrainedConfig", headers: dict[str, TensorHeader], folder: Path
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """The model on the meta device, and what transformers' loader has to say of the tensors in `headers`."""
    import torch
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    config.pad_token_id = None  # checked elsewhere, and no part of the structure
    shapes = {
        name: torch.empty(header.shape, dtype=getattr(torch, _DTYPES[header.dtype]), device="meta")
        for name, header in headers.items()
    }
    try:
        with quiet_loading():
            return model_class.from_pretrained(
                None,
                config=config,
                state_dict=shapes,
                device_map="meta",
                dtype=torch.float32,
                attn_implementation=model_family(folder).attention,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (AssertionError, AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableModel(
            f"expected a model that can be built from {folder / 'config.json'}, got: {_line(error)}. "
            "Correct the file, or choose another language_model.name"
        ) from error


def check_loading(information: dict[str, Any], folder: Path) -> None:
    """Refuses what transformers' loader would fill with random numbers, or leave out, and name in a warning only.

    Args:
        information: what `from_pretrained` returns with `output_loading_info`.
        folder: the checkpoint, for the message.

    Raises:
        UnusableModel: names the tensors.
    """
    family = model_family(folder)
    mismatched = {f"{name} {list(got)} for {list(wanted)}" for name, got, wanted in information["mismatched_keys"]}
    faults = {
        "is missing": information["missing_keys"],
        "has another shape": mismatched,
        "is not part of the model": {name for name in information["unexpected_keys"] if not family.is_buffer(name)},
        "cannot be loaded": information["error_msgs"],
    }
    found = [f"{what}: {named(names)}" for what, names in faults.items() if names]
    if found:
        raise UnusableModel(
            f"expected the weights in {folder} to be those of its config.json, but {'; '.join(found)}. Fetch the model "
            "again, or correct config.json: a missing tensor would be filled with random numbers"
        )


def _line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())[:300]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars and its report on the loading: `check_loading` makes errors of what it warns of."""
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()


@cache
def bridge_architectures() -> frozenset[str]:
    """The architectures that TransformerLens has adapters for, such as "Gemma2ForCausalLM".

    Read from its source, where they stand in one dictionary: importing it takes longer than all of the first stage.
    """
    package = importlib.util.find_spec("transformer_lens")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "factories" / "architecture_adapter_factory.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SUPPORTED_ARCHITECTURES":
            assert isinstance(node.value, ast.Dict)
            return frozenset(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    raise AssertionError(f"no SUPPORTED_ARCHITECTURES in {source}: the installed transformer-lens is another version")
