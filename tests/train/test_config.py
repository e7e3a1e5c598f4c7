"""What a newcomer can get wrong in the sections `train` and `variants`, and what they are told."""

from typing import Any

import pytest
from pydantic import ValidationError

from train.config import VARIANTS, Settings, TrainConfig, VariantConfig, VariantSettings, resolve, shape_key


def refusal(check: Any, value: Any) -> str:  # noqa: ANN401
    with pytest.raises(ValidationError) as caught:
        check(value)
    (first,) = caught.value.errors()
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def variant(**fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"v": {"lambda": {"kind": "fixed", "value": 0.0}, **fields}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1": -0.1}, "l1.number: Value error, expected a number >= 0, got -0.1. Remove the minus sign"),
        ({"lr": -1e-3}, "lr: Value error, expected a number > 0, got -0.001. Give a positive number"),
        ({"lr": 0.0}, "lr: Value error, expected a number > 0, got 0.0"),
        ({"lr": "1e-4"}, "lr: Input should be a valid number"),
        ({"d_sae": 0}, "d_sae: Value error, expected 2 to 16777216 latents, got 0"),
        ({"d_sae": 2.5}, "d_sae: Input should be a valid integer"),
        ({"batch_rows": -1}, "batch_rows: Value error, expected a whole number from 1 to 2^50, got -1"),
        ({"num_epochs": 0}, "num_epochs: Value error, expected a whole number from 1 to 2^50, got 0"),
        ({"seed": -1}, "seed: Value error, expected a seed from 0 to 2^63 - 1, got -1"),
        ({"lr_warm_up_fraction": 5.0}, "lr_warm_up_fraction: Value error, expected a fraction from 0 to 1, got 5.0"),
        ({"adam_beta2": 1.0}, "adam_beta2: Value error, expected an Adam beta from 0 to just below 1, got 1.0"),
        ({"adam_eps": 0.0}, "adam_eps: Value error, expected a number > 0, got 0.0"),
        ({"lambda_lr": -0.5}, "lambda_lr: Value error, expected a number > 0, got -0.5"),
        ({"penalty_scale": "mean"}, "penalty_scale: Input should be 'sum' or 'per_latent'"),
        ({"batch_size": 64}, "batch_size: Extra inputs are not permitted"),
        ({"l1": float("nan")}, "l1.number: Input should be a finite number"),
        ({"gradient_clip": 0.0}, "gradient_clip: Value error, expected a number > 0, got 0.0"),
        ({"architecture": {"kind": "topk"}}, "architecture.topk.k: Field required"),
        ({"architecture": {"kind": "vanilla"}}, "architecture: Input tag 'vanilla' found using 'kind'"),
        (
            {"architecture": {"kind": "matryoshka-batchtopk", "k": 2, "widths": [8, 4]}},
            "architecture.matryoshka-batchtopk.widths: Value error, expected at least one width, each larger than",
        ),
        (
            {"penalty": {"kind": "max-cosine", "every_steps": 0}},
            "penalty.max-cosine.every_steps: Value error, expected",
        ),
        ({"dead_latents": {"kind": "auxk"}}, "dead_latents.auxk.k: Field required"),
        (
            {"lr_warm_up_fraction": 0.6, "lr_decay_fraction": 0.6},
            ": Value error, expected lr_warm_up_fraction + lr_decay_fraction <= 1, got 0.6 + 0.6 = 1.2. Lower",
        ),
    ],
)
def test_a_bad_training_setting_is_refused_with_its_name(
    settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    assert refusal(TrainConfig.model_validate, {**settings, **change}).startswith(message)


def test_a_missing_setting_is_named(settings: dict[str, Any]) -> None:
    del settings["l1"]
    assert refusal(TrainConfig.model_validate, settings) == "l1: Field required"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "Value error, expected at least one variant under `variants`, got none. Add one"),
        ({"schedule-0.1": variant()["v"]}, "expected a variant name that matches [A-Za-z][A-Za-z0-9_-]*"),
        ({7: variant()["v"]}, "got 7. Rename it"),
        ({True: variant()["v"]}, "got True. Rename it"),
        ({"a b": variant()["v"]}, "got 'a b'"),
        ({"x\n": variant()["v"]}, "got 'x\\n'"),
        ({"a": variant()["v"], "A": variant()["v"]}, "differ in more than case, got 'a' and 'A'"),
        (variant(**{"lambda": {"kind": "fixed", "value": -1.0}}), "expected a number >= 0, got -1.0"),
        (variant(**{"lambda": {"kind": "linear", "start": -0.1, "end": 1.0}}), "expected a number >= 0, got -0.1"),
        (
            variant(**{"lambda": {"kind": "learned", "start": 0.0}}),
            "expected a learned lambda to start at 0.001 (its floor) or above, got 0.0. Raise `start`",
        ),
        (variant(**{"lambda": {"kind": "exponential", "start": 0.0, "end": 1.0}}), "expected a number > 0, got 0.0"),
        (
            variant(**{"lambda": {"kind": "piecewise", "points": [[0.5, 1.0], [0.2, 0.0]]}}),
            "expected fractions that rise",
        ),
        (
            variant(**{"lambda": {"kind": "piecewise", "points": [[0.5]]}}),
            "a list of [fraction, value] pairs, got [[0.5]]",
        ),
        (
            variant(**{"lambda": {"kind": "piecewise", "points": [[0.5, -1.0]]}}),
            "expected values >= 0, got [[0.5, -1.0]]",
        ),
        (variant(**{"lambda": {"kind": "dual", "start": 1.0, "rate": 0.1}}), "Field required"),
        (variant(**{"lambda": {"kind": "hypergradient", "start": 0.0}}), "expected a number > 0, got 0.0"),
        (
            variant(**{"lambda": {"kind": "gradnorm", "start": 1.0, "asymmetry": -1.0}}),
            "expected a number >= 0, got -1.0",
        ),
        (variant(**{"lambda": {"kind": "uncertainty"}}), "Field required"),
        (variant(**{"lambda": {"kind": "matched", "of": "a", "take": "last"}}), "Input should be 'mean' or 'final'"),
        (variant(**{"lambda": {"kind": "cubic", "start": 0.0}}), "'cubic' found using 'kind' does not match"),
        (variant(**{"lambda": {"kind": "fixed"}}), "Field required"),
        (variant(**{"lambda": {"kind": "fixed", "value": 1.0, "end": 2.0}}), "Extra inputs are not permitted"),
        (variant(**{"lambda": 1.0}), "Input should be a valid dictionary"),
        ({"v": {}}, "Field required"),
        (variant(l1=-1.0), "expected a number >= 0, got -1.0"),
        (variant(lr=0.0), "expected a number > 0, got 0.0"),
        (variant(seed=-3), "expected a seed from 0 to 2^63 - 1, got -3"),
        (variant(colour="red"), "Extra inputs are not permitted"),
    ],
)
def test_a_bad_variant_is_refused_with_what_was_expected(section: dict[Any, Any], message: str) -> None:
    assert message in refusal(VARIANTS.validate_python, section)


