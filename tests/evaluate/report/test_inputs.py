"""What the report reads: metrics of several benchmarks side by side, and results that are not what they should be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluate.benchmarks.benchmark import NotRun
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.report.inputs import ReportInputs, gather
from evaluate.results import write_not_run
from store.atomic import write_json
from store.errors import StoreError
from store.record import digest


@pytest.fixture
def read(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
) -> Callable[[], ReportInputs]:
    """Puts one evaluated SAE into the study and returns a function that reads what the report reads."""
    add_sae("baseline", saes.random(1))
    evaluate_all()

    def read() -> ReportInputs:
        return gather(
            study.config,
            variants=["baseline"],
            models_folder=study.models,
            results_folder=study.results,
            cache=study.cache,
        )

    return read


def write_edited(path: Path, result: dict[str, Any]) -> None:
    """A result file with other content, and its digest."""
    path.unlink()
    whole = {name: value for name, value in result.items() if name != "self_sha256"}
    write_json(path, whole | {"self_sha256": digest(whole)})


def test_two_benchmarks_may_have_a_metric_of_the_same_name(
    study: SimpleNamespace, read: Callable[[], ReportInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    for benchmark, value in (("core", 1.0), ("geometry", 2.0)):
        entry = BENCHMARKS[benchmark]
        monkeypatch.setitem(BENCHMARKS, benchmark, replace(entry, metrics=(*entry.metrics, "speed")))
        path = study.results / benchmark / "baseline.json"
        result = json.loads(path.read_text())
        write_edited(path, result | {"metrics": result["metrics"] | {"speed": value}})
    metrics = read().metrics()["baseline"]
    assert (metrics["core/speed"], metrics["geometry/speed"]) == (1.0, 2.0)


def test_a_metric_that_is_missing_or_unknown_is_named_with_its_file(
    study: SimpleNamespace, read: Callable[[], ReportInputs]
) -> None:
    path = study.results / "core" / "baseline.json"
    result = json.loads(path.read_text())
    result["metrics"]["perplexity"] = result["metrics"].pop("l0")
    write_edited(path, result)
    message = r"metrics of core in .*core/baseline.json, but core/l0 is missing, core/perplexity is unknown. Remove"
    with pytest.raises(StoreError, match=message):
        read()


def test_details_that_are_no_numbers_are_named(study: SimpleNamespace, read: Callable[[], ReportInputs]) -> None:
    path = study.results / "geometry" / "baseline.json"
    result = json.loads(path.read_text())
    result["details"]["max_cosine"] = "high"
    write_edited(path, result)
    found = read().results["geometry"]["baseline"]
    assert len(found.detail_numbers("histogram_counts")) == 40
    with pytest.raises(
        StoreError, match=r"list of numbers as details.max_cosine in the result of geometry for baseline"
    ):
        found.detail_numbers("max_cosine")


def test_a_reason_for_not_running_counts_for_the_settings_that_it_was_found_with_alone(
    study: SimpleNamespace, read: Callable[[], ReportInputs]
) -> None:
    why = NotRun("The data set is not at /nowhere.", "Put it there.")
    (study.results / "core" / "baseline.json").unlink()
    write_not_run(study.results / "core", "core", why, settings=study.config.core)
    assert read().not_run["core"] == why
    for settings in (None, study.config.core.model_copy(update={"batch_sequences": 1})):
        write_not_run(study.results / "core", "core", why, settings=settings)
        with pytest.raises(StoreError, match=r"core/baseline.json is missing"):
            read()


def test_a_reason_for_not_running_that_an_earlier_version_wrote_is_refused_with_its_file(
    study: SimpleNamespace, read: Callable[[], ReportInputs]
) -> None:
    record = study.results / "core" / "_not_run.json"
    record.write_text('{"format": "not-run/1", "benchmark": "core", "reason": "a", "advice": "b"}')
    with pytest.raises(StoreError, match=r'"not-run/2" in .*core/_not_run.json, got .not-run/1.. Remove the file and'):
        read()
    record.write_text('{"format": "not-run/2", "benchmark": "core"}')
    with pytest.raises(StoreError, match=r"core/_not_run.json to hold a NotRunRecord, but settings: Field required"):
        read()
