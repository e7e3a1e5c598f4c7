"""Squared norms of rows, by hand and against numpy."""

import numpy as np
import pytest
import torch

from store.codec.row_norms import squared_norms


def test_the_squared_norm_of_three_and_four_is_25_at_the_numbers_asked_for() -> None:
    rows = torch.tensor([[1.0, 1.0], [-3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16).view(torch.uint16).numpy()
    assert squared_norms(rows, np.array([1, 2, 1])).tolist() == [25.0, 0.0, 25.0]


@pytest.mark.parametrize("d_model", [1, 2, 3, 7, 16, 65, 640])
def test_squared_norms_of_any_width_equal_those_of_numpy(d_model: int) -> None:
    stored = torch.randn(50, d_model, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    got = squared_norms(stored.view(torch.uint16).numpy(), np.arange(50))
    np.testing.assert_allclose(got, stored.double().square().sum(dim=1).numpy(), rtol=1e-14)
