"""The learning rate by hand."""

import pytest

from train.schedule import lr_factor


def factors(num_steps: int, warm_up: float, decay: float) -> list[float]:
    return [
        lr_factor(step, num_steps=num_steps, warm_up_fraction=warm_up, decay_fraction=decay)
        for step in range(num_steps)
    ]


def test_the_rate_rises_stays_and_falls() -> None:
    # 10 steps: 2 of warm-up (1/2, 2/2), 5 at 1, 3 of decay (3/3, 2/3, 1/3)
    assert factors(10, 0.2, 0.3) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_without_phases_the_rate_is_constant() -> None:
    assert factors(4, 0.0, 0.0) == [1.0, 1.0, 1.0, 1.0]


def test_a_run_may_be_all_warm_up_or_all_decay() -> None:
    assert factors(4, 1.0, 0.0) == [0.25, 0.5, 0.75, 1.0]
    assert factors(4, 0.0, 1.0) == [1.0, 0.75, 0.5, 0.25]


def test_no_step_has_rate_zero() -> None:
    # 50 steps up from 1/50, 50 down to 1/50
    rates = factors(100, 0.5, 0.5)
    assert (rates[0], min(rates), rates[-1]) == (1 / 50, 1 / 50, 1 / 50)
