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
from language_model.checkpoint import TensorHeader, UnusableModel, named, read_object
from language_model.families import GEMMA
from language_model.memory import recall, remember
from store.atomic import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION: Final = "eager"
"""Attention is computed the plain way: Gemma-2's soft-capping is not part of the fused kernels."""
_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_config(folder: Path) -> "PreTrainedConfig":
    """The configuration of a folder as transformers has it; code that the folder brings along is never run.

    Raises:
        UnusableModel: transformers itself does not know the model type.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = folder / "config.json"
    kind = read_object(path).get("model_type")
    if kind not in CONFIG_MAPPING_NAMES or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        brought = [
            file for file in ("config.json", "tokenizer_config.json") if "auto_map" in read_object(folder / file)
        ]
        code = f"; the code that {' and '.join(brought)} names (auto_map) is never run" if brought else ""
        raise UnusableModel(
            f"expected a causal language model that transformers knows, got the model type {kind!r} in {path}{code}. "
            "Choose another language_model.name"
        )
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
    num_layers, found = read_object(folder / "config.json")[GEMMA.num_layers], len(decoder_layers(model))
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
        UnusableModel: the model has no such layers, or no norm behind them.
    """
    from torch import nn

    decoder = model.base_model
    layers = getattr(decoder, GEMMA.layers, None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(decoder, GEMMA.final_norm):
        raise UnusableModel(
            f"expected a decoder with .{GEMMA.layers} and a final .{GEMMA.final_norm}, as Gemma has, got "
            f"{type(model).__name__}, whose layers have other names. Choose another language_model.name"
        )
    return layers


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
                attn_implementation=ATTENTION,
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
    mismatched = {f"{name} {list(got)} for {list(wanted)}" for name, got, wanted in information["mismatched_keys"]}
    faults = {
        "is missing": information["missing_keys"],
        "has another shape": mismatched,
        "is not part of the model": information["unexpected_keys"],
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
