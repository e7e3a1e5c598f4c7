"""What decides a training run. Values live in params.yaml; here they are named, documented and checked."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator

from store.record import Record

LAMBDA_FLOOR = 1.0e-3
"""The least value of a learned lambda."""


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


def _above_the_floor(value: float) -> float:
    if value < LAMBDA_FLOOR:
        raise ValueError(
            f"expected a learned lambda to start at {LAMBDA_FLOOR:g} (its floor) or above, got {value}. "
            "Raise `start`, or use `kind: fixed` for a smaller value"
        )
    return value


NotNegative = Annotated[float, AfterValidator(_not_negative)]
Positive = Annotated[float, AfterValidator(_positive)]
PositiveCount = Annotated[int, AfterValidator(_positive_count)]
NumLatents = Annotated[int, AfterValidator(_latents)]
Seed = Annotated[int, AfterValidator(_seed)]
Fraction = Annotated[float, AfterValidator(_fraction)]
DecayRate = Annotated[float, AfterValidator(_decay_rate)]
PenaltyScale = Literal["sum", "per_latent"]


class FixedLambda(Record):
    """The same lambda at every step."""

    kind: Literal["fixed"]
    """Chooses this record."""
    value: NotNegative
    """Lambda, the weight of the orthogonality penalty; 0 is a plain SAE."""


class LinearLambda(Record):
    """Lambda on a straight line over the run."""

    kind: Literal["linear"]
    """Chooses this record."""
    start: NotNegative
    """Lambda at the first step."""
    end: NotNegative
    """Lambda at the last step."""


class LearnedLambda(Record):
    """Lambda by gradient descent on the loss, which then holds c (log lambda)^2 as well; see train/lambdas.py."""

    kind: Literal["learned"]
    """Chooses this record."""
    start: Annotated[float, AfterValidator(_above_the_floor)]
    """Lambda before the first step."""
    parametrisation: Literal["log", "literal"] = "log"
    """`log` descends on log(lambda) at `lambda_lr`; `literal` on lambda itself at the model's lr, then clamps it."""


LambdaSchedule = Annotated[FixedLambda | LinearLambda | LearnedLambda, Field(discriminator="kind")]


class VariantConfig(Record):
    """One treatment. What is not given here is taken from the profile's `train` section."""

    schedule: LambdaSchedule = Field(alias="lambda")
    """How lambda is set: `kind: fixed | linear | learned` and its numbers. The key in params.yaml is `lambda`."""
    l1: NotNegative | None = None
    """L1 coefficient of this variant."""
    lr: Positive | None = None
    """Adam's learning rate of this variant."""
    seed: Seed | None = None
    """Seed of this variant's initial weights. The order of the batches is that of `train.seed` for every variant."""


class TrainConfig(Record):
    """What all variants share."""

    hook: str
    """The hook whose cached rows are read, for example blocks.2.hook_resid_post."""
    d_sae: NumLatents
    """Latents per SAE (F)."""
    batch_rows: PositiveCount
    """Rows (tokens) per step; every variant sees the same ones. The last incomplete batch of an epoch is dropped."""
    num_epochs: PositiveCount
    """Passes over the cached rows, each in another order."""
    pool_bytes: PositiveCount
    """Size of the reader's shuffle pool: larger mixes the rows of more chunks. It changes the order of rows."""
    lr: Positive
    """Adam's learning rate at its plateau."""
    lr_warm_up_fraction: Fraction
    """Share of the steps over which the learning rate rises linearly to `lr`; 0 starts at `lr`."""
    lr_decay_fraction: Fraction
    """Share of the steps, at the end, over which the learning rate falls linearly towards 0; 0 keeps `lr`."""
    adam_beta1: DecayRate
    """Adam's decay rate of the mean gradient."""
    adam_beta2: DecayRate
    """Adam's decay rate of the mean squared gradient."""
    adam_eps: Positive
    """Adam's epsilon, added to the root of the mean squared gradient."""
    l1: NotNegative
    """Coefficient of mean_B sum_f |a_f|. The error it stands against is summed over d_model, for rows scaled to
    E||x||^2 = d_model."""
    seed: Seed
    """Seed of the order of the batches, and of the initial weights of every variant without a seed of its own."""
    penalty_scale: PenaltyScale
    """`sum`: lambda multiplies P = ||G - I||_F^2 (the original definition). `per_latent`: it multiplies P / d_sae."""
    lambda_regularizer: Positive
    """c in c (log lambda)^2, the term that holds a learned lambda near 1. 0.1 in the original definition."""
    lambda_lr: Positive | None
    """Rate of log(lambda) per step. null: derived from the number of steps, so that a learned lambda can cross
    [1e-3, 10] in the first quarter of the run."""
    dead_after_rows: PositiveCount
    """A latent that has not fired for this many rows is counted as dead."""
    log_every_steps: PositiveCount
    """Steps between log records; the first and the last step are always logged."""

    @model_validator(mode="after")
    def _phases_fit(self) -> "TrainConfig":
        total = self.lr_warm_up_fraction + self.lr_decay_fraction
        if total > 1.0:
            raise ValueError(
                f"expected lr_warm_up_fraction + lr_decay_fraction <= 1, got {self.lr_warm_up_fraction} + "
                f"{self.lr_decay_fraction} = {total:g}. Lower one of them"
            )
        return self


def check_variant_name(name: object) -> str:
    """The name, if it is a string that params.yaml, DVC and every file system take the same way; else ValueError."""
    if not isinstance(name, str) or re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name) is None:
        raise ValueError(
            f"expected a variant name that matches [A-Za-z][A-Za-z0-9_-]* (a letter, then letters, digits, _ or -), "
            f"got {name!r}. Rename it, for example 0.1 as 0p1"
        )
    return name


def check_variant_names(variants: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
    """The variants, if there is one at least and no two names differ only in case (one folder on some systems)."""
    if not variants:
        raise ValueError("expected at least one variant under `variants`, got none. Add one")
    seen: dict[str, str] = {}
    for name in variants:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(
                f"expected variant names that differ in more than case, got {other!r} and {name!r}. Rename one of them"
            )
    return variants


VariantName = Annotated[str, BeforeValidator(check_variant_name)]
Variants = Annotated[dict[VariantName, VariantConfig], AfterValidator(check_variant_names)]
VARIANTS: TypeAdapter[dict[str, VariantConfig]] = TypeAdapter(Variants)
"""`VARIANTS.validate_python(...)` checks the `variants` section of params.yaml, names included."""
