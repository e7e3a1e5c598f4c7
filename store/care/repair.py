"""Damaged files of a cache, put back: by content from DVC's cache or remote, else harvested again and compared."""

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from store.atomic import file_sha256, link_or_copy
from store.cache.manifest import Manifest, Origin, load_manifest, parse_manifest
from store.cache.paths import MANIFEST_FILE, split_folder
from store.cache.split import SPLITS
from store.care.counted import StartCount, unseen
from store.care.dvc_versions import FetchFile, earlier_outputs, remote_files
from store.care.verify import find_problems, unlisted_files
from store.errors import DamagedFile, IncompleteCache, MismatchedCache, StoreError
from store.lease import Lease, exclusive_lock
from store.record_file import write_record_file
from store.replace import check_target, replace_folder

HarvestAgain = Callable[[Manifest, Path, Lease], None]
"""Makes the cache of a manifest in a folder: whole shards are reused, the others harvested again."""

_MAX_LISTED = 10


@dataclass
class Repaired:
    """What a repair did, by file."""

    problems: dict[str, str] = field(default_factory=dict)
    """What was wrong."""
    restored: list[str] = field(default_factory=list)
    """Put back from a copy with the recorded bytes."""
    harvested: list[str] = field(default_factory=list)
    """Harvested again, with the recorded bytes."""
    changed: list[str] = field(default_factory=list)
    """Harvested again, with other bytes, which the caller accepted."""
    unlisted: list[str] = field(default_factory=list)
    """Files that do not belong there, and were left alone."""


def repair(
    folder: Path,
    *,
    output: str,
    scratch: Path,
    harvest_again: HarvestAgain | None,
    accept_different_bytes: bool,
    num_threads: int,
    progress: StartCount = unseen,
) -> Repaired:
    """Makes the cache in `folder` whole again. Every file is checked by SHA-256 before it is put in place, atomically.

    Args:
        folder: of the cache.
        output: the same folder as DVC knows it, relative to the working folder; "" where DVC has nothing to do with it.
        scratch: a folder to work in, on the same disk.
        harvest_again: harvests the shards of which no copy was found; None to do without.
        accept_different_bytes: let harvested shards differ from the recorded ones; the cache then has another digest,
            and its lineage says which shards.
        num_threads: files read at once.
        progress: shows the bytes that are read.

    Raises:
        StoreError: something could not be repaired; what could be is in place.
        MachineError: a file could not be read or written here and now. It is no damage: nothing is repaired for it.
        Busy: another repair runs.
    """
    with exclusive_lock(scratch) as lease, remote_files(output) as fetch:
        check_target(folder, scratch)
        done = Repaired()
        manifest = _manifest(folder, output, fetch, scratch=scratch, done=done)
        found = find_problems(folder, manifest, full=True, num_threads=num_threads, progress=progress)
        done.problems |= found
        missing = sorted(found, key=lambda name: -manifest.files[name].nbytes)
        missing = _restore_copies(folder, manifest, missing, earlier_outputs(output) if output else (), done=done)
        missing = _restore_fetched(folder, manifest, missing, fetch, scratch=scratch, done=done)
        if missing and harvest_again is None:
            raise StoreError(
                f"found no copy with the recorded bytes of {_listing(folder, missing)} in DVC's cache or remote. "
                "Allow them to be harvested again, or fetch the cache from where it was made"
            )
        if missing and harvest_again is not None:
            print(f"repair: {len(missing)} files are harvested again", file=sys.stderr)
            made = scratch / "cache"
            harvest_again(manifest, made, lease)
            lease.check()
            _take_harvested(folder, manifest, missing, made, accept=accept_different_bytes, done=done)
        done.unlisted = unlisted_files(folder, load_manifest(folder))
    shutil.rmtree(scratch)
    return done


def _manifest(folder: Path, output: str, fetch: FetchFile, *, scratch: Path, done: Repaired) -> Manifest:
    """The cache's manifest; a damaged one is restored first, because all other files are checked against it."""
    path = folder / MANIFEST_FILE
    try:
        return load_manifest(folder)
    except MismatchedCache as error:
        if not path.is_file():
            raise
        damage: StoreError = error
    except StoreError as error:
        damage = error
    if not folder.is_dir():
        raise damage
    for source, candidate in _manifest_candidates(output, fetch, scratch=scratch):
        try:
            manifest = parse_manifest(candidate.read_bytes(), where=str(candidate))
        except (StoreError, FileNotFoundError):
            continue
        link_or_copy(candidate, path)
        done.problems[MANIFEST_FILE] = str(damage)
        done.restored.append(MANIFEST_FILE)
        print(f"repair: {path} is restored from {source}", file=sys.stderr)
        return manifest
    raise IncompleteCache(
        f"{damage}\nfound no whole copy of {path} in DVC's cache or remote, and without it no file can be checked. "
        "Run `python pipeline.py harvest`: it keeps every shard that is whole and makes the others again"
    ) from damage


