"""Where the descent of a learned lambda comes to rest: lambda * P + 2 c log(lambda) = 0, and how near it a lambda is.

P is the penalty as scaled in the loss, c the regulariser's coefficient. The left side is dL/d(log lambda) of the loss
L = ... + lambda * P + c (log lambda)^2. The descent keeps lambda >= LAMBDA_FLOOR.
"""

import math
from typing import Literal

LAMBDA_FLOOR = 1.0e-3
"""The least value of a learned lambda."""
NEAR_CURVE = 0.1
"""A lambda within about 10 % of the stationary value for its P is on its curve..."""
SETTLED = 0.2
"""...if it also moved by less than about 20 % during the last tenth of the run."""

LambdaState = Literal["on its curve", "on the floor", "still moving"]


def lambda_residual(lam: float, penalty: float, *, regularizer: float) -> float:
    """lambda * P + 2 c log(lambda): 0 on the curve, positive where lambda falls."""
    return lam * penalty + 2.0 * regularizer * math.log(lam)


def stationary_lambda(penalty: float, regularizer: float) -> float:
    """The lambda of residual 0, whether above the floor or below it; `penalty` >= 0, `regularizer` > 0.

    With w = -log(lambda) the equation is w e^w = P / (2 c), which Lambert's function W solves: lambda = exp(-W).
    """
    from scipy.special import lambertw  # only here: settings are read without waiting for scipy

    return math.exp(-float(lambertw(penalty / (2.0 * regularizer)).real))


def judge_lambda(*, lam: float, penalty: float, regularizer: float, moved: float) -> LambdaState:
    """Where a learned lambda ended.

    Args:
        lam: lambda after the last step.
        penalty: P of the final decoder, scaled as in the loss.
        regularizer: c.
        moved: largest minus smallest log(lambda) over the last tenth of the run.

    "on the floor": at the floor, and falling or held there. "on its curve": one Newton step of the stationary
    equation, in log lambda, is at most `NEAR_CURVE`, and `moved` is at most `SETTLED`. "still moving": neither.
    """
    residual = lambda_residual(lam, penalty, regularizer=regularizer)
    if lam <= LAMBDA_FLOOR:
        return "on the floor" if residual >= 0.0 else "still moving"
    distance = abs(residual) / (lam * penalty + 2.0 * regularizer)
    return "on its curve" if distance <= NEAR_CURVE and moved <= SETTLED else "still moving"
