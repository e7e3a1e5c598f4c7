"""A training says at its start where a few rows outweigh all others; what it does is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.config import TrainConfig, VariantConfig
from train.loop import warn_of_outliers
from train.run import run
from train.task import TrainingResources


def test_a_batch_with_a_row_that_outweighs_all_others_is_warned_of_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = torch.ones(100, 4, dtype=torch.bfloat16)
    rows[::2] *= -1
    warn_of_outliers(rows)
    assert capsys.readouterr().err == ""
    rows[7] *= 1024
    before = rows.clone()
    # X long, with a mean of 0.01 X beside it: 0.99^2 of 0.99^2 + 99 * 0.01^2 = 0.99.
    warn_of_outliers(rows)
    assert capsys.readouterr().err == (
        "train: in the first batch 1 of 100 rows has a norm over 5 times the median (the largest 1,024 times) and "
        "holds 99.0% of the variance: the loss, the scale of the input and the weight of l1 are about these rows. "
        "Another l1 is no remedy: choose a layer, or text, without them, and harvest again\n"
    )
    assert torch.equal(rows, before)


def test_a_training_warns_once(
    cache_at: Callable[..., Path], settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for factor, times in ((1.0, 0), (50.0, 1)):
        run(
            TrainConfig.model_validate(settings),
            {"baseline": five["baseline"]},
            cache=cache_at(tmp_path / f"cache-{factor}", outlier_factor=factor),
            output=tmp_path / "models",
            scratch=tmp_path / "scratch",
            resources=TrainingResources(device="cpu", num_threads=1),
            reuse=False,
        )
        assert capsys.readouterr().err.count("a norm over 5 times the median") == times
