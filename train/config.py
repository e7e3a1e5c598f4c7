"""What decides a training run. Values live in params.yaml; here they are named, documented and checked.

Settings of a variant that it does not give itself are those of the profile's `train` section; `resolve` puts the two
together. The settings of a kind of lambda, penalty or architecture are with its formula: lambdas.py, penalties.py,
architectures.py.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, create_model, model_validator

from store.record import Record
from train.architectures import SELECTS, Architecture, AuxK, DeadLatents, JumpReLU, MatryoshkaBatchTopK
from train.checks import DecayRate, Fraction, NumLatents, Positive, PositiveCount, Seed, Times
from train.lambdas import DualLambda, LambdaSchedule, least_coherence
from train.penalties import GramPenalty, Penalty
from train.sparsity import FEWEST_STEPS, Coefficient, TargetL0

PenaltyScale = Literal["sum", "per_latent"]
DecoderNorm = Literal["unit", "free"]


class Settings(Record):
    """What every variant has, whoever gave it."""

    hook: str
    """The hook whose cached rows are read, for example blocks.2.hook_resid_post. Variants of several hooks are trained
    in one pass over the data for each hook."""
    architecture: Architecture
    """How a row becomes latents: `kind: relu | topk | batchtopk | jumprelu | matryoshka-batchtopk | gated`."""
    d_sae: NumLatents
    """Latents per SAE (F)."""
    l1: Coefficient
    """Coefficient of mean_B sum_f |a_f| (relu and gated). The error it stands against is summed over d_model, for rows
    scaled to E||x||^2 = d_model. Or the L0 that the SAE shall end with, `{target_l0: 46}`: the coefficient is then
    found while training (sparsity.py)."""
    sparsity_warm_up_fraction: Fraction
    """Share of the steps over which l1 (of jumprelu l0) rises linearly to its value; 0 starts at it."""
    penalty: Penalty
    """The penalty on decoder directions that are close to each other, weighted by lambda: `kind: gram | max-cosine`."""
    penalty_scale: PenaltyScale
    """`sum`: lambda multiplies P (for gram ||G - I||_F^2, the original definition). `per_latent`: it multiplies
    P / d_sae."""
    lambda_regularizer: Positive
    """c in c (log lambda)^2, the term that holds a learned lambda near 1. 0.1 in the original definition."""
    lambda_lr: Positive | None
    """Rate of log(lambda) per step. null: derived from the number of steps, so that a learned lambda can cross
    [1e-3, 10] in the first quarter of the run."""
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
    gradient_clip: Positive | None
    """Largest length of a variant's whole gradient; a longer one is shortened to it. null: none is."""
    decoder_norm: DecoderNorm
    """`unit`: decoder rows keep length 1. `free`: they may have any, and l1 weighs a_f by the length of row f."""
    dead_latents: DeadLatents
    """What is done for latents that do not fire: `kind: none | auxk | resample`."""
    dead_after_rows: PositiveCount
    """A latent that has not fired for this many rows is counted as dead."""
    seed: Seed
    """Seed of a variant's initial weights and of all else that is drawn for it; that of `train` also decides the order
    of the batches."""


class LambdaSetting(Record):
    """What every variant gives itself."""

    schedule: LambdaSchedule = Field(alias="lambda")
    """How lambda is set: `kind: fixed | linear | cosine | exponential | piecewise | learned | dual` and its numbers.
    The key in params.yaml is `lambda`."""


class VariantSettings(Settings, LambdaSetting):
    """Every setting of one variant."""


class MaxNorm(Record):
    """Above which norm a row is no part of training. Language models have a few rows, at some tokens and layers, that
    are many times longer than all others and would decide the scale, the loss and what l1 means."""

    times_median: Times
    """In medians of the norms of all training rows. 10 is usual in the field, and misses rows that hold a third of the
    variance after early layers; rows 2 to 3 times as long are ordinary. It is applied at the edge of a bin of the
    cache's record: at most 3.1 % higher."""


class TrainConfig(Settings):
    """What variants share, and what those do not give that have no value of their own."""

    batch_rows: PositiveCount
    """Rows (tokens) per step; every variant sees the same ones. The last incomplete batch of an epoch is dropped."""
    num_rows: PositiveCount | None = Field(default=None, exclude_if=lambda number: number is None)
    """Only the first so many rows of the cache, rounded down to whole chunks; null: all. Scale and mean stay those of
    all rows, so that runs on more and on fewer rows can be compared."""
    num_epochs: PositiveCount
    """Passes over the cached rows, each in another order."""
    pool_bytes: PositiveCount
    """Size of the reader's shuffle pool: larger mixes the rows of more chunks. It changes the order of rows."""
    log_every_steps: PositiveCount
    """Steps between log records; the first and the last step are always logged."""
    max_norm: MaxNorm | None = Field(default=None, exclude_if=lambda limit: limit is None)
    """Rows with a larger norm are left out of batches, scale and mean: `{times_median: 5}`. null: all rows."""

    @model_validator(mode="after")
    def _phases_fit(self) -> "TrainConfig":
        _check_phases(self)
        return self


def _optional_settings() -> dict[str, Any]:
    """Every field of Settings, checked and documented as there, with None where it is not given."""
    types = get_type_hints(Settings, include_extras=True)
    return {
        name: (types[name] | None, Field(default=None, description=field.description))
        for name, field in Settings.model_fields.items()
    }


