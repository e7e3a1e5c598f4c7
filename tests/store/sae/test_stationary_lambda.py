"""Where a learned lambda comes to rest, against its own equation, and the judgement of where one ended."""

import pytest

from store.sae.stationary_lambda import LAMBDA_FLOOR, judge_lambda, lambda_residual, stationary_lambda

C = 0.1


def test_the_residual_by_hand() -> None:
    # 0.5 * 4 + 2 * 0.1 * log(0.5) = 2 - 0.13863
    assert lambda_residual(0.5, 4.0, regularizer=C) == pytest.approx(2.0 - 0.2 * 0.693147, rel=1e-6)


def test_the_stationary_lambda_of_a_known_penalty() -> None:
    # lambda = 0.1: P = -0.2 log(0.1) / 0.1 = 4.60517; at the floor 0.2 * 6.907755 / 0.001 = 1381.55
    assert stationary_lambda(4.605170186, C) == pytest.approx(0.1, rel=1e-9)
    assert stationary_lambda(1381.551056, C) == pytest.approx(LAMBDA_FLOOR, rel=1e-9)
    assert stationary_lambda(0.0, C) == 1.0


@pytest.mark.parametrize("ratio", [1e-12, 1e-3, 1.0, 1e3, 1e6, 1e9, 1e12])
def test_the_stationary_lambda_solves_its_equation_at_every_size_of_the_penalty(ratio: float) -> None:
    penalty = ratio * 2.0 * C  # P / (2 c) is the ratio
    lam = stationary_lambda(penalty, C)
    residual = lambda_residual(lam, penalty, regularizer=C)
    assert 0.0 < lam < 1.0
    assert residual == pytest.approx(0.0, abs=1e-12 * max(lam * penalty, 1e-3))


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
