"""Whether the files of a cache are still as they were written."""

import errno
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from store.cache.manifest import FileRecord, Manifest, ShardRecord, load_manifest
from store.cache.moments import ShardSums, combine_moments
from store.cache.paths import MANIFEST_FILE, shard_record_path
from store.cache.split import SPLITS, Split
from store.care.counted import StartCount, unseen
from store.errors import MachineError, StoreError, Unreachable
from store.files.open import Place, open_files
from store.files.protocol import Files, address
from store.machine import explain
from store.record_file import check_record_size, parse_record_file

_BLOCK_NBYTES = 4 * 2**20
_MAX_LISTED = 10
_METADATA = "zarr.json"
"""Files that the fast check reads too: their few bytes decide how all others are read."""


def verify(location: Place, *, full: bool, num_threads: int, progress: StartCount = unseen) -> list[str]:
    """Checks every file of a cache; returns one line per file that is not as it was written.

    Args:
        location: of the cache. Its manifest must be whole: a StoreError says what is wrong with it.
        full: also read every byte and compare SHA-256 digests.
        num_threads: files read at once.
        progress: shows the bytes that are read.

    Raises:
        MachineError: some files could not be read here and now, which says nothing about their bytes.
        Unreachable: a bucket or server did not let us read.
    """
    files = open_files(location, mode="pread")
    manifest = load_manifest(files)
    problems = find_problems(files, manifest, full=full, num_threads=num_threads, progress=progress)
    return [*problems.values(), *(f"{where}: expected no such file" for where in unlisted_files(files, manifest))]


def find_problems(
    location: Place, manifest: Manifest, *, full: bool, num_threads: int, progress: StartCount = unseen
) -> dict[str, str]:
    """What is wrong with files that the manifest lists, by name: a line that names the file and what was expected.

    The largest files are read first, so that no thread is left alone with one of them at the end. Raises as `verify`.
    """
    files = open_files(location, mode="pread")
    sizes = files.sizes()
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].nbytes, name))
    wanted = {name for name in names if full or name.endswith(_METADATA)}
    unread: dict[str, OSError] = {}
    with (
        progress("verify", total=sum(manifest.files[name].nbytes for name in wanted), unit="byte") as count,
        ThreadPoolExecutor(max(num_threads, files.parallel_reads), thread_name_prefix="verify") as threads,
    ):

        def check(name: str) -> str | None:
            try:
                nbytes = files.size(name) if sizes is None else sizes.get(name)
                return _file_problem(
                    files, name, manifest.files[name], nbytes=nbytes, advance=count.update if name in wanted else None
                )
            except Unreachable:
                raise
            except StoreError as error:
                nbytes = manifest.files[name].nbytes
                return f"{address(files, name)}: expected {nbytes} bytes, could not be read: {error}"
            except OSError as error:
                unread[name] = error
                return None

        found = {name: problem for name, problem in zip(names, threads.map(check, names), strict=True) if problem}
    if unread:
        raise _not_judged(files.location, unread, num_damaged=len(found))
    found |= _record_problems(files, manifest, skip=set(found))
    return dict(sorted(found.items()))


def _not_judged(location: str, unread: dict[str, OSError], *, num_damaged: int) -> MachineError:
    """The error of files that the machine would not let us read."""
    shown = [str(explain(unread[name], f"read {name}")) for name in sorted(unread)[:_MAX_LISTED]]
    more = len(unread) - len(shown)
    first = next(iter(unread.values())).errno
    lines = [
        *shown,
        *([f"and {more} more"] if more else []),
        f"{len(unread)} of the files of {location} could not be read on this machine now, which is no damage: nothing "
        f"was judged or repaired. Of those that could be read, {num_damaged} are not as they were written",
    ]
    return MachineError(first or errno.EIO, "\n".join(lines))


def _file_problem(
    files: Files, name: str, record: FileRecord, *, nbytes: int | None, advance: Callable[[int], object] | None
) -> str | None:
    """What is wrong with a file that has `nbytes` now; its bytes are read if `advance` is there to be told of them."""
    where = address(files, name)
    if nbytes is None:
        return f"{where}: expected {record.nbytes} bytes, found no file"
    if nbytes != record.nbytes:
        return f"{where}: expected {record.nbytes} bytes, got {nbytes}"
    if advance is None:
        return None
    hasher, reader = hashlib.sha256(), files.open_range(name, nbytes)
    for offset in range(0, nbytes, _BLOCK_NBYTES):
        block = reader.read(offset, min(_BLOCK_NBYTES, nbytes - offset))
        hasher.update(block.data)
        advance(len(block))
    if hasher.hexdigest() != record.sha256:
        return f"{where}: expected SHA-256 {record.sha256}, got {hasher.hexdigest()}"
    return None


def _record_problems(files: Files, manifest: Manifest, *, skip: set[str]) -> dict[str, str]:
    """Shard records that are no records, or say something else than the manifest."""
    problems: dict[str, str] = {}
    for split in SPLITS:
        sums: list[dict[str, ShardSums]] = []
        for shard in range(manifest.spec.num_shards(manifest.split_sequences(split))):
            name = shard_record_path(shard, split)
            if name in skip:
                continue
            where = address(files, name)
            try:
                check_record_size(manifest.files[name].nbytes, where=where)
                record = parse_record_file(ShardRecord, files.read(name), where=where)
            except Unreachable:
                raise
            except StoreError as error:
                problems[name] = f"{where}: {error}"
                continue
            sums.append(record.sums)
            if not _belongs(record, manifest, shard, split):
                problems[name] = f"{where}: expected the record of shard {shard} of this cache, got another's"
        if split == "training" and len(sums) == manifest.num_shards and not problems:
            for hook, moments in manifest.moments.items():
                if combine_moments([of_shard[hook] for of_shard in sums]) != moments:
                    where = address(files, MANIFEST_FILE)
                    problems[MANIFEST_FILE] = f"{where}: expected the moments of {hook} to be those of its shards"
    return problems


def _belongs(record: ShardRecord, manifest: Manifest, shard: int, split: Split) -> bool:
    """Whether a record is that of this shard of this cache, and lists the files that the manifest does."""
    widths = {len(sums.sum) for sums in record.sums.values()} | {len(s.sum_of_squares) for s in record.sums.values()}
    spec = manifest.spec
    per_shard = spec.sequences_per_shard
    num_sequences = min(per_shard, manifest.split_sequences(split) - shard * per_shard)
    named = (record.spec_digest, record.split, record.shard) == (spec.digest, split, shard)
    sized = record.num_sequences == num_sequences and {
        hook: sums.num_rows for hook, sums in record.sums.items()
    } == dict.fromkeys(spec.hooks, num_sequences * spec.rows_per_sequence)
    listed = all(manifest.files.get(file) == entry for file, entry in record.files.items())
    return named and sized and listed and widths == {spec.model.d_model}


def unlisted_files(location: Place, manifest: Manifest) -> list[str]:
    """Files that the manifest does not list: zarr would read some as data. Empty where none can be listed (http)."""
    files = open_files(location, mode="pread")
    unknown = set(files.sizes() or ()) - manifest.files.keys() - {MANIFEST_FILE}
    return [address(files, name) for name in sorted(unknown)]
