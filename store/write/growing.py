"""A cache that grows in a folder: which shards are committed there, and what other caches have for it."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from store.atomic import clear_leftovers, file_sha256, link_or_copy
from store.cache.left_out import LeftOut
from store.cache.manifest import FileRecord, ShardRecord
from store.cache.paths import row_shard_path, shard_record_path, token_shard_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.errors import StoreError
from store.lease import Lease, SharedLease
from store.machine import explained
from store.record_file import read_record_file, write_record_file
from store.write.known_digests import KnownDigests
from store.write.reuse import SPEC_FILE, TakenRows, is_same_but_hooks, rows_in, spec_in

Taken = Mapping[tuple[Split, int], dict[str, TakenRows]]
"""Rows of shards that are not whole yet, by hook: their files are in place."""


class GrowingCache:
    """A folder in which a cache grows, and which survives a killed process. Many processes may commit shards to it.

    Args:
        folder: shards that are committed there already are kept if they fit.
        spec: what decides the bytes.
        num_sequences: training sequences of the finished cache.
        num_held_out_sequences: sequences of documents that training never sees.
        lease: of a folder around it, checked before anything is committed.
        known: digests of files, so that they are not read each time.
        taken: what another process has found by `reuse_shards`, for its workers.
    """

    def __init__(
        self,
        folder: Path,
        spec: CacheSpec,
        *,
        num_sequences: int,
        num_held_out_sequences: int,
        lease: Lease | SharedLease | None = None,
        known: KnownDigests | None = None,
        taken: Taken | None = None,
    ) -> None:
        for split, number in (("training", num_sequences), ("held-out", num_held_out_sequences)):
            if number < 1:
                raise ValueError(
                    f"expected at least one {split} sequence to write, got {number}. Raise the number of rows"
                )
        self.folder = folder
        self.spec = spec
        self.num_sequences = num_sequences
        self.num_held_out_sequences = num_held_out_sequences
        self._lease = lease
        self._token = lease.token if lease else ""
        self._known = known
        self._taken: dict[tuple[Split, int], dict[str, TakenRows]] = dict(taken or {})
        self._records: dict[Path, tuple[list[int], ShardRecord]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(lease, SharedLease):  # the holder has done so
            clear_leftovers(folder, token=self._token)
        if not (folder / SPEC_FILE).exists():
            write_record_file(folder / SPEC_FILE, spec, token=self._token)

    @property
    def taken(self) -> Taken:
        """What `reuse_shards` found of shards that are not whole yet."""
        return {place: rows for place, rows in self._taken.items() if self.missing_hooks(place[1], place[0])}

    def num_shards(self, split: Split = "training") -> int:
        """Shards of a split."""
        return self.spec.num_shards(self._split_sequences(split))

    def shard_sequences(self, shard: int, split: Split = "training") -> int:
        """Sequences in a shard; only the last one of a split may be partial."""
        per_shard = self.spec.sequences_per_shard
        return min(per_shard, self._split_sequences(split) - shard * per_shard)

    def missing_shards(self, split: Split = "training") -> list[int]:
        """Shards of a split that are not yet committed here, in order."""
        return [shard for shard in range(self.num_shards(split)) if self.committed(shard, split) is None]

    def missing_hooks(self, shard: int, split: Split = "training") -> tuple[str, ...]:
        """Hooks whose rows of a shard are neither committed nor taken from another cache, in the order of the spec."""
        return () if self.committed(shard, split) is not None else self._hooks_to_write(shard, split)

    def committed(self, shard: int, split: Split) -> ShardRecord | None:
        """The record of a shard that is here as a whole; None for one that is not."""
        path = self.folder / shard_record_path(shard, split)
        try:
            status = path.stat()
            state = [status.st_ino, status.st_size, status.st_mtime_ns]
            seen, record = self._records.get(path, (None, None))
            if record is None or seen != state:
                record = read_record_file(ShardRecord, path)
        except (StoreError, FileNotFoundError):
            return None  # a shard with a damaged record is not committed: it is made again
        self._records[path] = (state, record)
        if (record.spec_digest, record.split, record.shard, record.num_sequences) != (
            self.spec.digest, split, shard, self.shard_sequences(shard, split),
        ):  # fmt: skip
            return None
        is_whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == file.nbytes
            for name, file in record.files.items()
        )
        return record if is_whole else None

    def reuse_shards(self, files: Mapping[str, Path]) -> list[tuple[Split, int]]:
        """Takes what is missing from the files of another cache, after checking every byte; returns the whole shards.

        Of a cache with other hooks, those that both have are taken: `missing_hooks` then names the others, and
        `CacheWriter.submit_shard` commits both together.

        Args:
            files: by path relative to that cache. A shard that is incomplete, damaged or of another spec is left out.

        Raises:
            MachineError: a file could not be read here and now, which is no damage.
        """
        missing = [(split, shard) for split in SPLITS for shard in self.missing_shards(split)]
        with explained("reuse a shard of an earlier cache (--no-reuse does without)"):
            found = spec_in(files) if missing else None
            if found is None or not is_same_but_hooks(self.spec, found):
                return []
            with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="reuse") as threads:
                whole = list(threads.map(lambda place: self._reuse_shard(place[0], place[1], files, found), missing))
            return [place for place, is_whole in zip(missing, whole, strict=True) if is_whole]

    def _reuse_shard(self, split: Split, shard: int, files: Mapping[str, Path], found: CacheSpec) -> bool:
        """Takes what another cache has of a shard; whether the shard is whole now."""
        earlier = self._taken.get((split, shard), {})
        taken = rows_in(
            files,
            found,
            split=split,
            shard=shard,
            num_sequences=self.shard_sequences(shard, split),
            hooks=self.missing_hooks(shard, split),
            sha256=self._sha256,
        )
        both = earlier | taken
        tokens = {rows.tokens for rows in both.values()}
        if not taken or len(tokens) != 1:  # rows of other tokens, which one spec does not give, are not mixed
            return False
        of_tokens, name_of_tokens = tokens.pop(), token_shard_path(shard, split)
        has_tokens = name_of_tokens in files and self._sha256(files[name_of_tokens]) == of_tokens.sha256
        if found.digest == self.spec.digest and not (has_tokens and len(both) == len(self.spec.hooks)):
            return False  # a damaged shard of our own spec is made again as a whole
        for hook in taken:
            name = row_shard_path(hook, shard, split)
            link_or_copy(files[name], self.folder / name, token=self._token)
        self._taken[split, shard] = both
        if len(both) < len(self.spec.hooks) or not has_tokens:
            return False
        link_or_copy(files[name_of_tokens], self.folder / name_of_tokens, token=self._token)
        left_out = next(iter(both.values())).left_out
        self._write_record(shard, split, of_tokens, both, left_out=left_out)
        return True

    def _write_record(
        self,
        shard: int,
        split: Split,
        tokens: FileRecord,
        rows: Mapping[str, TakenRows],
        *,
        left_out: LeftOut | None,
    ) -> None:
        """Makes a shard committed, whose files are there."""
        hooks = self.spec.hooks
        record = ShardRecord(
            spec_digest=self.spec.digest,
            split=split,
            shard=shard,
            num_sequences=self.shard_sequences(shard, split),
            files={token_shard_path(shard, split): tokens}
            | {row_shard_path(hook, shard, split): rows[hook].file for hook in hooks},
            sums={hook: rows[hook].sums for hook in hooks},
            left_out=left_out,
        )
        self._check_lease()
        write_record_file(self.folder / shard_record_path(shard, split), record, token=self._token)

    def _check_tokens(self, tokens: FileRecord, shard: int, split: Split) -> None:
        """StoreError where rows were taken that belong to other tokens than those of the rows to be written."""
        for hook, rows in self._taken.get((split, shard), {}).items():
            if rows.tokens != tokens:
                raise StoreError(
                    f"expected the text to give the tokens that the earlier rows of {hook} in {split} shard {shard} "
                    "belong to, got others: it changed under the same name. Harvest again with --no-reuse"
                )

    def _sha256(self, path: Path) -> str:
        return file_sha256(path) if self._known is None else self._known.sha256(path)

    def taken_hooks(self, shard: int, split: Split = "training") -> tuple[str, ...]:
        """Hooks of a shard that another cache gave."""
        return tuple(self._taken.get((split, shard), {}))

    def _hooks_to_write(self, shard: int, split: Split) -> tuple[str, ...]:
        """Hooks that no other cache gave, whether or not the shard is committed by now."""
        taken = self._taken.get((split, shard), {})
        return tuple(hook for hook in self.spec.hooks if hook not in taken)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _split_sequences(self, split: Split) -> int:
        return self.num_sequences if split == "training" else self.num_held_out_sequences
