"""The selection by bits against torch's own topk."""

import pytest
import torch

from train.steps.auxk import top_dead
from train.steps.topk import (
    RunningThreshold,
    keep_top_of_batch_,
    keep_top_of_rows_,
    smallest_of_top,
    threshold_rate,
)


def rows(F: int, B: int, *, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(F, B, generator=torch.Generator().manual_seed(F)) + shift


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("F", "B", "k"), [(7, 5, 1), (7, 5, 7), (50, 100, 9), (50, 64, 49), (3, 33, 2)])
@pytest.mark.parametrize("shift", [0.0, -2.0, 100.0])
def test_the_k_largest_of_each_row_stay_if_positive(F: int, B: int, k: int, shift: float, threads: int) -> None:
    pre = rows(F, B, shift=shift)
    largest = pre.topk(k, dim=0)
    expected = torch.zeros_like(pre).scatter_(0, largest.indices, largest.values.relu())
    torch.set_num_threads(threads)
    keep_top_of_rows_(pre, k=k)
    torch.set_num_threads(1)
    assert torch.equal(pre, expected)


@pytest.mark.parametrize("count", [1, 17, 300, 500])
def test_the_largest_of_the_batch_stay(count: int) -> None:
    a = rows(20, 25).relu()
    flat = a.flatten()
    largest = flat.topk(count)
    expected = torch.zeros_like(flat).scatter_(0, largest.indices, largest.values).reshape(a.shape)
    assert float(smallest_of_top(a, count=count)) == float(largest.values.min())
    smallest = keep_top_of_batch_(a, count=count)
    assert torch.equal(a, expected)
    assert float(smallest) == float(largest.values.min())


def test_equal_numbers_all_stay() -> None:
    pre = torch.tensor([[2.0], [1.0], [1.0], [0.5]])
    keep_top_of_rows_(pre, k=2)
    assert pre.flatten().tolist() == [2.0, 1.0, 1.0, 0.0]


def test_infinities_and_numbers_that_are_none_do_not_hang() -> None:
    pre = torch.tensor([[float("inf"), float("nan")], [1.0, float("nan")], [-float("inf"), float("nan")]])
    keep_top_of_rows_(pre, k=1)
    assert pre[:, 0].tolist() == [float("inf"), 0.0, 0.0]


def test_the_threshold_starts_at_its_first_value_and_moves_by_its_rate() -> None:
    threshold = RunningThreshold(1, rate=0.01, device=torch.device("cpu"))
    assert threshold.of(0) == 0.0
    threshold.update(torch.tensor([2.0]))
    assert threshold.of(0) == 2.0
    threshold.update(torch.tensor([3.0]))
    assert threshold.of(0) == pytest.approx(2.01)


def test_the_threshold_of_a_short_run_forgets_faster() -> None:
    assert [threshold_rate(num_steps) for num_steps in (5, 200, 1000, 100_000)] == [1.0, 0.05, 0.01, 0.01]


def test_auxk_chooses_among_the_dead_only_and_takes_all_where_they_are_few() -> None:
    pre = torch.tensor([[[5.0], [-1.0], [2.0], [3.0]], [[5.0], [-1.0], [2.0], [3.0]]])
    dead = torch.tensor([[False, True, True, True], [False, True, False, False]])
    z, chosen = top_dead(pre, dead, k=2)
    assert z[..., 0].tolist() == [[0.0, 0.0, 2.0, 3.0], [0.0, -1.0, 0.0, 0.0]]
    assert chosen[..., 0].tolist() == [[False, False, True, True], [False, True, False, False]]
