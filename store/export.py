"""The same rows in another codec: a complete cache of its own, with its own manifest."""

import os
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from store.atomic import exclusive_lock, sync_folder
from store.codec import CodecName, encode_chunk
from store.errors import DamagedFile, StoreError
from store.inspect import find_problems, hook_nbytes
from store.manifest import (
    MANIFEST_FILE,
    CacheSpec,
    Manifest,
    Origin,
    ShardRecord,
    load_manifest,
    shard_record_path,
)
from store.reader import ActivationCache
from store.sealed import read_sealed, write_sealed
from store.writer import CacheWriter

_MARGIN = 1.05
"""Chunks differ in how well they compress; the first one tells the others' size within this."""


def export(source: Path, destination: Path, *, codec: CodecName, num_threads: int) -> Manifest:
    """Writes the rows and tokens of the cache `source`, in the same order, to a new cache compressed with `codec`.

    A killed export is continued by the next one. `destination` appears at the end, after every row of it was read back
    and compared. Exporting again what is there already does nothing.

    Args:
        source: a complete cache.
        destination: a folder that does not exist yet, or is empty.
        codec: one of the store's.
        num_threads: files checked at once.

    Raises:
        StoreError: the source is damaged, the destination is something else, or there is too little space.
        Busy: another export to `destination` runs.
    """
    if destination.resolve().is_relative_to(source.resolve()):
        raise StoreError(f"expected a folder outside the cache {source}, got {destination}. Choose another")
    cache = ActivationCache(source)
    origin = Origin(
        kind="exported", source_digest=cache.manifest.digest, source_codec=cache.spec.codec, changed_shards=()
    )
    spec = cache.spec.model_copy(update={"codec": codec})
    lineage = (*cache.manifest.lineage, origin)
    if (present := _present(destination, spec, lineage)) is not None:
        return present
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = destination.with_name(f".{destination.name}.{cache.manifest.digest[:16]}-{codec}.partial")
    with exclusive_lock(scratch) as lease:
        folder = scratch / "cache"
        writer = CacheWriter(folder, spec, num_sequences=cache.manifest.num_sequences, lease=lease)
        missing = writer.missing_shards()
        _check_free_space(cache, destination.parent, codec=codec, num_shards=len(missing))
        with tqdm(
            total=cache.manifest.num_rows * len(spec.hooks), unit="row", unit_scale=True, desc="export", leave=False
        ) as progress:
            for shard in range(writer.num_shards):
                if shard in missing:
                    _copy_shard(cache, writer, shard)
                progress.update(writer.shard_sequences(shard) * spec.rows_per_sequence * len(spec.hooks))
        writer.write_held_out(cache.held_out_tokens())
        manifest = writer.finish().model_copy(update={"lineage": lineage})
        lease.check()
        write_sealed(folder / MANIFEST_FILE, manifest)
        _check_equal(cache, folder, num_threads=num_threads)
        lease.check()
        folder.rename(destination)  # replaces an empty folder, and nothing else
        sync_folder(destination.parent)
    shutil.rmtree(scratch)
    return manifest


def _present(destination: Path, spec: CacheSpec, lineage: tuple[Origin, ...]) -> Manifest | None:
    """What an earlier export left at the destination; anything else there is refused."""
    if not destination.exists() and not destination.is_symlink():
        return None
    if destination.is_dir() and not any(destination.iterdir()):
        return None
    try:
        manifest = load_manifest(destination)
    except StoreError:
        manifest = None
    if manifest is None or (manifest.spec, manifest.lineage) != (spec, lineage):
        what = "another cache" if manifest else "something else"
        raise StoreError(
            f"expected nothing at {destination}, or this very export; found {what}. "
            "Choose another folder, or remove that one yourself"
        )
    return manifest


def _copy_shard(cache: ActivationCache, writer: CacheWriter, shard: int) -> None:
    spec = cache.spec
    first = shard * spec.sequences_per_shard
    sequences = np.arange(first, first + writer.shard_sequences(shard))
    rows = _shard_row_numbers(cache, shard)
    record = read_sealed(ShardRecord, cache.folder / shard_record_path(shard))
    writer.write_shard(
        shard,
        tokens=cache.tokens(sequences),
        rows={hook: cache.rows(hook, rows) for hook in spec.hooks},
        sums=record.sums,
    )


def _shard_row_numbers(cache: ActivationCache, shard: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    first = shard * cache.spec.rows_per_shard
    return np.arange(first, min(first + cache.spec.rows_per_shard, cache.manifest.num_rows), dtype=np.int64)


def _check_equal(cache: ActivationCache, folder: Path, *, num_threads: int) -> None:
    """Reads the new cache back and compares every file with its checksum, and every row and token with the source."""
    written = ActivationCache(folder)
    if problems := find_problems(folder, written.manifest, full=True, num_threads=num_threads):
        raise DamagedFile("\n".join(problems.values()))
    if not np.array_equal(written.held_out_tokens(), cache.held_out_tokens()):
        raise DamagedFile(f"expected the held-out tokens of {cache.folder} in {folder}, got others. Export again")
    for shard in range(cache.manifest.num_shards):
        rows = _shard_row_numbers(cache, shard)
        sequences = np.unique(rows // cache.spec.rows_per_sequence)
        same = np.array_equal(written.tokens(sequences), cache.tokens(sequences)) and all(
            np.array_equal(written.rows(hook, rows), cache.rows(hook, rows)) for hook in cache.spec.hooks
        )
        if not same:
            raise DamagedFile(
                f"expected the rows and tokens of shard {shard} of {cache.folder} in {folder}, got others. Export again"
            )


def _check_free_space(cache: ActivationCache, folder: Path, *, codec: CodecName, num_shards: int) -> None:
    """Refuses before anything is written; how well a codec does is told from the first chunk of each hook."""
    if num_shards == 0:
        return
    spec, manifest = cache.spec, cache.manifest
    num_sample = min(spec.rows_per_chunk, manifest.num_rows)
    needed = sum(file.nbytes for file in manifest.files.values()) - sum(hook_nbytes(manifest, h) for h in spec.hooks)
    for hook in spec.hooks:
        sample = cache.rows(hook, np.arange(num_sample))
        needed += int(_MARGIN * len(encode_chunk(codec, sample)) * manifest.num_rows / num_sample)
    needed = needed * num_shards // manifest.num_shards
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise StoreError(
            f"expected at least {needed / 1e9:.3f} GB of free space below {folder} for the rows in the codec {codec}, "
            f"got {free / 1e9:.3f} GB. Free some, or choose another folder or codec"
        )
