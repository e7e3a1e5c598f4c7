"""Other code or other packages neither train a task nor continue a training: they make something else."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compute.software import OtherSoftware, Software
from tests.train.dask_cluster import ROOT, dask_cluster
from train import task as task_module
from train.config import TrainConfig, VariantConfig
from train.run import run
from train.task import TrainingResources, training_software

Train = Callable[..., dict[str, bytes]]
HERE = Software(code="c" * 64, python="3.11", torch="2.13.0", numpy="1.26.4", numba="0.62.0", place="/a on one")


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A copy of the code with the constant that decides over how many log records a card averages changed."""
    folder = tmp_path / "edited"
    for name in ("compute", "store", "train"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    change(folder, "AVERAGED_RECORDS = 10\n", "AVERAGED_RECORDS = 3\n")
    return folder


def change(folder: Path, before: str, after: str) -> None:
    path = folder / "train" / "metrics.py"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


@pytest.fixture
def train_there(
    cache_folder: Path, tmp_path: Path, settings: dict[str, Any], five: dict[str, VariantConfig]
) -> Callable[[str], None]:
    """Trains on the workers of a scheduler, into tmp_path/models."""

    def train(scheduler: str) -> None:
        run(
            TrainConfig.model_validate(settings),
            {name: five[name] for name in ("baseline", "adaptive")},
            cache=cache_folder,
            output=tmp_path / "models",
            scratch=tmp_path / "scratch",
            resources=TrainingResources(device="cpu", num_threads=1),
            reuse=False,
            scheduler=scheduler,
        )

    return train


def left_in(scratch: Path) -> list[Path]:
    """Checkpoints, metrics and SAEs of a scratch folder."""
    return [path for name in ("tasks", "trained", "models") for path in (scratch / name).rglob("*") if path.is_file()]


def test_a_worker_with_edited_code_is_refused_and_one_whose_comments_alone_differ_trains(
    edited: Path, train_there: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    message = rf"expected code [0-9a-f]{{12}}, as in {ROOT} on .*, got code [0-9a-f]{{12}} in {edited} on .*Start the w"
    with (
        dask_cluster(tmp_path / "first", code=[ROOT, edited]) as scheduler,
        pytest.raises(OtherSoftware, match=message),
    ):
        train_there(scheduler)
    assert left_in(tmp_path / "scratch") == []
    assert not (tmp_path / "models").exists()
    change(edited, "AVERAGED_RECORDS = 3\n", "AVERAGED_RECORDS = 10  # a comment\n")
    with dask_cluster(tmp_path / "second", code=[edited]) as scheduler:
        train_there(scheduler)
    assert (tmp_path / "models" / "adaptive" / "card.json").exists()


def test_a_worker_that_cannot_import_the_code_is_refused(train_there: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "old" / "train").mkdir(parents=True)
    # Hides the package. A missing file would be found in the checkout that is installed, if that is this one.
    (tmp_path / "old" / "train" / "__init__.py").write_text("import a_package_that_is_not_here")
    message = r"expected the worker tcp://.* to run the code of .*, but it cannot: ModuleNotFoundError"
    with dask_cluster(tmp_path, code=[tmp_path / "old"]) as scheduler, pytest.raises(OtherSoftware, match=message):
        train_there(scheduler)
    assert left_in(tmp_path / "scratch") == []


def test_a_task_looks_itself_as_workers_may_join_later(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = dataclasses.replace(training_software(), torch="1.13.1", place="/there on two")
    monkeypatch.setattr("train.rounds.training_software", lambda: planner)
    with pytest.raises(
        OtherSoftware, match=r"expected torch 1\.13\.1, as in /there on two, got torch 2\.\d+\.\d+ in /"
    ):
        train_files(five)
    assert left_in(tmp_path / "scratch") == []


def test_a_checkpoint_of_other_code_is_not_continued_and_waits_for_that_code(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dataclasses.replace(training_software(), code="b" * 64)
    every_step = TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=0.0)
    fresh = train_files(five)
    shutil.rmtree(tmp_path / "scratch")
    shutil.rmtree(tmp_path / "models")

    def stopped(software: Software) -> str:
        """Trains to the last step with this software, fails there, and leaves checkpoints."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.rounds.training_software", lambda: software)
            patch.setattr(task_module, "training_software", lambda: software)
            patch.setattr(task_module, "save_group", None)
            with pytest.raises(TypeError):
                train_files(five, resources=every_step)
        return capsys.readouterr().err

    capsys.readouterr()
    stopped(before)
    kept = set((tmp_path / "scratch").glob("tasks/*/checkpoint-*.safetensors"))
    assert len(kept) == 2
    # The code of now begins anew, says why, and leaves the other's checkpoints alone.
    printed = stopped(training_software())
    assert "continues after step" not in printed
    assert re.search(r"1 unfinished pass in .*/tasks was begun with other settings, data, code or packages", printed)
    assert kept < set((tmp_path / "scratch").glob("tasks/*/checkpoint-*.safetensors"))
    # Each continues its own.
    assert "continues after step 32" in stopped(before)
    assert train_files(five) == fresh
    assert "continues after step 32" in capsys.readouterr().err


def test_every_difference_is_named_and_the_place_is_none() -> None:
    HERE.refuse_other(dataclasses.replace(HERE, place="/b on two"))
    other = dataclasses.replace(HERE, code="d" * 64, python="3.12", numpy="2.0.0", place="/b on two")
    message = (
        "expected code cccccccccccc, python 3.11, numpy 1.26.4, as in /a on one, got code dddddddddddd, python 3.12, "
        "numpy 2.0.0 in /b on two"
    )
    with pytest.raises(OtherSoftware, match=re.escape(message)):
        HERE.refuse_other(other)


def test_the_software_here_is_what_the_packages_say_without_the_names_of_builds() -> None:
    import numba
    import numpy as np
    import torch

    here = training_software()
    assert (here.torch, here.numpy, here.numba) == (
        torch.__version__.partition("+")[0],
        np.__version__,
        numba.__version__,
    )
