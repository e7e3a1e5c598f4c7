"""Shuffled batches: chunks are decoded in threads, each row straight to its shuffled slot of a pool."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from store.cache.manifest import Manifest
from store.cache.order import EpochPlan
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.codec.bf16_planes import Numbers, Rows
from store.codec.cache_lines import empty_rows
from store.read.shard import ShardFile
from store.record import Record

DEFAULT_POOL_BYTES = 512 * 2**20
_TASK_BYTES = 4 * 2**20  # rows that one task decodes, so that handing tasks out costs little


class Position(Record):
    """The next batch of a stream. Kept with a checkpoint, it continues the stream bit-identically."""

    epoch: int = 0
    batch: int = 0


def chunks_per_pool(pool_bytes: int, spec: CacheSpec, *, num_hooks: int) -> int:
    """Chunks that batches are cut from at a time: half of the pool, slot numbers (8 bytes a row) included; 1 at least.

    The other half is filled meanwhile.
    """
    row_nbytes = 2 * spec.model.d_model * num_hooks + 8
    return max(1, pool_bytes // 2 // (spec.rows_per_chunk * row_nbytes))


def rows_in_use(manifest: Manifest, split: Split, num_rows: int | None) -> int:
    """Rows that are read where the first `num_rows` are asked for: whole chunks of them, in the order of the shards.

    Raises ValueError where the cache has fewer, or where they are less than a chunk.
    """
    all_rows, per_chunk = manifest.split_rows(split), manifest.spec.rows_per_chunk
    if num_rows is None or num_rows == all_rows:
        return all_rows
    if not min(per_chunk, all_rows) <= num_rows <= all_rows:
        raise ValueError(
            f"expected num_rows between a chunk ({min(per_chunk, all_rows)}) and all {all_rows} rows of the cache, got "
            f"{num_rows}. Change train.num_rows, set it to null for all, or harvest more"
        )
    return num_rows // per_chunk * per_chunk


class BatchOptions(TypedDict, total=False):
    """What may be said about a stream of batches; every item has a default."""

    start: Position | None
    """Where to begin, such as `position` of an earlier stream; without it, at the beginning."""
    num_epochs: int | None
    """After how many epochs the stream ends; without it, never."""
    pool_bytes: int
    """Memory of the shuffle pool, see AlignedBatches; without it, DEFAULT_POOL_BYTES."""
    num_threads: int
    """Threads that decode at once; without it, 2."""
    split: Split
    """Which rows; without it, those for training."""
    rank: int
    """Which of `num_ranks` shares of the rows; without it, 0. Ranks share no row and have equally many batches."""
    num_ranks: int
    """Streams that share the rows between them; without it, 1."""
    num_rows: int | None
    """Only so many rows, the first on disk, rounded down to whole chunks; without it, all. See `rows_in_use`."""


class BatchSource(NamedTuple):
    """What batches are read from: an open cache, as far as they need it."""

    manifest: Manifest
    shard_file: Callable[[str, int, Split], ShardFile]
    """The file of (hook, shard, split), its index read and checked."""
    parallel_reads: int
    """Reads worth having under way at once, see files/protocol.py."""


class AlignedBatches(Iterator[tuple[Rows, ...]], AbstractContextManager["AlignedBatches"]):
    """Batches of several hooks, one (batch_rows, d_model) array each, valid until the next is asked for.

    An epoch reads all chunks in an order keyed by (seed, epoch). Half of the pool holds the rows that batches are cut
    from; the other half is filled meanwhile, each row decoded straight to its shuffled slot. Batches run on across
    pools. `torch.from_numpy(batch).view(torch.bfloat16)` has the values.

    Private memory: `pool_bytes`, which holds both halves and their slot numbers, plus a batch, plus the slot numbers of
    a third half (8 bytes a row), plus twice the bytes of a chunk per decoding thread (32 threads for a remote cache).
    A pool smaller than two chunks is taken as that. Mapped pages of the files are the kernel's to keep or drop.
    """

    def __init__(
        self,
        source: BatchSource,
        hooks: tuple[str, ...],
        *,
        batch_rows: int,
        seed: int,
        options: BatchOptions,
    ) -> None:
        start, split = options.get("start") or Position(), options.get("split", "training")
        rank, num_ranks = options.get("rank", 0), options.get("num_ranks", 1)
        num_rows, spec = rows_in_use(source.manifest, split, options.get("num_rows")), source.manifest.spec
        if not hooks:
            raise ValueError("expected at least one hook to read, got none")
        if not 0 <= rank < num_ranks:
            raise ValueError(f"expected a rank from 0 to num_ranks - 1, got rank {rank} of {num_ranks}")
        if not 1 <= batch_rows <= num_rows:
            raise ValueError(
                f"expected batches of 1 to {num_rows} rows (the whole cache), got {batch_rows}. "
                "Lower train.batch_rows or harvest more rows"
            )
        self._source, self._hooks, self._split, self._num_rows = source, hooks, split, num_rows
        self._batch_rows, self._seed, self._num_epochs = batch_rows, seed, options.get("num_epochs")
        self._rank, self._num_ranks = rank, num_ranks
        row_nbytes = 2 * spec.model.d_model * len(hooks)
        self._chunks_per_pool = chunks_per_pool(
            options.get("pool_bytes", DEFAULT_POOL_BYTES), spec, num_hooks=len(hooks)
        )
        plan = self._plan(start.epoch)
        self.batches_per_epoch = plan.batches_per_epoch(batch_rows)
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"expected a batch of {batch_rows} rows for each of {num_ranks} ranks, got {plan.num_chunks} chunks of "
                f"{spec.rows_per_chunk} rows to share. Lower the batch or the number of ranks"
            )
        if not 0 <= start.batch < self.batches_per_epoch or start.epoch < 0:
            raise ValueError(f"expected a position inside {self.batches_per_epoch} batches an epoch, got {start}")
        pool_rows = min(self._chunks_per_pool, -(-plan.num_chunks // num_ranks)) * spec.rows_per_chunk
        self._pools = [tuple(empty_rows(pool_rows, spec.model.d_model) for _ in hooks) for _ in range(2)]
        # A batch that spans two pools is put together here.
        self._spanning = tuple(np.empty((batch_rows, spec.model.d_model), dtype=np.uint16) for _ in hooks)
        # Where each read waits for a network, chunks are asked for one by one, to have many reads under way.
        alone = source.parallel_reads > 1
        self._chunks_per_task = 1 if alone else max(1, _TASK_BYTES // (spec.rows_per_chunk * row_nbytes))
        self._pending: deque[Future[int]] = deque()
        self._placed: tuple[int, Future[list[tuple[int, Numbers]]]] | None = None
        num_threads = max(options.get("num_threads", 2), source.parallel_reads)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self.position = start
        self._filling_epoch = start.epoch  # for a start behind the last epoch, where there is nothing to fill
        try:
            self._seek(start)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> tuple[Rows, ...]:
        if self._num_epochs is not None and self.position.epoch >= self._num_epochs:
            raise StopIteration
        epoch, batch = self.position.epoch, self.position.batch
        while self._epoch < epoch:  # what is left of the epoch before is less than a batch: drop it
            self._next_pool()
        rows = self._take(self._batch_rows)
        if batch + 1 < self.batches_per_epoch:
            self.position = Position(epoch=epoch, batch=batch + 1)
        else:
            self.position = Position(epoch=epoch + 1, batch=0)
        return rows

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the decoding threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(
            num_rows=self._num_rows,
            rows_per_chunk=self._source.manifest.spec.rows_per_chunk,
            chunks_per_pool=self._chunks_per_pool,
            seed=self._seed,
            epoch=epoch,
            rank=self._rank,
            num_ranks=self._num_ranks,
        )

    def _seek(self, position: Position) -> None:
        """Begins at a batch: finds its pool from the sizes alone, and decodes from there."""
        plan = self._plan(position.epoch)
        remaining, first = position.batch * self._batch_rows, 0
        for chunks in plan.pools():
            size = sum(plan.chunk_rows(int(chunk)) for chunk in chunks)
            if remaining < size:
                break
            remaining -= size
            first += 1
        self._coming = self._pools_from(position.epoch, first)
        self._place_next()
        self._half = 1
        self._fill(0)
        self._next_pool()
        self._used = remaining

    def _pools_from(self, epoch: int, first: int) -> Iterator[tuple[EpochPlan, int, Numbers]]:
        """(plan, number, chunks) of every pool to come, from one of an epoch on."""
        while self._num_epochs is None or epoch < self._num_epochs:
            plan = self._plan(epoch)
            for number, chunks in list(enumerate(plan.pools()))[first:]:
                yield plan, number, chunks
            epoch, first = epoch + 1, 0

    def _place_next(self) -> None:
        """Starts to compute the slots of the next pool, so that they are there when a half becomes free."""
        coming = next(self._coming, None)
        if coming is None:
            self._placed = None
            return
        plan, number, chunks = coming
        self._placed = plan.epoch, self._threads.submit(lambda: list(plan.slots(number, chunks)))

    def _take(self, num_rows: int) -> tuple[Rows, ...]:
        taken = 0
        while True:
            part = min(num_rows - taken, self._available - self._used)
            pieces = tuple(pool[self._used : self._used + part] for pool in self._pools[self._half])
            self._used += part
            if part == num_rows:
                return pieces
            for spanning, piece in zip(self._spanning, pieces, strict=True):
                spanning[taken : taken + part] = piece
            taken += part
            if taken == num_rows:
                return self._spanning
            self._next_pool()

    def _next_pool(self) -> None:
        """Waits until the other half is decoded; batches then come from it, and this half is filled again."""
        available = 0
        while self._pending:
            available += self._pending[0].result()  # a failed task stays: the next call gets its error too
            self._pending.popleft()
        self._half = 1 - self._half
        self._epoch, self._available, self._used = self._filling_epoch, available, 0
        self._fill(1 - self._half)

    def _fill(self, half: int) -> None:
        """Starts decoding the next pool, if there is one; each future gives the number of rows of its task."""
        if self._placed is None:
            return
        self._filling_epoch, slots = self._placed
        placed = slots.result()
        for start in range(0, len(placed), self._chunks_per_task):
            task = placed[start : start + self._chunks_per_task]
            self._pending.append(self._threads.submit(self._decode, task, half))
        self._place_next()

    def _decode(self, task: list[tuple[int, Numbers]], half: int) -> int:
        for chunk, slots in task:
            shard, inside = divmod(chunk, self._source.manifest.spec.chunks_per_shard)
            for hook, pool in zip(self._hooks, self._pools[half], strict=True):
                self._source.shard_file(hook, shard, self._split).decode(inside, pool, slots)
        return sum(len(slots) for _, slots in task)


class BatchStream(Iterator[NDArray[np.uint16]], AbstractContextManager["BatchStream"]):
    """The batches of one hook: see AlignedBatches."""

    def __init__(self, batches: AlignedBatches) -> None:
        self._batches = batches
        self.batches_per_epoch = batches.batches_per_epoch

    @property
    def position(self) -> Position:
        """The next batch."""
        return self._batches.position

    def __next__(self) -> NDArray[np.uint16]:
        return next(self._batches)[0]

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the decoding threads."""
        self._batches.close()
