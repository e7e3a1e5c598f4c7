"""Training on a real Dask cluster of two worker processes: the same as here, and stopped and continued as here."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.sae.artefact import load_sae, read_log
from tests.train.dask_cluster import ROOT, dask_cluster
from train.config import VARIANTS, TrainConfig, VariantConfig
from train.run import run
from train.task import TrainingResources

PROGRAM = """
import json, sys
from pathlib import Path
from train.config import VARIANTS, TrainConfig
from train.run import run
from train.task import TrainingResources
cache, folder, settings, variants, scheduler = json.loads(sys.argv[1])
run(TrainConfig.model_validate(settings), VARIANTS.validate_python(variants), cache=Path(cache),
    output=Path(folder) / "models", scratch=Path(folder) / "scratch", reuse=False, scheduler=scheduler,
    resources=TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=1e9))
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two processes, started as a user starts one."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), code=[ROOT, ROOT]) as address:
        yield address


def test_groups_are_spread_over_the_workers_and_end_as_they_do_here(
    scheduler: str, cache_folder: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    train_files: Callable[..., dict[str, bytes]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    train_files(five)
    here = {name: read_log(tmp_path / "models" / name) for name in five}
    capsys.readouterr()
    run(
        TrainConfig.model_validate(settings),
        five,
        cache=cache_folder,
        output=tmp_path / "there",
        scratch=tmp_path / "scratch-there",
        resources=TrainingResources(device="cpu", num_threads=1),
        reuse=False,
        scheduler=scheduler,
    )
    assert "5 variants in 2 groups of 3, 2; 2 passes over the data" in capsys.readouterr().err
    for name in five:
        load_sae(tmp_path / "there" / name)
        there = read_log(tmp_path / "there" / name)
        assert [line["rows"] for line in there] == [line["rows"] for line in here[name]]
        assert there[-1]["mse"] == pytest.approx(here[name][-1]["mse"], rel=1e-3)


def test_controls_take_what_the_workers_found(
    scheduler: str, cache_folder: Path, settings: dict[str, Any], section: dict[str, Any], tmp_path: Path
) -> None:
    control = {"lambda": {"kind": "matched", "of": "adaptive", "take": "mean"}}
    run(
        TrainConfig.model_validate(settings), VARIANTS.validate_python({**section, "control": control}),
        cache=cache_folder, output=tmp_path / "models", scratch=tmp_path / "scratch", reuse=False, scheduler=scheduler,
        resources=TrainingResources(device="cpu", num_threads=1),
    )  # fmt: skip
    adaptive, found = (load_sae(tmp_path / "models" / name)[1] for name in ("adaptive", "control"))
    assert found.final["lambda"] == adaptive.final["lambda_mean"]


@pytest.mark.slow
def test_a_signal_stops_the_workers_with_checkpoints_and_the_next_run_continues(
    scheduler: str, cache_folder: Path, settings: dict[str, Any], section: dict[str, Any], tmp_path: Path,
    five: dict[str, VariantConfig], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings["num_epochs"] = 120
    arguments = json.dumps([str(cache_folder), str(tmp_path), settings, section, scheduler])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, arguments], stderr=stderr, env=environment)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "scratch").glob("tasks/*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    assert "train: stopped by SIGTERM" in (tmp_path / "stderr").read_text()
    assert len(list((tmp_path / "scratch").glob("tasks/*/checkpoint-*.safetensors"))) == 2
    # Here, without the cluster: what it had planned is kept.
    settings["num_epochs"] = 120
    before = time.monotonic()
    run(
        TrainConfig.model_validate(settings), five, cache=cache_folder, output=tmp_path / "models",
        scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
    )  # fmt: skip
    err = capsys.readouterr().err
    assert "5 variants in 2 groups of 3, 2; 2 passes over the data" in err
    assert err.count("train: continues after step") == 2, time.monotonic() - before


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_goes_on_at_another(
    scheduler: str, cache_folder: Path, settings: dict[str, Any], section: dict[str, Any], tmp_path: Path,
    five: dict[str, VariantConfig], train_files: Callable[..., dict[str, bytes]],
) -> None:  # fmt: skip
    # A third worker joins and is killed in the middle of its task, after a checkpoint.
    settings["num_epochs"] = 60
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1", "--no-nanny",
         "--no-dashboard", "--name", "doomed"],
        stderr=subprocess.DEVNULL, env=environment, cwd=tmp_path,
    )  # fmt: skip
    arguments = json.dumps([str(cache_folder), str(tmp_path), settings, section, scheduler])
    program = PROGRAM.replace("1e9", "0.5")
    from distributed import Client

    with Client(scheduler) as client:
        client.wait_for_workers(3, timeout=60)
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", program, arguments], stderr=stderr, env=environment)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "scratch").glob("tasks/*/checkpoint-*.safetensors"))) < 3:
        assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    worker.kill()
    worker.wait(timeout=30)
    assert process.wait(timeout=240) == 0, (tmp_path / "stderr").read_text()
    assert "5 variants in 3 groups of 2, 1, 2" in (tmp_path / "stderr").read_text()
    for name in five:
        assert load_sae(tmp_path / "models" / name)[1].num_steps == 60 * 16


def test_what_a_worker_refuses_is_said_here(
    scheduler: str, cache_folder: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    import shutil

    from store.errors import DamagedFile

    cache = tmp_path / "cache"
    shutil.copytree(cache_folder, cache)
    shard = next(path for path in sorted(cache.rglob("c/*/0")) if "hook" in str(path))
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    with pytest.raises(DamagedFile, match=f"chunk \\d+ of {shard}"):
        run(
            TrainConfig.model_validate(settings),
            five,
            cache=cache,
            output=tmp_path / "models",
            scratch=tmp_path / "scratch",
            resources=TrainingResources(device="cpu", num_threads=1),
            reuse=False,
            scheduler=scheduler,
        )


def test_an_address_where_nobody_answers_is_said_so(
    cache_folder: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("compute.cluster.CONNECT_SECONDS", 1.0)
    with pytest.raises(ValueError, match=r"expected a Dask scheduler at tcp://127\.0\.0\.1:9, found none"):
        run(
            TrainConfig.model_validate(settings), five, cache=cache_folder, output=tmp_path / "models",
            scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
            scheduler="tcp://127.0.0.1:9",
        )  # fmt: skip
