"""Reads an activation cache: memory-mapped shards, chunks decoded in threads straight to their shuffled slots."""

import functools
import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from store.atomic import file_sha256
from store.codec import CodecName, decode_chunk, zstd_content_nbytes
from store.errors import DamagedFile, IncompleteCache
from store.layout import chunk_order, disk_order, pool_order
from store.manifest import HELD_OUT_PATH, load_manifest, row_shard_path, token_shard_path
from store.record import Record

MIB = 2**20
_ABSENT = 2**64 - 1  # both index numbers of an inner chunk that was left out because it is all zeros


class Position(Record):
    """The next batch of a stream. Kept with a checkpoint, it continues the stream bit-identically."""

    epoch: int = 0
    batch: int = 0


class ActivationCache:
    """A complete cache. Opening it checks the manifest and that every file has the size it was written with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)
        self.spec = self.manifest.spec
        for name, record in self.manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise IncompleteCache(
                    f"expected {path}, which the manifest lists, found none: the cache is only partly there. "
                    "Run `dvc checkout` or `dvc pull` to restore it"
                )
            if path.stat().st_size != record.nbytes:
                raise DamagedFile(
                    f"expected {path} to have {record.nbytes} bytes, got {path.stat().st_size}. "
                    "Remove the file and run `dvc checkout`, or harvest again"
                )
            if name.endswith("zarr.json") and (got := file_sha256(path)) != record.sha256:
                raise DamagedFile(
                    f"expected {path} with SHA-256 {record.sha256}, got {got}. "
                    "Remove the file and run `dvc checkout`, or harvest again"
                )

    def tokens(self, sequences: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint32]:
        """Token windows of training sequences by number, BOS first: (len(sequences), context_length)."""
        wanted = np.asarray(sequences, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.manifest.num_sequences):
            raise IndexError(
                f"expected sequence numbers from 0 to {self.manifest.num_sequences - 1}, got {wanted.tolist()[:5]}"
            )
        out = np.empty((len(wanted), self.spec.context_length), dtype=np.uint32)
        shards, inside = np.divmod(wanted, self.spec.sequences_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._token_chunk(token_shard_path(int(shard)), self.spec.sequences_per_shard)[inside[here]]
        return out

    def held_out_tokens(self) -> NDArray[np.uint32]:
        """Token windows that training never sees, BOS first: (sequences, context_length)."""
        return self._token_chunk(HELD_OUT_PATH, self.manifest.num_held_out_sequences)

    def _token_chunk(self, name: str, num_sequences: int) -> NDArray[np.uint32]:
        """One chunk of a token array: a zstd frame and its crc32c."""
        path = self.folder / name
        stored = np.fromfile(path, dtype=np.uint8)
        if stored.nbytes < 4:
            raise DamagedFile(f"expected a chunk with its checksum in {path}, got {stored.nbytes} bytes")
        _check_crc32c(stored, str(path))
        nbytes = 4 * num_sequences * self.spec.context_length
        if zstd_content_nbytes(stored[:-4]) != nbytes:
            raise DamagedFile(f"expected {nbytes} bytes of tokens in {path}, its zstd frame states another size")
        out = np.empty((num_sequences, self.spec.context_length), dtype="<u4")
        try:
            zstd.decompress(stored[:-4], out)
        except RuntimeError as error:
            raise DamagedFile(f"expected {nbytes} bytes of tokens in {path}, zstd says: {error}") from error
        return out

    def locate(self, row: int) -> tuple[int, int]:
        """(sequence, position in it) of a row in sequence order; position 0 is BOS, which has no row."""
        sequence, offset = divmod(row, self.spec.rows_per_sequence)
        return sequence, offset + 1

    def rows(self, hook: str, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint16]:
        """Rows of a hook by number in sequence order: (len(indices), d_model) bit patterns of bfloat16."""
        self._check_hook(hook)
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.manifest.num_rows):
            raise IndexError(f"expected row numbers from 0 to {self.manifest.num_rows - 1}, got {wanted.tolist()[:5]}")
        out = np.empty((len(wanted), self.spec.model.d_model), dtype=np.uint16)
        chunk_rows = np.empty((self.spec.rows_per_chunk, self.spec.model.d_model), dtype=np.uint16)
        shards, inside = np.divmod(wanted, self.spec.rows_per_shard)
        for shard in np.unique(shards):
            file = self._shard_file(hook, int(shard))
            stored_at = np.argsort(disk_order(int(shard), self._shard_rows(int(shard))))
            places = np.flatnonzero(shards == shard)
            chunks, offsets = np.divmod(stored_at[inside[places]], self.spec.rows_per_chunk)
            for chunk in np.unique(chunks):
                file.decode(int(chunk), chunk_rows, np.arange(self.spec.rows_per_chunk))
                here = chunks == chunk
                out[places[here]] = chunk_rows[offsets[here]]
        return out

    def batches(
        self,
        hook: str,
        *,
        batch_rows: int,
        seed: int,
        start: Position | None = None,
        num_epochs: int | None = None,
        pool_bytes: int = 256 * MIB,
        num_threads: int = 2,
    ) -> "BatchStream":
        """Shuffled batches of a hook's rows; the order is a pure function of seed, epoch, `pool_bytes` and sizes."""
        self._check_hook(hook)
        return BatchStream(
            self,
            hook,
            batch_rows=batch_rows,
            seed=seed,
            start=start or Position(),
            num_epochs=num_epochs,
            pool_bytes=pool_bytes,
            num_threads=num_threads,
        )

    def _check_hook(self, hook: str) -> None:
        if hook not in self.spec.hooks:
            raise ValueError(
                f"expected a hook of the cache {self.folder}: {', '.join(self.spec.hooks)}; got {hook!r}. "
                "Add it to harvest.hooks and harvest again, or choose one of these"
            )

    def _shard_rows(self, shard: int) -> int:
        return min(self.spec.rows_per_shard, self.manifest.num_rows - shard * self.spec.rows_per_shard)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - open maps live as long as their cache
    def _shard_file(self, hook: str, shard: int) -> "_ShardFile":
        path = self.folder / row_shard_path(hook, shard)
        chunk_shape = (self.spec.rows_per_chunk, self.spec.model.d_model)
        return _ShardFile(path, codec=self.spec.codec, chunk_shape=chunk_shape, num_chunks=self.spec.chunks_per_shard)


