"""Lossless compression of bfloat16 activations: the exponents are predictable per channel, the rest is noise.

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
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numba
import numcodecs
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from store.errors import DamagedFile

CodecName = Literal["bf16_planes_v1", "pcodec", "zstd", "blosc", "none"]

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"BFP1"
_ZSTD_LEVEL = 1  # only the entropy stage matters; higher levels search for repeats that are not there
_MEDIAN_ROWS = 256  # rows that the median exponent is taken from

Rows = NDArray[np.uint16]
Bytes = NDArray[np.uint8]


@numba.njit(nogil=True, cache=True)
def _median_exponents(rows: Rows, step: int, shift: Bytes) -> None:
    num_rows, num_channels = rows.shape
    counts = np.zeros((num_channels, 256), dtype=np.uint16)
    num_sampled = 0
    for i in range(0, num_rows, step):
        num_sampled += 1
        for c in range(num_channels):
            counts[c, (rows[i, c] >> 7) & 0xFF] += 1
    for c in range(num_channels):
        seen = 0
        for exponent in range(256):
            seen += counts[c, exponent]
            if 2 * seen >= num_sampled:
                shift[c] = exponent
                break


@numba.njit(nogil=True, cache=True)
def _split(rows: Rows, shift: Bytes, exponents: Bytes, rest: Bytes) -> None:
    for i in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            bits = rows[i, c]
            exponents[i, c] = np.uint8((bits >> 7) & 0xFF) - shift[c]
            rest[i, c] = ((bits >> 8) & 0x80) | (bits & 0x7F)


@numba.njit(nogil=True, cache=True)
def _merge(exponents: Bytes, rest: Bytes, shift: Bytes, out: Rows, slots: NDArray[np.int64]) -> None:
    for i in range(slots.shape[0]):
        slot = slots[i]
        for c in range(exponents.shape[1]):
            exponent = np.uint16(np.uint8(exponents[i, c] + shift[c]))
            other = np.uint16(rest[i, c])
            out[slot, c] = ((other & 0x80) << 8) | (exponent << 7) | (other & 0x7F)


def encode_planes(rows: Rows) -> bytes:
    """Encodes rows (n, d) of bit patterns into one self-contained chunk."""
    if rows.ndim != 2 or rows.dtype != np.uint16 or rows.shape[1] == 0:
        raise ValueError(f"expected uint16 rows (n, d) with d >= 1, got {rows.dtype} of shape {rows.shape}")
    rows = np.ascontiguousarray(rows)
    num_rows, num_channels = rows.shape
    shift = np.zeros(num_channels, dtype=np.uint8)
    exponents, rest = np.empty(rows.shape, dtype=np.uint8), np.empty(rows.shape, dtype=np.uint8)
    if num_rows:
        _median_exponents(rows, -(-num_rows // _MEDIAN_ROWS), shift)
        _split(rows, shift, exponents, rest)
    packed = zstd.compress(exponents, _ZSTD_LEVEL)
    header = _HEADER.pack(_MAGIC, num_rows, num_channels, len(packed))
    return b"".join((header, shift.tobytes(), packed, rest.tobytes()))


def decode_planes(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: NDArray[np.int64]) -> None:
    """Decodes a chunk of `shape`; row i of its first len(slots) rows goes to out[slots[i]].

    Args:
        chunk: the encoded bytes, (nbytes,) uint8, contiguous.
        shape: (rows, channels) that the chunk must have.
        out: (any, channels) uint16, C-contiguous.
        slots: row numbers of `out`, at most as many as the chunk has rows.

    Raises:
        DamagedFile: the bytes are not such a chunk. No size in the chunk is trusted before it is checked.
    """
    if chunk.nbytes < _HEADER.size:
        raise DamagedFile(f"expected a chunk of at least {_HEADER.size} bytes, got {chunk.nbytes}")
    magic, num_rows, num_channels, packed_nbytes = _HEADER.unpack(chunk[: _HEADER.size].tobytes())
    if magic != _MAGIC or (num_rows, num_channels) != tuple(shape):
        raise DamagedFile(
            f"expected a chunk {_MAGIC!r} of {shape} rows and channels, got {magic!r} of {(num_rows, num_channels)}"
        )
    num_values = num_rows * num_channels
    expected_nbytes = _HEADER.size + num_channels + packed_nbytes + num_values
    if chunk.nbytes != expected_nbytes:
        raise DamagedFile(f"expected a chunk of {expected_nbytes} bytes, got {chunk.nbytes}")
    if len(slots) == 0:
        return
    if len(slots) > num_rows or slots.min() < 0 or slots.max() >= len(out) or out.shape[1] != num_channels:
        raise ValueError(f"expected at most {num_rows} slots inside an output of shape {out.shape}")
    shift_end = _HEADER.size + num_channels
    packed = chunk[shift_end : shift_end + packed_nbytes]
    if zstd_content_nbytes(packed) != num_values:
        raise DamagedFile(f"expected a zstd frame of {num_values} bytes of content, got another size or no frame")
    exponents = np.empty((num_rows, num_channels), dtype=np.uint8)
    try:
        zstd.decompress(packed, exponents)
    except RuntimeError as error:
        raise DamagedFile(f"expected a zstd frame of exponents, zstd says: {error}") from error
    rest = chunk[shift_end + packed_nbytes :].reshape(num_rows, num_channels)
    _merge(exponents, rest, chunk[_HEADER.size : shift_end], out, slots)


def zstd_content_nbytes(frame: Bytes) -> int:
    """The content size that a zstd frame's header states (RFC 8878, 3.1.1.1), or -1, before anything is decoded."""
    head = frame[:18].tobytes()
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1
    single_segment = (head[4] >> 5) & 1
    size_flag = head[4] >> 6
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[head[4] & 3]
    width = (single_segment, 2, 4, 8)[size_flag]
    field = head[start : start + width]
    if width == 0 or len(field) < width:
        return -1
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


