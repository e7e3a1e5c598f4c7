"""The plane split: lossless compression of bfloat16 activations, whose exponents are predictable and the rest is noise.

A chunk of rows (n, d) of bfloat16 bit patterns (uint16: sign, 8 exponent bits, 7 mantissa bits) is split into two
planes of bytes. From the exponent plane every channel's median exponent is subtracted (modulo 256), and zstd's entropy
coder compresses what is left; the sign-and-mantissa plane has 7.97 bits of entropy per byte and is stored as it is.

One encoded chunk, little-endian, holds all that its decoding needs:

    4 bytes   magic b"BFP1"
    uint32    n, rows
    uint32    d, channels
    uint32    m, bytes of the compressed exponent plane
    d bytes   the exponent subtracted from each channel
    m bytes   zstd frame of the (n, d) exponent plane
    n*d bytes the (n, d) sign-and-mantissa plane

Correct for every bit pattern: NaN payloads, infinities, subnormals and -0.0 are bits like any others.

`split_bits` and `merge_bits` are the only definition of the split. numba compiles them into the loops of the CPU path,
and torch runs them on tensors of any device (bf16_planes_torch.py). Both give the same bytes.

Shapes: n rows, d channels.
"""

import struct
import threading
from dataclasses import dataclass

import numba
import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from store.codec.cache_lines import LINE_BYTES, can_stream, fence, fetch_lines, stream_lines
from store.codec.compiled import compiled
from store.codec.zstd_frame import decompress_into
from store.errors import DamagedFile

HEADER = struct.Struct("<4sIII")
MAGIC = b"BFP1"

Rows = NDArray[np.uint16]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_ROWS_AHEAD = 6  # that are fetched before they are split
MEDIAN_ROWS = 256
"""Rows that the median exponent is taken from."""
_TENSORS = (torch.bfloat16, torch.int16, torch.uint16)
_PER_THREAD = threading.local()


def split_bits(bits, shift):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - numbers, arrays or tensors
    """(exponent minus `shift` modulo 256, sign and mantissa) of bfloat16 `bits`, given as integers wider than 16."""
    return ((bits >> 7) - shift) & 0xFF, ((bits >> 8) & 0x80) | (bits & 0x7F)


def merge_bits(exponent, rest, shift):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - as split_bits
    """The inverse of `split_bits`."""
    return ((rest & 0x80) << 8) | (((exponent + shift) & 0xFF) << 7) | (rest & 0x7F)


_split_bits = numba.njit(inline="always")(split_bits)
_merge_bits = numba.njit(inline="always")(merge_bits)


@dataclass(frozen=True)
class Planes:
    """Rows (n, d) taken apart, on the host or as tensors on a device."""

    exponents: Bytes
    """(n, d), the shift subtracted."""
    rest: Bytes
    """(n, d), sign and mantissa."""
    shift: Bytes
    """(d,), each channel's median exponent."""


@compiled
def _median_exponents(rows: Rows, order: Numbers, step: int, shift: Bytes) -> None:
    num_rows, num_channels = len(order), rows.shape[1]
    counts = np.zeros((num_channels, 256), dtype=np.uint16)
    num_sampled = 0
    for i in range(0, num_rows, step):
        num_sampled += 1
        for c in range(num_channels):
            counts[c, (rows[order[i], c] >> 7) & 0xFF] += 1
    for c in range(num_channels):
        seen = 0
        for exponent in range(256):
            seen += counts[c, exponent]
            if 2 * seen >= num_sampled:
                shift[c] = exponent
                break


