"""Where the descent of a learned lambda comes to rest."""

import math


def stationary_lambda(penalty: float, regularization: float) -> float:
    """The lambda at which a learned lambda stops: lambda * P = -2 c log(lambda), with c the regularization.

    With w = -log(lambda) this is w e^w = P / (2 c), Lambert's equation, solved by Newton's method from above.
    """
    target = penalty / (2.0 * regularization)
    w = math.log1p(target)
    for _ in range(50):
        w -= (w * math.exp(w) - target) / (math.exp(w) * (1.0 + w))
    return math.exp(-w)
