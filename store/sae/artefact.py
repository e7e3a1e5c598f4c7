"""The SAE artefact: the folder that training leaves and evaluation reads.

models/<variant>/sae_weights.safetensors   W_enc, W_dec, b_dec and what the form has besides; float32, for raw rows
models/<variant>/cfg.json                  SAELens's configuration: SAE.load_from_disk(folder) works
models/<variant>/card.json                 lineage, settings, final metrics
models/<variant>/log.jsonl                 the training record, a line per logged step
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import torch
from pydantic import Field, JsonValue, PositiveInt, StringConstraints, model_validator
from safetensors.torch import load, save
from torch import Tensor

from store.atomic import file_sha256, write_bytes, write_json
from store.cache.norm_limit import NormLimit
from store.cache.spec import FirstToken
from store.errors import DamagedFile, StoreError
from store.identity import ModelIdentity
from store.record import Record
from store.record_file import read_plain_record
from store.sae.weights import SAEForm, SAEWeights

WEIGHTS_FILE = "sae_weights.safetensors"
SAELENS_FILE = "cfg.json"
CARD_FILE = "card.json"
LOG_FILE = "log.jsonl"

Architecture = Literal["relu", "topk", "batchtopk", "jumprelu", "matryoshka-batchtopk", "gated"]
FORM_OF: dict[Architecture, SAEForm] = {
    "relu": "relu",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka-batchtopk": "jumprelu",
    "gated": "gated",
}
"""How an SAE encodes once it is trained."""

_SAELENS_NAMES: dict[SAEForm, str] = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}


class SAECard(Record):
    """Everything known about one trained SAE."""

    format: Literal["sae-card/1"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    """Name of the variant: also that of its folder, and part of pages and file names."""
    key: str
    """Digest of all that the training depended on; equal keys need no retraining."""
    architecture: Architecture
    """What it was trained as."""
    form: SAEForm
    """How it encodes."""
    k: int | None
    """Latents per row in the form topk."""
    d_model: PositiveInt
    d_sae: PositiveInt
    hook: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")]
    model: ModelIdentity
    cache_digest: str
    """Digest of the manifest of the activations it was trained on."""
    context_length: PositiveInt
    """Tokens per sequence of those activations, BOS included."""
    first_token: FirstToken = Field(default="bos", exclude_if=lambda first: first == "bos")
    """What those sequences began with; not in the file where it was BOS. So with the next field's ("bos",)."""
    excluded_positions: tuple[str, ...] = Field(default=("bos",), exclude_if=lambda names: names == ("bos",))
    """First positions of a sequence that had no row, as CacheSpec names them."""
    scale: Annotated[float, Field(gt=0)]
    """Training saw x * scale, chosen so that E||x||^2 = d_model; already folded into the stored biases."""
    norm_limit: NormLimit | None = Field(default=None, exclude_if=lambda limit: limit is None)
    """Rows above it were no part of training; None: all rows were."""
    seed: int
    num_steps: int
    num_training_rows: int
    train_version: int
    """Version of the training algorithm."""
    variant: dict[str, JsonValue]
    train: dict[str, JsonValue]
    final: dict[str, float | int | str]
    """Metrics at the end of training."""
    weights_sha256: str

    @model_validator(mode="after")
    def _form_fits(self) -> "SAECard":
        if self.form != FORM_OF[self.architecture]:
            raise ValueError(
                f"expected form {FORM_OF[self.architecture]!r} of a {self.architecture} SAE, got {self.form!r}"
            )
        if self.form == "topk" and not (self.k is not None and 1 <= self.k <= self.d_sae):
            raise ValueError(f"expected k of 1 to d_sae = {self.d_sae} in the form topk, got {self.k}")
        if self.form != "topk" and self.k is not None:
            raise ValueError(f"expected no k in the form {self.form!r}, got {self.k}")
        return self


