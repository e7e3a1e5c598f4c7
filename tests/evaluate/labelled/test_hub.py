"""sparse_probing and tpp on miniatures of sae-bench's own data sets, from a hub on the loopback."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_bench.evals.sparse_probing import main
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.benchmarks.sparse_probing import SparseProbingConfig
from evaluate.benchmarks.tpp import TppConfig
from evaluate.isolation import undisturbed
from evaluate.kept import KeptSetUps
from evaluate.labelled.config import HubLabels, LabelsList, UnusableLabels
from evaluate.sae_bench import to_sae_bench
from evaluate.substituted import quiet, unchecked_shapes
from evaluate.throw_away import throw_away_sae
from store.cache.manifest import load_manifest
from store.sae.artefact import load_sae
from tests.evaluate.benchmarks.conftest import measured
from tests.evaluate.labelled.miniatures import write_bios, write_news, write_split
from tests.hub_server import hub, point_libraries_at

BIOS = HubLabels(kind="hub", name="LabHC/bias_in_bios_class_set1")
NEWS = HubLabels(kind="hub", name="fancyzhx/ag_news")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a hub on the loopback serves during the test."""
    folder = tmp_path / "hub"
    write_bios(folder / "LabHC" / "bias_in_bios")
    write_news(folder / "fancyzhx" / "ag_news")
    with hub(folder) as url:
        point_libraries_at(url, tmp_path / "hub-cache", monkeypatch)
        yield folder


@pytest.fixture
def context(study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]) -> BenchmarkContext:
    add_sae("tested", saes.random(2))
    return BenchmarkContext(
        place=study.cache, manifest=load_manifest(study.cache), model=study.model,
        cards={"tested": load_sae(study.models / "tested")[1]}, held_out=torch.zeros(0, 12, dtype=torch.uint32).numpy(),
        kept=KeptSetUps(study.root / "set-ups", budget_bytes=2**30), device=torch.device("cpu"),
    )  # fmt: skip


def probing(*datasets: HubLabels, train_size: int = 16) -> SparseProbingConfig:
    labels: LabelsList = list(datasets)
    return SparseProbingConfig(
        datasets=labels, probe_train_set_size=train_size, probe_test_set_size=8, context_length=12, llm_batch_size=8
    )


def of_tested(
    name: str, config: SparseProbingConfig | TppConfig, context: BenchmarkContext, study: SimpleNamespace
) -> Measurement:
    return measured(name, config, context, EvaluatedSAE("tested", *load_sae(study.models / "tested")))


def test_sparse_probing_equals_sae_bench_by_itself_on_data_of_the_hub(
    study: SimpleNamespace, context: BenchmarkContext, shelf: Path, tmp_path: Path
) -> None:
    ours = of_tested("sparse_probing", probing(BIOS, NEWS), context, study)
    settings = SparseProbingEvalConfig(
        random_seed=42, dataset_names=[BIOS.name, NEWS.name], probe_train_set_size=16, probe_test_set_size=8,
        context_length=12, llm_batch_size=8, llm_dtype="float32", model_name="any", k_values=[1, 2, 5],
    )  # fmt: skip
    sae = to_sae_bench(*load_sae(study.models / "tested"), device=torch.device("cpu"))
    first = throw_away_sae(context, sae.cfg.hook_name, d_sae=10)
    model = context.language_model.hooked
    with undisturbed(seed=0), unchecked_shapes(), quiet():
        for name in (BIOS.name, NEWS.name):  # the first SAE trains probes, each data set's from the same random numbers
            one = dataclasses.replace(settings, dataset_names=[name])
            main.run_eval_single_sae(one, first, model, "cpu", str(tmp_path / "artifacts"))
        alone, _ = main.run_eval_single_sae(settings, sae, model, "cpu", str(tmp_path / "artifacts"))
    assert ours.metrics == {name: alone[name] for name in ours.metrics}
    assert ours.basis == {"data_sets": 2, "tasks": 9, "test_texts": 72}  # five professions, four topics


