"""Writes an activation cache shard by shard. Every file appears whole or not at all, and the manifest comes last."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from store.atomic import file_sha256, sync_file, write_parts
from store.cache.left_out import LeftOut, combine_left_out
from store.cache.manifest import FORMAT, FileRecord, Manifest
from store.cache.moments import ShardSums, combine_moments
from store.cache.order import disk_order
from store.cache.paths import MANIFEST_FILE, row_shard_path, shard_record_path, token_shard_path, truth_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.cache.text_account import TextAccount
from store.cache.zarr_arrays import token_chunk, write_metadata
from store.codec.bf16_planes import Numbers, Rows, check_rows
from store.codec.checksum import crc32c
from store.codec.registry import Parts
from store.errors import StoreError
from store.files.listing import files_below
from store.lease import Lease, SharedLease
from store.machine import explain
from store.record_file import write_record_file
from store.write.encoder import ShardPipeline
from store.write.growing import GrowingCache, Taken
from store.write.known_digests import KnownDigests
from store.write.reuse import TakenRows

GIB = 2**30

Sums = Mapping[str, ShardSums]


class CacheWriter(GrowingCache, AbstractContextManager["CacheWriter"]):
    """One cache being written in a scratch folder, which survives a killed process.

    Args:
        folder, spec, num_sequences, num_held_out_sequences, lease, known, taken: as of GrowingCache. `finish` removes
            every file that is not the cache's.
        num_threads: that encode at once; one per core if None.
        max_pending_bytes: rows that may be submitted and not yet committed (see encoder.py).
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
        lease: Lease | SharedLease | None = None,
        known: KnownDigests | None = None,
        taken: Taken | None = None,
    ) -> None:
        super().__init__(
            folder,
            spec,
            num_sequences=num_sequences,
            num_held_out_sequences=num_held_out_sequences,
            lease=lease,
            known=known,
            taken=taken,
        )
        self._pipeline = ShardPipeline(
            num_threads=num_threads or os.cpu_count() or 1, max_pending_bytes=max_pending_bytes
        )
        self.raw_bytes = 0
        """Of the rows that were committed here, as plain bfloat16."""
        self.stored_bytes = 0
        """Of the same rows in their files."""

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads after the shards that are under way."""
        self._pipeline.close()

    def submit_shard(
        self,
        shard: int,
        *,
        split: Split = "training",
        tokens: NDArray[np.uint32],
        rows: Mapping[str, Rows | Tensor],
        sums: Sums | Callable[[], Sums],
        left_out: LeftOut | None = None,
    ) -> Future[None]:
        """Hands over one shard and returns; it is encoded and committed in threads. Waits while too much is pending.

        Args:
            shard: its number in the split.
            split: that its sequences belong to.
            tokens: (sequences, context_length) uint32.
            rows: by hook, (sequences * rows_per_sequence, d_model) bit patterns of bfloat16 in sequence order, or
                tensors of them on any device, which are split there. They must not change until the shard is committed.
                Of every hook that no other cache gave, see `missing_hooks`.
            sums: by hook, over those rows; or a function that computes them, called in a thread.
            left_out: sequences that are not among them, recorded with the shard.

        Returns:
            A future that is done when the shard is committed; `finish` and later calls raise its error too.

        Raises:
            ValueError: tokens or rows of another shape or dtype. Sums that are not of these rows fail the commit.
        """
        num_sequences = self.shard_sequences(shard, split)
        num_rows = num_sequences * self.spec.rows_per_sequence
        expected = dict.fromkeys(self._hooks_to_write(shard, split), (num_rows, self.spec.model.d_model))
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
        return self._pipeline.submit(nbytes, lambda: self._commit(shard, split, tokens, rows, sums, left_out))

    def wait(self) -> None:
        """Waits until all that was submitted is committed; raises the first error."""
        self._pipeline.wait()

    def finish(self, *, text_account: TextAccount | None = None, truth: Mapping[str, bytes] | None = None) -> Manifest:
        """Waits for submitted shards; writes the metadata and, last, the manifest. All shards must be there.

        Args:
            text_account: what became of the text, recorded with the data.
            truth: by hook, the file of store/cache/truth.py; of all hooks where rows are synthetic, else of none.
        """
        self._pipeline.wait()
        records = {split: [self.committed(shard, split) for shard in range(self.num_shards(split))] for split in SPLITS}
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
        others += self._write_truth(truth or {})
        others += [shard_record_path(shard, split) for split in SPLITS for shard in range(self.num_shards(split))]
        for name in others:
            path = self.folder / name
            sync_file(path)
            files[name] = FileRecord(nbytes=path.stat().st_size, sha256=file_sha256(path))
        for path in list(files_below(self.folder)):
            if path.relative_to(self.folder).as_posix() not in files:
                path.unlink()  # shards of a larger budget that was given up
        hooks = self.spec.hooks
        left_out = {
            split: combined
            for split in SPLITS
            if (combined := combine_left_out([r.left_out for r in committed[split] if r.left_out is not None]))
        }
        manifest = Manifest(
            format=FORMAT,
            spec=self.spec,
            num_sequences=self.num_sequences,
            num_rows=self.num_sequences * self.spec.rows_per_sequence,
            num_held_out_sequences=self.num_held_out_sequences,
            moments={hook: combine_moments([record.sums[hook] for record in committed["training"]]) for hook in hooks},
            files=files,
            text_account=text_account,
            left_out=left_out,
        )
        self._check_lease()
        write_record_file(self.folder / MANIFEST_FILE, manifest, token=self._token)
        return manifest

    def _write_truth(self, truth: Mapping[str, bytes]) -> list[str]:
        """Writes the known features of synthetic rows; returns the names of their files."""
        expected = self.spec.hooks if self.spec.is_synthetic else ()
        if set(truth) != set(expected):
            raise ValueError(f"expected the truth of the hooks {list(expected)}, got that of {list(truth)}")
        for hook, data in truth.items():
            write_parts(self.folder / truth_path(hook), (data,), token=self._token)
        return [truth_path(hook) for hook in truth]

    def _commit(
        self,
        shard: int,
        split: Split,
        tokens: NDArray[np.uint32],
        rows: Mapping[str, Rows | Tensor],
        sums: Sums | Callable[[], Sums],
        left_out: LeftOut | None,
    ) -> None:
        """The shard's files, each whole or not at all, then the record that makes it committed."""
        summed = self._pipeline.call(lambda: dict(sums() if callable(sums) else sums))
        whole = np.zeros((self.spec.sequences_per_shard, self.spec.context_length), dtype="<u4")
        whole[: len(tokens)] = tokens
        of_tokens = self._write(token_shard_path(shard, split), token_chunk(whole))
        self._check_tokens(of_tokens, shard, split)
        order = disk_order(shard, len(tokens) * self.spec.rows_per_sequence, split=split)
        files = {
            hook: self._write(row_shard_path(hook, shard, split), self._shard_parts(values, order))
            for hook, values in rows.items()
        }
        _check_sums(summed.result(), rows, shard=shard)
        new = {hook: TakenRows(file, summed.result()[hook], of_tokens) for hook, file in files.items()}
        self.raw_bytes += 2 * sum(values.shape[0] * values.shape[1] for values in rows.values())
        self.stored_bytes += sum(file.nbytes for file in files.values())
        self._write_record(shard, split, of_tokens, self._taken.get((split, shard), {}) | new, left_out=left_out)

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


def _check_sums(sums: Sums, rows: Mapping[str, Rows | Tensor], *, shard: int) -> None:
    """ValueError for sums that no manifest could be made from, before the shard is committed with them."""
    expected = {hook: (len(values), values.shape[1], values.shape[1]) for hook, values in rows.items()}
    got = {hook: (given.num_rows, len(given.sum), len(given.sum_of_squares)) for hook, given in sums.items()}
    if got != expected:
        raise ValueError(
            f"expected sums for shard {shard} of (rows, channels, channels) {expected}, got {got}. "
            "Sum the rows that are handed over, and no others"
        )
