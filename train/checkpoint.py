"""Checkpoints: safetensors files that hold all that a killed training needs, the position in the data included.

    checkpoint-<number of steps done>.safetensors      the last few are kept

A file appears whole or not at all. The newest sound one counts: a damaged one is named, and the one before it used.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.atomic import TEMPORARY_SUFFIX, write_bytes
from store.errors import DamagedFile, MismatchedCache
from store.read.batches import Position
from store.record import Record

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The dtypes that a checkpoint can hold, as safetensors spells them."""


class CheckpointHead(Record):
    """What a checkpoint says about itself, in the metadata of the safetensors file."""

    format: Literal["train-checkpoint/2"]
    """Layout of the file."""
    key: str
    """Digest of all inputs of the groups of variants that are being trained."""
    num_steps_done: int
    """Steps done."""
    position: Position
    """The next batch to be read."""
    tensors_sha256: str
    """SHA-256 over the tensors' names, dtypes, shapes and bytes in order of their names."""


def save_checkpoint(
    folder: Path, *, key: str, num_steps_done: int, position: Position, tensors: Mapping[str, Tensor], num_kept: int
) -> Path:
    """Writes a checkpoint into `folder`, then removes all but the newest `num_kept`; the path.

    OSError where it cannot be written, such as on a full disk: the earlier ones are still there then.
    """
    # Larger items first, then by name: every tensor is aligned in the file.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    on_host = {name: tensors[name].detach().cpu().contiguous() for name in order}
    head = CheckpointHead(
        format="train-checkpoint/2",
        key=key,
        num_steps_done=num_steps_done,
        position=position,
        tensors_sha256=_tensors_sha256(on_host),
    )
    path = folder / f"checkpoint-{num_steps_done:012d}.safetensors"
    # Written tensor by tensor: safetensors' own `save` would hold all of them in memory once more.
    write_bytes(path, _header(head, on_host), *(_bytes_of(tensor) for tensor in on_host.values()))
    for old in checkpoints_in(folder)[num_kept:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, *, key: str) -> tuple[CheckpointHead, dict[str, Tensor]] | None:
    """The newest sound checkpoint of the training `key`, or None. Unusable ones are named on stderr and passed over."""
    for leftover in folder.glob(f"checkpoint-*{TEMPORARY_SUFFIX}"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    for path in checkpoints_in(folder):
        try:
            return load_checkpoint(path, key=key)
        except (DamagedFile, MismatchedCache) as error:
            print(f"train: {error}. It is passed over; the checkpoint before it is tried", file=sys.stderr)
            path.unlink(missing_ok=True)  # so that it never counts among those that are kept
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def load_checkpoint(path: Path, *, key: str) -> tuple[CheckpointHead, dict[str, Tensor]]:
    """The checkpoint at `path`, whole and of this training.

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


def _bytes_of(tensor: Tensor) -> memoryview:
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    running = hashlib.sha256()
    for name in sorted(tensors):
        running.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        running.update(_bytes_of(tensors[name]))
    return running.hexdigest()


def _header(head: CheckpointHead, tensors: Mapping[str, Tensor]) -> bytes:
    """The first part of a safetensors file: its length in 8 bytes, then JSON padded to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"head": head.model_dump_json()}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
