"""The evaluate command: reuse, resuming, pruning, and failures that stop it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement, NotMeasurable, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.core import BENCHMARK, CoreConfig, CoreSetUp
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.results import read_not_run, read_result
from evaluate.run import run
from evaluate.task import BenchmarkFailed
from store.atomic import write_json
from store.cache.norm_limit import NormLimit
from store.errors import Busy, DamagedFile, IncompleteCache, MismatchedCache, StoreError
from store.lease import exclusive_lock
from store.record import digest
from tests.evaluate.conftest import evaluate
from tests.train.dask_cluster import ROOT, dask_cluster


@pytest.fixture
def two_saes(saes: SimpleNamespace, add_sae: Callable[..., None]) -> None:
    add_sae("baseline", saes.random(1))
    add_sae("fixed-1", saes.random(2), settings={"kind": "fixed", "value": 1.0})


def files_of(benchmark: str, *variants: str) -> list[str]:
    """The names of the results of variants; beside one of core are its metrics without each sequence."""
    suffixes = (".json", ".safetensors") if benchmark == "core" else (".json",)
    return [f"{variant}{suffix}" for variant in variants for suffix in suffixes]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("two_saes")
def test_a_result_per_variant_is_written_and_says_what_it_depends_on(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    evaluate_all()
    for benchmark in ("core", "geometry"):
        assert sorted(contents(study.results / benchmark)) == files_of(benchmark, "baseline", "fixed-1")
    result = read_result(study.results / "core" / "fixed-1.json")
    assert (result.format, result.benchmark, result.variant) == ("result/3", "core", "fixed-1")
    assert result.inputs["language_model"]["weights_sha256"] == study.manifest.spec.model.weights_sha256
    assert result.metrics["num_rows"] == 65
    assert "language_model" not in read_result(study.results / "geometry" / "fixed-1.json").inputs


@pytest.mark.usefixtures("two_saes")
def test_another_variants_result_stays_byte_identical_when_one_changes_and_is_not_measured_again(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate_all("core")
    before = contents(study.results / "core")
    add_sae("fixed-1", saes.random(9), settings={"kind": "fixed", "value": 2.0})
    measured = []

    def counting(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext, shared: CoreSetUp) -> Measurement:
        measured.append(sae.variant)
        return BENCHMARK.measure(sae, config, context, shared)

    monkeypatch.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, measure=counting))
    evaluate_all("core")
    after = contents(study.results / "core")
    assert measured == ["fixed-1"]
    assert after["baseline.json"] == before["baseline.json"]
    assert after["fixed-1.json"] != before["fixed-1.json"]


@pytest.mark.usefixtures("two_saes")
def test_when_nothing_changed_the_language_model_is_not_even_loaded(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_all("core")
    before = contents(study.results / "core")
    monkeypatch.setattr("evaluate.loaded_model.load_model", lambda *arguments, **keywords: pytest.fail("it was loaded"))
    evaluate_all("core")
    assert contents(study.results / "core") == before


@pytest.mark.usefixtures("two_saes")
def test_measuring_again_without_reuse_gives_the_same_bytes(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    evaluate_all()
    before = {name: contents(study.results / name) for name in ("core", "geometry")}
    evaluate_all(reuse=False)
    assert {name: contents(study.results / name) for name in ("core", "geometry")} == before


@pytest.mark.usefixtures("two_saes")
def test_the_manifest_and_what_is_held_out_are_all_of_the_cache_that_evaluation_reads(
    study: SimpleNamespace, evaluate_all: Callable[..., None], cache_without_training_rows: Path
) -> None:
    evaluate_all()
    before = {name: contents(study.results / name) for name in ("core", "geometry")}
    study.cache = cache_without_training_rows
    evaluate_all(reuse=False)
    assert {name: contents(study.results / name) for name in ("core", "geometry")} == before


@pytest.mark.usefixtures("two_saes")
def test_geometry_reads_the_manifest_alone(
    study: SimpleNamespace, evaluate_all: Callable[..., None], cache_without_training_rows: Path
) -> None:
    shutil.rmtree(cache_without_training_rows / "held_out")
    study.cache = cache_without_training_rows
    evaluate_all("geometry")
    assert sorted(contents(study.results / "geometry")) == ["baseline.json", "fixed-1.json"]
    with pytest.raises(IncompleteCache, match=r"held_out/tokens/c/0/0"):
        evaluate_all("core")


@pytest.mark.usefixtures("two_saes")
def test_a_renamed_variant_keeps_its_metrics_under_the_new_name(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate_all("core")
    old = read_result(study.results / "core" / "fixed-1.json")
    (study.models / "fixed-1").rename(study.root / "gone")
    add_sae("fixed-one", saes.random(2), settings={"kind": "fixed", "value": 1.0})
    monkeypatch.setattr("evaluate.loaded_model.load_model", lambda *arguments, **keywords: pytest.fail("it was loaded"))
    evaluate_all("core")
    assert sorted(contents(study.results / "core")) == files_of("core", "baseline", "fixed-one")
    new = read_result(study.results / "core" / "fixed-one.json")
    assert (new.variant, new.key, new.metrics) == ("fixed-one", old.key, old.metrics)


@pytest.mark.usefixtures("two_saes")
def test_a_failing_benchmark_stops_the_run_with_the_names_of_variant_and_benchmark_and_then_continues(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def failing(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext, shared: CoreSetUp) -> Measurement:
        measured.append(sae.variant)
        if sae.variant == "fixed-1" and len(measured) == 2:
            raise ValueError("expected enough text, got little")
        return BENCHMARK.measure(sae, config, context, shared)

    monkeypatch.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, measure=failing))
    with pytest.raises(BenchmarkFailed, match="benchmark core failed on variant fixed-1: expected enough text, got"):
        evaluate_all("core")
    assert not (study.results / "core").exists()
    evaluate_all("core")
    assert measured == ["baseline", "fixed-1", "fixed-1"]
    assert sorted(contents(study.results / "core")) == files_of("core", "baseline", "fixed-1")


@pytest.mark.usefixtures("two_saes")
def test_a_bug_in_a_benchmark_passes_as_it_is_and_what_is_finished_is_kept(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def failing(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext, shared: CoreSetUp) -> Measurement:
        measured.append(sae.variant)
        if measured == ["baseline", "fixed-1"]:
            raise AttributeError("'Tensor' object has no attribute 'sun'")
        return BENCHMARK.measure(sae, config, context, shared)

    monkeypatch.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, measure=failing))
    with pytest.raises(AttributeError, match="no attribute 'sun'"):
        evaluate_all("core")
    evaluate_all("core")
    assert measured == ["baseline", "fixed-1", "fixed-1"]


@pytest.mark.usefixtures("two_saes")
def test_running_out_of_the_gpus_memory_is_a_failure_that_says_what_to_do(
    evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext, shared: CoreSetUp) -> Measurement:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, measure=failing))
    with pytest.raises(BenchmarkFailed, match=r"core ran out of the GPU's memory on variant baseline. Lower its batch"):
        evaluate_all("core")


@pytest.mark.usefixtures("two_saes")
def test_other_settings_are_measured_anew(study: SimpleNamespace, evaluate_all: Callable[..., None]) -> None:
    evaluate_all("core")
    before = read_result(study.results / "core" / "baseline.json")
    study.config = study.config.model_copy(
        update={"core": CoreConfig(num_reconstruction_sequences=4, num_sparsity_sequences=4, batch_sequences=2)}
    )
    evaluate_all("core")
    after = read_result(study.results / "core" / "baseline.json")
    assert after.key != before.key
    assert after.metrics["num_rows"] == 43  # 4 windows of 12 without 4 BOS and 1 EOS


@pytest.mark.usefixtures("two_saes")
def test_more_sequences_than_the_cache_holds_are_refused_before_anything_runs(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    study.config = study.config.model_copy(
        update={"core": CoreConfig(num_reconstruction_sequences=16, num_sparsity_sequences=4, batch_sequences=2)}
    )
    with pytest.raises(
        ValueError, match="expected at least 16 held-out sequences for evaluate, the activation cache has 8"
    ):
        evaluate_all("core")


@pytest.mark.usefixtures("two_saes")
def test_an_sae_of_another_cache_is_refused(
    saes: SimpleNamespace, add_sae: Callable[..., None], evaluate_all: Callable[..., None]
) -> None:
    add_sae("other", saes.random(4), cache_digest="f" * 64)
    with pytest.raises(MismatchedCache, match="other to be trained on the present activation cache"):
        evaluate_all("geometry")


def test_an_empty_folder_of_models_is_refused(evaluate_all: Callable[..., None]) -> None:
    with pytest.raises(StoreError, match=r"expected a folder per variant in .*models, found none. Train first"):
        evaluate_all("geometry")


@pytest.mark.usefixtures("two_saes")
def test_an_unknown_benchmark_is_refused_with_those_that_exist(evaluate_all: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=r"expected a benchmark among core, geometry, .*, got 'speed'"):
        evaluate_all("speed")


@pytest.mark.usefixtures("two_saes")
def test_another_language_model_than_the_caches_is_refused(
    study: SimpleNamespace, evaluate_all: Callable[..., None], tmp_path: Path
) -> None:
    other = tmp_path / "other-model"
    other.mkdir()
    for path in study.model_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    study.model = study.model.model_copy(update={"name": str(other)})
    with pytest.raises(MismatchedCache, match="expected the language model of the activation cache"):
        evaluate_all("core")


@pytest.mark.usefixtures("two_saes")
def test_two_runs_never_meet_in_one_scratch_folder(study: SimpleNamespace) -> None:
    scratch = study.root / "scratch"
    with exclusive_lock(scratch / "geometry"), pytest.raises(Busy, match="is being written by"):
        run(
            study.config,
            benchmark="geometry",
            model=study.model,
            cache=study.cache,
            models_folder=study.models,
            output=study.results / "geometry",
            scratch=scratch,
            set_ups=study.root / "set-ups",
            device="cpu",
            reuse=True,
        )


@pytest.mark.usefixtures("two_saes")
def test_foreign_and_altered_result_files_are_named(study: SimpleNamespace, evaluate_all: Callable[..., None]) -> None:
    evaluate_all("geometry")
    path = study.results / "geometry" / "baseline.json"
    result = json.loads(path.read_text())
    path.unlink()
    path.write_text('{"format": "something/1"}')
    with pytest.raises(StoreError, match=r'expected a benchmark result of format "result/3" in .*baseline.json'):
        read_result(path)
    whole = {name: value for name, value in result.items() if name != "self_sha256"}

    def write_with_its_digest(**changes: object) -> None:
        write_json(path, whole | changes | {"self_sha256": digest(whole | changes)})

    write_with_its_digest(key="0" * 64)
    with pytest.raises(StoreError, match=r"baseline.json to hold a BenchmarkResult, but .*expected key to be the dig"):
        read_result(path)
    write_with_its_digest(metrics={})
    with pytest.raises(StoreError, match="expected at least one metric, all finite"):
        read_result(path)
    write_with_its_digest(metrics=result["metrics"] | {"speed": 1.0})
    with pytest.raises(StoreError, match=r"metrics of geometry in .*baseline.json, but geometry/speed is unknown"):
        read_result(path)
    evaluate_all("geometry")  # none of that is reused
    assert json.loads(path.read_text()) == result


@pytest.mark.usefixtures("two_saes")
def test_an_edited_number_is_refused(study: SimpleNamespace, evaluate_all: Callable[..., None]) -> None:
    evaluate_all("geometry")
    path = study.results / "geometry" / "baseline.json"
    text = path.read_text()
    edited = text.replace('"effective_rank": ', '"effective_rank": 1')
    assert edited != text
    path.unlink()
    path.write_text(edited)
    with pytest.raises(DamagedFile, match=r"baseline.json to have the digest .* its bytes changed .* evaluate again"):
        read_result(path)


@pytest.mark.usefixtures("two_saes")
def test_one_sae_that_cannot_be_measured_does_not_hide_the_others(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BENCHMARKS["geometry"]

    def measure(sae: EvaluatedSAE, *others: Any) -> Measurement:  # noqa: ANN401 - as the entry takes them
        if sae.variant == "fixed-1":
            raise NotMeasurable("It has 2 latents, and 4 are needed.", "Train it wider.")
        return entry.measure(sae, *others)

    monkeypatch.setitem(BENCHMARKS, "geometry", dataclasses.replace(entry, measure=measure))
    evaluate_all("geometry")
    assert read_result(study.results / "geometry" / "baseline.json").metrics["effective_rank"] > 1.0
    without = read_result(study.results / "geometry" / "fixed-1.json")
    assert without.metrics == {}
    assert without.not_measured == "It has 2 latents, and 4 are needed. Train it wider."


@pytest.mark.usefixtures("two_saes")
def test_a_benchmark_that_is_null_leaves_a_record_of_that_and_no_result(
    study: SimpleNamespace, evaluate_all: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_all("core")
    study.config = study.config.model_copy(update={"core": None})
    evaluate_all("core")
    assert sorted(contents(study.results / "core")) == ["_not_run.json"]
    assert read_not_run(study.results / "core", settings=None) == NotRun(
        "evaluate.core is null in params.yaml.", "Give it settings there to run it."
    )
    assert "evaluate core: not run. evaluate.core is null in params.yaml." in capsys.readouterr().err


@pytest.mark.usefixtures("two_saes")
def test_a_benchmark_that_cannot_run_here_says_why_and_runs_once_it_can(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    why = NotRun("The hub cannot be reached.", "Try again where it can.")
    with monkeypatch.context() as patched:
        patched.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, not_run=lambda *_: why))
        evaluate_all("core")
    assert read_not_run(study.results / "core", settings=study.config.core) == why
    evaluate_all("core")
    assert sorted(contents(study.results / "core")) == files_of("core", "baseline", "fixed-1")


@pytest.mark.usefixtures("two_saes")
def test_results_survive_runs_that_could_not_measure_anything_and_come_back_without_measuring(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_all("core")
    before, config = contents(study.results / "core"), study.config
    with monkeypatch.context() as patched:  # another setting, with which it cannot run, such as a mistyped path
        changed = config.core.model_copy(update={"num_sparsity_sequences": config.core.batch_sequences})
        assert changed != config.core
        study.config = config.model_copy(update={"core": changed})
        why = NotRun("The data set is not at /nowhere.", "Put it there.")
        patched.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, not_run=lambda *_: why))
        evaluate_all("core")
        assert sorted(contents(study.results / "core")) == ["_not_run.json"]
        assert read_not_run(study.results / "core", settings=changed) == why
        assert read_not_run(study.results / "core", settings=config.core) is None
        study.config = config.model_copy(update={"core": None})
        evaluate_all("core")
    study.config = config
    monkeypatch.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, measure=lambda *_: 1 / 0))
    evaluate_all("core")
    assert contents(study.results / "core") == before


@pytest.mark.usefixtures("two_saes")
def test_a_set_up_that_finds_nothing_to_be_measurable_is_recorded_and_ends_the_run_without_an_error(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise NotMeasurable("No letter is known.", "Take a larger language model.")

    with monkeypatch.context() as patched:
        patched.setitem(BENCHMARKS, "core", dataclasses.replace(BENCHMARK, prepare=prepare))
        evaluate_all("core")
    assert read_not_run(study.results / "core", settings=study.config.core) == NotRun(
        "No letter is known.", "Take a larger language model."
    )
    evaluate_all("core")
    assert sorted(contents(study.results / "core")) == files_of("core", "baseline", "fixed-1")


@pytest.mark.usefixtures("two_saes")
def test_workers_of_a_cluster_give_the_same_bytes(
    study: SimpleNamespace, evaluate_all: Callable[..., None], tmp_path: Path
) -> None:
    evaluate_all("core")
    here = contents(study.results / "core")
    with dask_cluster(tmp_path, code=[ROOT, ROOT]) as address:
        evaluate(study, "core", reuse=False, scheduler=address)
    assert contents(study.results / "core") == here


def test_an_saes_limit_of_the_norm_is_part_of_a_results_key(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], evaluate_all: Callable[..., None]
) -> None:
    limit = NormLimit(
        times_median=5.0, median=1.0, squared_norm=1e9, num_rows=8, num_rows_above=0, variance_share_above=0.0
    )
    add_sae("free", saes.random(1))
    add_sae("limited", saes.random(1), norm_limit=limit)
    evaluate_all("core")
    free, limited = (read_result(study.results / "core" / f"{name}.json") for name in ("free", "limited"))
    assert free.key != limited.key
    assert free.metrics == limited.metrics  # no row is above
