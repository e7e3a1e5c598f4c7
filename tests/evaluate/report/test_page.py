"""The report on small real artefacts: what it says, that it stands alone, and when it refuses to be written."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluate.benchmarks.geometry import GeometryConfig
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.report import page as report
from store.care.info import summary
from store.errors import IncompleteCache, MismatchedCache, StoreError
from tests.evaluate.report.html_page import Page

VARIANTS = ["baseline", "fixed-1", "adaptive", "adaptive-high", "floored", "dead"]
NUM_TREATMENTS = 5
"""adaptive and floored have the same settings."""


@pytest.fixture
def reported(study: SimpleNamespace, six_saes: Path) -> Callable[..., Path]:
    """Puts six evaluated SAEs into the study and returns a function that writes the report on them."""
    shutil.copytree(six_saes, study.root, dirs_exist_ok=True)

    def write(*variants: str, output: str = "reports") -> Path:
        return report.run(
            study.config,
            variants=list(variants or VARIANTS),
            models_folder=study.models,
            results_folder=study.results,
            cache=study.cache,
            output=study.root / output,
        )

    return write


def test_the_report_says_what_happened_stands_alone_and_is_the_same_every_time(
    study: SimpleNamespace, reported: Callable[..., Path]
) -> None:
    path = reported()
    source = path.read_text()
    page = Page.checked(source)
    assert source.isascii()
    for heading in (
        report.QUESTION,
        "The answer",
        "Treatments against the baseline",
        "What else happened",
        "Explained variance against L0",
        "CE recovered against L0",
        "Lambda",
        "P and its lower bound",
        "Cosines between latents",
        "Nearest other latent",
        "How often latents fire",
        "Do variants learn the same latents?",
        "How the variants were trained",
        "The data",
        "Benchmarks",
        "How to reproduce",
    ):
        assert heading in page.headings
    assert len(page.labels) == 10
    assert all(page.labels)
    for sentence in (
        "4 treatments on 3 headline figures, each against the baseline of its seed:",
        "Explained variance: ",
        "Highest mean explained variance of each kind: ",
        "No: mean L0 is 0 to ",
        "One seed: intervals are of the text alone, and hold for these pairs of SAEs.",
        "without them there is no answer",
        "it holds for this pair of SAEs",
        "its lower bound is 64, which no decoder of this shape can go below",
        "adaptive: the learned lambda started at 1,",
        "It has settled",
        "It is still moving",
        "It ended at its lower limit",
        "dead: this SAE is dead. L0 is 0 and 64 of 64 latents never fire on 65 held-out rows",
        "were not run. The section on benchmarks says why.",
    ):
        assert sentence in page.text
    assert study.manifest.digest in page.text
    assert str(study.root) not in source

    summary = (path.parent / "report.md").read_text()
    assert "* **Caution.** dead: this SAE is dead." in summary
    for section in ("Treatments against the baseline", "Other benchmarks"):
        lines = summary.partition(f"## {section}\n")[2].partition("\n## ")[0].splitlines()
        table = [line for line in lines if line.startswith("|")]
        assert [line.count(" |") for line in table] == [table[0].count(" |")] * (2 + NUM_TREATMENTS)

    again = reported(output="again")
    assert again.read_bytes() == path.read_bytes()
    assert (again.parent / "report.md").read_text() == summary


def test_the_compression_ratio_is_the_one_that_store_info_prints(
    study: SimpleNamespace, reported: Callable[..., Path]
) -> None:
    (hook,) = summary(study.cache)["hooks"].values()
    assert f"{hook['raw_nbytes'] / 1e6:,.1f} MB of bfloat16" in reported().read_text()
    assert f"{hook['ratio']:.3f} times smaller, without loss" in reported().read_text()


def test_what_comes_from_files_is_escaped(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], reported: Callable[..., Path]
) -> None:
    markup = "<script>alert('x')</script> & | *"
    changed = {"penalty_scale": "sum", "lambda_regularizer": 0.1, "seed": 0, markup: markup}
    add_sae("fixed-1", saes.random(1), settings={"kind": "fixed", "value": 1.0}, train=changed)
    source = reported().read_text()
    Page.checked(source)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; | *" in source
    assert report.markdown_text(markup) == "\\<script\\>alert('x')\\</script\\> & \\| \\*"


def test_a_benchmark_that_was_not_run_is_listed_with_its_reason_and_the_rest_is_reported(
    study: SimpleNamespace, reported: Callable[..., Path]
) -> None:
    for name in BENCHMARKS:
        study.config = study.config.model_copy(update={name: None})
        page = Page.checked(reported("baseline", "fixed-1").read_text())
        assert f"evaluate.{name} is null in params.yaml. Give it settings there to run it." in page.text
        assert "Lambda" in page.headings


def test_all_numbers_are_beside_the_page_as_csv_and_json(study: SimpleNamespace, reported: Callable[..., Path]) -> None:
    folder = reported("baseline", "fixed-1").parent
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = json.loads((folder / "metrics.json").read_text())
    run = [name for name in BENCHMARKS if getattr(study.config, name) is not None]
    assert len(rows) == len(records) == 2 * sum(len(BENCHMARKS[name].metrics) for name in run)
    wanted = {"variant": "fixed-1", "benchmark": "core", "metric": "mse"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    (record,) = (record for record in records if wanted.items() <= record.items())
    assert float(row["value"]) == record["value"]
    assert (record["better"], record["seed"]) == ("lower", 0)
    assert record["standard_error"] > 0.0
    assert (record["treatment"], record["baseline"], record["num_seeds"]) == ("fixed-1", "baseline", 1)
    assert record["interval_low"] < record["mean_difference"] < record["interval_high"]
    assert 0.0 <= record["p_value"] <= record["p_value_holm"] <= 1.0
    assert float(row["p_value_holm"]) == record["p_value_holm"]
    (base,) = (item for item in records if (wanted | {"variant": "baseline"}).items() <= item.items())
    assert base["mean_difference"] is None


def test_a_judge_is_named_with_its_scores_and_a_floor_stands_beside_them(reported: Callable[..., Path]) -> None:
    path = reported("baseline", "fixed-1")
    page = Page.checked(path.read_text())
    assert "autointerp (lexical baseline): autointerp score" in page.text
    assert "autointerp (lexical baseline): floor always none" in page.text
    assert f"autointerp (lexical baseline): all {len(BENCHMARKS['autointerp'].metrics)} metrics" in page.text
    assert (
        "autointerp (lexical baseline): autointerp score (higher is better)" in (path.parent / "report.md").read_text()
    )
    records = json.loads((path.parent / "metrics.json").read_text())
    assert {(record["benchmark"], record["judge"]) for record in records} == {
        ("core", ""),
        ("geometry", ""),
        ("latents", ""),
        ("autointerp", "lexical baseline"),
    }


def test_files_of_variants_that_are_not_asked_for_are_ignored(reported: Callable[..., Path]) -> None:
    source = reported("baseline", "fixed-1").read_text()
    assert "fixed-1" in source
    assert "adaptive" not in source
    assert "floored" not in source


def test_several_seeds_are_compared_in_pairs_and_shown_as_means(
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    reported: Callable[..., Path],
) -> None:
    add_sae("baseline-b", saes.random(11, spread=0.2), seed=1)
    add_sae("fixed-1-b", saes.random(11), settings={"kind": "fixed", "value": 1.0}, seed=1)
    evaluate_all()
    page = Page.checked(reported("baseline", "fixed-1", "baseline-b", "fixed-1-b").read_text())
    assert "With 2 seeds a t interval has 1 degree of freedom and reaches 12.7 standard errors." in page.text
    assert "Each value is the mean over the seeds of a treatment." in page.text
    assert "Every SAE by itself" in page.text


def test_a_diverged_variant_is_said_to_be_one_and_has_no_metrics(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    reported: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_sae("fixed-1", saes.dead(), settings={"kind": "fixed", "value": 1.0}, final={"diverged_at_step": 120})
    evaluate_all()
    assert "evaluate core: fixed-1 diverged at step 120 and is not measured" in capsys.readouterr().err
    assert not (study.results / "core" / "fixed-1.json").exists()
    source = reported("baseline", "fixed-1", "adaptive").read_text()
    page = Page.checked(source)
    assert "Diverged in training: fixed-1 at step 120. Their loss or weights stopped being finite" in page.text
    assert source.count("fixed-1") == 1
    with pytest.raises(StoreError, match=r"expected an SAE that trained to the end in .* but all diverged"):
        reported("fixed-1")


def test_a_study_of_many_variants_stays_readable(
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    reported: Callable[..., Path],
) -> None:
    # Three lambdas, three l1, two seeds: 18 variants in 9 treatments and 3 families.
    fixed = {"kind": "fixed", "value": 1.0}
    learned = {"kind": "learned", "start": 1.0, "parametrisation": "log"}
    lambdas = {"baseline": {"kind": "fixed", "value": 0.0}, "fixed-1": fixed, "adaptive": learned}
    names = []
    for number, (base, schedule) in enumerate(lambdas.items()):
        for l1 in (0.3, 0.6, 1.2):
            for seed in (0, 1):
                name = base if (l1, seed) == (0.3, 0) else f"{base}-l1-{l1}-seed-{seed}".replace(".", "p")
                settings = {"lambda": schedule, "l1": l1, "lr": 3e-4, "seed": seed}
                add_sae(name, saes.random(7 * number + seed), settings=schedule, seed=seed, variant=settings)
                names.append(name)
    evaluate_all()
    page = Page.checked(reported(*names).read_text())
    assert "18 variants are too many to draw one by one" in page.text
    assert "the treatment alone: baseline, fixed-1 and adaptive" in page.text
    assert "Of 6 learned lambdas 6 settled" in page.text
    assert "A dot is a mean over seeds; a line joins the sparsities of one treatment." in page.text
    assert "6 treatments on 3 headline figures" in page.text
    assert "With 2 seeds a t interval has 1 degree of freedom" in page.text


def test_a_missing_result_is_an_error_that_names_every_missing_file_and_writes_nothing(
    study: SimpleNamespace, reported: Callable[..., Path]
) -> None:
    (study.results / "core" / "fixed-1.json").unlink()
    shutil.rmtree(study.results / "geometry")
    with pytest.raises(StoreError) as refused:
        reported()
    message = str(refused.value)
    assert "core/fixed-1.json is missing" in message
    assert "geometry/baseline.json is missing" in message
    assert "Run dvc repro (or dvc pull results, after a partial pull); no report was written" in message
    assert not (study.root / "reports").exists()


def test_a_result_for_other_weights_or_settings_is_called_stale(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], reported: Callable[..., Path]
) -> None:
    add_sae("fixed-1", saes.random(8), settings={"kind": "fixed", "value": 1.0})
    with pytest.raises(StoreError, match=r"core/fixed-1.json is stale: it was made with other weights_sha256"):
        reported()
    study.config = study.config.model_copy(update={"geometry": GeometryConfig(num_bins=50)})
    with pytest.raises(StoreError, match=r"geometry/baseline.json is stale: it was made with other settings"):
        reported()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_report_needs_the_manifest_and_the_held_out_tokens_alone_in_a_folder_or_behind_a_url(
    scheme: str, study: SimpleNamespace, cache_without_training_rows: Path, reported: Callable[..., Path]
) -> None:
    whole = reported().read_bytes()
    study.cache = f"{scheme}{cache_without_training_rows}"
    assert reported(output="again").read_bytes() == whole


def test_a_missing_model_a_model_of_another_cache_and_missing_held_out_tokens_are_refused(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], reported: Callable[..., Path]
) -> None:
    with pytest.raises(StoreError, match=r"expected a trained SAE in .*absent, found none. Run dvc repro, or dvc pull"):
        reported("baseline", "absent")
    add_sae("fixed-1", saes.random(1), cache_digest="f" * 64)
    with pytest.raises(MismatchedCache, match="fixed-1 to be trained on the present activation cache"):
        reported("baseline", "fixed-1")
    (study.cache / "held_out" / "tokens" / "c" / "0" / "0").unlink()
    with pytest.raises(IncompleteCache, match=r"held_out/tokens/c/0/0"):
        reported("baseline")


def test_a_decoder_that_is_held_is_a_column_of_the_settings() -> None:
    zero = {"kind": "fixed", "value": 0.0}
    own = {
        "baseline": {"lambda": zero},
        "soft": {"lambda": zero, "decoder": {"kind": "soft-frozen", "min_cosine": 0.8}},
    }
    assert report.settings_table(own) == {
        "columns": ["lambda.kind", "lambda.value", "decoder.kind", "decoder.min_cosine"],
        "rows": {"baseline": ["fixed", 0.0, None, None], "soft": ["fixed", 0.0, "soft-frozen", 0.8]},
    }
