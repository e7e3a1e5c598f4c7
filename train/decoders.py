"""How far a decoder may move from where it starts: the settings and the formula. Imports no torch, as all settings.

The controls of arXiv 2602.14111: a measure that says as much of an SAE whose directions are random says little of
directions that were learned. Every kind starts from the same random directions and from an encoder that is their
transpose, so that all variants of a seed begin as one; the encoder and all biases are trained in every kind.

    trained      as the gradients have it
    frozen       W_dec never changes
    soft-frozen  after every step a row of length n with direction u, u0 its direction before the first step and m the
                 least cosine, becomes n v, v being the direction nearest to u with v . u0 >= m. With c = u . u0:

                     v = u                                                   where c >= m
                     v = m u0 + sqrt(1 - m^2) (u - c u0) / ||u - c u0||      where 0 < c < m
                     v = u0                                                  where c <= 0: a step that turned a row by
                                                                             a right angle does not say where to

A frozen decoder's gradient counts as 0: it has no part in gradient_clip, and its moments in Adam stay 0. Adam's moments
of a soft-frozen decoder stay as they are, as they do where rows are brought back to length 1: the step is projected,
not the gradient.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from store.record import Record


def _cosine(value: float) -> float:
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"expected a cosine above 0 and below 1, got {value}. 0.8 is usual; for rows that do not turn at all "
            "there is decoder: {kind: frozen}"
        )
    return value


class TrainedDecoder(Record):
    """Decoder rows move as the gradients have it."""

    kind: Literal["trained"]


class FrozenDecoder(Record):
    """Decoder rows stay the random ones that training starts from. No penalty can move them: lambda has to be 0."""

    kind: Literal["frozen"]


class SoftFrozenDecoder(Record):
    """Decoder rows may turn, but only so far from the random ones that training starts from."""

    kind: Literal["soft-frozen"]
    min_cosine: Annotated[float, AfterValidator(_cosine)] = 0.8
    """Least cosine of a row with its direction before the first step; 0.8 in the paper."""


Decoder = Annotated[TrainedDecoder | FrozenDecoder | SoftFrozenDecoder, Field(discriminator="kind")]
TRAINED = TrainedDecoder(kind="trained")
