"""Checkpoints: safetensors files that hold all that a killed training needs, the position in the data included.

    checkpoint-<number of steps done>.safetensors      the last few are kept

A file appears whole or not at all. The newest sound one counts: a damaged one is named, and the one before it used.
"""

import errno
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from store.atomic import TEMPORARY_SUFFIX, sync_file, sync_folder, temporary_neighbour
from store.errors import DamagedFile, MismatchedCache
from store.read.batches import Position
from store.record import Record


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
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = CheckpointHead(
        format="train-checkpoint/2",
        key=key,
        num_steps_done=num_steps_done,
        position=position,
        tensors_sha256=_tensors_sha256(on_host),
    )
    path = folder / f"checkpoint-{num_steps_done:012d}.safetensors"
    _write(path, head, on_host)
    for old in checkpoints_in(folder)[num_kept:]:
        old.unlink(missing_ok=True)
    return path


def _write(path: Path, head: CheckpointHead, tensors: dict[str, Tensor]) -> None:
    """Writes the file beside `path`, syncs it and gives it its name: `path` is whole or as it was before."""
    temporary = temporary_neighbour(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"head": head.model_dump_json()})  # copies no tensor
        sync_file(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OSError(f"could not write {path}: {reason}. Free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


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
    path.open("rb").close()  # safetensors says of a file that it may not open that it is not there
    try:
        with safe_open(path, framework="pt") as file:
            head = CheckpointHead.model_validate_json((file.metadata() or {}).get("head", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, ValidationError) as error:
        if "os error" in str(error):  # as its part written in Rust says of the machine
            raise OSError(errno.EIO, f"could not read {path}: {error}. Check the disk and the memory") from error
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
