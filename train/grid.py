"""Which variants a study has: those written out, and those that grids expand to.

    grid:
      sparsity:                                  # every variant of `variants`, at each combination
        of: all
        values: {l1: [0.75, 1.5, 3.0], seed: [0, 1, 2]}
      small:                                     # a template of its own
        of: {lambda: {kind: fixed, value: 1.0}}
        values: {lambda.value: [1.0e-3, 1.0e-2]}

gives baseline-l1-0p75-seed-0 and so on, and small-lambda-0p001, small-lambda-0p01. A combination whose settings are
those of a variant that is already there is that variant, and does not get a second name.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, JsonValue

from store.record import Record, digest
from train.config import (
    TrainConfig,
    VariantConfig,
    check_variant_name,
    check_variant_names,
    resolve,
)
from train.matched import partners
from train.variants import relevant

MAX_VARIANTS = 512
"""A study of more variants is taken for a mistake."""
MAX_NAME = 120


def _check_values(values: dict[str, list[JsonValue]]) -> dict[str, list[JsonValue]]:
    if not values:
        raise ValueError("expected at least one field with a list of values, got none. Add one, such as seed: [0, 1]")
    for field, choices in values.items():
        if not choices:
            raise ValueError(f"expected at least one value of {field}, got an empty list. Add one or remove the field")
        for index, value in enumerate(choices):
            if value in choices[:index]:
                raise ValueError(f"expected every value of {field} once, got {value!r} twice. Remove one of them")
    return values


def _check_base(base: object) -> object:
    if base == "all" or isinstance(base, dict) or (isinstance(base, list) and all(isinstance(n, str) for n in base)):
        return base
    raise ValueError(
        f"expected `all`, a list of names of variants, or the settings of a variant, got {base!r}. Correct it"
    )


class GridConfig(Record):
    """Variants that differ in a few fields, one for each combination of the values given."""

    of: Annotated[Literal["all"] | list[str] | dict[str, JsonValue], BeforeValidator(_check_base)]
    """What is varied: `all` variants under `variants`, some of them by name, or the settings of one that is not there
    (it is named after the grid)."""
    values: Annotated[dict[str, list[JsonValue]], AfterValidator(_check_values)]
    """A list of values per field of a variant; a dot leads into a record, as in lambda.value."""


Grid = dict[Annotated[str, BeforeValidator(check_variant_name)], GridConfig]


@dataclass(frozen=True)
class Combination:
    """One point of a grid, not checked yet."""

    grid: str
    name: str
    """Name of the variant."""
    settings: dict[str, Any]
    """The settings of the variant, as params.yaml would have them."""


def combinations(grid: Mapping[str, GridConfig], variants: Mapping[str, VariantConfig]) -> Iterator[Combination]:
    """Every point of every grid in the order of the file; ValueError for a base that is not there, or too many."""
    total = len(variants)
    for name, varied in grid.items():
        bases = _bases(name, varied, variants)
        count = len(bases) * math.prod(len(values) for values in varied.values.values())
        total += count
        if total > MAX_VARIANTS:
            raise ValueError(
                f"grid.{name}: expected at most {MAX_VARIANTS} variants in all, got {count} from this grid "
                f"({len(bases)} times {' times '.join(str(len(values)) for values in varied.values.values())}). "
                "Shorten its lists, or split the study"
            )
        for base, settings in bases.items():
            for values in itertools.product(*varied.values.values()):
                chosen = dict(zip(varied.values, values, strict=True))
                label = "-".join([base, *(f"{_field_part(field)}-{_value_part(v)}" for field, v in chosen.items())])
                yield Combination(name, _checked(label, name), _overridden(settings, chosen, name))


def _bases(name: str, grid: GridConfig, variants: Mapping[str, VariantConfig]) -> dict[str, dict[str, Any]]:
    """Settings of what a grid varies, by name."""
    if isinstance(grid.of, dict):
        return {name: grid.of}
    chosen = list(variants) if grid.of == "all" else list(grid.of)
    unknown = [variant for variant in chosen if variant not in variants]
    if unknown or not chosen:
        raise ValueError(
            f"grid.{name}.of: expected `all`, or names among {', '.join(variants)}, or the settings of a variant; "
            f"got {', '.join(unknown) or 'an empty list'}. Correct it"
        )
    return {variant: variants[variant].model_dump(mode="json", by_alias=True, exclude_unset=True) for variant in chosen}


def _overridden(settings: Mapping[str, Any], values: Mapping[str, Any], grid: str) -> dict[str, Any]:
    """A copy of `settings` with `values` put in, dots leading into records."""
    result = dict(settings)
    for field, value in values.items():
        *path, last = field.split(".")
        inner = result
        for part in path:
            below = inner.get(part, {})
            if not isinstance(below, dict):
                raise ValueError(
                    f"grid.{grid}.values.{field}: expected {part} to be a record, got {below!r}. Shorten the field"
                )
            inner[part] = dict(below)
            inner = inner[part]
        inner[last] = value
    return result


def _field_part(field: str) -> str:
    """A field in a name: lambda.value is lambda, lambda.start is start, architecture.k is k."""
    return re.sub("[^A-Za-z0-9_]+", "-", field.removesuffix(".value").split(".")[-1])


def _value_part(value: JsonValue) -> str:
    """A value in a name: 0.1 is 0p1, 1e-5 is 1em05, a record its kind and then its numbers."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return f"{value:.12g}".replace(".", "p").replace("-", "m").replace("+", "")
    if isinstance(value, dict):
        first = [value["kind"]] if "kind" in value else []
        return "-".join(_value_part(part) for part in first + [v for k, v in value.items() if k != "kind"])
    if isinstance(value, list):
        return "-".join(_value_part(part) for part in value)
    return re.sub("[^A-Za-z0-9_]+", "_", value)


def _checked(label: str, grid: str) -> str:
    if len(label) > MAX_NAME:
        raise ValueError(
            f"grid.{grid}: expected names of at most {MAX_NAME} characters, got {label!r}. Vary fewer fields, or give "
            "long values variants of their own"
        )
    return check_variant_name(label)


def with_grid(
    train: TrainConfig, variants: Mapping[str, VariantConfig], points: Sequence[tuple[str, str, VariantConfig]]
) -> dict[str, VariantConfig]:
    """The variants of a study: those written out, then the points (grid, name, settings) that are none of them.

    ValueError where settings do not go together, or a point's name is that of another variant.
    """
    study = dict(variants)
    known = {_identity(train, name, variant) for name, variant in variants.items()}
    for grid, name, variant in points:
        identity = _identity(train, f"{name} of grid {grid}", variant)
        if identity in known:
            continue
        if name in study:
            raise ValueError(
                f"grid.{grid}: expected new names, got {name!r}, which is a variant with other settings. "
                "Rename the grid or that variant"
            )
        known.add(identity)
        study[name] = variant
    check_variant_names(study)
    partners(train, study)  # a control that has none is a mistake
    return study


def _identity(train: TrainConfig, name: str, variant: VariantConfig) -> str:
    try:
        return digest(relevant(resolve(train, variant)))
    except ValueError as error:
        raise ValueError(f"variant {name}: {error}") from error
