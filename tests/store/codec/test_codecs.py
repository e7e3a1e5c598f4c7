"""The codec gives back every bit, in zarr and on its own, and refuses what it did not write."""

import numcodecs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from store.codec.bf16_planes import decode_planes, encode_planes, encode_planes_parts
from store.codec.bf16_planes_torch import encode_tensor_parts, merge_tensor, split_tensor
from store.codec.names import CODEC_NAMES, CodecName
from store.codec.registry import decode_chunk, encode_chunk
from store.errors import DamagedFile

SPECIAL = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 1, 0x8001, 0x7FFF, 0x3F80], dtype=np.uint16)


def round_trip(rows: NDArray[np.uint16], codec: CodecName = "bf16_planes_v1") -> NDArray[np.uint16]:
    out = np.empty_like(rows)
    chunk = np.frombuffer(encode_chunk(codec, rows), dtype=np.uint8)
    decode_chunk(codec, chunk, rows.shape, out, np.arange(len(rows)))
    return out


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint16, st.tuples(st.integers(0, 40), st.integers(1, 33))))
def test_any_bit_pattern_of_any_shape_comes_back(rows: NDArray[np.uint16]) -> None:
    np.testing.assert_array_equal(round_trip(rows), rows)


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_codec_keeps_nan_payloads_infinities_subnormals_and_minus_zero(codec: CodecName) -> None:
    rows = np.tile(SPECIAL, (7, 3))
    np.testing.assert_array_equal(round_trip(rows, codec), rows)


def test_all_65536_bit_patterns_come_back() -> None:
    rows = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(round_trip(rows), rows)


def test_rows_are_decoded_to_their_slots_and_the_rest_is_dropped() -> None:
    rows = np.arange(12, dtype=np.uint16).reshape(4, 3)
    out = np.full((6, 3), 999, dtype=np.uint16)
    decode_planes(np.frombuffer(encode_planes(rows), np.uint8), (4, 3), out, np.array([5, 0, 2]))
    assert out[:, 0].tolist() == [3, 999, 6, 999, 999, 0]


def test_a_chunk_is_laid_out_as_documented() -> None:
    # 1.0 is 0x3F80: sign 0, exponent 127, mantissa 0. -2.5 is 0xC020: sign 1, exponent 128, mantissa 0x20.
    chunk = encode_planes(np.array([[0x3F80, 0xC020]], dtype=np.uint16))
    assert chunk[:4] == b"BFP1"
    assert np.frombuffer(chunk[4:16], "<u4").tolist() == [1, 2, len(chunk) - 16 - 2 - 2]
    assert list(chunk[16:18]) == [127, 128]  # the median exponent of each channel
    assert list(chunk[-2:]) == [0x00, 0x80 | 0x20]  # sign and mantissa


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_chunk_are_refused(data: bytes) -> None:
    out = np.empty((4, 3), dtype=np.uint16)
    with pytest.raises(DamagedFile, match="expected"):
        decode_planes(np.frombuffer(data, np.uint8), (4, 3), out, np.arange(4))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_decoded_but_never_crashes(where: int, flip: int) -> None:
    chunk = bytearray(encode_planes(np.arange(12, dtype=np.uint16).reshape(4, 3)))
    chunk[where % len(chunk)] ^= flip
    out = np.empty((4, 3), dtype=np.uint16)
    refused = False
    try:
        decode_planes(np.frombuffer(bytes(chunk), np.uint8), (4, 3), out, np.arange(4))
    except DamagedFile:
        refused = True
    # The header is checked. Other bytes may be decoded: a shard's crc32c is checked before.
    assert refused or where % len(chunk) >= 16


def test_a_header_that_promises_gigabytes_allocates_nothing() -> None:
    chunk = bytearray(encode_planes(np.arange(12, dtype=np.uint16).reshape(4, 3)))
    chunk[4:8] = (2**31).to_bytes(4, "little")
    with pytest.raises(DamagedFile, match="expected a chunk of 6442450984 bytes, got 52"):
        decode_planes(np.frombuffer(bytes(chunk), np.uint8), (4, 3), np.empty((4, 3), np.uint16), np.arange(4))


def test_correlated_exponents_are_compressed_to_near_their_entropy() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((2048, 64)) * np.exp2(rng.integers(-20, 20, 64))).astype(np.float32)
    rows = (values.view(np.uint32) >> 16).astype(np.uint16)
    exponents = (rows >> 7) & 0xFF
    shifted = (exponents - np.median(exponents, axis=0).astype(np.int64)) % 256
    shares = np.bincount(shifted.ravel().astype(np.int64)) / shifted.size
    entropy_bits = 8.0 - np.sum(shares[shares > 0] * np.log2(shares[shares > 0]))
    assert 1.0 < len(encode_planes(rows)) * 8 / (entropy_bits * rows.size) < 1.01


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 700), st.integers(1, 5))))
def test_tensors_of_a_device_are_split_into_the_same_bytes_and_merged_back(rows: NDArray[np.uint16]) -> None:
    for dtype in (torch.uint16, torch.int16, torch.bfloat16):
        tensor = torch.from_numpy(rows).view(dtype)
        assert encode_chunk("bf16_planes_v1", tensor) == encode_planes(rows)
    merged = merge_tensor(*split_tensor(tensor))
    np.testing.assert_array_equal(merged.view(torch.uint16).numpy(), rows)


def test_the_rows_of_a_chunk_can_be_chosen_without_a_copy() -> None:
    rows = np.arange(12, dtype=np.uint16).reshape(4, 3)
    order = np.array([2, 0, 3])
    chosen = encode_planes(rows[order])
    assert b"".join(encode_planes_parts(rows, order)) == chosen
    assert b"".join(encode_tensor_parts(torch.from_numpy(rows), order)) == chosen
    with pytest.raises(ValueError, match="expected row numbers from 0 to 3, got 1 to 4"):
        encode_planes_parts(rows, np.array([1, 4]))


def test_numcodecs_finds_the_codec_by_its_id() -> None:
    codec = numcodecs.get_codec({"id": "bf16_planes_v1"})
    values = np.arange(24, dtype=np.float16).reshape(2, 4, 3)  # 8 rows of 3 channels
    encoded = codec.encode(values)
    assert encoded == encode_planes(values.view(np.uint16).reshape(8, 3))
    np.testing.assert_array_equal(codec.decode(encoded), values.view(np.uint16).reshape(8, 3))
    out = np.empty_like(values)
    codec.decode(encoded, out=out)
    np.testing.assert_array_equal(out, values)
    with pytest.raises(ValueError, match="expected an array of 2-byte values, got float32"):
        codec.encode(np.zeros((2, 2), dtype=np.float32))
