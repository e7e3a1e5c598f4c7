"""Reads params.yaml: one profile's sections and the variants, checked as a whole before any stage does anything."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import EvaluateConfig, settings_of
from harvest.config import HarvestConfig
from language_model.config import LanguageModelConfig
from store.record import Record
from train.config import TrainConfig, VariantConfig, Variants
from train.grid import Combination, Grid, combinations, with_grid
from train.sparsity import FORMS

REFERENCE_VARIANT = "baseline"


class ParamsError(ValueError):
    """params.yaml says something that cannot be run."""


class Profile(Record):
    """The sections of one profile, one per stage, and what it adds to the study."""

    language_model: LanguageModelConfig | None
    """null where rows are made from known features: `harvest.synthetic` then says which."""
    harvest: HarvestConfig
    train: TrainConfig
    evaluate: EvaluateConfig  # type: ignore[valid-type]  # made from the registry of benchmarks
    grid: Grid
    """Variants that this profile alone has, beside those that `variants` and `grid` give to all profiles."""


class _File(Record):
    profile: str
    profiles: dict[str, Any] = Field(min_length=1)
    variants: Variants
    grid: Grid = Field(default_factory=dict)


@dataclass(frozen=True)
class Params:
    """What a run is asked to do."""

    profile_name: str
    profile: Profile
    variants: dict[str, VariantConfig]
    """Those under `variants`, then those that `grid` adds, then those of the profile's `grid`."""


def load_params(path: Path) -> Params:
    """Parses and checks params.yaml; the error lists everything that is wrong, each with its place."""
    raw = _load_yaml(path)
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected the keys profile, profiles and variants, got {raw!r}. Restore the file")
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(_explain(error, path, (), _File)) from error
    for name in file.profiles:
        if not re.fullmatch(r"[\w-]+", name, flags=re.ASCII):
            raise ParamsError(
                f"{path}: profiles: expected names of letters, digits, - and _, got {name!r}: DVC reads a dot as "
                f"a step into a record. Rename the profile, as to {re.sub('[^a-zA-Z0-9_-]+', '-', name)!r}"
            )
    if file.profile not in file.profiles:
        raise ParamsError(
            f"{path}: profile: expected one of {', '.join(file.profiles)}, got {file.profile!r}. "
            f"Choose one{_suggestion(file.profile, file.profiles)}, or add it under profiles"
        )
    try:
        profile = Profile.model_validate(file.profiles[file.profile])
    except ValidationError as error:
        raise ParamsError(_explain(error, path, ("profiles", file.profile), Profile)) from error
    if (profile.language_model is None) != (profile.harvest.synthetic is not None):
        given = "null" if profile.language_model is None else profile.language_model.name
        raise ParamsError(
            f"{path}: profiles.{file.profile}: expected either a language_model or known features in "
            f"harvest.synthetic, got language_model {given} and "
            f"{'none' if profile.harvest.synthetic is None else 'known features'}. Set one of them to null"
        )
    if REFERENCE_VARIANT not in file.variants:
        raise ParamsError(
            f"{path}: variants: expected one named {REFERENCE_VARIANT!r}, which the others are compared with, "
            f"got {', '.join(file.variants)}. Add it"
        )
    variants = _all_variants(path, file, profile)
    _check_hooks(path, f"profiles.{file.profile}", profile, variants)
    _check_sizes(path, f"profiles.{file.profile}", profile)
    return Params(file.profile, profile, variants)


def _all_variants(path: Path, file: _File, profile: Profile) -> dict[str, VariantConfig]:
    """The variants with those of the grids; all settings of each are there and fit together."""
    twice = sorted(file.grid.keys() & profile.grid.keys())
    if twice:
        raise ParamsError(
            f"{path}: profiles.{file.profile}.grid: expected names that `grid` does not have, got {', '.join(twice)}. "
            "Rename one of the two"
        )
    try:
        points = list(combinations(file.grid | profile.grid, file.variants))
        return with_grid(profile.train, file.variants, _checked_points(path, points))
    except ParamsError:
        raise
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from error


def _checked_points(path: Path, points: Iterable[Combination]) -> list[tuple[str, str, VariantConfig]]:
    """(grid, name, variant) of every point; what is wrong with several points of a grid is said once."""
    checked: list[tuple[str, str, VariantConfig]] = []
    mistakes: dict[str, None] = {}
    for point in points:
        try:
            checked.append((point.grid, point.name, VariantConfig.model_validate(point.settings)))
        except ValidationError as error:
            mistakes |= dict.fromkeys(_explain(error, path, ("grid", point.grid), VariantConfig).splitlines())
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return checked


