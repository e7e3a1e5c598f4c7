"""Checkpoints: one safetensors file that holds all that a killed training needs, the position in the data included."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.atomic import write_bytes
from store.errors import DamagedFile, MismatchedCache
from store.reader import Position
from store.record import Record


class CheckpointHead(Record):
    """What a checkpoint says about itself, in the metadata of the safetensors file."""

    format: Literal["train-checkpoint/1"]
    """Layout of the file."""
    key: str
    """Digest of all inputs of the group of variants that is being trained."""
    num_steps_done: int
    """Steps done."""
    position: Position
    """The next batch to be read."""
    tensors_sha256: str
    """SHA-256 over the tensors' bytes in order of their names."""


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    running = hashlib.sha256()
    for name in sorted(tensors):
        running.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        running.update(tensors[name].numpy().data)
    return running.hexdigest()


def save_checkpoint(
    path: Path, *, key: str, num_steps_done: int, position: Position, tensors: Mapping[str, Tensor]
) -> None:
    """Replaces the checkpoint at `path`, atomically: a crash leaves the former one. OSError where the disk is full."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = CheckpointHead(
        format="train-checkpoint/1",
        key=key,
        num_steps_done=num_steps_done,
        position=position,
        tensors_sha256=_tensors_sha256(on_host),
    )
    write_bytes(path, safetensors.torch.save(on_host, metadata={"head": head.model_dump_json()}))


def load_checkpoint(path: Path, *, key: str) -> tuple[CheckpointHead, dict[str, Tensor]]:
    """The checkpoint at `path`, whole and of this group.

    Raises DamagedFile where the file is not what was written, MismatchedCache where it belongs to another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = CheckpointHead.model_validate_json((file.metadata() or {}).get("head", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedFile(f"expected a training checkpoint in {path}, found something else ({reason})") from error
    if head.key != key:
        raise MismatchedCache(
            f"expected the checkpoint of training {key[:12]} in {path}, found that of {head.key[:12]}"
        )
    found = _tensors_sha256(tensors)
    if found != head.tensors_sha256:
        raise DamagedFile(f"expected tensors of SHA-256 {head.tensors_sha256[:12]} in {path}, found {found[:12]}")
    return head, tensors
