"""From a model's name to a local checkpoint folder, and from the folder to a model, its tokenizer and its identity.

A folder is laid out like a hub checkpoint: config.json, *.safetensors, tokenizer.json and friends. Weights in other
formats (pickles) and code from a checkpoint are never loaded. The large libraries, which take seconds to import, are
imported where a model is really loaded: most stages only ask which one it is.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from language_model.families import GEMMA
from store.atomic import file_sha256, read_json
from store.identity import ModelIdentity

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_FILES = ["*.json", "*.safetensors", "tokenizer*"]
_HUB_TIMEOUT_SECONDS = 10


class ModelUnavailable(ValueError):
    """The language model is not on this machine and cannot be fetched."""


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
        raise _unavailable(name, f"the hub could not be reached ({type(error).__name__})") from error


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
    """Refuses a folder that lacks a part of a checkpoint."""
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing += [shard for shard in shards if not (folder / shard).is_file()]
    elif not (folder / "model.safetensors").is_file():
        missing.append("model.safetensors")
    if missing:
        raise ModelUnavailable(
            f"expected a checkpoint of {name!r} in {folder}, but it lacks {', '.join(missing)}. "
            "Fetch the model again, or name another folder in language_model.name"
        )
    for path in (folder / "config.json", folder / "tokenizer.json"):
        read_json(path)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ModelUnavailable(
                f"expected whole safetensors in {path}: {error}. Fetch the model again; the file is damaged"
            ) from error
    return folder


def identify(folder: Path, name: str, revision: str | None) -> ModelIdentity:
    """Which model a folder holds: shape from its config, digests over its files.

    A folder inside a hub cache is named by its commit; that commit is recorded, whatever branch or tag was asked for.
    """
    config, keys = read_json(folder / "config.json"), GEMMA
    commit = folder.name if folder.parent.name == "snapshots" else revision
    tokenizer_files = [path for path in sorted(folder.glob("tokenizer*")) if path.is_file()]
    wanted = (keys.d_model, keys.num_layers, keys.vocab_size)
    missing = [key for key in wanted if not isinstance(config.get(key), int)]
    bos = config.get(keys.bos_token_id)
    if missing or not isinstance(bos, int):
        raise ModelUnavailable(
            f"expected {folder / 'config.json'} to state {', '.join(missing) or keys.bos_token_id} as a number. "
            "Only decoder-only text models with a BOS token are supported"
        )
    return ModelIdentity(
        name=name if name == EMBEDDED or not Path(name).is_dir() else Path(name).name,
        revision=commit,
        weights_sha256=_files_digest([folder / "config.json", *sorted(folder.glob("*.safetensors"))]),
        tokenizer_sha256=_files_digest(tokenizer_files),
        d_model=config[keys.d_model],
        num_layers=config[keys.num_layers],
        vocab_size=config[keys.vocab_size],
        bos_token_id=bos,
    )


def _files_digest(files: Iterable[Path]) -> str:
    listing = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def load_model(folder: Path, *, dtype: "torch.dtype", device: str) -> "PreTrainedModel":
    """The causal language model of a folder, in evaluation mode.

    Attention is computed the plain way: Gemma-2's soft-capping is not part of the fused kernels.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True, use_safetensors=True
    )
    model.requires_grad_(False)
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The fast tokenizer of a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)


def load_bridge(folder: Path, *, dtype: "torch.dtype", device: str) -> "TransformerBridge":
    """The model of a folder behind TransformerLens's hook names, as sae-bench drives it; exact to the bit."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(folder), device=device, dtype=dtype, hf_model=load_model(folder, dtype=dtype, device=device)
    )
