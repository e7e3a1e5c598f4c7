"""What is logged, by hand."""

import math

import numpy as np
import pytest
import torch

from train.metrics import (
    AVERAGED_RECORDS,
    COLUMNS,
    averaged_tail,
    diverged,
    explained_variance,
    log_lambda_range,
    log_lines,
    mean_max_cosine,
)
from train.steps.input import activation_scale, load_batch


def record(*losses: float) -> torch.Tensor:
    """One record, every column 1 but the losses, without cosines."""
    values = torch.ones(len(losses), len(COLUMNS), dtype=torch.float64)
    values[:, COLUMNS.index("loss")] = torch.tensor(losses, dtype=torch.float64)
    values[:, COLUMNS.index("mean_max_cosine")] = math.nan
    return values


def test_explained_variance_stands_against_the_mean_of_all_training_rows() -> None:
    # Rows (1, 0) and (3, 0), mean (1, 0): variance (0 + 4) / 2 = 2. Mean squared errors 0.5 and 2: 1 - 1/4 and 1 - 1.
    x_DB = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    found = explained_variance(torch.tensor([0.5, 2.0], dtype=torch.float64), x_DB, torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([0.75, 0.0])


def test_mean_max_cosine_of_three_directions() -> None:
    # (2, 0), (0, 3), (1, 1): largest cosines 0.7071 for each
    W_dec = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert float(mean_max_cosine(W_dec)) == pytest.approx(math.sqrt(0.5))


def test_mean_max_cosine_is_signed() -> None:
    assert float(mean_max_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))) == pytest.approx(-1.0)


def test_mean_max_cosine_in_blocks_equals_the_whole_gram() -> None:
    W_dec = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    D = W_dec / W_dec.norm(dim=1, keepdim=True)
    gram = D @ D.T
    gram.fill_diagonal_(-2.0)
    assert float(mean_max_cosine(W_dec)) == pytest.approx(float(gram.amax(1).mean()), rel=1e-12)


def test_a_single_latent_has_no_cosine() -> None:
    assert math.isnan(float(mean_max_cosine(torch.ones(1, 4))))


def test_a_log_line_has_whole_counts_and_leaves_out_what_does_not_apply() -> None:
    (line,) = log_lines(record(1.5, 2.5)[None], 1)
    assert line["loss"] == 2.5
    assert [type(line[name]) for name in ("step", "rows", "dead_latents", "lambda")] == [int, int, int, float]
    assert set(COLUMNS) - set(line) == {"mean_max_cosine"}


def test_the_variants_that_diverged_are_told_frozen_ones_aside() -> None:
    assert diverged(record(1.0, math.inf, math.nan), [False, False, False]) == [1, 2]
    assert diverged(record(1.0, math.inf, math.nan), [False, False, True]) == [1]
    assert diverged(record(1.0, 2.0), [False, False]) == []


def test_the_card_averages_the_noisy_columns_over_the_last_records() -> None:
    lines = [dict.fromkeys(COLUMNS, float(index)) for index in range(AVERAGED_RECORDS + 5)]
    tail = averaged_tail(lines)
    assert tail["averaged_records"] == 10
    assert tail["l0"] == 9.5  # the mean of 5 .. 14
    assert averaged_tail(lines[:2])["averaged_records"] == 2


def test_how_far_lambda_moved_counts_the_last_tenth_only() -> None:
    lines = [{"step": step, "lambda": lam} for step, lam in [(0, 10.0), (80, 5.0), (90, 1.0), (95, 2.0)]]
    assert log_lambda_range(lines, final_lambda=1.5, num_steps=100) == pytest.approx(math.log(2.0))


def test_scaled_rows_have_a_mean_squared_length_of_d_model() -> None:
    # E||x||^2 = 36 at d = 4: s = sqrt(4 / 36) = 1/3
    assert activation_scale(d_model=4, mean_squared_norm=36.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_rows_that_are_all_zero_cannot_be_scaled(bad: float) -> None:
    with pytest.raises(ValueError, match=r"mean squared norm > 0, got .*harvest the hook again"):
        activation_scale(d_model=4, mean_squared_norm=bad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_is_transposed_and_scaled_once_rounded(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, -2.0], [0.5, 3.0], [7.0, 0.0]]).to(torch.bfloat16)
    bits = np.ascontiguousarray(rows.view(torch.uint16).numpy())
    out = torch.empty(2, 3, dtype=dtype)
    load_batch(bits, scale=0.3, out_DB=out)
    scale = 0.3 if dtype == torch.float64 else float(torch.tensor(0.3))
    expected = (rows.to(torch.float64).T * scale).to(torch.float32 if dtype == torch.bfloat16 else dtype).to(dtype)
    torch.testing.assert_close(out, expected, rtol=1e-7 if dtype != torch.bfloat16 else 0, atol=0)
