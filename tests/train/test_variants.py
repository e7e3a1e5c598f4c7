"""Grids: which variants they add, under which names, and what is refused; keys: what decides a variant."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from train.config import VARIANTS, TrainConfig, VariantConfig
from train.grid import MAX_VARIANTS, Grid, combinations, with_grid
from train.variants import resolve_variants, run_wide

GRID: TypeAdapter[Any] = TypeAdapter(Grid)


def study(settings: dict[str, Any], section: dict[str, Any], grid: dict[str, Any]) -> dict[str, VariantConfig]:
    """The variants of a study, as params.py puts them together."""
    variants = VARIANTS.validate_python(section)
    points = [
        (point.grid, point.name, VariantConfig.model_validate(point.settings))
        for point in combinations(GRID.validate_python(grid), variants)
    ]
    return with_grid(TrainConfig.model_validate(settings), variants, points)


def test_a_grid_over_all_variants_crosses_its_values(settings: dict[str, Any], section: dict[str, Any]) -> None:
    # l1 is 0.5 and the seed 0 in the settings: that point of each variant is the variant itself.
    variants = study(settings, section, {"g": {"of": "all", "values": {"l1": [0.25, 0.5], "seed": [0, 1]}}})
    assert len(variants) == 5 * 2 * 2
    assert list(variants)[:5] == list(section)
    assert [name for name in variants if name.startswith("fixed-1")] == [
        "fixed-1", "fixed-1-l1-0p25-seed-0", "fixed-1-l1-0p25-seed-1", "fixed-1-l1-0p5-seed-1",
    ]  # fmt: skip
    point = variants["adaptive-high-l1-0p25-seed-1"]
    assert (point.l1, point.seed, point.schedule) == (0.25, 1, variants["adaptive-high"].schedule)


def test_the_number_of_rows_identifies_a_variant_only_where_it_is_given(settings: dict[str, Any]) -> None:
    """So artefacts of before there was such a setting are the ones that are asked for without it."""
    assert "num_rows" not in run_wide(TrainConfig.model_validate(settings | {"num_rows": None}))
    assert run_wide(TrainConfig.model_validate(settings | {"num_rows": 512}))["num_rows"] == 512


def test_the_study_is_one_short_edit(settings: dict[str, Any], section: dict[str, Any]) -> None:
    grid = {
        "sparsity": {"of": "all", "values": {"l1": [0.25, 0.5, 1.0], "seed": [0, 1, 2]}},
        "small": {
            "of": {"lambda": {"kind": "fixed", "value": 1.0}},
            "values": {"lambda.value": [1e-3, 1e-2, 1e-1], "seed": [0, 1, 2]},
        },
        "dual": {
            "of": {"lambda": {"kind": "dual", "start": 1.0, "target": 0.1, "rate": 0.01}},
            "values": {"seed": [0, 1, 2]},
        },
    }
    variants = study(settings, section, grid)
    assert len(variants) == 5 * 3 * 3 + 3 * 3 + 3
    assert "small-lambda-0p001-seed-2" in variants
    assert "dual-seed-0" in variants


def test_a_template_is_named_after_its_grid_and_records_can_be_values(
    settings: dict[str, Any], section: dict[str, Any]
) -> None:
    grid = {
        "g": {
            "of": {"d_sae": 40},
            "values": {
                "lambda": [{"kind": "fixed", "value": 0.1}, {"kind": "linear", "start": 0.5, "end": 2.0}],
                "lr": [1e-5],
            },
        }
    }
    assert list(study(settings, section, grid))[5:] == ["g-lambda-fixed-0p1-lr-1em05", "g-lambda-linear-0p5-2-lr-1em05"]


def test_a_dotted_field_is_named_by_its_last_part(settings: dict[str, Any], section: dict[str, Any]) -> None:
    topk = {"lambda": {"kind": "learned", "start": 1.0}, "architecture": {"kind": "topk", "k": 4}}
    grid = {"topk": {"of": topk, "values": {"architecture.k": [4, 8], "lambda.start": [2.0]}}}
    assert list(study(settings, section, grid))[5:] == ["topk-k-4-start-2", "topk-k-8-start-2"]


def test_some_variants_can_be_chosen_by_name(settings: dict[str, Any], section: dict[str, Any]) -> None:
    grid = {"g": {"of": ["baseline", "fixed-1"], "values": {"seed": [1]}}}
    assert list(study(settings, section, grid))[5:] == ["baseline-seed-1", "fixed-1-seed-1"]


def test_a_point_that_another_grid_has_made_is_not_made_twice(
    settings: dict[str, Any], section: dict[str, Any]
) -> None:
    grid = {
        "a": {"of": ["baseline"], "values": {"seed": [1, 2]}},
        "b": {"of": {"lambda": {"kind": "fixed", "value": 0.0}}, "values": {"seed": [2, 3]}},
    }
    assert list(study(settings, section, grid))[5:] == ["baseline-seed-1", "baseline-seed-2", "b-seed-3"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"of": "every", "values": {"seed": [1]}}, "expected `all`, a list of names .* got 'every'"),
        ({"of": ["fixed-2"], "values": {"seed": [1]}}, r"grid\.g\.of: expected .*names among baseline.*got fixed-2"),
        ({"of": [], "values": {"seed": [1]}}, r"grid\.g\.of: expected .*got an empty list"),
        ({"of": "all", "values": {}}, "expected at least one field with a list of values, got none"),
        ({"of": "all", "values": {"seed": []}}, "expected at least one value of seed, got an empty list"),
        ({"of": "all", "values": {"seed": [1, 1]}}, "expected every value of seed once, got 1 twice"),
        ({"of": "all", "values": {"seed": list(range(200))}},
         rf"grid\.g: expected at most {MAX_VARIANTS} variants in all, got 1000 from this grid \(5 times 200\)"),
        ({"of": "all", "values": {"l1.x": [1.0]}, }, r"grid\.g\.values\.l1\.x: expected l1 to be a record"),
        ({"of": {"lambda": {"kind": "fixed", "value": 1.0}}, "values": {"lambda": [{"kind": "x" * 200}]}},
         r"grid\.g: expected names of at most 120 characters"),
    ],
)  # fmt: skip
def test_a_grid_that_makes_no_sense_is_refused(
    settings: dict[str, Any], section: dict[str, Any], grid: dict[str, Any], message: str
) -> None:
    section["baseline"] = {**section["baseline"], "l1": 0.5}
    with pytest.raises((ValueError, ValidationError), match=message):
        study(settings, section, {"g": grid})


def test_a_name_that_is_taken_by_other_settings_is_refused(settings: dict[str, Any], section: dict[str, Any]) -> None:
    section["fixed-1-seed-1"] = section["baseline"]
    with pytest.raises(ValueError, match=r"grid\.g: expected new names, got 'fixed-1-seed-1', which is a variant with"):
        study(settings, section, {"g": {"of": ["fixed-1"], "values": {"seed": [1]}}})


def keys(settings: dict[str, Any], section: dict[str, Any], **options: str) -> dict[str, str]:
    variants = resolve_variants(
        TrainConfig.model_validate(settings), VARIANTS.validate_python(section), cache_digest="c", **options
    )
    return {variant.name: variant.key for variant in variants}


def test_a_key_holds_no_name_and_nothing_that_cannot_touch_the_variant(
    settings: dict[str, Any], section: dict[str, Any]
) -> None:
    topk = {"lambda": {"kind": "fixed", "value": 1.0}, "architecture": {"kind": "topk", "k": 4}}
    section |= {"again": section["fixed-1"], "topk": topk}
    before = keys(settings, section)
    assert before["again"] == before["fixed-1"]
    assert len(set(before.values())) == len(before) - 1

    def touched(**changes: Any) -> set[str]:  # noqa: ANN401 - settings of every type
        after = keys(settings | changes, section)
        return {name for name in before if before[name] != after[name]}

    assert touched(lambda_regularizer=0.2) == {"adaptive", "adaptive-high"}
    assert touched(lambda_lr=0.01) == {"adaptive", "adaptive-high"}
    assert touched(l1=0.75) == set(before) - {"topk"}
    assert touched(sparsity_warm_up_fraction=0.1) == set(before) - {"topk"}
    for change in ({"lr": 0.1}, {"seed": 1}, {"batch_rows": 32}, {"log_every_steps": 7}, {"pool_bytes": 4096}):
        assert touched(**change) == set(before), change
    assert set(keys(settings, section, product_dtype="bfloat16").values()).isdisjoint(before.values())


def test_a_value_of_its_own_that_the_profile_also_has_changes_no_key(
    settings: dict[str, Any], section: dict[str, Any]
) -> None:
    before = keys(settings, section)
    section["fixed-1"] = {**section["fixed-1"], "l1": settings["l1"], "seed": 0}
    assert keys(settings, section) == before
