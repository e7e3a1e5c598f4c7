"""Controllers of lambda, on toys whose answers follow by hand."""

import math

import pytest
import torch

from train.config import LAMBDA_FLOOR, VARIANTS
from train.lambdas import (
    Lambdas,
    default_lambda_lr,
    judge_lambda,
    lambda_of_log,
    lambda_residual,
    literal_lambda_step,
    log_lambda_step,
    scheduled_lambda,
)

C = 0.1


def controllers(kinds: list[dict[str, object]], num_steps: int, lr: float = 3e-4) -> Lambdas:
    variants = VARIANTS.validate_python({f"v{index}": {"lambda": kind} for index, kind in enumerate(kinds)})
    return Lambdas(
        [variant.schedule for variant in variants.values()],
        num_steps=num_steps,
        regularizer=C,
        log_rate=default_lambda_lr(num_steps),
        model_lrs=torch.full((len(kinds),), lr, dtype=torch.float64),
        model_betas=(0.9, 0.999),
        model_eps=1e-8,
    )


def descend(start: float, penalty: float, num_steps: int) -> list[float]:
    """Lambda after each step of the log parametrisation at the derived rate, with a constant P."""
    bank = controllers([{"kind": "learned", "start": start}], num_steps)
    values = []
    for step in range(num_steps):
        bank.update(torch.tensor([penalty]), step=step, lr_factor=1.0)
        values.append(float(bank.at(step)))
    return values


def test_a_fixed_lambda_is_the_same_at_every_step() -> None:
    bank = controllers([{"kind": "fixed", "value": 0.25}], 10)
    assert [float(bank.at(step)) for step in (0, 5, 9)] == [0.25, 0.25, 0.25]


def test_a_linear_lambda_starts_at_start_and_ends_at_end_with_the_middle_between() -> None:
    # 0.1 -> 10 over 5 steps: 0.1, 2.575, 5.05, 7.525, 10
    bank = controllers([{"kind": "linear", "start": 0.1, "end": 10.0}], 5)
    assert [float(bank.at(step)) for step in range(5)] == pytest.approx([0.1, 2.575, 5.05, 7.525, 10.0], rel=1e-12)


def test_a_linear_lambda_of_a_run_of_one_step_is_its_start() -> None:
    (variant,) = VARIANTS.validate_python({"v": {"lambda": {"kind": "linear", "start": 2.0, "end": 3.0}}}).values()
    assert scheduled_lambda(variant.schedule, 0, num_steps=1) == 2.0


@pytest.mark.parametrize("start", [10.0, 1.0, 1e-3])
@pytest.mark.parametrize("lam", [0.01, 0.1, 0.5])
def test_a_learned_lambda_ends_at_the_stationary_point_from_every_start(start: float, lam: float) -> None:
    # lambda P = -2 c log(lambda): for lambda = 0.1 and c = 0.1 that is P = 0.2 * 2.302585 / 0.1 = 4.60517
    penalty = -2.0 * C * math.log(lam) / lam
    assert descend(start, penalty, 1000)[-1] == pytest.approx(lam, rel=1e-6)
    assert lambda_residual(lam, penalty, regularizer=C) == pytest.approx(0.0, abs=1e-12)


def test_a_learned_lambda_also_settles_in_a_run_of_thirty_steps() -> None:
    assert descend(1.0, 4.60517, 30)[-1] == pytest.approx(0.1, rel=0.05)


def test_without_a_penalty_the_regulariser_brings_lambda_to_one() -> None:
    assert descend(10.0, 0.0, 1000)[-1] == pytest.approx(1.0, rel=1e-6)


def test_the_floor_is_reached_exactly_when_p_exceeds_1381_and_only_then() -> None:
    # -2 c log(floor) / floor = 0.2 * 6.907755 / 0.001 = 1381.55
    assert descend(1.0, 1383.0, 4000)[-1] == LAMBDA_FLOOR
    above = descend(1.0, 1380.0, 4000)[-1]
    assert LAMBDA_FLOOR < above < 1.01 * LAMBDA_FLOOR


def test_lambda_leaves_the_floor_again_when_p_becomes_small() -> None:
    bank = controllers([{"kind": "learned", "start": 1.0}], 1000)
    for step in range(500):
        bank.update(torch.tensor([1e4]), step=step, lr_factor=1.0)
    assert float(bank.at(499)) == LAMBDA_FLOOR
    for step in range(500, 1000):
        bank.update(torch.tensor([4.60517]), step=step, lr_factor=1.0)
    assert float(bank.at(999)) == pytest.approx(0.1, rel=1e-4)


def test_lambda_falls_first_when_p_is_large_at_the_start() -> None:
    values = descend(1.0, 700.0, 1000)
    assert values[0] < 1.0
    assert values[:50] == sorted(values[:50], reverse=True)