def _manifest_candidates(output: str, fetch: FetchFile, *, scratch: Path) -> Iterable[tuple[str, Path]]:
    for version in earlier_outputs(output) if output else ():
        if MANIFEST_FILE in version:
            yield "DVC's cache", version[MANIFEST_FILE]
    fetched = scratch / MANIFEST_FILE
    if fetch(MANIFEST_FILE, fetched):
        yield "DVC's remote", fetched


def _restore_copies(
    folder: Path, manifest: Manifest, missing: list[str], versions: Iterable[dict[str, Path]], *, done: Repaired
) -> list[str]:
    """Takes files from earlier versions of the folder; returns the names that are still missing."""
    for version in versions:
        if not missing:
            break
        for name in list(missing):
            source = version.get(name)
            if source is not None and _is_as_recorded(source, manifest, name):
                link_or_copy(source, folder / name)
                missing.remove(name)
                done.restored.append(name)
    return missing


def _restore_fetched(
    folder: Path, manifest: Manifest, missing: list[str], fetch: FetchFile, *, scratch: Path, done: Repaired
) -> list[str]:
    left = []
    for name in missing:
        fetched = scratch / "fetched"
        fetched.unlink(missing_ok=True)
        if fetch(name, fetched) and _is_as_recorded(fetched, manifest, name):
            link_or_copy(fetched, folder / name)
            done.restored.append(name)
        else:
            left.append(name)
    return left


def _is_as_recorded(path: Path, manifest: Manifest, name: str) -> bool:
    record = manifest.files[name]
    return path.is_file() and path.stat().st_size == record.nbytes and file_sha256(path) == record.sha256


def _take_harvested(
    folder: Path, manifest: Manifest, missing: list[str], made: Path, *, accept: bool, done: Repaired
) -> None:
    """Puts harvested files in place if they are the recorded ones, or if others are accepted."""
    new = load_manifest(made, expected=manifest.spec)
    different = [name for name in missing if new.files[name] != manifest.files[name]]
    for name in missing:
        if name not in different:
            if not _is_as_recorded(made / name, manifest, name):
                raise DamagedFile(f"expected {made / name} as it was just written, got other bytes. Check the disk")
            link_or_copy(made / name, folder / name)
            done.harvested.append(name)
    if not different:
        return
    changed = [name for name in sorted(new.files) if new.files[name] != manifest.files[name]]
    # Also those of shards of which only rows were damaged: new rows would be of another text.
    if tokens := [name for name in changed if _is_below(name, "tokens")]:
        raise MismatchedCache(
            f"expected the text to give the recorded tokens again, got others for {_listing(folder, tokens)}. "
            "The text or the tokenizer changed: run `python pipeline.py harvest` instead of a repair"
        )
    if not accept:
        raise MismatchedCache(
            f"expected the recorded bytes from harvesting again, got others for {_listing(folder, different)}. "
            "Another processor, number of threads or library version rounds differently; the rows are as good, but not "
            "those that results were trained on. Repair on the machine that harvested, fetch a copy, or run this again "
            "with --accept-different-bytes, which gives the cache another digest and a lineage that says so"
        )
    origin = Origin(
        kind="repaired",
        source_digest=manifest.digest,
        source_codec=manifest.spec.codec,
        changed_shards=tuple(name for name in changed if _is_below(name, "shards")),
    )
    write_record_file(made / MANIFEST_FILE, new.model_copy(update={"lineage": (*manifest.lineage, origin)}))
    replace_folder(made, folder)
    done.changed = different


def _is_below(name: str, folder: str) -> bool:
    """Whether a file is in that folder of one of the splits; a hook may have any name that ends so."""
    return any(name.startswith(f"{split_folder(split)}{folder}/") for split in SPLITS)


def _listing(folder: Path, names: list[str]) -> str:
    shown = ", ".join(str(folder / name) for name in names[:_MAX_LISTED])
    return shown + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")
