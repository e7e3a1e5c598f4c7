"""Opens an activation cache, wherever it is: shuffled batches, rows and tokens by number, arrays for analysis."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Unpack

import dask.array
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from store.cache.manifest import Manifest, load_manifest
from store.cache.order import disk_order, inverse
from store.cache.paths import row_shard_path, split_of
from store.cache.split import SPLITS, Split
from store.codec.bf16_planes import Numbers, Rows
from store.errors import DamagedFile, IncompleteCache
from store.files.local import Mode
from store.files.open import Place, open_files
from store.files.protocol import Files, address
from store.read.batches import AlignedBatches, BatchOptions, BatchSource, BatchStream
from store.read.shard import ShardFile
from store.read.tokens import read_token_shard


class ActivationCache:
    """A complete cache. Opening it checks the manifest, and that every file has the size it was written with.

    Args:
        location: a folder, a URL, or a `store.files.open.CachePlace` with more said about it.
        mode: how the files of a folder are read: `mmap`, or `pread` for network file systems, where a file that is
            truncated while it is mapped would kill the process.
        splits: what will be read. The files of other splits are not looked at and may be missing.

    Raises:
        StoreError: no cache, an incomplete one, another version's, or files of other sizes; says which and why.
    """

    def __init__(self, location: Place, *, mode: Mode = "mmap", splits: Sequence[Split] = SPLITS) -> None:
        self.files = open_files(location, mode=mode)
        self.location = self.files.location
        self.manifest = load_manifest(self.files)
        self.spec = self.manifest.spec
        self._check_sizes(splits)
        # Kept by this object and not by its class, and free of cycles: open files go when the cache goes.
        self._shard_file = functools.lru_cache(maxsize=4096)(functools.partial(_open_shard, self.files, self.manifest))
        self._token_shard = functools.lru_cache(maxsize=64)(functools.partial(read_token_shard, self.files, self.spec))

    def tokens(
        self, sequences: Sequence[int] | Numbers | None = None, *, split: Split = "training"
    ) -> NDArray[np.uint32]:
        """Token windows by number, BOS first: (len(sequences), context_length); all of the split if None."""
        num_sequences = self.manifest.split_sequences(split)
        wanted = np.arange(num_sequences) if sequences is None else np.asarray(sequences, dtype=np.int64)
        _check_numbers(wanted, num_sequences, "sequence")
        out = np.empty((len(wanted), self.spec.context_length), dtype=np.uint32)
        shards, inside = np.divmod(wanted, self.spec.sequences_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._token_shard(int(shard), split)[inside[here]]
        return out

    def held_out_tokens(self) -> NDArray[np.uint32]:
        """Token windows that training never sees, BOS first: (sequences, context_length)."""
        return self.tokens(split="held_out")

    def locate(self, row: int) -> tuple[int, int]:
        """(sequence, position in it) of a row in sequence order; the first positions (BOS) have no row."""
        sequence, offset = divmod(row, self.spec.rows_per_sequence)
        return sequence, offset + self.spec.num_excluded_positions

    def context(
        self, row: int, *, before: int, after: int, split: Split = "training"
    ) -> tuple[NDArray[np.uint32], int]:
        """The tokens around a row, inside its sequence, and the place of the row's own token among them.

        Args:
            row: in sequence order.
            before, after: the most tokens on either side.
            split: of the row.
        """
        _check_numbers(np.asarray([row]), self.manifest.split_rows(split), "row")
        sequence, position = self.locate(row)
        start = max(0, position - before)
        window = self.tokens([sequence], split=split)[0]
        return window[start : position + after + 1], position - start

    def rows(
        self, hook: str, indices: Sequence[int] | Numbers, *, split: Split = "training", num_threads: int | None = None
    ) -> Rows:
        """Rows of a hook by number in sequence order: (len(indices), d_model) bit patterns of bfloat16.

        Each chunk that holds one of them is decoded once, several chunks at a time.
        """
        self.check_hook(hook)
        wanted = np.asarray(indices, dtype=np.int64)
        _check_numbers(wanted, self.manifest.split_rows(split), "row")
        out = np.empty((len(wanted), self.spec.model.d_model), dtype=np.uint16)
        shards, inside = np.divmod(wanted, self.spec.rows_per_shard)
        taken: list[Future[None]] = []
        with ThreadPoolExecutor(num_threads or max(os.cpu_count() or 1, self.files.parallel_reads)) as threads:
            for shard in np.unique(shards):
                places = np.flatnonzero(shards == shard)
                stored_at = inverse(disk_order(int(shard), self._shard_rows(int(shard), split), split=split))
                chunks, offsets = np.divmod(stored_at[inside[places]], self.spec.rows_per_chunk)
                for chunk in np.unique(chunks):
                    here = chunks == chunk
                    taken.append(threads.submit(
                        self._take, hook, (int(shard), split, int(chunk)), offsets[here], out, places[here]
                    ))  # fmt: skip
            for future in taken:
                future.result()
        return out

    def _take(self, hook: str, where: tuple[int, Split, int], offsets: Numbers, out: Rows, places: Numbers) -> None:
        """Writes rows of one chunk to their places."""
        shard, split, chunk = where
        rows = np.empty((self.spec.rows_per_chunk, self.spec.model.d_model), dtype=np.uint16)
        self.shard_file(hook, shard, split).decode(chunk, rows, np.arange(len(rows)))
        out[places] = rows[offsets]

    def dask_array(self, hook: str, *, split: Split = "training") -> dask.array.Array:
        """A hook's rows in sequence order for analysis: (rows, d_model) float32, one block per shard, read when needed.

        Unlike `dask.array.from_zarr`, a missing or damaged shard is an error and never zeros.
        """
        self.check_hook(hook)
        d_model, num_rows = self.spec.model.d_model, self.manifest.split_rows(split)
        blocks = []
        for shard in range(self.spec.num_shards(self.manifest.split_sequences(split))):
            block = delayed(self._shard_values, pure=False)(hook, shard, split)
            shape = (min(self.spec.rows_per_shard, num_rows - shard * self.spec.rows_per_shard), d_model)
            blocks.append(dask.array.from_delayed(block, shape=shape, dtype=np.float32))
        return dask.array.concatenate(blocks, axis=0)

    def batches(self, hook: str, *, batch_rows: int, seed: int, **options: Unpack[BatchOptions]) -> BatchStream:
        """Shuffled batches (batch_rows, d_model) of a hook's rows, as `aligned_batches` gives them for several."""
        return BatchStream(self.aligned_batches((hook,), batch_rows=batch_rows, seed=seed, **options))

    def aligned_batches(
        self, hooks: Sequence[str], *, batch_rows: int, seed: int, **options: Unpack[BatchOptions]
    ) -> AlignedBatches:
        """Shuffled batches of several hooks, whose rows belong to the same tokens.

        The order is a pure function of seed, epoch, rank and sizes (`pool_bytes` among them).

        Args:
            hooks: of the cache.
            batch_rows: rows in a batch; the last incomplete batch of an epoch is dropped.
            seed: of the order.
            options: which rows, from where to where, and with how much memory: see BatchOptions.
        """
        for hook in hooks:
            self.check_hook(hook)
        source = BatchSource(self.manifest, self.shard_file, self.files.parallel_reads)
        return AlignedBatches(source, tuple(hooks), batch_rows=batch_rows, seed=seed, options=options)

    def check_hook(self, hook: str) -> None:
        """ValueError, with the hooks that there are, for one that is not in this cache."""
        if hook not in self.spec.hooks:
            raise ValueError(
                f"expected a hook of the cache {self.location}: {', '.join(self.spec.hooks)}; got {hook!r}. "
                "Add it to harvest.hooks and harvest again, or choose one of these"
            )

    def shard_file(self, hook: str, shard: int, split: Split) -> ShardFile:
        """The file of a shard, its index read and checked; as long as this cache is there, a few thousand are kept."""
        return self._shard_file(hook, shard, split)

    def _check_sizes(self, splits: Sequence[Split]) -> None:
        """Every file of these splits is there with its size; nothing is checked where files cannot be listed."""
        sizes = self.files.sizes()
        if sizes is None:
            return
        for name, record in self.manifest.files.items():
            if split_of(name) not in splits:
                continue
            where = address(self.files, name)
            if name not in sizes:
                raise IncompleteCache(
                    f"expected {where}, which the manifest lists, found none: the cache is only partly there. "
                    "Run `dvc checkout` or `dvc pull` to restore it"
                )
            if sizes[name] != record.nbytes:
                raise DamagedFile(
                    f"expected {where} to have {record.nbytes} bytes, got {sizes[name]}. "
                    "Run `pipeline.py store repair`, or remove the file and run `dvc checkout`"
                )

    def _shard_rows(self, shard: int, split: Split) -> int:
        return min(self.spec.rows_per_shard, self.manifest.split_rows(split) - shard * self.spec.rows_per_shard)

    def _shard_values(self, hook: str, shard: int, split: Split) -> NDArray[np.float32]:
        """All rows of a shard in sequence order."""
        first = shard * self.spec.rows_per_shard
        numbers = np.arange(first, first + self._shard_rows(shard, split))
        bits = self.rows(hook, numbers, split=split, num_threads=1)
        return (bits.astype(np.uint32) << 16).view(np.float32)


def _open_shard(files: Files, manifest: Manifest, hook: str, shard: int, split: Split) -> ShardFile:
    name, spec = row_shard_path(hook, shard, split), manifest.spec
    return ShardFile(
        files, name, manifest.files[name], codec=spec.codec,
        chunk_shape=(spec.rows_per_chunk, spec.model.d_model), num_chunks=spec.chunks_per_shard,
    )  # fmt: skip


def _check_numbers(numbers: Numbers, limit: int, what: str) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= limit):
        raise IndexError(f"expected {what} numbers from 0 to {limit - 1}, got {numbers.tolist()[:5]}")
