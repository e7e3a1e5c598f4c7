"""Which model a checkpoint is: a digest over what decides its numbers, and over nothing else.

That are the tensors (name, number format, shape, bytes) and the settings in config.json. A folder's name, a file of
weights that is not loaded, how the tensors are spread over files, and settings that only describe a checkpoint are no
part of it: the same model stays the same one.

Reading all weights takes seconds for each gigabyte, and every stage asks. So the digests of a file's tensors are
remembered in the user's cache folder, for as long as the file keeps its path, size and times.
"""

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from language_model.checkpoint import TensorHeader, read_object, tensor_headers
from language_model.memory import recall, remember
from store.atomic import file_sha256
from store.identity import IDENTIFIED_BY_TENSORS

NO_PART_OF_A_MODEL: Final = (
    # labels
    "_name_or_path",
    "transformers_version",
    "architectures",
    # how it was stored; what it runs in is a setting of ours, recorded beside the identity
    "dtype",
    "torch_dtype",
    # which tokens begin and end a text: BOS is recorded by itself, and no activation depends on the others
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    # code that is never run
    "auto_map",
)
"""Entries of config.json that change no activation."""

REMEMBERED_BYTES: Final = 64 * 2**20
"""Files below this size are read again each time, which takes less than a tenth of a second."""
_SETTLED_SECONDS: Final = 5.0
_READ_BYTES: Final = 4 * 2**20


def weights_digest(folder: Path) -> str:
    """Over config.json and the tensors: SHA-256 (hex) and a mark that says how it was made."""
    config = {key: value for key, value in read_object(folder / "config.json").items() if key not in NO_PART_OF_A_MODEL}
    headers = tensor_headers(folder)
    digests = tensor_digests(headers)
    tensors = [[name, headers[name].dtype, headers[name].shape, digests[name]] for name in sorted(headers)]
    spelled = json.dumps([config, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(spelled.encode()).hexdigest() + IDENTIFIED_BY_TENSORS


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 (hex) of tokenizer.json, which is all that decides a token."""
    return file_sha256(folder / "tokenizer.json")


def tensor_digests(headers: dict[str, TensorHeader]) -> dict[str, str]:
    """SHA-256 (hex) of every tensor's bytes by name; from memory where the files are those that were read before."""
    by_file: dict[Path, dict[str, TensorHeader]] = {}
    for name, header in headers.items():
        by_file.setdefault(header.file, {})[name] = header
    known: dict[str, str] = {}
    found: dict[str, Any] = {}
    for path, tensors in by_file.items():
        key, before = f"tensors of {path.resolve()}", fingerprint(path)
        remembered = recall(key)
        if isinstance(remembered, dict) and remembered.keys() == {"state", *tensors} and remembered["state"] == before:
            known |= {name: remembered[name] for name in tensors}
            continue
        digests = _read(tensors)
        if _is_settled(before) and fingerprint(path) == before:
            found[key] = {"state": before, **digests}
        known |= digests
    remember(found)
    return known


def _read(headers: dict[str, TensorHeader]) -> dict[str, str]:
    """The digests of the tensors of one file, in its order; hashing runs beside reading."""
    ordered = sorted(headers, key=lambda name: headers[name].start)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        return dict(zip(ordered, threads.map(lambda name: _tensor_sha256(headers[name]), ordered), strict=True))


def _tensor_sha256(header: TensorHeader) -> str:
    running, left = hashlib.sha256(), header.nbytes
    with header.file.open("rb", buffering=0) as file:
        file.seek(header.start)
        while left:
            data = file.read(min(left, _READ_BYTES))
            if not data:
                raise OSError(f"expected {left} more bytes of a tensor in {header.file}, found its end")
            running.update(data)
            left -= len(data)
    return running.hexdigest()


def fingerprint(path: Path) -> list[int]:
    """What changes when a file does: size, and the times of its last change in bytes and in whatever else."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(state: list[int]) -> bool:
    """Whether a file is large, and has not changed lately: a change within the clock's steps would go unseen."""
    size, *times = state
    return size >= REMEMBERED_BYTES and time.time_ns() - max(times) > _SETTLED_SECONDS * 1e9
