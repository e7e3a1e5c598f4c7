"""Shards of earlier harvests: of runs that were interrupted, and of earlier outputs, also with other hooks."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from compute.progress import say
from harvest.earlier_windows import has_same_windows, take_windows
from harvest.shards import missing_shards
from store.cache.manifest import Manifest, parse_manifest
from store.cache.paths import MANIFEST_FILE
from store.cache.spec import CacheSpec, spec_difference
from store.cache.split import SPLITS
from store.cache.text_account import TextAccount
from store.care.dvc_versions import earlier_outputs, files_in
from store.errors import StoreError
from store.identity import how_identified
from store.write.growing import GrowingCache


def reuse_shards(
    cache: GrowingCache, output: Path, *, interrupted: Sequence[Path], windows: Path
) -> TextAccount | None:
    """Reuses shards of the folders `interrupted`, whatever their number of rows, and of earlier outputs; says so.

    Returns the account of the text, if an earlier output of the same text and size has it: then no text is read. Where
    rows are missing nevertheless, its token windows are kept in the folder `windows`, for a WindowSource.
    """
    for folder in interrupted:
        cache.reuse_shards(files_in(folder))
    before, earlier_specs, account = _hooks_missing(cache), [], None
    for files in earlier_outputs(output.as_posix()):
        if account is not None and not missing_shards(cache):
            break
        cache.reuse_shards(files)
        if (earlier := _manifest(files)) is not None:
            earlier_specs.append(earlier.spec)
            if account is None:
                account = _account(cache, earlier, files, windows=windows)
    if earlier_specs and _hooks_missing(cache) == before:
        _tell_difference(earlier_specs[0], cache.spec)
    return account


def _manifest(files: Mapping[str, Path]) -> Manifest | None:
    if MANIFEST_FILE in files:
        with contextlib.suppress(OSError, StoreError):  # damaged, or of another version: it says nothing
            return parse_manifest(files[MANIFEST_FILE].read_bytes(), where=MANIFEST_FILE)
    return None


def _account(cache: GrowingCache, earlier: Manifest, files: Mapping[str, Path], *, windows: Path) -> TextAccount | None:
    """The account of an earlier cache, if it is ours; with it come the windows, where rows are missing."""
    ours, theirs = (
        (cache.num_sequences, cache.num_held_out_sequences),
        (earlier.num_sequences, earlier.num_held_out_sequences),
    )
    if ours != theirs or not has_same_windows(cache.spec, earlier.spec):
        return None
    if missing_shards(cache) and take_windows(files, earlier, cache.spec, folder=windows):
        say("harvest", "the tokens of the earlier cache are those of this text: no text is read")
    return earlier.text_account


def tell_what_is_reused(cache: GrowingCache) -> None:
    """Says how many shards are there already, and which hooks of others."""
    missing = missing_shards(cache)
    num_shards = sum(map(cache.num_shards, SPLITS))
    if len(missing) < num_shards:
        say("harvest", f"{num_shards - len(missing)} of {num_shards} shards are unchanged and reused")
    taken = cache.taken
    if taken:
        kept = [hook for hook in cache.spec.hooks if any(hook in rows for rows in taken.values())]
        say(
            "harvest",
            f"of {len(taken)} shards the rows of {', '.join(kept)} are kept, and only those of the other hooks are "
            "written; the language model has to read their tokens again, because it computes all hooks in one pass",
        )


def _hooks_missing(cache: GrowingCache) -> int:
    return sum(len(cache.missing_hooks(shard, split)) for split, shard in missing_shards(cache))


def _tell_difference(earlier: CacheSpec, spec: CacheSpec) -> None:
    """Says why nothing of the newest earlier cache could be reused."""
    difference = spec_difference(spec, earlier)
    if difference is not None:
        name, now, before = difference
        say(
            "harvest",
            f"nothing of the earlier cache can be reused: {name} was {str(before)[:100]}, and is "
            f"{str(now)[:100]}{how_identified(earlier.model)}",
        )
