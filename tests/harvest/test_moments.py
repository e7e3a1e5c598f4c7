"""Sums of stored rows, against numpy in float64 and by hand."""

import numpy as np
import pytest
import torch

from harvest.moments import BadActivation, shard_sums

WHERE = {"hook": "blocks.1.hook_resid_post", "first_sequence": 40, "rows_per_sequence": 3}


def test_the_sums_of_three_rows_are_those_of_the_rounded_numbers() -> None:
    # 1.5 = 0x3FC0, -2 = 0xC000, 0.5 = 0x3F00 as bfloat16
    rows = np.array([[0x3FC0, 0xC000], [0x3FC0, 0x3F00], [0x0000, 0x8000]], dtype=np.uint16)
    sums = shard_sums(rows, **WHERE)  # type: ignore[arg-type]
    assert sums.num_rows == 3
    assert sums.sum == [3.0, -1.5]
    assert sums.sum_of_squares == [4.5, 4.25]


def test_the_sums_equal_float64_sums_in_numpy() -> None:
    values = torch.randn(999, 65, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 15, 65)
    stored = values.to(torch.bfloat16)
    sums = shard_sums(stored.view(torch.uint16).numpy(), **WHERE)  # type: ignore[arg-type]
    exact = stored.to(torch.float64).numpy()
    np.testing.assert_allclose(sums.sum, exact.sum(axis=0), rtol=0, atol=1e-12 * np.abs(exact).sum(axis=0).max())
    np.testing.assert_allclose(sums.sum_of_squares, (exact**2).sum(axis=0), rtol=1e-13)


def test_the_largest_finite_numbers_are_no_error() -> None:
    rows = np.full((1000, 2), 0x7F7F, dtype=np.uint16)
    # 0x7F7F is 255 * 2**120, and 1000 * 255**2 has fewer bits than a float64: the sums are exact.
    assert shard_sums(rows, **WHERE).sum_of_squares == [1000 * 255.0**2 * 2.0**240] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])  # two infinities, two NaN
def test_an_activation_that_is_not_finite_is_named_by_hook_sequence_and_position(bits: int) -> None:
    rows = np.zeros((12, 4), dtype=np.uint16)
    rows[7, 2] = rows[9, 0] = bits  # row 7 is position 2 (BOS is 0) of the third sequence
    with pytest.raises(BadActivation, match=r"at blocks.1.hook_resid_post, got .* in sequence 42, position 2\."):
        shard_sums(rows, **WHERE)  # type: ignore[arg-type]
    with pytest.raises(BadActivation, match=r"in sequence 42, position 5\."):
        shard_sums(rows, **WHERE, first_position=4)  # type: ignore[arg-type]
