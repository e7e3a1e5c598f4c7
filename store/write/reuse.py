"""Shards of other caches that can be taken over, hook by hook.

The rows of a hook do not depend on which other hooks were read in the same pass: reading a value changes none. So a
cache whose spec is ours but for the hooks has rows for us, unless it leaves sequences out.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.cache.left_out import LeftOut
from store.cache.manifest import FileRecord, ShardRecord, parse_manifest
from store.cache.moments import ShardSums
from store.cache.paths import MANIFEST_FILE, row_shard_path, shard_record_path, token_shard_path
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.errors import StoreError
from store.record_file import read_record_file

SPEC_FILE: Final = "spec.json"
"""What an unfinished cache is of; a finished one has its manifest."""


@dataclass(frozen=True)
class TakenRows:
    """One hook of one shard, as another cache has it."""

    file: FileRecord
    sums: ShardSums
    tokens: FileRecord
    """Of the tokens that the rows belong to."""
    left_out: LeftOut | None = None
    """Sequences that are not among them, because of any hook."""


def spec_in(files: Mapping[str, Path]) -> CacheSpec | None:
    """The spec of a cache, finished or not, by its files; None where they do not say."""
    with contextlib.suppress(FileNotFoundError, StoreError):  # damaged, or of another version: it says nothing
        if MANIFEST_FILE in files:
            return parse_manifest(files[MANIFEST_FILE].read_bytes(), where=str(files[MANIFEST_FILE])).spec
        if SPEC_FILE in files:
            return read_record_file(CacheSpec, files[SPEC_FILE])
    return None


def is_same_but_hooks(one: CacheSpec, other: CacheSpec) -> bool:
    """Whether two specs differ in nothing, or in their hooks alone where the rows of one do not depend on the others.

    They do where sequences that are not finite are left out: which, is a matter of all hooks.
    """
    if "leave_out" in (one.not_finite, other.not_finite):
        return one.digest == other.digest
    return one.model_copy(update={"hooks": other.hooks}).digest == other.digest


def rows_in(
    files: Mapping[str, Path],
    found: CacheSpec,
    *,
    split: Split,
    shard: int,
    num_sequences: int,
    hooks: tuple[str, ...],
    sha256: Callable[[Path], str],
) -> dict[str, TakenRows]:
    """What a cache has of a shard, by hook of `hooks`; every byte is compared with the record's digest.

    Args:
        files: of that cache, by path.
        found: its spec, the same as ours but for hooks.
        split, shard, num_sequences: of the shard.
        hooks: that are wanted.
        sha256: of a file.
    """
    path = files.get(shard_record_path(shard, split))
    try:
        record = read_record_file(ShardRecord, path) if path is not None else None
    except (StoreError, FileNotFoundError):
        return {}
    if record is None or (record.spec_digest, record.split, record.shard, record.num_sequences) != (
        found.digest, split, shard, num_sequences,
    ):  # fmt: skip
        return {}
    taken = {}
    for hook in (hook for hook in hooks if hook in record.sums):
        name = row_shard_path(hook, shard, split)
        if name in files and sha256(files[name]) == record.files[name].sha256:
            tokens = record.files[token_shard_path(shard, split)]
            taken[hook] = TakenRows(record.files[name], record.sums[hook], tokens, record.left_out)
    return taken