def test_the_key_in_the_file_is_lambda() -> None:
    (parsed,) = VARIANTS.validate_python(variant(l1=0.5)).values()
    assert parsed.model_dump(by_alias=True)["lambda"] == {"kind": "fixed", "value": 0.0}
    assert (parsed.l1, parsed.lr, parsed.seed) == (0.5, None, None)


def test_a_learned_lambda_descends_on_its_logarithm_unless_asked_otherwise() -> None:
    (parsed,) = VARIANTS.validate_python(variant(**{"lambda": {"kind": "learned", "start": 1.0}})).values()
    assert parsed.schedule.model_dump()["parametrisation"] == "log"


def resolved_from(settings: dict[str, Any], **fields: Any) -> VariantSettings:  # noqa: ANN401
    (parsed,) = VARIANTS.validate_python(variant(**fields)).values()
    return resolve(TrainConfig.model_validate(settings), parsed)


def test_a_variant_takes_what_it_does_not_give_from_the_profile(settings: dict[str, Any]) -> None:
    got = resolved_from({**settings, "l1": 0.5, "lr": 1e-3}, l1=2.0, architecture={"kind": "topk", "k": 3})
    assert (got.l1, got.lr, got.architecture.kind, got.d_sae) == (2.0, 1e-3, "topk", 24)
    assert got.model_dump(by_alias=True)["lambda"] == {"kind": "fixed", "value": 0.0}