def save_sae(
    folder: Path, weights: SAEWeights, card_fields: Mapping[str, Any], log_lines: Sequence[Mapping[str, Any]]
) -> SAECard:
    """Writes an artefact; the card, which makes it complete, comes last.

    Args:
        folder: of the variant.
        weights: for raw activations (scale folded back).
        card_fields: the fields of SAECard but format, form, k, d_model, d_sae and weights_sha256.
        log_lines: the training record.
    """
    d_model, d_sae = weights.W_enc.shape
    _check_weights(weights.tensors(), weights.form, d_model, d_sae, folder)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors().items()})
    write_bytes(folder / WEIGHTS_FILE, data)
    card = SAECard.model_validate(
        {
            **card_fields,
            "format": "sae-card/1",
            "form": weights.form,
            "k": weights.k,
            "d_model": d_model,
            "d_sae": d_sae,
            "weights_sha256": file_sha256(folder / WEIGHTS_FILE),
        }
    )
    write_json(folder / SAELENS_FILE, _saelens_config(card))
    lines = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in log_lines)
    write_bytes(folder / LOG_FILE, lines.encode())
    write_json(folder / CARD_FILE, card)
    return card


def load_card(folder: Path) -> SAECard:
    """The card of an artefact; a StoreError when there is none or it is not one."""
    if not (folder / CARD_FILE).is_file():
        raise StoreError(
            f"expected a trained SAE in {folder}, found no {CARD_FILE}. Run `dvc repro train`, or `dvc pull models`"
        )
    return read_plain_record(SAECard, folder / CARD_FILE)


def load_sae(folder: Path) -> tuple[SAEWeights, SAECard]:
    """Reads an artefact and checks its bytes, shapes and values against the card."""
    card = load_card(folder)
    path = folder / WEIGHTS_FILE
    # Read once, and not by safetensors, to which a file that it may not open is one that is not there.
    data = path.read_bytes() if path.is_file() else b""
    got = hashlib.sha256(data).hexdigest() if path.is_file() else "no file"
    if got != card.weights_sha256:
        raise DamagedFile(
            f"expected {path} with SHA-256 {card.weights_sha256}, got {got}. "
            "Remove the folder and run `dvc checkout models`, or train again"
        )
    try:
        tensors = load(data)
    except safetensors.SafetensorError as error:
        raise DamagedFile(f"expected safetensors in {path}: {error}. Train again") from error
    _check_weights(tensors, card.form, card.d_model, card.d_sae, folder)
    if card.form == "gated":
        tensors["b_enc"] = tensors.pop("b_gate")
    return SAEWeights(**tensors, k=card.k), card


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The training record, one dictionary per logged step."""
    path = folder / LOG_FILE
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(f"expected JSON lines in {path}: {error}. Train again, or pull the file again") from error


def _check_weights(tensors: Mapping[str, Tensor], form: SAEForm, d_model: int, d_sae: int, where: Path) -> None:
    per_latent = {"relu": ["b_enc"], "topk": ["b_enc"], "jumprelu": ["b_enc", "threshold"]}
    names = per_latent.get(form, ["b_gate", "r_mag", "b_mag"])
    expected: dict[str, tuple[int, ...]] = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    expected |= dict.fromkeys(names, (d_sae,))
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if got != expected or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise StoreError(f"expected float32 tensors {expected} for {where}, got {got}")
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise StoreError(f"expected finite weights for {where}, got NaN or infinity in {', '.join(bad)}")


def _saelens_config(card: SAECard) -> dict[str, Any]:
    """The cfg.json of a SAELens 6 SAE of the same form."""
    own = {"k": card.k, "rescale_acts_by_decoder_norm": False} if card.form == "topk" else {}
    return {
        "architecture": _SAELENS_NAMES[card.form],
        **own,
        "d_in": card.d_model,
        "d_sae": card.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # the version whose configuration format this is
            "model_name": card.model.name,
            "hook_name": card.hook,
            "context_size": card.context_length,
            "prepend_bos": card.first_token == "bos",
            "variant": card.name,
            "training_architecture": card.architecture,
            "cache_digest": card.cache_digest,
        },
    }