class _ShardFile:
    """A memory-mapped zarr v3 shard: inner chunks, then the index of (offset, nbytes) pairs, then its crc32c."""

    def __init__(self, path: Path, *, codec: CodecName, chunk_shape: tuple[int, int], num_chunks: int) -> None:
        self.path = path
        self._codec = codec
        self._chunk_shape = chunk_shape
        with path.open("rb") as file:
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        index_nbytes = 16 * num_chunks + 4
        if self._bytes.nbytes < index_nbytes:
            raise DamagedFile(
                f"expected a shard index of {index_nbytes} bytes at the end of {path}: the file is shorter"
            )
        stored = self._bytes[-index_nbytes:]
        _check_crc32c(stored, f"the index of {path}")
        self._index = stored[:-4].view("<u8").reshape(num_chunks, 2)

    def decode(self, chunk: int, out: NDArray[np.uint16], slots: NDArray[np.int64]) -> None:
        """Checks and decodes one inner chunk; its row i goes to out[slots[i]]."""
        offset, nbytes = (int(number) for number in self._index[chunk])
        where = f"chunk {chunk} of {self.path}"
        if offset == nbytes == _ABSENT:
            out[slots] = 0
            return
        if nbytes < 4 or offset + nbytes > self._bytes.nbytes:
            raise DamagedFile(f"expected {where} inside a file of {self._bytes.nbytes} bytes, its index says otherwise")
        stored = self._bytes[offset : offset + nbytes]
        _check_crc32c(stored, where)
        try:
            decode_chunk(self._codec, stored[:-4], self._chunk_shape, out, slots)
        except DamagedFile as error:
            raise DamagedFile(f"{where}: {error}") from error


def _check_crc32c(stored: NDArray[np.uint8], where: str) -> None:
    expected = int.from_bytes(stored[-4:].tobytes(), "little")
    got = google_crc32c.value(stored[:-4])
    if got != expected:
        raise DamagedFile(
            f"expected checksum {expected:08x} for {where}, got {got:08x}: the bytes changed since they were written. "
            "Remove the file and run `dvc checkout` or `dvc pull`, or harvest again"
        )


