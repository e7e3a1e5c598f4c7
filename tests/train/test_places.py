"""A cache is a place: a folder mapped or read, or a URL, with ranges kept here or not. The SAEs are the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from store.files.open import CachePlace
from tests.faults.emulated_s3 import emulated_s3
from train.config import TrainConfig, VariantConfig
from train.run import run
from train.task import TrainingResources


def test_training_reads_a_folder_or_a_url_to_the_same_bytes(
    cache_folder: Path, tmp_path: Path, settings: dict[str, Any], five: dict[str, VariantConfig],
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    two = {name: five[name] for name in ("baseline", "adaptive")}
    ranges = tmp_path / "ranges"
    with emulated_s3(cache_folder) as bucket:
        places: dict[str, CachePlace | Path | str] = {
            "mapped": cache_folder,
            "read": CachePlace(str(cache_folder), mode="pread"),
            "url": bucket.url,
            "url-ranges-kept": CachePlace(bucket.url, range_cache=ranges, range_cache_bytes=10**8),
        }
        for name, place in places.items():
            run(
                TrainConfig.model_validate(settings), two, cache=place, output=tmp_path / name,
                scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
            )  # fmt: skip
    trained = [files_of(tmp_path / name) for name in places]
    assert len(trained[0]) == 8
    assert trained[1:] == trained[:1] * 3
    assert list(ranges.glob("??/*/*-*"))


def flags(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> CachePlace:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return pipeline._cache_place(pipeline.build_parser().parse_args(arguments))


@pytest.mark.parametrize("stage", ["train", "evaluate", "report"])
def test_every_stage_that_reads_a_cache_says_where_by_flag_or_environment(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flags(monkeypatch, stage) == CachePlace("data/activations")
    given = flags(
        monkeypatch, stage, "--cache", "s3://lab/cache", "--read-mode", "pread", "--range-cache", "/scratch/ranges",
        "--range-cache-gib", "1.5",
    )  # fmt: skip
    assert given == CachePlace("s3://lab/cache", "pread", Path("/scratch/ranges"), 3 * 2**29)
    from_environment = flags(
        monkeypatch, stage, PIPELINE_CACHE="s3://lab/cache", PIPELINE_READ_MODE="pread",
        PIPELINE_RANGE_CACHE="/scratch/ranges", PIPELINE_RANGE_CACHE_GIB="1.5",
    )  # fmt: skip
    assert from_environment == given


def test_a_mode_that_is_none_is_refused_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        flags(monkeypatch, "train", PIPELINE_READ_MODE="map")
    assert "argument --read-mode: expected mmap or pread, got 'map'" in capsys.readouterr().err


def test_a_place_without_a_cache_is_one_error(
    tmp_path: Path, settings: dict[str, Any], five: dict[str, VariantConfig]
) -> None:
    with pytest.raises(ValueError, match=r"expected memory://nowhere/manifest\.json, found none"):
        run(
            TrainConfig.model_validate(settings), five, cache="memory://nowhere", output=tmp_path / "models",
            scratch=tmp_path / "scratch", resources=TrainingResources(device="cpu", num_threads=1), reuse=False,
        )  # fmt: skip
