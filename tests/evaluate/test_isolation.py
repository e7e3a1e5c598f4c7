"""What a benchmark leaves changed is as before for the next one, and every one begins from the same random state."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.isolation import undisturbed


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_begin_at_the_seed_and_go_on_outside_as_if_nothing_had_been(tmp_path: Path) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    expected = drawn()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    with undisturbed(seed=0):
        first = drawn()
    assert drawn() == expected
    with undisturbed(seed=0):
        assert drawn() == first


def test_grad_mode_folder_and_environment_are_put_back_after_an_error(tmp_path: Path) -> None:
    before, variables = Path.cwd(), dict(os.environ)
    torch.set_grad_enabled(True)

    def disturb() -> None:
        torch.set_grad_enabled(False)
        os.chdir(tmp_path)
        os.environ["A_NEW_ONE"] = "1"
        os.environ.pop("PATH")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), undisturbed(seed=0):
        disturb()
    assert torch.is_grad_enabled()
    assert Path.cwd() == before
    assert dict(os.environ) == variables