def test_a_set_up_of_one_data_set_is_the_same_whether_or_not_another_was_kept(
    study: SimpleNamespace, context: BenchmarkContext, shelf: Path
) -> None:
    together = of_tested("sparse_probing", probing(BIOS, NEWS), context, study)
    fresh = dataclasses.replace(context, kept=KeptSetUps(study.root / "other", budget_bytes=2**30))
    of_tested("sparse_probing", probing(NEWS), fresh, study)
    again = of_tested("sparse_probing", probing(BIOS, NEWS), fresh, study)
    assert dataclasses.replace(again, arrays={}) == dataclasses.replace(together, arrays={})
    assert again.arrays.keys() == together.arrays.keys() != set()
    assert all(np.array_equal(again.arrays[name], values) for name, values in together.arrays.items())


def test_tpp_reads_data_of_the_hub(study: SimpleNamespace, context: BenchmarkContext, shelf: Path) -> None:
    config = TppConfig(datasets=[BIOS], train_set_size=16, test_set_size=8, context_length=12, llm_batch_size=8)
    found = of_tested("tpp", config, context, study)
    assert found.basis["tasks"] == 5
    assert set(found.metrics) >= {f"tpp_threshold_{n}_total_metric" for n in (2, 5, 10, 20, 50)}


def reason(config: SparseProbingConfig, context: BenchmarkContext) -> str:
    with pytest.raises(NotMeasurable) as why, undisturbed(seed=0):
        BENCHMARKS["sparse_probing"].prepare(config, context)
    return why.value.why.reason


def test_data_that_no_hub_gives_are_reasons_in_words_and_what_is_kept_stays(
    study: SimpleNamespace, context: BenchmarkContext, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_tested("sparse_probing", probing(NEWS), context, study)
    write_bios(shelf / "LabHC" / "bias_in_bios", text_column="words")
    assert reason(probing(NEWS, BIOS), context) == (
        "The data set LabHC/bias_in_bios of the hub has the columns words, profession, gender, and lacks hard_text, "
        "which sae-bench reads."
    )
    (shelf / "LabHC" / "bias_in_bios").rename(shelf / "LabHC" / "other")
    # Another cache: datasets takes from its own what it has once fetched.
    with hub(shelf) as url:
        point_libraries_at(url, tmp_path / "empty", monkeypatch)
        assert reason(probing(NEWS, BIOS), context).startswith("The hub has no data set LabHC/bias_in_bios")
    kept = [path for path in (study.root / "set-ups").glob("sparse_probing-*") if (path / "kept.json").exists()]
    assert len(kept) == 1  # of the news
    monkeypatch.setattr("evaluate.loaded_model.LoadedModel.bridge", property(lambda self: pytest.fail("loaded again")))
    of_tested("sparse_probing", probing(NEWS), dataclasses.replace(context), study)


def test_a_hub_out_of_reach_is_a_reason_in_words(
    context: BenchmarkContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_libraries_at("http://127.0.0.1:9", tmp_path / "empty", monkeypatch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its tries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    assert "is not on this machine, and the hub could not be reached" in reason(probing(NEWS), context)


def test_too_few_texts_are_refused(context: BenchmarkContext, shelf: Path) -> None:
    message = "expected enough texts of every class of fancyzhx/ag_news for 40 to train and 8 to test"
    with pytest.raises(UnusableLabels, match=message), undisturbed(seed=0):
        BENCHMARKS["sparse_probing"].prepare(probing(NEWS, train_size=40), context)


def test_one_class_only_is_refused(context: BenchmarkContext, shelf: Path) -> None:
    for split in ("train", "test"):
        rows = [{"text": f"sport {number}", "label": 1} for number in range(20)]
        write_split(shelf / "fancyzhx" / "ag_news", split, rows)
    message = "expected enough texts of every class of fancyzhx/ag_news"
    with pytest.raises(UnusableLabels, match=message), undisturbed(seed=0):
        BENCHMARKS["sparse_probing"].prepare(probing(NEWS), context)
