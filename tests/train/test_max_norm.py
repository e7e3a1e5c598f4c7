"""Rows above a norm are left out of training, and of nothing is anything else but their absence seen."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from store.cache.manifest import load_manifest
from store.cache.norm_limit import within_limit
from store.files.open import open_files
from store.read.batches import Position
from store.read.cache import ActivationCache
from store.sae.artefact import load_card, load_sae
from tests.imports import ROOT
from train.config import TrainConfig, VariantConfig
from train.loop import step_all
from train.run import run
from train.task import TrainingResources, cache_batches, plan_run
from train.variants import resolve_variants

FIVE_MEDIANS = {"times_median": 5.0}


def train(
    cache: Path, folder: Path, settings: dict[str, Any], variants: dict[str, VariantConfig], *, every: float = 120.0
) -> Path:
    resources = TrainingResources(device="cpu", num_threads=1, checkpoint_every_seconds=every)
    run(
        TrainConfig.model_validate(settings), variants, cache=cache, output=folder / "models",
        scratch=folder / "scratch", resources=resources, reuse=False,
    )  # fmt: skip
    return folder / "models"


@pytest.fixture(scope="module")
def long_rows(cache_at: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1024 rows, the first of every 32 of which is 50 times as long."""
    return cache_at(tmp_path_factory.mktemp("long") / "activations", outlier_factor=50.0)


