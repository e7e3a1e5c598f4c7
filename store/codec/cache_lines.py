"""Rows that are scattered over far more memory than the processor's caches: written past them, fetched ahead.

An ordinary store first fetches the cache line that it writes to. A row of a shuffle pool is written whole and not read
soon, so that this traffic is wasted: without it, decoding into a pool is 1.25 times as fast (measured at 192 and 640
channels, one core). Reading rows in a permuted order waits for memory at each of them, unless it is asked for a few
rows before: then splitting them is 2 times as fast at 192 channels. No result depends on what is here.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

LINE_BYTES = 64
_LARGE = 4 * 2**20  # an output that stays in the caches is better written the ordinary way


@intrinsic
def stream_lines(typing_context: Any, to: Any, source: Any, num_lines: Any) -> Any:  # noqa: ANN401 - numba's
    """Copies `num_lines` lines of 64 bytes between addresses; `to` must be a multiple of 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        target, origin, count = arguments
        line = ir.VectorType(ir.IntType(64), 8)
        nontemporal = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, LINE_BYTES))
            read_at = builder.inttoptr(builder.add(origin, offset), line.as_pointer())
            write_at = builder.inttoptr(builder.add(target, offset), line.as_pointer())
            stored = builder.store(builder.load(read_at, align=2), write_at, align=LINE_BYTES)
            stored.set_metadata("nontemporal", nontemporal)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), generate


@intrinsic
def fetch_lines(typing_context: Any, address: Any, num_lines: Any) -> Any:  # noqa: ANN401 - numba's
    """Asks for `num_lines` lines of 64 bytes from `address` on, and waits for none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        start, count = arguments
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        takes = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], takes)
        to_read, keep, data = number(0), number(3), number(1)
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, LINE_BYTES))
            builder.call(prefetch, [builder.inttoptr(builder.add(start, offset), byte), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp), generate


@intrinsic
def fence(typing_context: Any) -> Any:  # noqa: ANN401 - numba's
    """Makes all streamed stores visible to other threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def empty_rows(num_rows: int, d_model: int) -> NDArray[np.uint16]:
    """Uninitialised rows that begin on a cache line: (num_rows, d_model)."""
    buffer = np.empty(2 * num_rows * d_model + LINE_BYTES, dtype=np.uint8)
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + 2 * num_rows * d_model].view(np.uint16).reshape(num_rows, d_model)


def can_stream(rows: NDArray[np.uint16]) -> bool:
    """Whether rows are whole cache lines, in an array that is too large for the caches."""
    whole_lines = rows.ctypes.data % LINE_BYTES == 0 and 2 * rows.shape[1] % LINE_BYTES == 0
    return whole_lines and rows.flags.c_contiguous and rows.nbytes >= _LARGE
