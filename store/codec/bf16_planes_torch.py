"""The plane split on tensors of any device: a GPU splits rows before they are copied to the host, and merges planes
after they were copied to it. The same split as in bf16_planes.py, and the same bytes.

Shapes: n rows, d channels.
"""

import numpy as np
import torch
from torch import Tensor

from store.codec.bf16_planes import (
    MEDIAN_ROWS,
    Numbers,
    Planes,
    check_order,
    check_rows,
    merge_bits,
    pack_planes,
    split_bits,
)


def split_tensor(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits rows on their own device: (exponents (n, d), rest (n, d), shift (d,)), uint8.

    Args:
        rows: (n, d) bfloat16, or int16 or uint16 bit patterns, n >= 1.
    """
    bits = rows.view(torch.int16).to(torch.int32) & 0xFFFF
    sampled = (bits[:: -(-len(bits) // MEDIAN_ROWS)] >> 7) & 0xFF
    shift = sampled.median(dim=0).values  # the lower median, as on the host
    exponents, rest = split_bits(bits, shift)
    return exponents.to(torch.uint8), rest.to(torch.uint8), shift.to(torch.uint8)


def merge_tensor(exponents: Tensor, rest: Tensor, shift: Tensor) -> Tensor:
    """The rows (n, d) bfloat16 of planes that lie on one device: the inverse of `split_tensor`."""
    bits = merge_bits(exponents.to(torch.int32), rest.to(torch.int32), shift.to(torch.int32))
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16).view(torch.bfloat16)


def encode_tensor_parts(rows: Tensor, order: Numbers | None = None) -> tuple[bytes | memoryview, ...]:
    """As bf16_planes.encode_planes_parts, of a tensor (n, d) on any device, whose rows are split there."""
    check_rows(rows)
    check_order(order, len(rows))
    chosen = chosen_rows(rows, order)
    if not len(chosen):
        none = np.empty((0, rows.shape[1]), dtype=np.uint8)
        return pack_planes(Planes(none, none, np.zeros(rows.shape[1], dtype=np.uint8)))
    return pack_planes(Planes(*(plane.contiguous().cpu().numpy() for plane in split_tensor(chosen))))


def chosen_rows(rows: Tensor, order: Numbers | None) -> Tensor:
    """The rows `order` (all if None) on their own device, as int16."""
    bits = rows.view(torch.int16)  # not every device can index uint16
    return bits if order is None else bits[torch.from_numpy(order).to(bits.device)]