def test_null_takes_the_profiles_value_away_where_null_says_something(settings: dict[str, Any]) -> None:
    profile = {**settings, "gradient_clip": 1.0, "lambda_lr": 0.1, "l1": 0.5}
    assert (resolved_from(profile).gradient_clip, resolved_from(profile).lambda_lr) == (1.0, 0.1)
    cleared = resolved_from(profile, gradient_clip=None, lambda_lr=None, l1=None)
    assert (cleared.gradient_clip, cleared.lambda_lr, cleared.l1) == (None, None, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": {"kind": "topk", "k": 25}}, "expected architecture.k of at most d_sae = 24, got 25. Lower k"),
        ({"architecture": {"kind": "batchtopk", "k": 3}, "d_sae": 2}, "architecture.k of at most d_sae = 2, got 3"),
        (
            {"architecture": {"kind": "matryoshka-batchtopk", "k": 3, "widths": [8, 24]}},
            r"expected architecture.widths below d_sae = 24, got \[8, 24\]. Remove the last",
        ),
        (
            {"dead_latents": {"kind": "auxk", "k": 30}},
            "expected dead_latents.k of at most d_sae = 24, got 30. Lower it",
        ),
        ({"lr_warm_up_fraction": 0.9}, r"lr_warm_up_fraction \+ lr_decay_fraction <= 1, got 0.9 \+ 0.2 = 1.1. Lower"),
        (
            {
                "lambda": {"kind": "dual", "start": 1.0, "target": 0.1, "rate": 0.1},
                "penalty": {"kind": "max-cosine"},
            },
            "expected penalty: {kind: gram} beside lambda: {kind: dual}.*, got kind max-cosine. Change one of them",
        ),
        (
            {"lambda": {"kind": "dual", "start": 1.0, "target": 1.5, "rate": 0.1}},
            "expected lambda.target, a mean squared cosine, below 1, got 1.5. Lower it",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolved_from(settings, **fields)


def test_what_may_differ_within_a_group_and_what_may_not(settings: dict[str, Any]) -> None:
    topk = {"kind": "topk", "k": 3}
    base = shape_key(resolved_from(settings, architecture=topk))
    alike: list[dict[str, Any]] = [
        {"architecture": {"kind": "topk", "k": 5}}, {"lr": 1.0}, {"adam_beta1": 0.1}, {"seed": 4},
        {"gradient_clip": 1.0}, {"penalty": {"kind": "max-cosine"}},
        {"lambda": {"kind": "learned", "start": 1.0}}, {"l1": 3.0}, {"decoder": {"kind": "frozen"}},
    ]  # fmt: skip
    others: list[dict[str, Any]] = [
        {"architecture": {"kind": "relu"}}, {"d_sae": 25}, {"decoder_norm": "free"},
        {"dead_latents": {"kind": "auxk", "k": 2}},
    ]  # fmt: skip
    for fields in alike:
        assert shape_key(resolved_from(settings, **{"architecture": topk, **fields})) == base
    for fields in others:
        assert shape_key(resolved_from(settings, **{"architecture": topk, **fields})) != base


def test_a_variant_may_have_any_setting_that_a_profile_gives_it() -> None:
    assert set(VariantConfig.model_fields) == {*Settings.model_fields, "schedule"} == set(VariantSettings.model_fields)
    lam = {"lambda": {"kind": "fixed", "value": 1.0}}
    for name, field in Settings.model_fields.items():
        own = VariantConfig.model_fields[name]
        assert (own.default, own.description, own.is_required()) == (None, field.description, False), name
        with pytest.raises(ValidationError):
            VariantConfig.model_validate({**lam, name: ["nonsense"]})
    assert VariantConfig.model_validate(lam).model_dump(by_alias=True, exclude_unset=True) == lam


def test_every_field_is_documented() -> None:
    records = [TrainConfig, VariantConfig, VariantSettings]
    assert [name for record in records for name, field in record.model_fields.items() if not field.description] == []
