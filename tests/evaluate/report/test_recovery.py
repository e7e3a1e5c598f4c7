"""The report on SAEs of known features: sentences and tables checked by hand, and a page without a language model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluate.benchmarks.core import CoreConfig
from evaluate.benchmarks.geometry import GeometryConfig
from evaluate.benchmarks.recovery import RecoveryConfig
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.compare.comparisons import compare
from evaluate.config import EvaluateConfig
from evaluate.report import page as report
from evaluate.report.inputs import gather
from evaluate.report.recovery import recovery_findings, short_name, world_tables
from evaluate.run import run
from store.cache.manifest import load_manifest
from store.cache.truth import read_truth
from store.files.open import open_files
from store.sae.weights import SAEWeights
from tests.evaluate.conftest import save
from tests.evaluate.report.html_page import Page
from tests.synthetic_cache import harvest_synthetic

ORTHOGONAL, HIERARCHY = "synthetic.orthogonal", "synthetic.hierarchy"


def near_truth(directions: torch.Tensor, *, noise: float, seed: int) -> SAEWeights:
    """A decoder so far from the truth; its latents fire where a row points to them."""
    drawn = torch.randn(directions.shape, generator=torch.Generator().manual_seed(seed))
    decoder = torch.nn.functional.normalize(directions + noise * drawn / directions.shape[1] ** 0.5, dim=1)
    num_latents, d_model = decoder.shape
    return SAEWeights(decoder.T.clone(), torch.full((num_latents,), -0.5), decoder, torch.zeros(d_model))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two treatments, two seeds, two worlds: `fixed-1` is nearer to the truth than the baseline is."""
    root = tmp_path_factory.mktemp("synthetic-study")
    harvest_synthetic(root, hooks=[ORTHOGONAL, HIERARCHY])
    cache = root / "activations"
    manifest = load_manifest(cache)
    study = SimpleNamespace(root=root, cache=cache, manifest=manifest, models=root / "models", names=[])
    for hook in (ORTHOGONAL, HIERARCHY):
        directions = torch.from_numpy(read_truth(open_files(cache), manifest, hook).directions)
        for treatment, value, noise in (("baseline", 0.0, 0.8), ("fixed-1", 1.0, 0.1)):
            for seed in (0, 1):
                label = "" if (hook, seed) == (ORTHOGONAL, 0) else f"-seed-{seed}-hook-{hook.replace('.', '_')}"
                study.names.append(treatment + label)
                save(
                    study, treatment + label, near_truth(directions, noise=noise, seed=seed), hook=hook, seed=seed,
                    settings={"kind": "fixed", "value": value},
                )  # fmt: skip
    study.config = EvaluateConfig.model_validate(
        dict.fromkeys(BENCHMARKS)
        | {
            "core": CoreConfig(num_reconstruction_sequences=2, num_sparsity_sequences=6, batch_sequences=2),
            "geometry": GeometryConfig(num_bins=40),
            "recovery": RecoveryConfig(found_cosine=0.9, lost_recall=0.2),
        }
    )
    for benchmark in BENCHMARKS:
        run(
            study.config, benchmark=benchmark, model=None, cache=cache, models_folder=study.models,
            output=root / "results" / benchmark, scratch=root / "scratch", set_ups=root / "set-ups", device="cpu",
            reuse=True,
        )  # fmt: skip
    study.inputs = gather(
        study.config, variants=study.names, models_folder=study.models, results_folder=root / "results", cache=cache
    )
    return study


def test_names_lose_what_says_seed_and_hook() -> None:
    assert short_name("baseline-seed-2-hook-synthetic_orthogonal") == "baseline"
    assert short_name("fixed-lambda-0p01-seed-0-hook-synthetic_hierarchy") == "fixed-lambda-0p01"
    assert short_name("schedule-0p1-10") == "schedule-0p1-10"


def test_a_world_has_a_table_of_means_over_seeds(study: SimpleNamespace) -> None:
    first, second = world_tables(study.inputs)
    assert (first.hook, second.hook) == (ORTHOGONAL, HIERARCHY)
    assert list(first.rows) == ["baseline", "fixed-1"]
    assert first.seeds == {"baseline": 2, "fixed-1": 2}
    (mcc,) = (index for index, column in enumerate(first.columns) if column.key == "recovery/mcc")
    measured = study.inputs.metrics()
    values = [measured[name]["recovery/mcc"] for name in ("baseline", "baseline-seed-1-hook-synthetic_orthogonal")]
    assert first.rows["baseline"][mcc].mean == pytest.approx(sum(values) / 2)
    labels = {table.hook: {column.label for column in table.columns} for table in (first, second)}
    assert "parents absorbed" in labels[HIERARCHY] - labels[ORTHOGONAL]
    # Absorption and leak stand beside MCC wherever they are.
    assert "MCC" in labels[HIERARCHY]
    assert "24 features" in first.features


def test_a_sentence_for_each_world_says_who_is_nearest(study: SimpleNamespace) -> None:
    inputs = study.inputs
    comparisons = compare(
        inputs.cards, inputs.metrics(), errors=inputs.standard_errors(), without_one=inputs.without_one
    )
    found = [finding.text for finding in recovery_findings(study.inputs, comparisons) if finding is not None]
    assert [text.partition(":")[0] for text in found] == [ORTHOGONAL, HIERARCHY]
    assert all("the highest mean MCC is that of fixed-1, 0.9" in text for text in found)
    assert all(" against its baseline (" in text for text in found)


def test_the_page_reads_well_without_a_language_model(study: SimpleNamespace, tmp_path: Path) -> None:
    path = report.run(
        study.config, variants=study.names, models_folder=study.models, results_folder=study.root / "results",
        cache=study.cache, output=tmp_path / "reports",
    )  # fmt: skip
    source = path.read_text()
    page = Page.checked(source)
    for heading in ("Known features found again", ORTHOGONAL, HIERARCHY, "MCC against explained variance"):
        assert heading in page.headings
    assert "CE recovered against L0" not in page.headings
    for sentence in (
        "activations that were made from known features (synthetic.orthogonal and synthetic.hierarchy; 16 channels)",
        "No language model is involved.",
        "none: known features",
        "6 such sequences of other samples",
        "Not run, as most of it needs a language model: sparse_probing,",
    ):
        assert sentence in page.text
    words = " ".join(page.text.split())
    assert "no merit: a decoder that was never trained has both" in words
    for foreign in ("CE recovered", "Windows of text", "google/gemma", "outside the 20 to 200"):
        assert foreign not in page.text
    assert "## Known features found again" in (tmp_path / "reports" / "report.md").read_text()
