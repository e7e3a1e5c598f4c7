"""Numbers of settings that explain themselves when they are out of range. Imports no torch, as all settings."""

from typing import Annotated

from pydantic import AfterValidator


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError(f"expected a number >= 0, got {value}. Remove the minus sign; 0 switches the term off")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError(f"expected a number > 0, got {value}. Give a positive number")
    return value


def _positive_count(value: int) -> int:
    if not 1 <= value <= 2**50:
        raise ValueError(f"expected a whole number from 1 to 2^50, got {value}. Give a positive count")
    return value


def _latents(value: int) -> int:
    if not 2 <= value <= 2**24:
        raise ValueError(f"expected 2 to 16777216 latents, got {value}. Usual values are 1 to 32 times d_model")
    return value


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise ValueError(f"expected a seed from 0 to 2^63 - 1, got {value}. Choose a number in that range")
    return value


def _fraction(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"expected a fraction from 0 to 1, got {value}. Write 5 % as 0.05")
    return value


def _decay_rate(value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"expected an Adam beta from 0 to just below 1, got {value}. Usual values are 0.9 and 0.999")
    return value


def _times(value: float) -> float:
    if value <= 1.0:
        raise ValueError(f"expected a number of medians above 1, got {value}. Usual values are 5 and 10")
    return value


NotNegative = Annotated[float, AfterValidator(_not_negative)]
Positive = Annotated[float, AfterValidator(_positive)]
PositiveCount = Annotated[int, AfterValidator(_positive_count)]
NumLatents = Annotated[int, AfterValidator(_latents)]
Seed = Annotated[int, AfterValidator(_seed)]
Fraction = Annotated[float, AfterValidator(_fraction)]
DecayRate = Annotated[float, AfterValidator(_decay_rate)]
Times = Annotated[float, AfterValidator(_times)]
