"""Published results as rows of the report, and in words where they are no scores."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluate.references import read_references
from evaluate.report import page as report
from evaluate.report.references import reference_findings, reference_tables
from store.cache.manifest import load_manifest
from tests.evaluate.report.html_page import Page
from tests.imports import ROOT

REFERENCES = ROOT / "references"


def test_a_published_result_is_a_row_with_its_numbers() -> None:
    model = SimpleNamespace(name="google/gemma-2-2b")
    (table,) = reference_tables(read_references(REFERENCES), {}, {}, model=model)  # type: ignore[arg-type]
    (row,) = table.rows
    assert row.name == "google/gemma-2-2b_layer_5_sae custom_sae"
    assert row.about == "google/gemma-2-2b, blocks.5.hook_resid_post"
    found = dict(zip(table.columns, row.values, strict=True))
    assert found["llm_test_accuracy"] == 0.939325
    assert found["llm_top_1_test_accuracy"] == pytest.approx(0.684275)
    assert found["sae_top_1_test_accuracy"] == 0.5
    assert table.columns[0] == "sae_test_accuracy"  # what ours has first
    assert table.note == "sparse_probing was not run here, so that ours are missing."


def test_chance_level_is_said_in_words() -> None:
    (finding,) = reference_findings(read_references(REFERENCES))
    assert finding.text.startswith("Published result google/gemma-2-2b_layer_5_sae custom_sae: every sparse probing")
    assert "latents that do not vary" in finding.text


def test_no_folder_is_no_row(tmp_path: Path) -> None:
    assert read_references(tmp_path / "none") == []
    assert read_references(None) == []


@pytest.fixture
def written(study: SimpleNamespace, six_saes: Path, tmp_path: Path) -> Page:
    """The report of a study with core and geometry, and published results of core and sparse_probing."""
    shutil.copytree(six_saes, study.root, dirs_exist_ok=True)
    folder = tmp_path / "references"
    shutil.copytree(REFERENCES, folder)
    metrics = {"sparsity": {"l0": 71.5}, "misc_metrics": {"freq_over_1_percent": None}}
    core = {"eval_type_id": "core", "eval_config": {"model_name": "<other>"}, "eval_result_metrics": metrics}
    (folder / "core.json").write_text(json.dumps(core))
    path = report.run(
        study.config, variants=["baseline", "dead"], models_folder=study.models, results_folder=study.results,
        cache=study.cache, output=study.root / "reports", references=folder,
    )  # fmt: skip
    summary = (path.parent / "report.md").read_text()
    assert "## Published results: core" in summary
    assert "| core | published | \\<other\\>, hook not said | 71.5 |" in summary
    return Page.checked(path.read_text())


def test_the_report_has_published_results_beside_ours(written: Page, study: SimpleNamespace) -> None:
    assert "Published results" in written.headings
    model = load_manifest(study.cache).spec.model.name
    assert f"Ours are of another language model, {model}: these numbers cannot be compared." in written.text
    assert "sparse_probing was not run here, so that ours are missing." in written.text
    assert "71.5" in written.text
    assert "every sparse probing accuracy on latents is exactly 0.5, on all 8 data sets" in written.text