def _check_hooks(path: Path, where: str, profile: Profile, variants: dict[str, VariantConfig]) -> None:
    """All hooks that are trained on are harvested."""
    harvested = profile.harvest.hooks
    wanted = {f"{where}.train.hook": profile.train.hook}
    wanted |= {f"variant {name}: hook": variant.hook for name, variant in variants.items() if variant.hook is not None}
    for place, hook in wanted.items():
        if hook not in harvested:
            raise ParamsError(
                f"{path}: {place}: expected one of the harvested hooks ({', '.join(harvested)}), got {hook!r}. "
                "Add it to harvest.hooks or change it"
            )


def _check_sizes(path: Path, where: str, profile: Profile) -> None:
    """What one section asks of another, found before a stage has begun."""
    num_rows = profile.harvest.num_sequences * profile.harvest.rows_per_sequence
    if profile.train.batch_rows > num_rows:
        raise ParamsError(
            f"{path}: {where}.train.batch_rows: expected at most the {num_rows} rows that are harvested, "
            f"got {profile.train.batch_rows}. Lower it, or raise harvest.num_rows"
        )
    if profile.train.num_rows is not None and not profile.train.batch_rows <= profile.train.num_rows <= num_rows:
        raise ParamsError(
            f"{path}: {where}.train.num_rows: expected at least batch_rows = {profile.train.batch_rows} and at most "
            f"the {num_rows} rows that are harvested, got {profile.train.num_rows}. Change it, or set it to null"
        )
    held_out = profile.harvest.num_held_out_sequences
    for name, benchmark in BENCHMARKS.items():
        settings = settings_of(profile.evaluate, name)
        wanted = 0 if settings is None else benchmark.num_held_out_sequences(settings)
        if wanted > held_out:
            raise ParamsError(
                f"{path}: {where}.evaluate.{name}: expected at most harvest.num_held_out_sequences = {held_out} "
                f"sequences to be read, got {wanted}. Lower it, or raise harvest.num_held_out_sequences"
            )


def _load_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever YAML can hold
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(f"expected {path}, found no such file. Run this in the repository's folder") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: expected UTF-8 text ({error}). Save the file as UTF-8") from error
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = str(error.problem).split("with value")[0].strip()
        raise ParamsError(f"{path}: line {line}: {problem}: expected every key once. Rename or remove one") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ParamsError(f"{path}: line {line}: expected YAML: {error.problem}. Correct that line") from error
    except YAMLError as error:
        raise ParamsError(f"{path}: expected YAML: {error}") from error


def _explain(error: ValidationError, path: Path, prefix: tuple[str, ...], record: type[Record]) -> str:
    """One line per mistake: where, what was expected, what was given."""
    lines = []
    for mistake in error.errors(include_url=False):
        location, known = _walk(record, mistake["loc"])
        where = ".".join((*prefix, *location))
        given = mistake["input"]
        if mistake["type"] == "extra_forbidden":
            suggestion = _suggestion(location[-1], known)
            lines.append(f"{where}: unknown key; expected one of {', '.join(known)}{suggestion}. Remove or rename it")
        elif mistake["type"] == "missing":
            lines.append(f"{where}: missing; every key must be given. Add it")
        elif mistake["type"] == "value_error":
            lines.append(f"{where}: {mistake['ctx']['error']}")
        elif mistake["type"] == "union_tag_invalid":
            tags = mistake["ctx"]["expected_tags"]
            suggestion = _suggestion(str(mistake["ctx"]["tag"]), re.findall("'([^']+)'", tags))
            lines.append(
                f"{where}.kind: expected {tags}, got {mistake['ctx']['tag']!r}{suggestion}. Choose one of them"
            )
        elif mistake["type"] == "union_tag_not_found":
            lines.append(f"{where}: expected a record with a kind, such as {{kind: ...}}, got {given!r}. Add its kind")
        else:
            message = mistake["msg"].replace("Input should be", "expected", 1)
            lines.append(f"{where}: {message}, got {given!r} ({type(given).__name__})")
    return "\n".join(f"{path}: {line}" for line in lines)


def _walk(record: type[Record], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys along a mistake's location as the file spells them, and the keys known where it ends.

    pydantic's locations also hold the kind that chose a record, the form of a sparsity coefficient, and a marker for
    mistakes in keys; the file does not.
    """
    spelled: list[str] = []
    records: list[Any] = [record]
    known: list[str] = []
    for part in location:
        chosen = [
            r for r in records if "kind" in r.model_fields and part in get_args(r.model_fields["kind"].annotation)
        ]
        if part == "[key]" or (part in FORMS and spelled[-1:] in (["l1"], ["l0"])):
            continue
        if chosen:
            records = chosen
            continue
        spelled.append(str(part))
        fields = [(field.alias or name, field) for r in records for name, field in r.model_fields.items()]
        known = list(dict.fromkeys(name for name, _ in fields))
        inner = [found for name, field in fields if name == part for found in _records_in(field.annotation)]
        records = inner or records
    return spelled, known


def _records_in(annotation: Any) -> list[Any]:  # noqa: ANN401 - a type expression
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [record for part in getattr(annotation, "__args__", ()) for record in _records_in(part)]


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