@dataclass(frozen=True)
class BFloat16Planes(ArrayBytesCodec):
    """The codec above as a native zarr v3 codec, found by its entry point `bf16_planes_v1` in any process."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        parse_named_configuration(data, "bf16_planes_v1", require_configuration=False)
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        return {"name": "bf16_planes_v1"}

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        encoded = encode_planes(np.asarray(chunk_array.as_numpy_array()))
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        rows = np.empty(chunk_spec.shape, dtype=np.uint16)
        chunk = np.ascontiguousarray(chunk_bytes.as_numpy_array()).view(np.uint8)
        decode_planes(chunk, (rows.shape[0], rows.shape[1]), rows, np.arange(len(rows)))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(rows)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        raise ValueError("the encoded size of a bf16_planes_v1 chunk depends on its values")


@dataclass(frozen=True)
class _Codec:
    """One way of storing chunks, spelled for zarr's metadata and for our own reader and writer alike."""

    serializer: dict[str, JSON]
    compressors: tuple[dict[str, JSON], ...]
    encode: Callable[[Rows], bytes]
    decode: Callable[[Bytes, tuple[int, int], Rows, NDArray[np.int64]], None]


def _blosc_content_nbytes(chunk: Bytes) -> int:
    """The content size in a blosc header, or -1 unless it also states the chunk's own size.

    numcodecs hands blosc no length to stay within: a header that states another one crashes the process.
    """
    nbytes, _blocksize, compressed_nbytes = (
        struct.unpack("<III", chunk[4:16].tobytes()) if chunk.nbytes >= 16 else (0,) * 3
    )
    return int(nbytes) if compressed_nbytes == chunk.nbytes else -1


def _general(
    codec: numcodecs.abc.Codec, content_nbytes: Callable[[Bytes], int] | None = None
) -> Callable[[Bytes, tuple[int, int], Rows, NDArray[np.int64]], None]:
    """Decoder of a general compressor of little-endian values; `content_nbytes` reads what a header states."""

    def decode(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: NDArray[np.int64]) -> None:
        nbytes = 2 * shape[0] * shape[1]
        if content_nbytes is not None and (stated := content_nbytes(chunk)) != nbytes:
            raise DamagedFile(
                f"expected a chunk of {codec.codec_id} with {nbytes} bytes of content, it states {stated}"
            )
        if nbytes == 0:
            return  # the compressors encode nothing, but do not decode it
        try:
            raw = np.frombuffer(codec.decode(chunk), dtype=np.uint8)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DamagedFile(f"expected a chunk of {codec.codec_id}, it says: {error}") from error
        _raw(raw, shape, out, slots)

    return decode


def _raw(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: NDArray[np.int64]) -> None:
    if chunk.nbytes != 2 * shape[0] * shape[1]:
        raise DamagedFile(f"expected {2 * shape[0] * shape[1]} bytes of rows {shape}, got {chunk.nbytes}")
    out[slots] = chunk.view("<u2").reshape(shape)[: len(slots)]


_LITTLE: dict[str, JSON] = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD = numcodecs.Zstd(level=_ZSTD_LEVEL)
_BLOSC = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
_PCODEC = numcodecs.pcodec.PCodec(level=8)

_CODECS: Mapping[str, _Codec] = {
    "bf16_planes_v1": _Codec({"name": "bf16_planes_v1"}, (), encode_planes, decode_planes),
    "zstd": _Codec(
        _LITTLE,
        ({"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}},),
        lambda rows: bytes(_ZSTD.encode(np.ascontiguousarray(rows, dtype="<u2"))),
        _general(_ZSTD, zstd_content_nbytes),
    ),
    "blosc": _Codec(
        _LITTLE,
        (
            {
                "name": "blosc",
                "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": 2, "blocksize": 0},
            },
        ),
        lambda rows: bytes(_BLOSC.encode(np.ascontiguousarray(rows, dtype="<u2"))),
        _general(_BLOSC, _blosc_content_nbytes),
    ),
    "pcodec": _Codec(
        {"name": "numcodecs.pcodec", "configuration": {"level": 8}},
        (),
        lambda rows: bytes(_PCODEC.encode(np.ascontiguousarray(rows, dtype="<u2"))),
        _general(_PCODEC),
    ),
    "none": _Codec(_LITTLE, (), lambda rows: np.ascontiguousarray(rows, dtype="<u2").tobytes(), _raw),
}


def encode_chunk(codec: CodecName, rows: Rows) -> bytes:
    """Encodes rows (n, d) of bit patterns with the named codec, checksum not included."""
    return _CODECS[codec].encode(rows)


def decode_chunk(codec: CodecName, chunk: Bytes, shape: tuple[int, int], out: Rows, slots: NDArray[np.int64]) -> None:
    """Decodes a chunk of `shape` with the named codec; row i goes to out[slots[i]], later rows are dropped."""
    _CODECS[codec].decode(chunk, shape, out, slots)


def zarr_codecs(codec: CodecName) -> tuple[dict[str, JSON], tuple[dict[str, JSON], ...]]:
    """The (serializer, compressors) of the named codec as zarr v3 metadata spells them, checksum not included."""
    return _CODECS[codec].serializer, _CODECS[codec].compressors
