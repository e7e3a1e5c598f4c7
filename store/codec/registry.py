"""The codecs that chunks of rows can be stored with, as our reader and writer use them and as zarr spells them.

Their names are in names.py. Every codec keeps every bit. `bf16_planes_v1` (bf16_planes.py) is the smallest and
fastest on activations; the others are for people who must read a cache without this package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numcodecs
import numpy as np
import pcodec
from numcodecs.abc import Codec
from numpy.typing import NDArray
from torch import Tensor
from zarr.core.common import JSON

from store.codec.bf16_planes import (
    Bytes,
    Numbers,
    Rows,
    check_rows,
    decode_planes,
    encode_planes_parts,
)
from store.codec.bf16_planes_torch import chosen_rows, encode_tensor_parts
from store.codec.names import CodecName
from store.codec.zstd_frame import content_nbytes
from store.errors import DamagedFile

Parts = tuple[bytes | memoryview, ...]

_ZSTD_LEVEL = 1  # of the general codec `zstd`: higher levels search for repeats that are not there


@dataclass(frozen=True)
class _Codec:
    """One way of storing chunks, spelled for zarr's metadata and for our own reader and writer alike."""

    serializer: dict[str, JSON]
    compressors: tuple[dict[str, JSON], ...]
    encode: Callable[[Rows | Tensor, Numbers | None], Parts]
    decode: Callable[[Bytes, tuple[int, int], Rows, Numbers], None]


def on_host(rows: Rows | Tensor, order: Numbers | None) -> Rows:
    """The rows `order` (all if None) as bit patterns on the host; of a tensor no others are copied there."""
    if isinstance(rows, Tensor):
        return chosen_rows(rows, order).cpu().numpy().view(np.uint16)
    return rows if order is None else rows[order]


def _little(rows: Rows | Tensor, order: Numbers | None) -> NDArray[np.uint16]:
    """The chosen rows on the host as little-endian values, contiguous."""
    return np.ascontiguousarray(on_host(rows, order), dtype="<u2")


def _general(
    codec: Codec,
    serializer: dict[str, JSON],
    *compressors: dict[str, JSON],
    content: Callable[[Bytes], int],
    fill: Callable[[Bytes, Rows], object] | None = None,
) -> _Codec:
    """A general compressor over little-endian values.

    `content` says how many bytes a chunk claims to hold, -1 if it does not say; `fill` decodes into an array instead of
    the codec's own method.
    """

    def decode(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: Numbers) -> None:
        expected = 2 * shape[0] * shape[1]
        if (claimed := content(chunk)) not in (expected, -1):
            raise DamagedFile(f"expected a chunk of {expected} bytes in {codec.codec_id}, it claims {claimed}")
        if expected == 0:
            return  # the compressors encode nothing, but do not decode it
        raw = np.empty(expected, dtype=np.uint8)
        try:
            decoded = fill(chunk, raw.view("<u2")) if fill else codec.decode(chunk, out=raw.view("<u2"))
        except (RuntimeError, ValueError, TypeError) as error:
            raise DamagedFile(f"expected a chunk of {codec.codec_id}, it says: {error}") from error
        _raw(np.asarray(decoded).reshape(-1).view(np.uint8), shape, out, slots)

    return _Codec(serializer, compressors, lambda rows, order: (bytes(codec.encode(_little(rows, order))),), decode)


def _raw(chunk: Bytes, shape: tuple[int, int], out: Rows, slots: Numbers) -> None:
    if chunk.nbytes != 2 * shape[0] * shape[1]:
        raise DamagedFile(f"expected {2 * shape[0] * shape[1]} bytes of rows {shape}, got {chunk.nbytes}")
    out[slots] = chunk.view("<u2").reshape(shape)[: len(slots)]


def _blosc_content_nbytes(chunk: Bytes) -> int:
    """The uncompressed size in a Blosc header (its bytes 4 to 7), 0 where there is none that states the chunk's size.

    numcodecs gives Blosc no length to stay within: a header that states another one (bytes 12 to 15) would crash.
    """
    if chunk.nbytes < 16 or int.from_bytes(chunk[12:16].tobytes(), "little") != chunk.nbytes:
        return 0
    return int.from_bytes(chunk[4:8].tobytes(), "little")


def _fill_from_pcodec(chunk: Bytes, out: Rows) -> Rows:
    """Decodes all of `out`; numcodecs would leave what a chunk does not fill as it was in memory."""
    progress = pcodec.standalone.simple_decompress_into(chunk.tobytes(), out)
    if progress.n_processed != out.size or not progress.finished:
        raise ValueError(f"{progress.n_processed} of {out.size} values")
    return out


def _encode_planes(rows: Rows | Tensor, order: Numbers | None) -> Parts:
    return encode_tensor_parts(rows, order) if isinstance(rows, Tensor) else encode_planes_parts(rows, order)


_LITTLE: dict[str, JSON] = {"name": "bytes", "configuration": {"endian": "little"}}

_CODECS: Mapping[CodecName, _Codec] = {
    "bf16_planes_v1": _Codec({"name": "bf16_planes_v1"}, (), _encode_planes, decode_planes),
    "zstd": _general(
        numcodecs.Zstd(level=_ZSTD_LEVEL),
        _LITTLE,
        {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}},
        content=content_nbytes,
    ),
    "blosc": _general(
        numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
        _LITTLE,
        {
            "name": "blosc",
            "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": 2, "blocksize": 0},
        },
        content=_blosc_content_nbytes,
    ),
    "pcodec": _general(
        numcodecs.pcodec.PCodec(level=8),
        {"name": "numcodecs.pcodec", "configuration": {"level": 8}},
        content=lambda _: -1,
        fill=_fill_from_pcodec,
    ),
    "none": _Codec(_LITTLE, (), lambda rows, order: (_little(rows, order).reshape(-1).view(np.uint8).data,), _raw),
}


def encode_chunk(codec: CodecName, rows: Rows | Tensor) -> bytes:
    """Encodes rows (n, d) of bit patterns with the named codec, checksum not included."""
    return b"".join(encode_chunk_parts(codec, rows))


def encode_chunk_parts(codec: CodecName, rows: Rows | Tensor, order: Numbers | None = None) -> Parts:
    """The parts of a chunk of the rows `order` of `rows` (all if None), to be written one after another.

    Raises ValueError for rows that are no bit patterns of bfloat16: no codec casts them.
    """
    check_rows(rows)
    return _CODECS[codec].encode(rows, order)


def decode_chunk(codec: CodecName, chunk: Bytes, shape: tuple[int, int], out: Rows, slots: Numbers) -> None:
    """Decodes a chunk of `shape` with the named codec; row i goes to out[slots[i]], later rows are dropped.

    Raises:
        DamagedFile: the bytes are not such a chunk.
    """
    _CODECS[codec].decode(chunk, shape, out, slots)


def zarr_codecs(codec: CodecName) -> tuple[dict[str, JSON], tuple[dict[str, JSON], ...]]:
    """The (serializer, compressors) of the named codec as zarr v3 metadata spells them, checksum not included."""
    return _CODECS[codec].serializer, _CODECS[codec].compressors
