"""Controllers of lambda, on toys whose answers follow by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from store.sae.stationary_lambda import LAMBDA_FLOOR
from train.config import TrainConfig, VariantConfig, resolve
from train.lambda_controller import LambdaController
from train.lambdas import (
    DUAL_RANGE,
    default_lambda_lr,
    dual_lambda_step,
    lambda_of_log,
    least_coherence,
    literal_lambda_step,
    log_lambda_step,
)
from train.task_gradients import Measured

C = 0.1


@pytest.fixture(autouse=True)
def train(settings: dict[str, Any]) -> None:
    """The `train` section that the variants below are resolved with: lr 3e-4, c 0.1, 24 latents."""
    Shared.train = TrainConfig.model_validate({**settings, "lr": 3e-4})


def told(scaled_penalty: Tensor) -> Measured:
    """What a step measured, where only P counts."""
    zeros = torch.zeros_like(scaled_penalty)
    return Measured(scaled_penalty, zeros, zeros, zeros, zeros)


class Shared:
    """What the helper takes from the fixture."""

    train: TrainConfig


def controllers(kinds: list[dict[str, Any]], num_steps: int) -> LambdaController:
    variants = [resolve(Shared.train, VariantConfig.model_validate({"lambda": kind})) for kind in kinds]
    return LambdaController(variants, num_steps=num_steps, device=torch.device("cpu"))


def column(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def values(kind: dict[str, Any], num_steps: int) -> list[float]:
    bank = controllers([kind], num_steps)
    return [float(bank.at(step)) for step in range(num_steps)]


def descend(start: float, penalty: float, num_steps: int) -> list[float]:
    """Lambda after each step of the log parametrisation at the derived rate, with a constant P."""
    bank = controllers([{"kind": "learned", "start": start}], num_steps)
    values = []
    for step in range(num_steps):
        bank.update(told(torch.tensor([penalty])), lambda_V=bank.at(step), step=step, lr_factors=[1.0])
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
    assert values({"kind": "linear", "start": 2.0, "end": 3.0}, 1) == [2.0]


def test_a_cosine_lambda_is_flat_at_both_ends() -> None:
    # 0 -> 4 over 5 steps, 4 (1 - cos(pi p)) / 2 with p = 0, 1/4 ...: 0, 2 - sqrt(2), 2, 2 + sqrt(2), 4
    got = values({"kind": "cosine", "start": 0.0, "end": 4.0}, 5)
    assert got == pytest.approx([0.0, 2.0 - math.sqrt(2.0), 2.0, 2.0 + math.sqrt(2.0), 4.0], abs=1e-12)


def test_an_exponential_lambda_is_multiplied_by_the_same_factor_each_step() -> None:
    assert values({"kind": "exponential", "start": 0.1, "end": 10.0}, 5) == pytest.approx(
        [0.1, 0.1 * math.sqrt(10.0), 1.0, math.sqrt(10.0), 10.0]
    )


def test_a_piecewise_lambda_runs_through_its_points_and_is_level_outside() -> None:
    # 9 steps are at eighths: level to 1/4, up from 1 to 3 until 1/2, down to 0 at 3/4, level
    points = [[0.25, 1.0], [0.5, 3.0], [0.75, 0.0]]
    got = values({"kind": "piecewise", "points": points}, 9)
    assert got == pytest.approx([1.0, 1.0, 1.0, 2.0, 3.0, 1.5, 0.0, 0.0, 0.0])


def test_a_dual_lambda_rises_while_the_decoder_is_too_coherent_and_falls_after() -> None:
    # 24 latents: P = 24 * 23 * coherence. At twice the target lambda is multiplied by exp(0.1 (2 - 1)).
    bank = controllers([{"kind": "dual", "start": 0.5, "target": 0.02, "rate": 0.1}], 10)
    bank.update(told(torch.tensor([24 * 23 * 0.04])), lambda_V=bank.at(0), step=0, lr_factors=[1.0])
    assert float(bank.at(1)) == pytest.approx(0.5 * math.exp(0.1), rel=1e-6)
    bank.update(told(torch.tensor([24 * 23 * 0.01])), lambda_V=bank.at(1), step=1, lr_factors=[1.0])
    assert float(bank.at(2)) == pytest.approx(0.5 * math.exp(0.1 - 0.05), rel=1e-6)


def test_a_dual_lambda_measures_coherence_whatever_the_scale_of_the_penalty() -> None:
    Shared.train = Shared.train.model_copy(update={"penalty_scale": "per_latent"})
    bank = controllers([{"kind": "dual", "start": 0.5, "target": 0.02, "rate": 0.1}], 10)
    bank.update(told(torch.tensor([23 * 0.04])), lambda_V=bank.at(0), step=0, lr_factors=[1.0])
    assert float(bank.at(1)) == pytest.approx(0.5 * math.exp(0.1), rel=1e-6)


def test_a_dual_lambda_cannot_overflow_on_a_target_that_is_never_reached() -> None:
    s = dual_lambda_step(column(0.0), column(1.0), target=column(1e-6), rate=column(1.0))
    assert float(s.exp()) == pytest.approx(DUAL_RANGE[1])


def test_the_least_coherence_is_that_of_a_tight_frame() -> None:
    # 3 directions in the plane at 120 degrees: cosines -1/2, mean square 1/4 = (3 - 2) / (2 * 2)
    assert least_coherence(3, 2) == 0.25
    assert least_coherence(8, 8) == 0.0
    assert least_coherence(4, 8) == 0.0


@pytest.mark.parametrize("start", [10.0, 1.0, 1e-3])
@pytest.mark.parametrize("lam", [0.01, 0.1, 0.5])
def test_a_learned_lambda_ends_at_the_stationary_point_from_every_start(start: float, lam: float) -> None:
    # lambda P = -2 c log(lambda): for lambda = 0.1 and c = 0.1 that is P = 0.2 * 2.302585 / 0.1 = 4.60517
    penalty = -2.0 * C * math.log(lam) / lam
    assert descend(start, penalty, 1000)[-1] == pytest.approx(lam, rel=1e-6)


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
        bank.update(told(torch.tensor([1e4])), lambda_V=bank.at(step), step=step, lr_factors=[1.0])
    assert float(bank.at(499)) == LAMBDA_FLOOR
    for step in range(500, 1000):
        bank.update(told(torch.tensor([4.60517])), lambda_V=bank.at(step), step=step, lr_factors=[1.0])
    assert float(bank.at(999)) == pytest.approx(0.1, rel=1e-4)


def test_lambda_falls_first_when_p_is_large_at_the_start() -> None:
    values = descend(1.0, 700.0, 1000)
    assert values[0] < 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(values[:50]))


@pytest.mark.parametrize("num_steps", [100, 300, 1000, 10_000])
def test_at_the_derived_rate_lambda_crosses_its_range_in_a_quarter_of_the_run(num_steps: int) -> None:
    # At full speed it takes a fifth of the run; Adam's first and last steps are slower.
    values = descend(10.0, 1e4, num_steps)
    assert num_steps / 5 <= values.index(LAMBDA_FLOOR) + 1 <= num_steps / 4


def test_the_derived_rate_is_five_times_the_range_over_the_steps() -> None:
    # log(10 / 0.001) = 9.21034; 5 * 9.21034 / 1000 = 0.0460517
    assert default_lambda_lr(1000) == pytest.approx(0.0460517, rel=1e-6)


def test_the_first_log_step_moves_by_the_rate_against_the_gradient() -> None:
    # s = 0, P = 1000, rate 0.01: gradient 1000, direction 1000 / (1000 + 0.2), s = -0.01 * 0.99980004
    zero = torch.zeros(1, dtype=torch.float64)
    s, _, second = log_lambda_step(
        zero, torch.tensor([1000.0], dtype=torch.float64), zero, zero, count=1, regularizer=column(C), rate=column(0.01)
    )
    assert float(s) == pytest.approx(-0.01 * 1000.0 / 1000.2, rel=1e-12)
    assert float(second) == pytest.approx((1.0 - math.exp(-0.08)) * 1e6, rel=1e-12)


def test_the_literal_step_descends_on_lambda_at_the_models_rate_and_clamps() -> None:
    # lambda 0.5, P = 2: gradient 2 + 0.2 * log(0.5) / 0.5 = 1.7227; Adam's first direction is its sign
    one = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    lam, first, _ = literal_lambda_step(
        0.5 * one,
        2.0 * one,
        zero,
        zero,
        count=1,
        regularizer=column(C),
        rate=0.1 * one,
        beta1=0.9 * one,
        beta2=0.999 * one,
        eps=1e-12 * one,
    )
    assert float(lam) == pytest.approx(0.4, abs=1e-9)
    assert float(first) == pytest.approx(0.1 * (2.0 + 0.2 * math.log(0.5) / 0.5), rel=1e-12)
    # lambda 0.05, P = 20: gradient 20 - 11.98 > 0, so 0.05 - 0.1 < 0 is clamped
    lam, _, _ = literal_lambda_step(
        0.05 * one,
        20.0 * one,
        zero,
        zero,
        count=1,
        regularizer=column(C),
        rate=0.1 * one,
        beta1=0.9 * one,
        beta2=0.999 * one,
        eps=1e-12 * one,
    )
    assert float(lam) == LAMBDA_FLOOR


def test_at_the_models_rate_a_literal_lambda_hardly_moves_in_a_short_run() -> None:
    bank = controllers([{"kind": "learned", "start": 10.0, "parametrisation": "literal"}], 300)
    for step in range(300):
        bank.update(told(torch.tensor([500.0])), lambda_V=bank.at(step), step=step, lr_factors=[1.0])
    assert float(bank.at(299)) == pytest.approx(10.0 - 300 * 3e-4, rel=1e-3)


def test_the_total_is_the_sum_of_the_lambdas_of_all_steps() -> None:
    # At twice its target a dual lambda of rate log 2 doubles: 1 + 2 + 4, beside a fixed one of 3 * 0.5
    bank = controllers(
        [
            {"kind": "dual", "start": 1.0, "target": 0.02, "rate": math.log(2.0)},
            {"kind": "fixed", "value": 0.5},
        ],
        3,
    )
    for step in range(3):
        penalty = torch.tensor([24 * 23 * 0.04, 1.0], dtype=torch.float64)
        bank.update(told(penalty), lambda_V=bank.at(step), step=step, lr_factors=[1.0, 1.0])
    assert bank.total.tolist() == pytest.approx([7.0, 1.5], rel=1e-12)


def test_variants_side_by_side_do_not_touch_each_other() -> None:
    kinds: list[dict[str, Any]] = [
        {"kind": "fixed", "value": 0.0},
        {"kind": "learned", "start": 10.0},
        {"kind": "linear", "start": 0.1, "end": 10.0},
        {"kind": "learned", "start": 1.0, "parametrisation": "literal"},
        {"kind": "dual", "start": 1.0, "target": 0.01, "rate": 0.1},
    ]
    together = controllers(kinds, 50)
    alone = [controllers([kind], 50) for kind in kinds]
    penalty = torch.tensor([3.0, 20.0, 5.0, 8.0, 7.0])
    for step in range(50):
        assert together.at(step).tolist() == [float(bank.at(step)) for bank in alone]
        together.update(told(penalty), lambda_V=together.at(step), step=step, lr_factors=[0.5] * 5)
        for index, bank in enumerate(alone):
            bank.update(told(penalty[index : index + 1]), lambda_V=bank.at(step), step=step, lr_factors=[0.5])
    assert together.penalised == [1, 2, 3, 4]


def test_the_floor_in_logarithms_is_the_floor_exactly() -> None:
    s = torch.tensor([math.log(LAMBDA_FLOOR), 0.0], dtype=torch.float64)
    assert lambda_of_log(s).tolist() == [LAMBDA_FLOOR, 1.0]
