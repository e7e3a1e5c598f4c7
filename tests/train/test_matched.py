"""Controls with the lambda that another variant's came to: who matches whom, what they take, when they are stale."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.sae.artefact import load_card, read_log
from train.config import VARIANTS, TrainConfig, VariantConfig
from train.grid import GridConfig, combinations, with_grid
from train.matched import partners
from train.task import TrainingResources
from train.variants import resolve_variants

Train = Callable[..., dict[str, bytes]]
ADAPTIVE: dict[str, Any] = {"lambda": {"kind": "learned", "start": 1.0}}
MEAN: dict[str, Any] = {"lambda": {"kind": "matched", "of": "adaptive", "take": "mean"}}
FINAL: dict[str, Any] = {"lambda": {"kind": "matched", "of": "adaptive", "take": "final"}}
WEIGHTS = "sae_weights.safetensors"


def parsed(**variants: dict[str, Any]) -> dict[str, VariantConfig]:
    return VARIANTS.validate_python(variants)


def study(**changes: dict[str, Any]) -> dict[str, VariantConfig]:
    """A plain SAE, one with a learned lambda, and both controls."""
    plain = {"lambda": {"kind": "fixed", "value": 0.0}}
    return parsed(**{"mean": MEAN, "baseline": plain, "adaptive": ADAPTIVE, "final": FINAL, **changes})


def cards(tmp_path: Path) -> dict[str, Any]:
    return {path.name: load_card(path) for path in sorted((tmp_path / "models").iterdir())}


def test_each_control_of_a_grid_matches_the_variant_of_its_own_seed(settings: dict[str, Any]) -> None:
    train = TrainConfig.model_validate(settings)
    grid = {"seeds": GridConfig.model_validate({"of": "all", "values": {"seed": [0, 1], "l1": [0.5, 0.7]}})}
    points = [(p.grid, p.name, VariantConfig.model_validate(p.settings)) for p in combinations(grid, study())]
    everything = with_grid(train, study(), points)
    assert partners(train, everything) == {
        "mean": "adaptive",
        "final": "adaptive",
        **{
            f"{control}-seed-{seed}-l1-{l1}": f"adaptive-seed-{seed}-l1-{l1}"
            for control in ("mean", "final")
            for seed, l1 in ((0, "0p7"), (1, "0p5"), (1, "0p7"))
        },
    }


MISTAKES: list[tuple[dict[str, dict[str, Any]], str]] = [
    (
        {"mean": {"lambda": {**MEAN["lambda"], "of": "adaptve"}}},
        "variant mean: lambda.of: expected the name of a variant whose lambda follows training (adaptive), "
        "got 'adaptve'. Correct it",
    ),
    (
        {"mean": {"lambda": {**MEAN["lambda"], "of": "mean"}}},
        "variant mean: lambda.of: expected a variant whose lambda follows training (adaptive), got mean, which is a "
        "control itself. Choose another, or give the control a lambda of its own",
    ),
    (
        {"mean": {"lambda": {**MEAN["lambda"], "of": "final"}}, "final": {"lambda": {**MEAN["lambda"], "of": "mean"}}},
        "variant mean: lambda.of: expected a variant whose lambda follows training (adaptive), got final, which is a "
        "control itself",
    ),
    (
        {"mean": {"lambda": {**MEAN["lambda"], "of": "baseline"}}},
        "got baseline, whose lambda of kind fixed is known before training",
    ),
    (
        {"mean": {**MEAN, "seed": 3, "l1": 2.0}},
        "variant mean: lambda.of: expected a variant with the lambda of adaptive and all else as in mean, found none: "
        "adaptive itself differs in l1, seed. Give both the same, or vary both in one grid",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_control_without_a_variant_to_match_is_refused_before_anything_is_trained(
    changes: dict[str, dict[str, Any]], message: str, train_files: Train, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train_files(study(**changes))
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(ValueError, match=re.escape(message)):  # and so when params.yaml is read
        with_grid(TrainConfig.model_validate(settings), study(**changes), [])


def test_a_control_is_the_sae_of_a_fixed_lambda_of_the_mean_or_the_last_value(
    train_files: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = train_files(study(), log_every_steps=1)
    found, err = cards(tmp_path), capsys.readouterr().err
    path = [line["lambda"] for line in read_log(tmp_path / "models" / "adaptive")]
    assert len(path) == 32  # every step
    mean, last = found["adaptive"].final["lambda_mean"], found["adaptive"].final["lambda"]
    assert mean == pytest.approx(math.fsum(path) / 32, rel=1e-12)
    assert last < mean  # lambda falls: the log's last line is of before the last step
    assert {name: found[name].final["lambda"] for name in ("mean", "final")} == {"mean": mean, "final": last}
    assert found["mean"].variant["lambda"] == MEAN["lambda"]  # the same for all seeds
    assert f"train: mean has a constant lambda of {mean:.6g}, that of adaptive" in err
    fixed = {name: {"lambda": {"kind": "fixed", "value": value}} for name, value in (("a", mean), ("b", last))}
    again = train_files(parsed(**fixed), log_every_steps=1)
    for control, name in (("mean", "a"), ("final", "b")):
        for file in (WEIGHTS, "log.jsonl"):
            assert files[f"{control}/{file}"] == again[f"{name}/{file}"]


def test_controls_are_reused_until_what_they_match_changes(
    train_files: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train_files(study())
    with monkeypatch.context() as patch:
        patch.setattr("train.task.train_to_end", None)
        assert train_files(study(), reuse=True) == before
    capsys.readouterr()
    after = train_files(study(adaptive={"lambda": {"kind": "learned", "start": 2.0}}), reuse=True)
    said = capsys.readouterr().err
    assert "train: baseline is unchanged and reused" in said
    assert "mean is unchanged" not in said
    assert after[f"mean/{WEIGHTS}"] != before[f"mean/{WEIGHTS}"]
    final = json.loads(after["adaptive/card.json"])["final"]
    assert json.loads(after["mean/card.json"])["final"]["lambda"] == final["lambda_mean"]


def test_the_key_of_a_control_holds_the_lambda_that_it_took(settings: dict[str, Any]) -> None:
    train, controls = TrainConfig.model_validate(settings), parsed(mean=MEAN)

    def key(value: float) -> str:
        return resolve_variants(train, controls, cache_digest="c", matched={"mean": value})[0].key

    assert key(0.5) == key(0.5)
    assert len({key(0.5), key(0.5 + 1e-15), key(math.nan)}) == 3


class Stopped(Exception):
    """Ends a training where a kill would."""


@pytest.mark.parametrize("step", [10, 32 + 10])  # in the first round, and in the second
def test_a_training_that_ends_in_either_round_continues_to_the_same_bytes(
    step: int, train_files: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train_files(study())
    resources = TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=0.0)
    from train.group import VariantGroup

    done, whole = [0], VariantGroup.step

    def until(self: VariantGroup, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as it is called
        done[0] += 1
        if done[0] > step:
            raise Stopped
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(VariantGroup, "step", until)
        with pytest.raises(Stopped):
            train_files(study(), resources=resources)
    capsys.readouterr()
    assert train_files(study(), resources=resources) == expected
    err = capsys.readouterr().err
    assert f"continues after step {step % 32} of a stopped training" in err
    assert err.count("variants in 1 group of 2") == (2 if step < 32 else 1)  # a finished round is not done again


def test_a_control_of_a_variant_that_diverged_counts_as_diverged_and_the_others_do_not_notice(
    train_files: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"lr": 1e25}
    two = {"of": "sound", "take": "mean", "kind": "matched"}
    found_names = study(adaptive={**ADAPTIVE, **broken}, mean={**MEAN, **broken}, final={"lambda": two}, sound=ADAPTIVE)
    train_files(found_names)
    found = cards(tmp_path)
    assert {name for name, card in found.items() if "diverged_at_step" in card.final} == {"adaptive", "mean"}
    assert "train: mean has no lambda, since adaptive diverged, and will count as diverged too" in (
        capsys.readouterr().err
    )
    assert found["final"].final["lambda"] == found["sound"].final["lambda_mean"]
