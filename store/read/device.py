"""Batches on a device: copied to a GPU from pinned memory while the step before is computed."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from store.read.batches import BatchStream, Position

DEPTH = 2
"""Batches that are under way to a GPU at once."""


class _Copy(NamedTuple):
    rows: Tensor
    done: "torch.cuda.Event"
    position: Position


class DeviceBatches(Iterator[Tensor], AbstractContextManager["DeviceBatches"]):
    """The batches of a stream as bfloat16 tensors (batch_rows, d_model) on a device, in the same order.

    On a CPU a batch is the stream's own memory, valid until the next is asked for. On a GPU it is a tensor of its own,
    copied on a side stream from pinned memory, `DEPTH` batches ahead of the one that is asked for; the stream that
    computes waits for the copy, the host does not. `position` is that of the next batch given out here.
    """

    def __init__(self, batches: BatchStream, device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._copies: deque[_Copy] = deque()
        self._pinned: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []  # from each pinned tensor
        self._num_started = 0
        self._side = torch.cuda.Stream(device) if self._on_gpu else None

    @property
    def position(self) -> Position:
        """The next batch."""
        return self._copies[0].position if self._copies else self._batches.position

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self._batches.batches_per_epoch

    def __next__(self) -> Tensor:
        if not self._on_gpu:
            return torch.from_numpy(next(self._batches)).view(torch.bfloat16)
        self._start_copies()
        if not self._copies:
            raise StopIteration
        copy = self._copies.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        copy.rows.record_stream(current)  # its memory is not used again before the step is done with it
        try:
            self._start_copies()
        except BaseException:
            self._copies.appendleft(copy)  # it was not given out: `position` stays that of it
            raise
        return copy.rows

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the decoding threads."""
        self._batches.close()

    def _start_copies(self) -> None:
        assert self._side is not None
        while len(self._copies) < DEPTH:
            position = self._batches.position
            bits = next(self._batches, None)
            if bits is None:
                return
            slot = self._num_started % DEPTH
            if slot == len(self._pinned):
                self._pinned.append(torch.empty(bits.shape, dtype=torch.bfloat16, pin_memory=True))
                self._copied.append(torch.cuda.Event())
            self._copied[slot].synchronize()  # the copy before from this memory, which is as good as over
            self._pinned[slot].copy_(torch.from_numpy(bits).view(torch.bfloat16))
            with torch.cuda.stream(self._side):
                rows = self._pinned[slot].to(self._device, non_blocking=True)
                self._copied[slot] = torch.cuda.Event()
                self._copied[slot].record(self._side)
            self._copies.append(_Copy(rows, self._copied[slot], position))
            self._num_started += 1
