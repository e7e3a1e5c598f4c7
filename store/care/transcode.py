"""The same rows in another codec: a complete cache of its own, with its own manifest."""

import os
import shutil
from pathlib import Path

import numpy as np

from store.cache.manifest import Manifest, Origin, ShardRecord, load_manifest
from store.cache.paths import MANIFEST_FILE, shard_record_path, truth_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.care.counted import StartCount, unseen
from store.care.verify import find_problems
from store.codec.bf16_planes import Numbers
from store.codec.names import CodecName
from store.codec.registry import encode_chunk
from store.errors import DamagedFile, StoreError
from store.lease import exclusive_lock
from store.read.cache import ActivationCache
from store.record_file import read_record_file, write_record_file
from store.replace import assembly_folder, check_target, is_vacant, replace_folder
from store.write.writer import CacheWriter

_MARGIN = 1.05
"""Chunks differ in how well they compress; the first one tells the others' size within this."""


def export(
    source: Path, destination: Path, *, codec: CodecName, num_threads: int, progress: StartCount = unseen
) -> Manifest:
    """Writes the rows and tokens of the cache `source`, in the same order, to a new cache compressed with `codec`.

    A killed export is continued by the next one. `destination` appears at the end, after every row of it was read back
    and compared. Exporting again what is there already does nothing.

    Args:
        source: a complete cache.
        destination: a folder that does not exist yet, or is empty.
        codec: one of the store's.
        num_threads: encoding at once, and files checked at once.
        progress: shows the rows that are encoded, and the bytes that are read back.

    Raises:
        StoreError: the source is damaged, the destination is something else, or there is too little space.
        Busy: another export to `destination` runs.
    """
    destination = Path(os.path.realpath(destination))
    if destination.is_relative_to(source.resolve()):
        raise StoreError(f"expected a folder outside the cache {source}, got {destination}. Choose another")
    cache = ActivationCache(source)
    origin = Origin(
        kind="exported", source_digest=cache.manifest.digest, source_codec=cache.spec.codec, changed_shards=()
    )
    spec = cache.spec.model_copy(update={"codec": codec})
    lineage = (*cache.manifest.lineage, origin)
    if (present := _present(destination, spec, lineage)) is not None:
        return present
    beside = destination.with_name(f".{destination.name}.{cache.manifest.digest[:16]}-{codec}.partial")
    scratch = assembly_folder(destination, beside)
    with exclusive_lock(scratch) as lease:
        check_target(destination, scratch)
        folder = scratch / "cache"
        with CacheWriter(
            folder,
            spec,
            num_sequences=cache.manifest.num_sequences,
            num_held_out_sequences=cache.manifest.num_held_out_sequences,
            num_threads=num_threads,
            lease=lease,
        ) as writer:
            _copy_missing(cache, writer, source=source, folder=scratch, progress=progress)
            truth = {hook: (source / truth_path(hook)).read_bytes() for hook in spec.hooks if spec.is_synthetic}
            written = writer.finish(text_account=cache.manifest.text_account, truth=truth)
            manifest = written.model_copy(update={"lineage": lineage})
        lease.check()
        write_record_file(folder / MANIFEST_FILE, manifest)
        _check_equal(cache, folder, num_threads=num_threads, progress=progress)
        lease.check()
        if not is_vacant(destination):
            raise StoreError(f"expected {destination} to stay empty, found something. Move it away and export again")
        replace_folder(folder, destination)
        shutil.rmtree(scratch, ignore_errors=True)  # while it is ours
    return manifest


def _present(destination: Path, spec: CacheSpec, lineage: tuple[Origin, ...]) -> Manifest | None:
    """The manifest of an earlier result of this export; None where nothing is there, StoreError for anything else."""
    if is_vacant(destination):
        return None
    try:
        manifest = load_manifest(destination)
    except StoreError:
        manifest = None
    if manifest is None or (manifest.spec, manifest.lineage) != (spec, lineage):
        what = "another cache" if manifest else "something else"
        raise StoreError(
            f"expected nothing at {destination}, or the result of this export; found {what}. "
            "Choose another folder, or remove that one yourself"
        )
    return manifest


def _copy_missing(
    cache: ActivationCache, writer: CacheWriter, *, source: Path, folder: Path, progress: StartCount
) -> None:
    spec = cache.spec
    missing = [(split, shard) for split in SPLITS for shard in writer.missing_shards(split)]
    num_shards = sum(map(writer.num_shards, SPLITS))
    _check_free_space(cache, folder, codec=writer.spec.codec, share=len(missing) / num_shards)
    num_rows = sum(cache.manifest.split_rows(split) for split in SPLITS)
    num_missing = sum(writer.shard_sequences(shard, split) for split, shard in missing) * spec.rows_per_sequence
    with progress("export", total=num_rows, unit="row", done=num_rows - num_missing) as count:
        for split, shard in missing:
            rows = _row_numbers(cache, split, shard)
            record = read_record_file(ShardRecord, source / shard_record_path(shard, split))
            writer.submit_shard(
                shard,
                split=split,
                tokens=cache.tokens(np.unique(rows // spec.rows_per_sequence), split=split),
                rows={hook: cache.rows(hook, rows, split=split) for hook in spec.hooks},
                sums=record.sums,
                left_out=record.left_out,
            )
            count.update(len(rows))


def _row_numbers(cache: ActivationCache, split: Split, shard: int) -> Numbers:
    """Of a shard's rows, in sequence order."""
    first = shard * cache.spec.rows_per_shard
    return np.arange(first, min(first + cache.spec.rows_per_shard, cache.manifest.split_rows(split)), dtype=np.int64)


def _check_equal(cache: ActivationCache, folder: Path, *, num_threads: int, progress: StartCount) -> None:
    """Reads the new cache back and compares every file with its checksum, and every row and token with the source."""
    written = ActivationCache(folder)
    if problems := find_problems(folder, written.manifest, full=True, num_threads=num_threads, progress=progress):
        raise DamagedFile("\n".join(problems.values()))
    for split in SPLITS:
        for shard in range(cache.spec.num_shards(cache.manifest.split_sequences(split))):
            rows = _row_numbers(cache, split, shard)
            sequences = np.unique(rows // cache.spec.rows_per_sequence)
            same = np.array_equal(written.tokens(sequences, split=split), cache.tokens(sequences, split=split)) and all(
                np.array_equal(written.rows(hook, rows, split=split), cache.rows(hook, rows, split=split))
                for hook in cache.spec.hooks
            )
            if not same:
                raise DamagedFile(
                    f"expected the rows and tokens of {shard_record_path(shard, split)} of {cache.location} in "
                    f"{folder}, got others. Export again"
                )


def _check_free_space(cache: ActivationCache, folder: Path, *, codec: CodecName, share: float) -> None:
    """Refuses before anything is written; how well a codec does is told from the first chunk of each hook."""
    if share == 0:
        return
    spec, manifest = cache.spec, cache.manifest
    num_rows = sum(manifest.split_rows(split) for split in SPLITS)
    num_sample = min(spec.rows_per_chunk, manifest.num_rows)
    needed = sum(file.nbytes for file in manifest.files.values()) - sum(map(manifest.stored_nbytes, spec.hooks))
    for hook in spec.hooks:
        sample = cache.rows(hook, np.arange(num_sample))
        needed += int(_MARGIN * len(encode_chunk(codec, sample)) * num_rows / num_sample)
    needed = int(needed * share)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise StoreError(
            f"expected at least {needed / 1e9:.3f} GB of free space below {folder} for the rows in the codec {codec}, "
            f"got {free / 1e9:.3f} GB. Free some, or choose another folder or codec"
        )