@pytest.mark.parametrize("num_steps", [100, 300, 1000, 10_000])
def test_at_the_derived_rate_lambda_crosses_its_range_in_a_quarter_of_the_run(num_steps: int) -> None:
    values = descend(10.0, 1e4, num_steps)
    assert values.index(LAMBDA_FLOOR) + 1 <= num_steps / 4


def test_the_derived_rate_is_five_times_the_range_over_the_steps() -> None:
    # log(10 / 0.001) = 9.21034; 5 * 9.21034 / 1000 = 0.0460517
    assert default_lambda_lr(1000) == pytest.approx(0.0460517, rel=1e-6)


def test_the_first_log_step_moves_by_the_rate_against_the_gradient() -> None:
    # s = 0, P = 1000, rate 0.01: gradient 1000, direction 1000 / (1000 + 0.2), s = -0.01 * 0.99980004
    zero = torch.zeros(1, dtype=torch.float64)
    s, _, second = log_lambda_step(
        zero, torch.tensor([1000.0], dtype=torch.float64), zero, zero, count=1, regularizer=C, rate=0.01
    )
    assert float(s) == pytest.approx(-0.01 * 1000.0 / 1000.2, rel=1e-12)
    assert float(second) == pytest.approx((1.0 - math.exp(-0.08)) * 1e6, rel=1e-12)


def test_the_literal_step_descends_on_lambda_at_the_models_rate_and_clamps() -> None:
    # lambda 0.5, P = 2: gradient 2 + 0.2 * log(0.5) / 0.5 = 1.7227; Adam's first direction is its sign
    one = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    lam, first, _ = literal_lambda_step(
        0.5 * one, 2.0 * one, zero, zero, count=1, regularizer=C, rate=0.1 * one, betas=(0.9, 0.999), eps=1e-12
    )
    assert float(lam) == pytest.approx(0.4, abs=1e-9)
    assert float(first) == pytest.approx(0.1 * (2.0 + 0.2 * math.log(0.5) / 0.5), rel=1e-12)
    # lambda 0.05, P = 20: gradient 20 - 11.98 > 0, so 0.05 - 0.1 < 0 is clamped
    lam, _, _ = literal_lambda_step(
        0.05 * one, 20.0 * one, zero, zero, count=1, regularizer=C, rate=0.1 * one, betas=(0.9, 0.999), eps=1e-12
    )
    assert float(lam) == LAMBDA_FLOOR


def test_at_the_models_rate_a_literal_lambda_hardly_moves_in_a_short_run() -> None:
    bank = controllers([{"kind": "learned", "start": 10.0, "parametrisation": "literal"}], 300)
    for step in range(300):
        bank.update(torch.tensor([500.0]), step=step, lr_factor=1.0)
    assert float(bank.at(299)) == pytest.approx(10.0 - 300 * 3e-4, rel=1e-3)


def test_variants_side_by_side_do_not_touch_each_other() -> None:
    kinds: list[dict[str, object]] = [
        {"kind": "fixed", "value": 0.0},
        {"kind": "learned", "start": 10.0},
        {"kind": "linear", "start": 0.1, "end": 10.0},
        {"kind": "learned", "start": 1.0, "parametrisation": "literal"},
    ]
    together = controllers(kinds, 50)
    alone = [controllers([kind], 50) for kind in kinds]
    penalty = torch.tensor([3.0, 20.0, 5.0, 8.0])
    for step in range(50):
        assert together.at(step).tolist() == [float(bank.at(step)) for bank in alone]
        together.update(penalty, step=step, lr_factor=0.5)
        for index, bank in enumerate(alone):
            bank.update(penalty[index : index + 1], step=step, lr_factor=0.5)
    assert together.penalised == [1, 2, 3]


def test_the_floor_in_logarithms_is_the_floor_exactly() -> None:
    s = torch.tensor([math.log(LAMBDA_FLOOR), -9.0, 0.0], dtype=torch.float64)
    assert lambda_of_log(s).tolist() == [LAMBDA_FLOOR, LAMBDA_FLOOR, 1.0]


@pytest.mark.parametrize(
    ("lam", "penalty", "moved", "state"),
    [
        (1e-3, 2000.0, 0.0, "on the floor"),  # 0.001 * 2000 = 2 > 1.38: pushed down
        (1e-3, 1000.0, 0.0, "still moving"),  # 1 < 1.38: it would rise
        (0.1, 4.60517, 0.0, "on its curve"),
        (0.1, 4.60517, 0.5, "still moving"),  # on the curve, but the curve itself travels
        (0.1, 5.0, 0.0, "on its curve"),  # residual 0.0395 over a slope of 0.7: 6 % from it
        (0.1, 8.0, 0.0, "still moving"),  # residual 0.339 over 1.0: 34 %
        (1.0, 300.0, 0.0, "still moving"),
    ],
)
def test_the_judgement_says_where_a_learned_lambda_ended(lam: float, penalty: float, moved: float, state: str) -> None:
    assert judge_lambda(lam=lam, penalty=penalty, regularizer=C, moved=moved) == state
