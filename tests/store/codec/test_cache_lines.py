"""Rows that are streamed past the caches are the rows that ordinary stores would have written."""

import numpy as np
import pytest

from store.codec.bf16_planes import decode_planes, encode_planes
from store.codec.cache_lines import can_stream, empty_rows


@pytest.mark.parametrize("d_model", [32, 192, 33])
def test_streamed_rows_are_the_same_and_nothing_else_is_touched(d_model: int) -> None:
    out = empty_rows(3 * 2**21 // d_model, d_model)  # 12 MiB
    assert out.ctypes.data % 64 == 0
    assert can_stream(out) == (d_model != 33)  # 66 bytes are no whole cache lines
    out[:] = 7
    rows = np.random.default_rng(0).integers(0, 2**16, (50, d_model), dtype=np.uint16)
    slots = np.random.default_rng(1).permutation(len(out))[:50]
    decode_planes(np.frombuffer(encode_planes(rows), np.uint8), rows.shape, out, slots)
    np.testing.assert_array_equal(out[slots], rows)
    untouched = np.ones(len(out), dtype=bool)
    untouched[slots] = False
    assert (out[untouched] == 7).all()


def test_small_or_strided_outputs_are_written_the_ordinary_way() -> None:
    assert not can_stream(empty_rows(8, 32))
    assert not can_stream(empty_rows(2**17, 64)[:, :32])
