"""Token windows from an earlier cache, where they are those that the text would give again.

Reading and tokenizing fifty million tokens takes most of an hour; the cache holds them. They depend on the text, the
tokenizer and a few settings, and neither on the model's weights, nor on hooks, codec, or sizes of chunks and shards.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from harvest.streams import Tokens
from harvest.windows import keep_account, write_shard
from store.cache.manifest import Manifest
from store.cache.paths import token_shard_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.errors import StoreError
from store.read.tokens import decode_token_shard
from store.write.reuse import is_same_but_hooks


def has_same_windows(one: CacheSpec, other: CacheSpec) -> bool:
    """Whether the same number of sequences are the same windows of the same text.

    Where sequences are left out, the windows of a cache are not those of the text.
    """
    if "leave_out" in (one.not_finite, other.not_finite):
        return is_same_but_hooks(one, other)
    return _windows_of(one) == _windows_of(other)


def take_windows(files: Mapping[str, Path], manifest: Manifest, spec: CacheSpec, *, folder: Path) -> bool:
    """Keeps all windows of an earlier cache, and its account of the text, in `folder`, as WindowSource does.

    Args:
        files: of that cache, by path.
        manifest: of that cache, whose windows are ours in kind and number.
        spec: ours, which says how they are cut into shards.
        folder: of a WindowSource of ours.

    Returns:
        Whether it did: not, where a file is not there or not as it was written, where no account was recorded, or
        where the cache leaves sequences out, whose windows it does not have.
    """
    if spec.not_finite == "leave_out" or manifest.text_account is None:
        return False
    try:
        for split in SPLITS:
            for shard, windows in enumerate(_cut(_read(files, manifest, split), spec.sequences_per_shard)):
                write_shard(folder, split, shard, windows)
    except (StoreError, FileNotFoundError):
        return False
    keep_account(folder, manifest.text_account)
    return True


def _windows_of(spec: CacheSpec) -> tuple[object, ...]:
    model = spec.model
    return (
        spec.text,
        spec.packing,
        spec.context_length,
        spec.first_token,
        spec.held_out_fraction,
        spec.harvest_version,
        model.tokenizer_sha256,
        model.vocab_size,
        model.bos_token_id,
    )


def _read(files: Mapping[str, Path], manifest: Manifest, split: Split) -> Iterator[Tokens]:
    """The windows of a split, shard by shard of that cache, every byte compared with the manifest's SHA-256."""
    spec, num_left = manifest.spec, manifest.split_sequences(split)
    for shard in range(spec.num_shards(num_left)):
        name = token_shard_path(shard, split)
        if name not in files:
            raise FileNotFoundError(name)
        data = files[name].read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
            raise StoreError(f"expected {files[name]} as it was written, got other bytes")
        windows = decode_token_shard(data, spec, where=str(files[name]))[:num_left]
        num_left -= len(windows)
        yield windows


def _cut(pieces: Iterator[Tokens], size: int) -> Iterator[Tokens]:
    """The same windows, `size` at a time."""
    rest: list[Tokens] = []
    for piece in pieces:
        whole = np.concatenate([*rest, piece])
        full = len(whole) - len(whole) % size
        yield from (whole[start : start + size] for start in range(0, full, size))
        rest = [whole[full:]]
    if rest and len(rest[0]):
        yield rest[0]
