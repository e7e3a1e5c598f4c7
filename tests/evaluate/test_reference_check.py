"""Our accuracies of the language model against published ones: what is compared, and when that is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import pipeline
from evaluate.benchmarks.benchmark import Measurement
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.reference_check import METRICS, check_references, compare
from evaluate.references import read_references
from evaluate.results import make_result, read_result, write_result
from store.cache.manifest import Manifest
from store.errors import StoreError
from tests.imports import ROOT

PUBLISHED = json.loads((ROOT / "references" / "sparse_probing_gemma-2-2b.json").read_text())
DETAILS = {item["dataset_name"].removesuffix("_results"): item for item in PUBLISHED["eval_result_details"]}
OURS = [name for name in DETAILS if name != "codeparrot/github-code"]
SETTINGS = {"random_seed": 42, "probe_train_set_size": 4000, "probe_test_set_size": 1000, "context_length": 128}


def manifest(name: str = "google/gemma-2-2b") -> Manifest:
    return cast("Manifest", SimpleNamespace(spec=SimpleNamespace(model=SimpleNamespace(name=name))))


def ours(folder: Path, *, off: float = 0.0, hook: str = "blocks.5.hook_resid_post", **changes: Any) -> Path:  # noqa: ANN401
    """A result with the published accuracies, `off` away from them, of five classes a data set."""
    by_dataset = {
        name: {metric: DETAILS[name][metric] + off for metric in METRICS} | {"sae_test_accuracy": 0.8} for name in OURS
    }
    metrics = dict.fromkeys(BENCHMARKS["sparse_probing"].metrics, 0.7)
    inputs = {
        "benchmark": "sparse_probing", "settings": SETTINGS | changes, "hook": hook, "compute_dtype": "bfloat16",
    }  # fmt: skip
    measurement = Measurement(
        metrics=metrics,
        details={
            "eval_result_details": by_dataset,
            "eval_result_unstructured": {name: {"llm_test_accuracy": dict.fromkeys("abcde", 0.9)} for name in OURS},
        },
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, make_result(BENCHMARKS["sparse_probing"], "baseline", inputs, measurement))
    return folder


def check(folder: Path, **of: Any) -> list[str]:  # noqa: ANN401
    return check_references(ROOT / "references", results_folder=folder, manifest=of.get("manifest", manifest()))


def test_the_published_accuracies_agree_with_themselves(tmp_path: Path) -> None:
    lines = check(ours(tmp_path / "results", off=0.002))
    assert lines[0] == "sparse_probing_gemma-2-2b against baseline"
    assert "Not among ours, and left out: codeparrot/github-code" in lines
    assert len([line for line in lines if line.endswith(": ok")]) == 4 * (7 + 1)  # four metrics, seven sets and means
    assert lines[-1].startswith("The language model's accuracies are the published ones, within 3 standard errors of")


def test_the_tolerance_is_that_of_so_many_test_texts(tmp_path: Path) -> None:
    (reference,) = read_references(ROOT / "references")
    path = ours(tmp_path / "results") / "baseline.json"
    compared = {(item.dataset, item.metric): item for item in compare(reference, read_result(path))}
    found = compared["fancyzhx/ag_news", "llm_top_1_test_accuracy"]
    assert found.published == 0.733
    # five classes of 1000 texts in this result
    assert found.tolerance == pytest.approx(3.0 * math.sqrt(2 * 0.733 * 0.267 / 5000))
    mean = compared["mean of 7 data sets", "llm_test_accuracy"]
    assert mean.published == pytest.approx((8 * 0.939325 - 0.969) / 7)
    assert mean.tolerance == 0.01


def test_accuracies_that_are_off_are_listed_and_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        check(ours(tmp_path / "results", off=-0.04))
    message = str(error.value)
    assert "mean of 7 data sets, llm_test_accuracy: published 0.9351, ours 0.8951, difference -0.0400" in message
    assert "32 are not. The language model, its hook or the texts are not the published ones" in message


@pytest.mark.parametrize(
    ("of", "changes", "message"),
    [
        ("google/gemma-3-270m", {}, "it is of google/gemma-2-2b, and ours of google/gemma-3-270m. Evaluate on google/"),
        (
            "gemma-2-2b",
            {"hook": "blocks.12.hook_resid_post"},
            "it is at blocks.5.hook_resid_post, and ours at blocks",
        ),
        ("google/gemma-2-2b", {"context_length": 64}, "ours have other settings: context_length 64, there 128"),
    ],
)
def test_results_of_another_model_hook_or_setting_are_refused(
    tmp_path: Path, of: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        check(ours(tmp_path / "results", **changes), manifest=manifest(of))


def test_nothing_to_compare_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"found none. Run pipeline.py evaluate --benchmark sparse_probing first"):
        check(tmp_path / "none")
    with pytest.raises(StoreError, match=r"expected a published result of sparse_probing in .*, found none"):
        check_references(tmp_path, results_folder=ours(tmp_path / "results"), manifest=manifest())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected JSON in .*other\.json"),
        ('{"eval_type_id": "core"}', r"result file of sae-bench at .*, but eval_config, eval_result_metrics is wrong"),
        (
            '{"eval_type_id": "core", "eval_config": {}, "eval_result_metrics": {}}',
            "expected numbers in eval_result",
        ),
        (
            '{"eval_type_id": "sparse_probing", "eval_config": {}, "eval_result_metrics": {"sae": {"x": 1.0}}}',
            "expected accuracies of probes on latents and on the language model in",
        ),
    ],
)
def test_a_file_that_is_no_result_of_sae_bench_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        read_references(tmp_path)


def test_the_command_refuses_an_embedded_study_plainly(
    tmp_path: Path, study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pipeline, "MODELS", study.models)
    monkeypatch.setattr("evaluate.run.run", lambda *_, **__: ours(tmp_path / "results" / "sparse_probing"))
    flags = ["--benchmark", "sparse_probing", "--check-reference", "--cache", str(study.cache), "--device", "cpu"]
    assert pipeline.main(["evaluate", *flags]) != 0
    assert "it is of google/gemma-2-2b, and ours of" in capsys.readouterr().err
