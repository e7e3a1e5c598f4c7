"""From a model's name to a local checkpoint folder, and from the folder to a model, its tokenizer and its identity.

A folder is laid out like a hub checkpoint: config.json, *.safetensors, tokenizer.json and friends. Weights in other
formats (pickles) and code from a checkpoint are never loaded. `identify` refuses what a later stage could not run, so
that the first stage says it. The large libraries, which take seconds to import, are imported where they are needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from language_model.checkpoint import (
    ModelUnavailable,
    UnusableModel,
    check_config,
    check_dtypes,
    check_files,
    model_family,
    tensor_headers,
)
from language_model.families import Attention
from language_model.hub import asking_hub, hub_problem
from language_model.identity import tokenizer_digest, weights_digest
from language_model.special_tokens import bos_token, special_tokens
from language_model.structure import check_loading, check_structure_once, load_config, quiet_loading
from language_model.tokenizer import transformers_tokenizer
from store.identity import ModelIdentity
from store.machine import explain, is_of_this_machine

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_FILES = ["*.json", "*.safetensors", "tokenizer*"]
_HUB_TIMEOUT_SECONDS = 10


def resolve(name: str, revision: str | None) -> Path:
    """The checkpoint folder of a model: embedded, a local folder, or from the hub (its local cache first).

    Raises:
        ModelUnavailable: with everything that may be missing, in one message.
    """
    if name == EMBEDDED:
        return _checked(EMBEDDED_FOLDER, name)
    local = Path(name)
    if local.is_dir():
        return _checked(local, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelUnavailable(
            f"expected language_model.name to be {EMBEDDED!r}, an existing folder or a hub id OWNER/NAME, got {name!r}"
        )
    try:
        return _checked(_snapshot(name, revision, local_files_only=True), name)
    except (LocalEntryNotFoundError, ModelUnavailable):
        pass  # not here, or only in part: ask the hub
    try:
        with asking_hub():
            return _checked(_snapshot(name, revision, local_files_only=False), name)
    except GatedRepoError as error:
        raise _unavailable(name, "its licence is not accepted, or no token was given") from error
    except RevisionNotFoundError as error:
        raise _unavailable(name, f"it has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise _unavailable(name, "the hub knows no such model, or does not show it without a token") from error
    except HFValidationError as error:
        raise _unavailable(name, "that is not a valid hub id") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and is_of_this_machine(error):  # such as a full disk
            raise explain(error, f"fetch the language model {name!r}") from error
        raise _unavailable(name, hub_problem(error)) from error


def _snapshot(name: str, revision: str | None, *, local_files_only: bool) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=_FILES,
            local_files_only=local_files_only,
            etag_timeout=_HUB_TIMEOUT_SECONDS,
        )
    )


def _unavailable(name: str, reason: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the language model {name!r} is not on this machine and could not be fetched: {reason}. It needs "
        f"(1) its licence accepted on its hub page with your account, (2) a token of that account in HF_TOKEN or from "
        f"`hf auth login`, (3) the hub within reach, or the model already in the hub cache (HF_HOME). Earlier outputs "
        f"are untouched; `profile: {EMBEDDED}` in params.yaml needs none of this"
    )


def _checked(folder: Path, name: str) -> Path:
    check_files(folder, name)
    return folder


def identify(folder: Path, name: str, revision: str | None) -> ModelIdentity:
    """Which model a folder holds: shape from its config, digests over its files.

    A folder inside a hub cache is named by its commit; that commit is recorded, whatever branch or tag was asked for.
    Another local folder gets a name from its contents, so that the same bytes are the same model wherever they lie.

    Raises:
        UnusableModel: a later stage could not run it, or its files contradict each other; see the checks called here.
    """
    config, family = check_config(folder), model_family(folder)
    headers = {name: header for name, header in tensor_headers(folder).items() if not family.is_buffer(name)}
    check_dtypes(headers)
    bos = bos_token(folder)
    check_structure_once(folder, headers)
    special_tokens(folder)
    commit = folder.name if folder.parent.name == "snapshots" else revision
    digest = weights_digest(folder)
    return ModelIdentity(
        name=name if name == EMBEDDED or not Path(name).is_dir() else f"{config['model_type']}-{digest[:8]}",
        revision=commit,
        weights_sha256=digest,
        tokenizer_sha256=tokenizer_digest(folder),
        d_model=config[family.d_model],
        num_layers=config[family.num_layers],
        vocab_size=config[family.vocab_size],
        bos_token_id=bos,
    )


def max_positions(folder: Path) -> int:
    """The longest sequence, in tokens, that the model of a folder can read."""
    positions: int = check_config(folder)[model_family(folder).max_positions]
    return positions


def load_model(
    folder: Path, *, dtype: "torch.dtype", device: str, attention: Attention | None = None
) -> "PreTrainedModel":
    """The causal language model of a folder, in evaluation mode, with every weight from its files.

    `attention` is what its family allows, if None.

    Raises:
        UnusableModel: tensors are missing, have another shape or are not the model's.
    """
    from transformers import AutoModelForCausalLM

    model, information = _from_files(AutoModelForCausalLM, folder, load_config(folder), dtype, attention)
    check_loading(information, folder)
    return model.to(device).eval()


def load_decoder(folder: Path, *, num_layers: int, dtype: "torch.dtype", device: str) -> "PreTrainedModel":
    """The base model of a folder with its first `num_layers` decoder layers, in evaluation mode.

    Tensors of the layers above and of a head that is not tied are not read from the files. The final norm is there, and
    stands behind the wrong layer.

    Raises:
        UnusableModel: the model has fewer layers; tensors are missing or have another shape.
    """
    from transformers import AutoModel

    config, family = load_config(folder), model_family(folder)
    num_stated = getattr(config, family.num_layers)
    if not 1 <= num_layers <= num_stated:
        raise UnusableModel(
            f"expected 1 to {num_stated} layers of the model in {folder}, got {num_layers}. Correct harvest.hooks"
        )
    setattr(config, family.num_layers, num_layers)
    for key in _SETTINGS_BY_LAYER:
        if getattr(config, key, None) is not None:
            setattr(config, key, getattr(config, key)[:num_layers])
    model, information = _from_files(AutoModel, folder, config, dtype, None)
    check_loading(information | {"unexpected_keys": ()}, folder)  # `identify` has compared all of them with the model
    return model.to(device).eval()


_SETTINGS_BY_LAYER = ("layer_types", "no_rope_layers")
"""Lists in a configuration with an entry for each layer."""


def _from_files(
    kind: "type[AutoModel | AutoModelForCausalLM]",
    folder: Path,
    config: "PreTrainedConfig",
    dtype: "torch.dtype",
    attention: Attention | None,
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """A model on the CPU, and what transformers' loader has to say of it. A tensor without a place is not read."""
    with quiet_loading():
        model, information = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention or model_family(folder).attention,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model.requires_grad_(False)
    return model, information


def load_bridge(folder: Path, *, dtype: "torch.dtype", device: str) -> "TransformerBridge":
    """The model of a folder behind TransformerLens's hook names, as sae-bench drives it; exact to the bit.

    Its attention is computed step by step, as the bridge shows the steps.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = load_model(folder, dtype=dtype, device=device, attention="eager")
    model.config.architectures = [type(model).__name__]  # what it is, whatever config.json calls it
    return TransformerBridge.boot_transformers(
        str(folder),
        device=device,
        dtype=dtype,
        hf_model=model,
        tokenizer=transformers_tokenizer(folder),
        trust_remote_code=False,
    )