@compiled
def _split(rows: Rows, order: Numbers, shift: Bytes, exponents: Bytes, rest: Bytes) -> None:
    start, row_nbytes = rows.ctypes.data, 2 * rows.shape[1]
    num_lines = np.intp(-(-row_nbytes // LINE_BYTES))
    for i in range(len(order)):
        if i + _ROWS_AHEAD < len(order):
            ahead = np.uintp(start + order[i + _ROWS_AHEAD] * row_nbytes)
            fetch_lines(ahead, num_lines)  # type: ignore[call-arg]  # numba adds the first argument
        row = rows[order[i]]
        for c in range(rows.shape[1]):
            exponents[i, c], rest[i, c] = _split_bits(np.int32(row[c]), np.int32(shift[c]))


@compiled
def _merge(exponents: Bytes, rest: Bytes, shift: Bytes, out: Rows, slots: Numbers) -> None:
    for i in range(len(slots)):
        row = out[slots[i]]
        for c in range(exponents.shape[1]):
            row[c] = _merge_bits(np.int32(exponents[i, c]), np.int32(rest[i, c]), np.int32(shift[c]))


@compiled
def _merge_streaming(exponents: Bytes, rest: Bytes, shift: Bytes, out: Rows, slots: Numbers) -> None:
    num_channels = exponents.shape[1]
    row = np.empty(num_channels, dtype=np.uint16)
    start, source, row_nbytes = out.ctypes.data, row.ctypes.data, 2 * num_channels
    for i in range(len(slots)):
        for c in range(num_channels):
            row[c] = _merge_bits(np.int32(exponents[i, c]), np.int32(rest[i, c]), np.int32(shift[c]))
        to, num_lines = np.uintp(start + slots[i] * row_nbytes), np.intp(row_nbytes // LINE_BYTES)
        stream_lines(to, np.uintp(source), num_lines)  # type: ignore[call-arg]  # numba adds the first argument
    fence()  # type: ignore[call-arg]  # as above


def encode_planes(rows: Rows) -> bytes:
    """Encodes rows (n, d) into one self-contained chunk."""
    return b"".join(encode_planes_parts(rows))


def encode_planes_parts(rows: Rows, order: Numbers | None = None) -> tuple[bytes | memoryview, ...]:
    """Encodes rows into one self-contained chunk, as parts to be written one after another without a copy.

    Args:
        rows: (n, d) bit patterns, d >= 1.
        order: numbers of the rows that the chunk holds, in its order; all as they come if None.
    """
    check_rows(rows)
    check_order(order, len(rows))
    if not rows.flags.c_contiguous:  # copied chunk by chunk: whole shards would not stay in bounded memory
        rows, order = np.ascontiguousarray(rows if order is None else rows[order]), None
    order = np.arange(len(rows)) if order is None else order
    shape = (len(order), rows.shape[1])
    shift, rest = np.zeros(shape[1], dtype=np.uint8), np.empty(shape, dtype=np.uint8)
    exponents = _scratch(shape)
    if len(order):
        _median_exponents(rows, order, -(-len(order) // MEDIAN_ROWS), shift)
        _split(rows, order, shift, exponents, rest)
    return pack_planes(Planes(exponents, rest, shift))


def check_order(order: Numbers | None, num_rows: int) -> None:
    """ValueError for numbers of rows that are not there: compiled code would read past the end."""
    if order is not None and len(order) and (order.min() < 0 or order.max() >= num_rows):
        raise ValueError(f"expected row numbers from 0 to {num_rows - 1}, got {order.min()} to {order.max()}")


def check_rows(rows: Rows | Tensor) -> None:
    """ValueError for rows that are not (n, d) bit patterns of bfloat16, d >= 1: values of others would be lost."""
    right = rows.dtype in _TENSORS if isinstance(rows, Tensor) else rows.dtype == np.uint16
    if not right or rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"expected rows (n, d), d >= 1, that are uint16 bit patterns of bfloat16 or a tensor of bfloat16, got "
            f"{rows.dtype} of shape {tuple(rows.shape)}. Convert them: torch.Tensor.bfloat16 rounds, numpy cannot"
        )


def pack_planes(planes: Planes) -> tuple[bytes | memoryview, ...]:
    """One chunk of host planes, as parts: the header with the shift, the compressed exponents, the rest."""
    num_rows, num_channels = planes.exponents.shape
    packed = _compressor().compress(planes.exponents.data)
    header = HEADER.pack(MAGIC, num_rows, num_channels, len(packed))
    return header + planes.shift.tobytes(), packed, planes.rest.reshape(-1).data


def unpack_planes(chunk: Bytes, shape: tuple[int, int]) -> Planes:
    """The planes of a chunk of `shape`; `exponents` is valid until this thread unpacks the next chunk.

    Raises:
        DamagedFile: the bytes are not such a chunk. No size in the chunk is trusted before it is checked.
    """
    num_rows, num_channels = read_header(chunk)
    if (num_rows, num_channels) != tuple(shape):
        raise DamagedFile(f"expected a chunk of {tuple(shape)} rows and channels, got {(num_rows, num_channels)}")
    num_values = num_rows * num_channels
    packed_nbytes = chunk.nbytes - HEADER.size - num_channels - num_values
    shift_end = HEADER.size + num_channels
    packed = chunk[shift_end : shift_end + packed_nbytes]
    rest = chunk[shift_end + packed_nbytes :].reshape(num_rows, num_channels)
    exponents = _scratch((num_rows, num_channels))
    decompress_into(packed, exponents, what="exponents")
    return Planes(exponents, rest, chunk[HEADER.size : shift_end])


def read_header(chunk: Bytes) -> tuple[int, int]:
    """(rows, channels) of a chunk whose size is the one that its header implies; else DamagedFile."""
    if chunk.nbytes < HEADER.size:
        raise DamagedFile(f"expected a chunk of at least {HEADER.size} bytes, got {chunk.nbytes}")
    magic, num_rows, num_channels, packed_nbytes = HEADER.unpack(chunk[: HEADER.size].tobytes())
    if magic != MAGIC:
        raise DamagedFile(f"expected a chunk that begins with {MAGIC!r}, got {magic!r}")
    expected_nbytes = HEADER.size + num_channels + packed_nbytes + num_rows * num_channels
    if chunk.nbytes != expected_nbytes or num_channels == 0:
        raise DamagedFile(f"expected a chunk of {expected_nbytes} bytes, got {chunk.nbytes}")
    return num_rows, num_channels


def decode_planes(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: Numbers) -> None:
    """Decodes a chunk of `shape`; row i of its first len(slots) rows goes to out[slots[i]].

    Args:
        chunk: the encoded bytes, (nbytes,) uint8, contiguous.
        shape: (rows, channels) that the chunk must have.
        out: (any, channels) uint16, C-contiguous.
        slots: row numbers of `out`, at most as many as the chunk has rows.

    Raises:
        DamagedFile: the bytes are not such a chunk.
    """
    planes = unpack_planes(chunk, shape)
    if len(slots):
        if len(slots) > shape[0] or slots.min() < 0 or slots.max() >= len(out) or out.shape[1] != shape[1]:
            raise ValueError(f"expected at most {shape[0]} slots inside an output of shape {out.shape}")
        merge = _merge_streaming if can_stream(out) else _merge
        merge(planes.exponents, planes.rest, planes.shift, out, slots)


def _scratch(shape: tuple[int, int]) -> Bytes:
    """A plane that this thread uses again and again: fresh memory would cost a page fault every 4096 bytes."""
    nbytes = shape[0] * shape[1]
    held: Bytes | None = getattr(_PER_THREAD, "plane", None)
    if held is None or held.nbytes < nbytes:
        held = _PER_THREAD.plane = np.empty(nbytes, dtype=np.uint8)
    return held[:nbytes].reshape(shape)


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's compressor.

    Only zstd's entropy stage has something to gain: the exponents are noise with a known distribution. The smallest
    hash table finds the fewest accidental repeats, which makes chunks 9 % smaller in the exponent plane (2.62 against
    2.88 bits, with 2.56 of entropy) and encoding 5 times faster than level 1 does; frames stay ordinary zstd.
    """
    held: zstandard.ZstdCompressor | None = getattr(_PER_THREAD, "compressor", None)
    if held is None:
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, search_log=1, window_log=17,
            write_content_size=1, write_checksum=0,
        )  # fmt: skip
        held = _PER_THREAD.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return held