def test_scale_mean_and_steps_are_those_of_the_rows_within(long_rows: Path, settings: dict[str, Any]) -> None:
    config = TrainConfig.model_validate({**settings, "max_norm": FIVE_MEDIANS})
    plan = plan_run(config, load_manifest(long_rows), open_files(long_rows), hook=config.hook)
    bits = ActivationCache(long_rows).rows(settings["hook"], np.arange(1024))
    rows = torch.from_numpy(bits).view(torch.bfloat16).double()
    kept = rows[rows.norm(dim=1) < 5.2 * rows.norm(dim=1).median()]
    assert plan.limit is not None
    assert (plan.limit.num_rows_above, len(kept)) == (32, 992)
    assert plan.num_steps == 2 * (992 // 64)
    assert plan.scale == pytest.approx(float((16 / kept.square().sum(dim=1).mean()).sqrt()), rel=1e-12)
    np.testing.assert_allclose(plan.mean, kept.mean(dim=0).numpy(), rtol=1e-11)
    with cache_batches(
        ActivationCache(long_rows), config, Position(), hook=config.hook, device=torch.device("cpu"), num_threads=1,
        within=plan.rows_within,
    ) as stream:  # fmt: skip
        longest = max(float(batch.double().norm(dim=1).max()) for batch in stream)
    assert longest == float(kept.norm(dim=1).max())


def test_of_a_part_of_the_cache_its_own_long_rows_are_left_out(
    cache_at: Callable[..., Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    """1024 rows in 2 shards of 512, each with 16 long ones."""
    cache = ActivationCache(cache_at(tmp_path / "activations", outlier_factor=50.0))
    assert cache.spec.rows_per_shard == 512
    above = {}
    for num_rows in (1024, 512, 192):
        config = TrainConfig.model_validate({**settings, "max_norm": FIVE_MEDIANS, "num_rows": num_rows})
        plan = plan_run(config, cache.manifest, cache.files, hook=config.hook)
        assert plan.limit is not None
        assert plan.limit.num_rows_above == 32  # of the cache
        above[num_rows] = num_rows - plan.num_rows
        with cache_batches(
            cache,
            config,
            Position(),
            hook=config.hook,
            device=torch.device("cpu"),
            num_threads=1,
            within=plan.rows_within,
        ) as stream:
            assert sum(len(batch) for batch in stream) == 2 * (plan.num_rows // 64) * 64
    assert above == {1024: 32, 512: 16, 192: 16}  # the part of a shard may have all of its long rows


def test_the_study_on_fewer_rows_counts_norms_too(
    long_rows: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    first_rows = importlib.import_module("benchmarks.study").first_rows
    part = load_manifest(first_rows(long_rows, tmp_path / "part", 512))
    assert within_limit(part.moments[settings["hook"]], 5.0).limit.num_rows_above == 16
    assert part.num_rows == 512


def test_what_is_left_out_is_counted_at_the_start_and_in_the_card(
    long_rows: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    models = train(long_rows, tmp_path, {**settings, "max_norm": FIVE_MEDIANS}, {"baseline": five["baseline"]})
    said = capsys.readouterr().err
    assert "train: 32 of 1,024 rows have a norm of" in said
    assert "(5 times the median) and are left out of training, scale and mean" in said
    assert "these rows. Another l1" not in said
    card = load_card(models / "baseline")
    assert card.norm_limit is not None
    assert (card.norm_limit.num_rows, card.norm_limit.num_rows_above) == (1024, 32)
    assert card.num_training_rows == 30 * 64
    lines = [json.loads(line) for line in (models / "baseline" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["rows"] == 30 * 64


def test_without_a_limit_rows_that_decide_everything_are_warned_of_once(
    long_rows: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    models = train(long_rows, tmp_path, settings, {"baseline": five["baseline"]})
    assert capsys.readouterr().err.count("is no remedy: set train.max_norm: {times_median: 5} to leave them out") == 1
    assert load_card(models / "baseline").norm_limit is None


def test_where_no_row_is_above_weights_and_log_are_those_without_a_limit_byte_for_byte(
    cache_folder: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    files_of: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    without = files_of(train(cache_folder, tmp_path / "without", settings, five))
    limited = files_of(train(cache_folder, tmp_path / "limited", {**settings, "max_norm": FIVE_MEDIANS}, five))
    assert without.keys() == limited.keys()
    for name in without:
        assert (without[name] == limited[name]) == name.endswith(("log.jsonl", "sae_weights.safetensors")) or (
            name.endswith("cfg.json")
        ), name


def test_long_rows_that_are_left_out_leave_what_training_without_them_gives(
    cache_at: Callable[..., Path], settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    """How long the rows above the limit are decides nothing."""
    weights = []
    for factor in (50.0, 200.0):
        cache = cache_at(tmp_path / f"cache-{factor}", outlier_factor=factor)
        models = train(cache, tmp_path / f"{factor}", {**settings, "max_norm": FIVE_MEDIANS}, five)
        weights.append([load_sae(models / name)[0].W_dec for name in five])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # the mean is a difference of sums: not the same bits


def test_a_training_within_a_limit_continues_to_the_same_bytes(
    long_rows: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path,
    files_of: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    limited = {**settings, "max_norm": FIVE_MEDIANS}
    whole = files_of(train(long_rows, tmp_path / "whole", limited, five))
    real, done = step_all, 0

    def dies(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as step_all
        nonlocal done
        done += 1
        if done in (8, 25):
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr("train.loop.step_all", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(long_rows, tmp_path / "cut", limited, five, every=0.0)
    assert files_of(train(long_rows, tmp_path / "cut", limited, five, every=0.0)) == whole


def test_a_variant_within_a_limit_is_the_same_alone_and_with_others(
    long_rows: Path, settings: dict[str, Any], five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    limited = {**settings, "max_norm": FIVE_MEDIANS}
    together = train(long_rows, tmp_path / "together", limited, five)
    alone = train(long_rows, tmp_path / "alone", limited, {"adaptive": five["adaptive"]})
    torch.testing.assert_close(
        load_sae(alone / "adaptive")[0].W_dec, load_sae(together / "adaptive")[0].W_dec, rtol=0, atol=1e-5
    )


def test_the_limit_is_part_of_the_key_and_has_to_be_above_the_median(
    settings: dict[str, Any], five: dict[str, VariantConfig]
) -> None:
    keys = {
        resolve_variants(TrainConfig.model_validate({**settings, "max_norm": limit}), five, cache_digest="c")[0].key
        for limit in (None, FIVE_MEDIANS, {"times_median": 10.0})
    }
    assert len(keys) == 3
    with pytest.raises(ValidationError, match=r"expected a number of medians above 1, got 1\.0"):
        TrainConfig.model_validate({**settings, "max_norm": {"times_median": 1.0}})