class BatchStream(Iterator[NDArray[np.uint16]]):
    """Shuffled batches (batch_rows, d_model) of bit patterns, each valid until the next is asked for.

    An epoch reads all chunks in an order keyed by (seed, epoch). Half of `pool_bytes` holds the pool that batches are
    cut from; the other half is filled meanwhile, each row decoded straight to its shuffled slot. Batches run on across
    pools; the last incomplete batch of an epoch is dropped. `torch.from_numpy(batch).view(torch.bfloat16)` has the
    values.
    """

    def __init__(
        self,
        cache: ActivationCache,
        hook: str,
        *,
        batch_rows: int,
        seed: int,
        start: Position,
        num_epochs: int | None,
        pool_bytes: int,
        num_threads: int,
    ) -> None:
        num_rows, spec = cache.manifest.num_rows, cache.spec
        if not 1 <= batch_rows <= num_rows:
            raise ValueError(
                f"expected batches of 1 to {num_rows} rows (the whole cache), got {batch_rows}. "
                "Lower train.batch_rows or harvest more rows"
            )
        self._cache, self._hook = cache, hook
        self._batch_rows, self._seed, self._num_epochs = batch_rows, seed, num_epochs
        self.batches_per_epoch = num_rows // batch_rows
        if not 0 <= start.batch < self.batches_per_epoch or start.epoch < 0:
            raise ValueError(f"expected a position inside {self.batches_per_epoch} batches an epoch, got {start}")
        chunk_nbytes = spec.rows_per_chunk * spec.model.d_model * 2
        self._pool_chunks = max(1, pool_bytes // 2 // chunk_nbytes)
        # Rows of each chunk, in the order of the file names; only the last chunk can be partial.
        self._num_chunks = -(-num_rows // spec.rows_per_chunk)
        self._last_chunk_rows = num_rows - (self._num_chunks - 1) * spec.rows_per_chunk
        self._num_pools = -(-self._num_chunks // self._pool_chunks)
        pool_rows = min(self._pool_chunks, self._num_chunks) * spec.rows_per_chunk
        self._buffers = [np.empty((pool_rows, spec.model.d_model), dtype=np.uint16) for _ in range(2)]
        self._straddling = np.empty((batch_rows, spec.model.d_model), dtype=np.uint16)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self.position = start
        self._seek(start)

    def __next__(self) -> NDArray[np.uint16]:
        if self._num_epochs is not None and self.position.epoch >= self._num_epochs:
            raise StopIteration
        epoch, batch = self.position.epoch, self.position.batch
        while self._current[0] < epoch:  # what is left of the epoch before is less than a batch: drop it
            self._next_pool()
        rows = self._take(self._batch_rows)
        if batch + 1 < self.batches_per_epoch:
            self.position = Position(epoch=epoch, batch=batch + 1)
        else:
            self.position = Position(epoch=epoch + 1, batch=0)
        return rows

    def close(self) -> None:
        """Stops the decoding threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seek(self, position: Position) -> None:
        """Begins at a batch: finds its pool from the sizes alone, and decodes from there."""
        order = chunk_order(self._num_chunks, seed=self._seed, epoch=position.epoch)
        remaining = position.batch * self._batch_rows
        pool = 0
        while remaining >= (size := self._pool_size(order, pool)):
            remaining -= size
            pool += 1
        self._current = (position.epoch, pool)
        self._buffer = 0
        self._pending = self._fill(self._current, self._buffer)
        self._await_pool()
        self._used = remaining

    def _take(self, num_rows: int) -> NDArray[np.uint16]:
        taken = 0
        while True:
            available = self._available - self._used
            wanted = num_rows - taken
            if taken == 0 and available >= wanted:
                self._used += wanted
                return self._buffers[self._buffer][self._used - wanted : self._used]
            part = min(wanted, available)
            piece = self._buffers[self._buffer][self._used : self._used + part]
            self._straddling[taken : taken + part] = piece
            taken += part
            self._used += part
            if taken == num_rows:
                return self._straddling
            self._next_pool()

    def _next_pool(self) -> None:
        epoch, pool = self._current
        self._current = (epoch, pool + 1) if pool + 1 < self._num_pools else (epoch + 1, 0)
        self._buffer = 1 - self._buffer
        self._await_pool()
        self._used = 0

    def _await_pool(self) -> None:
        """Waits until the current pool is decoded, then has the next one decoded into the other buffer."""
        self._available = 0
        while self._pending:
            self._available += self._pending.popleft().result()
        epoch, pool = self._current
        following = (epoch, pool + 1) if pool + 1 < self._num_pools else (epoch + 1, 0)
        if self._num_epochs is None or following[0] < self._num_epochs:
            self._pending = self._fill(following, 1 - self._buffer)

    def _chunk_rows(self, chunk: int) -> int:
        return self._last_chunk_rows if chunk == self._num_chunks - 1 else self._cache.spec.rows_per_chunk

    def _pool_size(self, order: NDArray[np.int64], pool: int) -> int:
        chunks = order[pool * self._pool_chunks : (pool + 1) * self._pool_chunks]
        return sum(self._chunk_rows(int(chunk)) for chunk in chunks)

    def _fill(self, which: tuple[int, int], buffer: int) -> deque[Future[int]]:
        """Starts decoding a pool; each future gives the number of rows of its chunk."""
        epoch, pool = which
        order = chunk_order(self._num_chunks, seed=self._seed, epoch=epoch)
        slots = pool_order(self._pool_size(order, pool), seed=self._seed, epoch=epoch, pool=pool)
        futures: deque[Future[int]] = deque()
        begin = 0
        for chunk in order[pool * self._pool_chunks : (pool + 1) * self._pool_chunks]:
            num_rows = self._chunk_rows(int(chunk))
            futures.append(self._threads.submit(self._decode, int(chunk), buffer, slots[begin : begin + num_rows]))
            begin += num_rows
        return futures

    def _decode(self, chunk: int, buffer: int, slots: NDArray[np.int64]) -> int:
        shard, inside = divmod(chunk, self._cache.spec.chunks_per_shard)
        self._cache._shard_file(self._hook, shard).decode(inside, self._buffers[buffer], slots)
        return len(slots)
