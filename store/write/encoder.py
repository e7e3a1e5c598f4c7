"""Encodes shards in threads and commits them whole, while the producer computes the next ones.

A producer hands over a shard's rows and goes on. Threads encode its chunks; others write the encoded chunks of each
file in order, with checksums, sync the file and rename it. Shards that are under way hold at most `max_pending_bytes`
of rows: a producer that is faster than the disk waits, and nothing grows.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
from torch import Tensor

from store.codec.bf16_planes import Numbers, Rows
from store.codec.checksum import crc32c
from store.codec.names import CodecName
from store.codec.registry import Parts, encode_chunk_parts, on_host

T = TypeVar("T")

_WRITERS = 2  # one file syncs while another is written
_CHUNKS_AHEAD_BYTES = 64 * 2**20  # rows of encoded chunks that may wait for the disk, per file


class ShardPipeline(AbstractContextManager["ShardPipeline"]):
    """The threads of one writer.

    Args:
        num_threads: encoding at once.
        max_pending_bytes: rows that may be under way; one shard is always let in. Encoded chunks that wait for the
            disk come on top, for each of two files those of 64 MiB of rows, or four where chunks are larger.
    """

    def __init__(self, *, num_threads: int, max_pending_bytes: int) -> None:
        if num_threads < 1 or max_pending_bytes < 1:
            raise ValueError(
                f"expected at least one thread and one byte, got {num_threads} threads and {max_pending_bytes} bytes"
            )
        self._encoders = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="shard-writer")
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._num_submitted = 0
        self._failures: dict[int, BaseException] = {}
        self._changed = threading.Condition()

    def submit(self, nbytes: int, commit: Callable[[], None]) -> Future[None]:
        """Runs `commit` in a writing thread once there is room for `nbytes` of rows; waits until there is.

        Raises the error of the first commit that failed, if one did: then nothing more is taken. The futures of later
        commits that had not begun raise it too.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._failures
                    or self._pending_bytes == 0
                    or self._pending_bytes + nbytes <= self._max_pending_bytes
                )
            )
            if self._failures:
                self._raise_first()
            number, self._num_submitted = self._num_submitted, self._num_submitted + 1
            self._pending_bytes += nbytes

        def run() -> None:
            try:
                with self._changed:
                    first = min(self._failures, default=number)
                if first < number:
                    raise self._failures[first]  # not committed, and its future must not say that it is
                commit()
            except BaseException as error:
                with self._changed:
                    self._failures[number] = error
                raise
            finally:
                with self._changed:
                    self._pending_bytes -= nbytes
                    self._changed.notify_all()

        try:
            return self._writers.submit(run)
        except RuntimeError:  # closed: nobody else would take back what is pending, and `wait` would wait for ever
            with self._changed:
                self._pending_bytes -= nbytes
            raise

    def encode(
        self, codec: CodecName, rows: Rows | Tensor, order: Numbers, *, rows_per_chunk: int
    ) -> Iterator[tuple[Parts, int]]:
        """The encoded chunks in order, each with its crc32c and the number of its bytes.

        A few are encoded ahead of the one that is asked for.

        Args:
            codec: of the chunks.
            rows: (any, d_model) bit patterns on the host, or a tensor on a device.
            order: the numbers of the rows, chunk after chunk.
            rows_per_chunk: of each; what the last one lacks is filled with rows of zeros, as zarr wants it.
        """
        orders = [order[start : start + rows_per_chunk] for start in range(0, len(order), rows_per_chunk)]
        ahead = max(2, _CHUNKS_AHEAD_BYTES // (2 * rows.shape[1] * rows_per_chunk))
        futures: deque[Future[tuple[Parts, int]]] = deque()
        for next_order in orders:
            futures.append(self._encoders.submit(_encode, codec, rows, next_order, rows_per_chunk))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function in an encoding thread."""
        return self._encoders.submit(function)

    def wait(self) -> None:
        """Waits until all that was submitted is committed; raises the first error."""
        with self._changed:
            self._raise_first()

    def _raise_first(self) -> None:
        """Waits for all that is under way; raises the error of the commit that was submitted first, if any failed."""
        self._changed.wait_for(lambda: self._pending_bytes == 0)
        if self._failures:
            raise self._failures[min(self._failures)]

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads after what is under way."""
        self._writers.shutdown(wait=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)


def _encode(codec: CodecName, rows: Rows | Tensor, order: Numbers, rows_per_chunk: int) -> tuple[Parts, int]:
    if len(order) == rows_per_chunk:
        parts = encode_chunk_parts(codec, rows, order)
    else:
        whole = np.zeros((rows_per_chunk, rows.shape[1]), dtype=np.uint16)
        whole[: len(order)] = on_host(rows, order)
        parts = encode_chunk_parts(codec, whole)
    checksum = crc32c(parts)
    return (*parts, checksum), sum(map(len, parts)) + len(checksum)
