"""Writes an activation cache shard by shard. Every file appears whole or not at all, and the manifest comes last."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from store.atomic import clear_leftovers, file_sha256, link_or_copy, sync_file, write_parts
from store.cache.manifest import FORMAT, FileRecord, Manifest, ShardRecord
from store.cache.moments import ShardSums, combine_moments
from store.cache.order import disk_order
from store.cache.paths import MANIFEST_FILE, row_shard_path, shard_record_path, token_shard_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.cache.text_account import TextAccount
from store.cache.zarr_arrays import token_chunk, write_metadata
from store.codec.bf16_planes import Numbers, Rows, check_rows
from store.codec.checksum import crc32c
from store.codec.registry import Parts
from store.errors import StoreError
from store.files.listing import files_below
from store.lease import Lease
from store.machine import explain, explained
from store.record_file import read_record_file, write_record_file
from store.write.encoder import ShardPipeline

GIB = 2**30

Sums = Mapping[str, ShardSums]


class CacheWriter(AbstractContextManager["CacheWriter"]):
    """One cache being written in a scratch folder, which survives a killed process.

    Args:
        folder: where the cache grows. Shards that are committed there already are kept if they fit; `finish` removes
            every other file.
        spec: what decides the bytes.
        num_sequences: training sequences of the finished cache.
        num_held_out_sequences: sequences of documents that training never sees.
        num_threads: that encode at once; one per core if None.
        max_pending_bytes: rows that may be submitted and not yet committed (see encoder.py).
        lease: of a folder around it, checked before anything is committed.
    """

    def __init__(
        self,
        folder: Path,
        spec: CacheSpec,
        *,
        num_sequences: int,
        num_held_out_sequences: int,
        num_threads: int | None = None,
        max_pending_bytes: int = 2 * GIB,
        lease: Lease | None = None,
    ) -> None:
        for split, number in (("training", num_sequences), ("held-out", num_held_out_sequences)):
            if number < 1:
                raise ValueError(
                    f"expected at least one {split} sequence to write, got {number}. Raise the number of rows"
                )
        self.folder = folder
        self.spec = spec
        self._lease = lease
        self.num_sequences = num_sequences
        self.num_held_out_sequences = num_held_out_sequences
        folder.mkdir(parents=True, exist_ok=True)
        self._token = lease.token if lease else ""
        clear_leftovers(folder, token=self._token)
        self._pipeline = ShardPipeline(
            num_threads=num_threads or os.cpu_count() or 1, max_pending_bytes=max_pending_bytes
        )

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads after the shards that are under way."""
        self._pipeline.close()

    def num_shards(self, split: Split = "training") -> int:
        """Shards of a split."""
        return self.spec.num_shards(self._split_sequences(split))

    def shard_sequences(self, shard: int, split: Split = "training") -> int:
        """Sequences in a shard; only the last one of a split may be partial."""
        per_shard = self.spec.sequences_per_shard
        return min(per_shard, self._split_sequences(split) - shard * per_shard)

    def missing_shards(self, split: Split = "training") -> list[int]:
        """Shards of a split that are not yet committed here, in order."""
        return [shard for shard in range(self.num_shards(split)) if self._committed(shard, split) is None]

    def reuse_shards(self, files: Mapping[str, Path]) -> list[tuple[Split, int]]:
        """Takes the missing shards from the files of another cache, after checking every byte; returns which.

        Args:
            files: by path relative to that cache. A shard that is incomplete, damaged or of another spec is left out.

        Raises:
            MachineError: a file could not be read here and now, which is no damage.
        """
        missing = [(split, shard) for split in SPLITS for shard in self.missing_shards(split)]
        with explained("reuse a shard of an earlier cache (--no-reuse does without)"):
            return [(split, shard) for split, shard in missing if self._reuse_shard(shard, split, files)]

    def _reuse_shard(self, shard: int, split: Split, files: Mapping[str, Path]) -> bool:
        path = files.get(shard_record_path(shard, split))
        try:
            record = read_record_file(ShardRecord, path) if path is not None else None
        except (StoreError, FileNotFoundError):
            return False
        if record is None or not self._fits(record, shard, split):
            return False
        sources = {name: files[name] for name in record.files if name in files}
        if any(name not in sources or file_sha256(sources[name]) != file.sha256 for name, file in record.files.items()):
            return False
        for name, source in sources.items():
            link_or_copy(source, self.folder / name, token=self._token)
        write_record_file(self.folder / shard_record_path(shard, split), record, token=self._token)
        return True

    def submit_shard(
        self,
        shard: int,
        *,
        split: Split = "training",
        tokens: NDArray[np.uint32],
        rows: Mapping[str, Rows | Tensor],
        sums: Sums | Callable[[], Sums],
    ) -> Future[None]:
        """Hands over one shard and returns; it is encoded and committed in threads. Waits while too much is pending.

        Args:
            shard: its number in the split.
            split: that its sequences belong to.
            tokens: (sequences, context_length) uint32.
            rows: by hook, (sequences * rows_per_sequence, d_model) bit patterns of bfloat16 in sequence order, or
                tensors of them on any device, which are split there. They must not change until the shard is committed.
            sums: by hook, over those rows; or a function that computes them, called in a thread.

        Returns:
            A future that is done when the shard is committed; `finish` and later calls raise its error too.

        Raises:
            ValueError: tokens or rows of another shape or dtype. Sums that are not of these rows fail the commit.
        """
        num_sequences = self.shard_sequences(shard, split)
        num_rows = num_sequences * self.spec.rows_per_sequence
        expected = dict.fromkeys(self.spec.hooks, (num_rows, self.spec.model.d_model))
        got = {hook: tuple(values.shape) for hook, values in rows.items()}
        if got != expected or tokens.shape != (num_sequences, self.spec.context_length):
            raise ValueError(
                f"expected tokens {(num_sequences, self.spec.context_length)} and rows {expected} for shard {shard}, "
                f"got tokens {tokens.shape} and rows {got}"
            )
        if tokens.dtype != np.uint32:
            raise ValueError(f"expected uint32 tokens for shard {shard}, got {tokens.dtype}. Convert them")
        for values in rows.values():
            check_rows(values)
        nbytes = 2 * num_rows * self.spec.model.d_model * len(rows)
        return self._pipeline.submit(nbytes, lambda: self._commit(shard, split, tokens, rows, sums))

    def finish(self, *, text_account: TextAccount | None = None) -> Manifest:
        """Waits for submitted shards; writes the metadata and, last, the manifest. All shards must be there.

        Args:
            text_account: what became of the text, recorded with the data.
        """
        self._pipeline.wait()
        records = {
            split: [self._committed(shard, split) for shard in range(self.num_shards(split))] for split in SPLITS
        }
        missing = [f"{split} {n}" for split in SPLITS for n, record in enumerate(records[split]) if record is None]
        if missing:
            raise StoreError(
                f"expected every shard of {self.folder}, missing are {', '.join(missing[:5])}. Write them first"
            )
        committed = {split: [record for record in records[split] if record is not None] for split in SPLITS}
        files = {name: file for split in SPLITS for record in committed[split] for name, file in record.files.items()}
        self._check_lease()
        try:
            others = write_metadata(self.folder, self.spec, {split: self._split_sequences(split) for split in SPLITS})
        except OSError as error:  # zarr's error names no file
            raise explain(error, f"write the zarr.json files below {self.folder}") from error
        others += [shard_record_path(shard, split) for split in SPLITS for shard in range(self.num_shards(split))]
        for name in others:
            path = self.folder / name
            sync_file(path)
            files[name] = FileRecord(nbytes=path.stat().st_size, sha256=file_sha256(path))
        for path in list(files_below(self.folder)):
            if path.relative_to(self.folder).as_posix() not in files:
                path.unlink()  # shards of a larger budget that was given up
        hooks = self.spec.hooks
        manifest = Manifest(
            format=FORMAT,
            spec=self.spec,
            num_sequences=self.num_sequences,
            num_rows=self.num_sequences * self.spec.rows_per_sequence,
            num_held_out_sequences=self.num_held_out_sequences,
            moments={hook: combine_moments([record.sums[hook] for record in committed["training"]]) for hook in hooks},
            files=files,
            text_account=text_account,
        )
        self._check_lease()
        write_record_file(self.folder / MANIFEST_FILE, manifest, token=self._token)
        return manifest

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _split_sequences(self, split: Split) -> int:
        return self.num_sequences if split == "training" else self.num_held_out_sequences

    def _commit(
        self,
        shard: int,
        split: Split,
        tokens: NDArray[np.uint32],
        rows: Mapping[str, Rows | Tensor],
        sums: Sums | Callable[[], Sums],
    ) -> None:
        """The shard's files, each whole or not at all, then the record that makes it committed."""
        summed = self._pipeline.call(lambda: dict(sums() if callable(sums) else sums))
        whole = np.zeros((self.spec.sequences_per_shard, self.spec.context_length), dtype="<u4")
        whole[: len(tokens)] = tokens
        path = token_shard_path(shard, split)
        files = {path: self._write(path, token_chunk(whole))}
        order = disk_order(shard, len(tokens) * self.spec.rows_per_sequence, split=split)
        for hook, values in rows.items():
            path = row_shard_path(hook, shard, split)
            files[path] = self._write(path, self._shard_parts(values, order))
        record = ShardRecord(
            spec_digest=self.spec.digest,
            split=split,
            shard=shard,
            num_sequences=len(tokens),
            files=files,
            sums=summed.result(),
        )
        _check_sums(record.sums, rows, shard=shard)
        self._check_lease()
        write_record_file(self.folder / shard_record_path(shard, split), record, token=self._token)

    def _shard_parts(self, rows: Rows | Tensor, order: Numbers) -> Iterator[bytes | memoryview]:
        """The bytes of a zarr v3 shard: encoded inner chunks, each with its crc32c, then the index and its crc32c."""
        index = np.full((self.spec.chunks_per_shard, 2), 2**64 - 1, dtype="<u8")
        offset = 0
        chunks = self._pipeline.encode(self.spec.codec, rows, order, rows_per_chunk=self.spec.rows_per_chunk)
        for chunk, (parts, nbytes) in enumerate(chunks):
            index[chunk] = (offset, nbytes)
            offset += nbytes
            yield from parts
        yield index.tobytes()
        yield crc32c((index.tobytes(),))

    def _write(self, name: str, parts: Iterator[bytes | memoryview] | Parts) -> FileRecord:
        nbytes, sha256 = write_parts(self.folder / name, parts, token=self._token)
        return FileRecord(nbytes=nbytes, sha256=sha256)

    def _fits(self, record: ShardRecord, shard: int, split: Split) -> bool:
        return (record.spec_digest, record.split, record.shard, record.num_sequences) == (
            self.spec.digest,
            split,
            shard,
            self.shard_sequences(shard, split),
        )

    def _committed(self, shard: int, split: Split) -> ShardRecord | None:
        path = self.folder / shard_record_path(shard, split)
        if not path.is_file():
            return None
        try:
            record = read_record_file(ShardRecord, path)
        except StoreError:
            return None  # a shard with a damaged record is not committed: it is made again
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == file.nbytes
            for name, file in record.files.items()
        )
        return record if whole and self._fits(record, shard, split) else None


def _check_sums(sums: Sums, rows: Mapping[str, Rows | Tensor], *, shard: int) -> None:
    """ValueError for sums that no manifest could be made from, before the shard is committed with them."""
    expected = {hook: (len(values), values.shape[1], values.shape[1]) for hook, values in rows.items()}
    got = {hook: (given.num_rows, len(given.sum), len(given.sum_of_squares)) for hook, given in sums.items()}
    if got != expected:
        raise ValueError(
            f"expected sums for shard {shard} of (rows, channels, channels) {expected}, got {got}. "
            "Sum the rows that are handed over, and no others"
        )
