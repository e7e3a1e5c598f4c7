"""Variants of several hooks in one study: a pass over the data for each hook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.sae.artefact import load_card
from tests.train.conftest import HOOK, write_cache
from train.config import VARIANTS, TrainConfig
from train.run import run
from train.task import TrainingResources

OTHER = "blocks.0.hook_resid_post"
BASELINE = {"lambda": {"kind": "fixed", "value": 0.0}}


@pytest.fixture(scope="module")
def two_hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("hooks") / "activations", hooks=(HOOK, OTHER))


@pytest.fixture
def train_at(two_hooks: Path, settings: dict[str, Any]) -> Callable[..., Path]:
    def train(folder: Path, variants: dict[str, Any], **changes: object) -> Path:
        run(
            TrainConfig.model_validate({**settings, **changes}),
            VARIANTS.validate_python(variants),
            cache=two_hooks,
            output=folder / "models",
            scratch=folder / "scratch",
            resources=TrainingResources(device="cpu", num_threads=1),
            reuse=True,
        )
        return folder / "models"

    return train


def test_each_hook_is_one_pass_and_gives_what_it_gives_alone(
    train_at: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {
        "baseline": BASELINE,
        "there": {**BASELINE, "hook": OTHER},
        "fixed": {"lambda": {"kind": "fixed", "value": 1.0}},
        "fixed-there": {"lambda": {"kind": "fixed", "value": 1.0}, "hook": OTHER},
    }
    models = train_at(tmp_path / "both", study)
    assert "4 variants in 2 groups of 2, 2; 2 passes over the data" in capsys.readouterr().err
    assert [load_card(models / name).hook for name in study] == [HOOK, OTHER, HOOK, OTHER]
    alone = train_at(tmp_path / "alone", {"baseline": BASELINE, "fixed": study["fixed"]}, hook=OTHER)
    for name, there in (("baseline", "there"), ("fixed", "fixed-there")):
        weights = (models / there / "sae_weights.safetensors").read_bytes()
        assert weights == (alone / name / "sae_weights.safetensors").read_bytes()
        assert load_card(models / there).key == load_card(alone / name).key
        assert weights != (models / name / "sae_weights.safetensors").read_bytes()


def test_another_default_hook_leaves_variants_with_a_hook_of_their_own_as_they_are(
    train_at: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {"baseline": BASELINE, "there": {**BASELINE, "hook": OTHER}}
    train_at(tmp_path, study)
    capsys.readouterr()
    train_at(tmp_path, study, hook=OTHER)
    printed = capsys.readouterr().err
    assert "train: there is unchanged and reused" in printed
    assert "baseline is unchanged" in printed  # it is what `there` was


def test_a_variant_at_a_hook_that_is_not_cached_is_refused(train_at: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of the cached hooks .*, got blocks.5.hook_resid_post"):
        train_at(tmp_path, {"baseline": BASELINE, "far": {**BASELINE, "hook": "blocks.5.hook_resid_post"}})
    assert not (tmp_path / "models").exists()
