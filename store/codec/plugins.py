"""The plane split for other software: as a zarr v3 codec and as a numcodecs codec, both found by entry points."""

from dataclasses import dataclass
from typing import Any, Self

import numcodecs
import numpy as np
from numcodecs.abc import Codec
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from store.codec.bf16_planes import (
    decode_planes,
    encode_planes,
    read_header,
)


@dataclass(frozen=True)
class BFloat16Planes(ArrayBytesCodec):
    """The plane split as a native zarr v3 codec, found by its entry point `bf16_planes_v1` in any process."""

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


class NumcodecsBFloat16Planes(Codec):
    """The plane split as a numcodecs codec: `numcodecs.get_codec({"id": "bf16_planes_v1"})`."""

    codec_id = "bf16_planes_v1"
    max_buffer_size = 2**31 - 1

    def encode(self, buf: Any) -> bytes:  # noqa: ANN401 - anything with the buffer protocol, as numcodecs says
        """Encodes values of two bytes; the last axis of an array holds the channels, all other axes are rows."""
        values = np.asarray(numcodecs.compat.ensure_ndarray(buf))
        if values.dtype.itemsize != 2 or values.ndim == 0 or values.shape[-1] == 0:
            raise ValueError(f"expected an array of 2-byte values, got {values.dtype} of shape {values.shape}")
        bits = np.ascontiguousarray(values).view(np.uint16)
        return encode_planes(bits.reshape(-1, values.shape[-1]))

    def decode(self, buf: Any, out: Any = None) -> Any:  # noqa: ANN401 - as above
        """The bit patterns as uint16 (rows, channels), or copied into `out`."""
        chunk = np.frombuffer(numcodecs.compat.ensure_bytes(buf), dtype=np.uint8)
        shape = read_header(chunk)
        rows = np.empty(shape, dtype=np.uint16)
        decode_planes(chunk, shape, rows, np.arange(len(rows)))
        return rows if out is None else numcodecs.compat.ndarray_copy(rows, out)
