"""What a harvest will take, from a few sequences of its own text through its own model and codec, in seconds."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from compute.memory import available
from compute.progress import amount, duration
from harvest.activations import RowModel, harvest_rows
from harvest.streams import Tokens
from store.cache.spec import CacheSpec
from store.codec.registry import decode_chunk, encode_chunk

PROBE_SECONDS: Final = 4.0
"""About so long the model is timed, or for one sequence where that takes longer."""
_WRITTEN_BYTES: Final = 32 * 2**20
_TOLERANCE: Final = 0.97
"""The few rows of a probe compress a little better or worse than all of them."""


@dataclass(frozen=True)
class Probe:
    """Measured on the machine that harvests, or on one of its workers."""

    tokens_per_second: float
    """Through the truncated model, nothing stored."""
    stored_share: float
    """Bytes after the codec over bytes of plain bfloat16."""
    encode_bytes_per_second: float
    """Of plain bfloat16, in one thread, as are the next."""
    decode_bytes_per_second: float
    write_bytes_per_second: float
    """Of the folder where the cache grows, synced."""
    read_bytes_per_second: float
    """Of the same file, after the system was asked to forget it."""
    model_bytes: int
    """Of the weights that are loaded."""
    memory_bytes: int | None
    """Of the host that are free, now that the model is loaded; None where nobody says."""
    num_threads: int
    on_gpu: bool


def probe(
    model: RowModel, spec: CacheSpec, tokens: Tokens, *, folder: Path, device: str, num_tokens: int, thorough: bool
) -> Probe:
    """Runs some of the windows `tokens` (sequences, context_length) through model and codec, and a file to `folder`.

    Takes a hundredth of the time that the harvest of `num_tokens` will take, or a few seconds where it is to be
    `thorough`; in any case the time of one sequence.
    """
    rows, tokens_per_second = _time_model(
        model, spec, tokens, device=device, num_tokens=math.inf if thorough else num_tokens
    )
    chunks = [values[: spec.rows_per_chunk] for values in rows.values()]
    encode_chunk(spec.codec, chunks[0][:1])  # compiles
    started = time.perf_counter()
    encoded = [encode_chunk(spec.codec, chunk) for chunk in chunks]
    encode_seconds = time.perf_counter() - started
    out = np.empty_like(chunks[0])
    shape, slots = (out.shape[0], out.shape[1]), np.arange(len(out), dtype=np.int64)
    decode_seconds = math.inf
    for _ in range(2):  # the first compiles
        started = time.perf_counter()
        for chunk in encoded:
            decode_chunk(spec.codec, np.frombuffer(chunk, dtype=np.uint8), shape, out, slots)
        decode_seconds = min(decode_seconds, time.perf_counter() - started)
    raw, stored = sum(chunk.nbytes for chunk in chunks), sum(map(len, encoded))
    num_bytes = num_tokens * len(chunks) * spec.model.d_model * 2 // 50
    write, read = _time_disk(folder, b"".join(encoded), num_bytes=_WRITTEN_BYTES if thorough else num_bytes)
    return Probe(
        tokens_per_second=tokens_per_second,
        stored_share=stored / raw,
        encode_bytes_per_second=raw / encode_seconds,
        decode_bytes_per_second=raw / decode_seconds,
        write_bytes_per_second=write,
        read_bytes_per_second=read,
        model_bytes=model.num_bytes,
        memory_bytes=available(torch.device("cpu")),
        num_threads=os.cpu_count() or 1,
        on_gpu=torch.device(device).type == "cuda",
    )


def _time_model(
    model: RowModel, spec: CacheSpec, tokens: Tokens, *, device: str, num_tokens: float
) -> tuple[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint16]]], float]:
    """Rows by hook, and tokens a second."""
    number, seconds = 1, 0.0
    for last in (False, False, True):  # the first pass has to allocate; the second says how many fit into the time
        batch = tokens[:number]
        started = time.perf_counter()
        rows = harvest_rows(
            model,
            batch,
            d_model=spec.model.d_model,
            rows_per_sequence=spec.rows_per_sequence,
            batch_sequences=min(number, spec.forward_batch_sequences),
            device=device,
            on_progress=lambda _: None,
        )
        seconds = time.perf_counter() - started
        allowed = min(PROBE_SECONDS, num_tokens / batch.size * seconds / 100)
        if not last and seconds > allowed:
            break
        number = max(1, min(len(tokens), 2 * spec.forward_batch_sequences, int(allowed / seconds)))
    return rows, batch.size / seconds


def _time_disk(folder: Path, data: bytes, *, num_bytes: int) -> tuple[float, float]:
    """Bytes a second, written with fsync and read again, of a file in `folder` that is removed."""
    path = folder / "probe"
    repeats = max(1, min(num_bytes, _WRITTEN_BYTES) // len(data))
    try:
        started = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(repeats):
                file.write(data)
            os.fsync(file.fileno())
            written = time.perf_counter() - started
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        path.read_bytes()
        read = time.perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
    return repeats * len(data) / written, repeats * len(data) / read


@dataclass(frozen=True)
class Estimate:
    """What a harvest will take, and when it pays."""

    probe: Probe
    hooks: tuple[str, ...]
    """That are written."""
    d_model: int
    num_tokens: int
    """That the model still has to read, BOS included."""
    num_rows: int
    """To be stored, over all hooks that are written."""
    all_tokens: int
    """Of the whole cache."""
    all_rows: int
    """Of the whole cache, of one hook."""
    num_hooks: int
    free_bytes: int
    """Where the cache grows."""
    row_memory_bytes: int
    """Rows that are computed, and that wait to be written, in one process."""
    num_workers: int

    @property
    def raw_bytes(self) -> float:
        """To be stored, as plain bfloat16."""
        return 2.0 * self.num_rows * self.d_model

    @property
    def stored_bytes(self) -> float:
        """To be stored, compressed."""
        return self.raw_bytes * self.probe.stored_share

    @property
    def seconds(self) -> float:
        """Until the end, if nothing else runs here."""
        return self._seconds(self.num_tokens, self.raw_bytes)

    def _seconds(self, num_tokens: float, raw_bytes: float) -> float:
        found, workers = self.probe, self.num_workers
        forward = num_tokens / (found.tokens_per_second * workers)
        encode = raw_bytes / (found.encode_bytes_per_second * found.num_threads)
        write = raw_bytes * found.stored_share / found.write_bytes_per_second
        # A GPU leaves the cores to the codec; on a CPU both share them. Writing waits for the disk, and not for cores.
        return max(forward if found.on_gpu else forward + encode, encode / workers, write)

    @property
    def forward_seconds(self) -> float:
        """Running the model once over all tokens of the cache, nothing stored: what a training without a store does."""
        return self.all_tokens / (self.probe.tokens_per_second * self.num_workers)

    @property
    def read_seconds(self) -> float:
        """Reading all rows of one hook once from the store: what a training with one does."""
        raw = 2.0 * self.all_rows * self.d_model
        decode = raw / (self.probe.decode_bytes_per_second * self.probe.num_threads)
        return max(decode, raw * self.probe.stored_share / self.probe.read_bytes_per_second)

    @property
    def store_seconds(self) -> float:
        """Harvesting all of the cache from nothing."""
        return self._seconds(self.all_tokens, 2.0 * self.all_rows * self.d_model * self.num_hooks)

    @property
    def break_even(self) -> int | None:
        """Passes over the rows after which storing has cost less than running the model for each; None for never."""
        return passes_to_break_even(store=self.store_seconds, read=self.read_seconds, forward=self.forward_seconds)

    def lines(self) -> list[str]:
        """All of it in words."""
        found = self.probe
        each = f", with each of {self.num_workers} workers" if self.num_workers > 1 else ""
        lines = [
            f"{amount(self.num_tokens)} tokens through the model, {amount(self.num_rows)} rows at "
            f"{len(self.hooks)} hook{'s' * (len(self.hooks) != 1)} to store",
            f"disk: {_bytes(self.raw_bytes)} as bfloat16, about {_bytes(self.stored_bytes)} compressed "
            f"({1 / found.stored_share:.2f} times smaller); {_bytes(self.free_bytes)} are free",
            f"time: about {duration(self.seconds)} at {amount(found.tokens_per_second)} tokens/s{each} "
            "(a probe of a few sequences, nothing stored)",
            f"memory: {_bytes(found.model_bytes)} of weights, at most {_bytes(self.row_memory_bytes)} of rows{each}; "
            f"{_bytes(found.memory_bytes) if found.memory_bytes is not None else 'nobody knows how much'} free beside "
            "the weights",
        ]
        passes = self.break_even
        again = (
            f"a training reads a hook's rows in {duration(self.read_seconds)}, and the model would need "
            f"{duration(self.forward_seconds)} for them"
        )
        if passes is None:
            lines.append(f"break-even: never, for time: {again}")
        else:
            lines.append(f"break-even: storing is quicker from {passes} trainings (or epochs) on: {again}")
        return lines

    def refuse_what_cannot_fit(self, folder: Path) -> None:
        """ValueError where disk or memory do not suffice, before anything is written or removed."""
        if self.stored_bytes * _TOLERANCE > self.free_bytes:
            raise ValueError(
                f"expected about {_bytes(self.stored_bytes)} of free space below {folder} for what is to be stored, "
                f"got {_bytes(self.free_bytes)}. Free some, or lower harvest.num_rows; the earlier cache is untouched"
            )
        memory = self.probe.memory_bytes
        if memory is not None and self.row_memory_bytes > memory:
            raise ValueError(
                f"expected about {_bytes(self.row_memory_bytes)} of free memory for the rows of two shards, got "
                f"{_bytes(memory)}. Lower harvest.chunks_per_shard, or harvest fewer hooks at a time"
            )


def passes_to_break_even(*, store: float, read: float, forward: float) -> int | None:
    """The smallest number n of trainings with store + n read < n forward, all in seconds; None where there is none."""
    return None if read >= forward else math.floor(store / (forward - read)) + 1


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"