_OptionalSettings: Any = create_model("_OptionalSettings", __base__=LambdaSetting, **_optional_settings())


class VariantConfig(_OptionalSettings):
    """One variant as params.yaml gives it: a lambda, and any field of Settings that is not that of `train`."""


_NULL_SAYS_SOMETHING = ("lambda_lr", "gradient_clip")


def resolve(train: TrainConfig, variant: VariantConfig) -> VariantSettings:
    """Every setting of a variant: its own, else those of `train`. ValueError where they do not go together."""
    own = {
        name: value
        for name in variant.model_fields_set
        if (value := getattr(variant, name)) is not None or name in _NULL_SAYS_SOMETHING
    }
    shared = {name: getattr(train, name) for name in Settings.model_fields}
    settings = VariantSettings.model_validate(shared | own)
    _check_together(settings)
    return settings


def _check_phases(settings: Settings) -> None:
    rising, falling = settings.lr_warm_up_fraction, settings.lr_decay_fraction
    if rising + falling > 1.0:
        raise ValueError(
            f"expected lr_warm_up_fraction + lr_decay_fraction <= 1, got {rising} + {falling} = "
            f"{rising + falling:g}. Lower one of them"
        )


def _check_together(settings: VariantSettings) -> None:
    _check_phases(settings)
    architecture, F = settings.architecture, settings.d_sae
    target = target_of(settings)
    if target is not None and target.target_l0 >= F:
        raise ValueError(f"expected target_l0 below d_sae = {F}, got {target.target_l0:g}. Lower it")
    if target is not None and settings.sparsity_warm_up_fraction > 0.0:
        raise ValueError(
            "expected sparsity_warm_up_fraction of 0 beside a target_l0, which sets the coefficient from the start, "
            f"got {settings.sparsity_warm_up_fraction:g}. Set it to 0"
        )
    if isinstance(architecture, SELECTS) and architecture.k > F:
        raise ValueError(f"expected architecture.k of at most d_sae = {F}, got {architecture.k}. Lower k")
    if isinstance(architecture, MatryoshkaBatchTopK) and architecture.widths[-1] >= F:
        raise ValueError(
            f"expected architecture.widths below d_sae = {F}, got {architecture.widths}. Remove the last: the whole "
            "SAE is always one of the losses"
        )
    if isinstance(settings.dead_latents, AuxK) and settings.dead_latents.k > F:
        raise ValueError(f"expected dead_latents.k of at most d_sae = {F}, got {settings.dead_latents.k}. Lower it")
    if isinstance(settings.schedule, DualLambda):
        if not isinstance(settings.penalty, GramPenalty):
            raise ValueError(
                "expected penalty: {kind: gram} beside lambda: {kind: dual}, whose target is a mean squared cosine "
                f"over all pairs, got kind {settings.penalty.kind}. Change one of them"
            )
        if settings.schedule.target >= 1.0:
            raise ValueError(
                f"expected lambda.target, a mean squared cosine, below 1, got {settings.schedule.target}. Lower it"
            )


def target_of(settings: VariantSettings) -> TargetL0 | None:
    """The L0 that the variant's coefficient is to find; None where the coefficient is given or not used."""
    architecture = settings.architecture
    wanted = architecture.l0 if isinstance(architecture, JumpReLU) else settings.l1
    return wanted if isinstance(wanted, TargetL0) and not isinstance(architecture, SELECTS) else None


def steps_warning(settings: Mapping[str, VariantSettings], *, num_steps: int) -> str:
    """What to say of a run that is too short for a target L0; nothing where it is not."""
    names = [name for name, variant in settings.items() if target_of(variant) is not None]
    if not names or num_steps >= FEWEST_STEPS:
        return ""
    return (
        f"L0 will miss its target in {', '.join(names)}: {num_steps} steps are too few, since L0 oscillates in runs of "
        f"less than {FEWEST_STEPS}. Lower batch_rows, raise num_epochs, or give l1 as a number"
    )


def check_against_data(settings: VariantSettings, *, d_model: int) -> None:
    """ValueError where settings ask for what rows of `d_model` channels cannot give."""
    if isinstance(settings.schedule, DualLambda):
        least = least_coherence(settings.d_sae, d_model)
        if settings.schedule.target < least:
            raise ValueError(
                f"expected lambda.target of at least {least:.6g}, the least mean squared cosine that {settings.d_sae} "
                f"directions in {d_model} dimensions can have, got {settings.schedule.target:g}. Raise it"
            )


class ShapeKey(NamedTuple):
    """Variants can be stacked into one group exactly where these are equal."""

    architecture: str
    d_sae: int
    decoder_norm: DecoderNorm
    dead_latents: str
    aux_k: int
    widths: tuple[int, ...]
    bandwidth: float


def shape_key(settings: VariantSettings) -> ShapeKey:
    """What has to be equal for variants to be stacked; all other settings may differ within a group."""
    architecture, dead_latents = settings.architecture, settings.dead_latents
    return ShapeKey(
        architecture=architecture.kind,
        d_sae=settings.d_sae,
        decoder_norm=settings.decoder_norm,
        dead_latents=dead_latents.kind,
        aux_k=dead_latents.k if isinstance(dead_latents, AuxK) else 0,
        widths=tuple(architecture.widths) if isinstance(architecture, MatryoshkaBatchTopK) else (),
        bandwidth=architecture.bandwidth if isinstance(architecture, JumpReLU) else 0.0,
    )


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
