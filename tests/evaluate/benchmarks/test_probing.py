"""The benchmarks on labelled texts, on a real (tiny) Gemma-2, against sae-bench by itself."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.sparse_probing import main as plain_probing
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

from evaluate.benchmarks import sparse_probing, sparse_probing_sae_probes, tpp
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import check_measurement
from evaluate.benchmarks.sparse_probing import SparseProbingConfig
from evaluate.benchmarks.sparse_probing_sae_probes import SaeProbesConfig
from evaluate.benchmarks.tpp import TppConfig
from evaluate.isolation import undisturbed
from evaluate.kept import KeptSetUps
from evaluate.labelled.config import FilesLabels
from evaluate.labelled.substitute import known_to_sae_bench
from evaluate.labelled.texts import load
from evaluate.loaded_model import LoadedModel
from evaluate.sae_bench import to_sae_bench
from evaluate.substituted import quiet
from evaluate.throw_away import throw_away_sae
from store.record import Record
from store.sae.artefact import load_sae

CPU = torch.device("cpu")


@pytest.fixture
def labels(tmp_path: Path) -> FilesLabels:
    """Three classes that differ in their words."""
    words = {"sea": "wave salt ship tide", "hill": "rock snow path peak", "town": "road lamp shop wall"}
    generator = random.Random(0)
    rows = [
        {"text": " ".join(generator.choices(found.split(), k=5)) + f" {number}", "label": label}
        for label, found in words.items()
        for number in range(30)
    ]
    path = tmp_path / "places.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return FilesLabels(kind="files", name="places", path=str(path))


@pytest.fixture
def context(study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]) -> BenchmarkContext:
    add_sae("one", saes.random(1))
    add_sae("two", saes.random(2))
    add_sae("dead", saes.dead())
    return BenchmarkContext(
        place=study.cache,
        manifest=study.manifest,
        model=study.model,
        cards={name: load_sae(study.models / name)[1] for name in ("one", "two", "dead")},
        held_out=torch.zeros(0, 12, dtype=torch.uint32).numpy(),
        kept=KeptSetUps(study.root / "set-ups", budget_bytes=2**30),
        device=CPU,
    )


def measured(
    benchmark: Benchmark, config: Record, context: BenchmarkContext, study: SimpleNamespace, name: str
) -> Measurement:
    """As the run does it."""
    context = dataclasses.replace(context)  # nothing loaded yet
    with undisturbed(seed=0):
        shared = benchmark.prepare(config, context)
    with undisturbed(seed=0):
        weights, card = load_sae(study.models / name)
        found = benchmark.measure(EvaluatedSAE(name, weights, card), config, context, shared)
    check_measurement(benchmark, found)
    return found


def probing_config(labels: FilesLabels) -> SparseProbingConfig:
    return SparseProbingConfig(
        datasets=[labels], probe_train_set_size=24, probe_test_set_size=16, context_length=12, llm_batch_size=8
    )


def tpp_config(labels: FilesLabels) -> TppConfig:
    return TppConfig(datasets=[labels], train_set_size=24, test_set_size=16, context_length=12, llm_batch_size=8)


def test_sparse_probing_equals_sae_bench_by_itself(
    study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels, tmp_path: Path
) -> None:
    config = probing_config(labels)
    ours = measured(sparse_probing.BENCHMARK, config, context, study, "two")
    settings = SparseProbingEvalConfig(
        random_seed=42, dataset_names=["places"], probe_train_set_size=24, probe_test_set_size=16, context_length=12,
        sae_batch_size=125, llm_batch_size=8, llm_dtype="float32", model_name="any", k_values=[1, 2, 5],
    )  # fmt: skip
    texts = load(labels, train_size=24, test_size=16, seed=42)
    sae = to_sae_bench(*load_sae(study.models / "two"), device=CPU)
    first = throw_away_sae(context, sae.cfg.hook_name, d_sae=10)
    model = context.language_model.hooked
    with known_to_sae_bench(labels, texts, classes=list(texts.train)), undisturbed(seed=0), quiet():
        # The first SAE of a sweep trains the language model's probes; every further one finds them.
        plain_probing.run_eval_single_sae(settings, first, model, "cpu", str(tmp_path / "artifacts"))
        alone, _ = plain_probing.run_eval_single_sae(settings, sae, model, "cpu", str(tmp_path / "artifacts"))
    of_sae = {name: value for name, value in ours.metrics.items() if name.startswith("sae_")}
    assert of_sae == {name: alone[name] for name in of_sae}
    assert ours.basis == {"data_sets": 1, "tasks": 3, "test_texts": 48}


def test_tpp_equals_sae_bench_by_itself(
    study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels, tmp_path: Path
) -> None:
    ours = measured(tpp.BENCHMARK, tpp_config(labels), context, study, "two")
    settings = ScrAndTppEvalConfig(
        random_seed=42, dataset_names=["places"], perform_scr=False, train_set_size=24, test_set_size=16,
        context_length=12, llm_batch_size=8, llm_dtype="float32", model_name="any", n_values=[2, 5, 10, 20, 50],
    )  # fmt: skip
    texts = load(labels, train_size=24, test_size=16, seed=42)
    sae = to_sae_bench(*load_sae(study.models / "two"), device=CPU)
    first = throw_away_sae(context, sae.cfg.hook_name, d_sae=50)
    model = context.language_model.hooked
    with known_to_sae_bench(labels, texts, classes=list(texts.train)), undisturbed(seed=0), quiet():
        # The first SAE of a sweep trains the language model's probes; every further one finds them.
        scr_and_tpp.run_eval_single_sae(settings, first, model, "cpu", str(folder(tmp_path)))
        alone, _ = scr_and_tpp.run_eval_single_sae(settings, sae, model, "cpu", str(folder(tmp_path)))
    assert {name: alone[name] for name in ours.metrics if name.startswith("tpp")} == {
        name: value for name, value in ours.metrics.items() if name.startswith("tpp")
    }


def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    return tmp_path / "artifacts"


@pytest.mark.parametrize("benchmark", [sparse_probing, tpp], ids=["sparse_probing", "tpp"])
def test_a_further_sae_costs_its_own_part_alone_and_none_depends_on_another(
    study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels, monkeypatch: pytest.MonkeyPatch,
    benchmark: object,
) -> None:  # fmt: skip
    module = sparse_probing if benchmark is sparse_probing else tpp
    config = probing_config(labels) if module is sparse_probing else tpp_config(labels)
    before = measured(module.BENCHMARK, config, context, study, "two")
    monkeypatch.setattr(LoadedModel, "bridge", property(lambda self: pytest.fail("the language model was loaded")))
    measured(module.BENCHMARK, config, context, study, "one")
    assert measured(module.BENCHMARK, config, context, study, "two") == before


def test_latents_that_never_fire_are_at_exactly_chance_and_that_is_said(
    study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels
) -> None:
    dead = measured(sparse_probing.BENCHMARK, probing_config(labels), context, study, "dead")
    assert {dead.metrics[f"sae_top_{k}_test_accuracy"] for k in (1, 2, 5)} == {0.5}
    assert "at exactly 0.5, chance level" in dead.remarks[0]
    quiet_probes = measured(tpp.BENCHMARK, tpp_config(labels), context, study, "dead")
    assert any("No probe loses more than its sampling error" in remark for remark in quiet_probes.remarks)


def test_other_sizes_are_another_set_up(study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels) -> None:
    measured(sparse_probing.BENCHMARK, probing_config(labels), context, study, "one")
    smaller = probing_config(labels).model_copy(update={"probe_train_set_size": 16})
    measured(sparse_probing.BENCHMARK, smaller, context, study, "one")
    assert len(list((study.root / "set-ups").glob("sparse_probing-*"))) == 2


def test_a_missing_data_set_is_the_reason_why_a_benchmark_is_not_run(
    context: BenchmarkContext, labels: FilesLabels
) -> None:
    Path(labels.path).unlink()
    why = sparse_probing.BENCHMARK.not_run(probing_config(labels), context)
    assert why is not None
    assert why.reason == f"The data set places is not at {labels.path}."
    assert why.advice == "Put them there, or take them out of evaluate.sparse_probing.datasets."


def test_an_interrupted_set_up_is_made_again(
    study: SimpleNamespace, context: BenchmarkContext, labels: FilesLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = probing_config(labels)
    with monkeypatch.context() as patched:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured(sparse_probing.BENCHMARK, config, context, study, "one")
    first = measured(sparse_probing.BENCHMARK, config, context, study, "one")
    fresh = dataclasses.replace(context, kept=KeptSetUps(study.root / "other", budget_bytes=2**30))
    assert measured(sparse_probing.BENCHMARK, config, fresh, study, "one") == first


def test_the_tasks_of_sae_probes_are_measured_from_activations_that_are_computed_once(
    study: SimpleNamespace, context: BenchmarkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SaeProbesConfig(dataset_names=["119_us_state_TX"])
    before = measured(sparse_probing_sae_probes.BENCHMARK, config, context, study, "two")
    assert before.basis == {"tasks": 1}
    monkeypatch.setattr(LoadedModel, "bridge", property(lambda self: pytest.fail("the language model was loaded")))
    assert measured(sparse_probing_sae_probes.BENCHMARK, config, context, study, "two") == before
    dead = measured(sparse_probing_sae_probes.BENCHMARK, config, context, study, "dead")
    assert any("chance level" in remark for remark in dead.remarks)


def test_the_tasks_of_sae_probes_are_measured_in_a_bfloat16_language_model(
    study: SimpleNamespace, context: BenchmarkContext
) -> None:
    config = SaeProbesConfig(dataset_names=["119_us_state_TX"])
    exact = measured(sparse_probing_sae_probes.BENCHMARK, config, context, study, "two")
    spec = context.manifest.spec.model_copy(update={"compute_dtype": "bfloat16"})
    rounded = dataclasses.replace(
        context,
        manifest=context.manifest.model_copy(update={"spec": spec}),
        model=context.model.model_copy(update={"compute_dtype": "bfloat16"}),
    )
    found = measured(sparse_probing_sae_probes.BENCHMARK, config, rounded, study, "two")
    assert rounded.language_model.bridge.cfg.dtype == torch.bfloat16
    assert found.metrics["llm_test_auc"] == pytest.approx(exact.metrics["llm_test_auc"], abs=0.1)


def test_an_unknown_task_of_sae_probes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected binary tasks of the package sae-probes, each once, got \['moon'\]"):
        SaeProbesConfig(dataset_names=["moon"])


def test_the_error_of_tpp_is_that_of_the_accuracies_that_each_figure_is_made_of() -> None:
    # Two classes, 100 texts each. Of its own latents a probe falls to 0.5, of the other's to 0.8, from 0.9.
    perturbed = {"a": {2: {"a": 0.5, "b": 0.8}}, "b": {2: {"a": 0.8, "b": 0.5}}}
    found = tpp.sampling_variances(perturbed, {"a": 0.9, "b": 0.9}, 100)
    own, other, clean = 0.25, 0.16, 0.09  # p (1 - p)
    assert found == pytest.approx({
        "tpp_threshold_2_total_metric": (own + other) * 2 / 100 / 4,
        "tpp_threshold_2_intended_diff_only": (own + clean) * 2 / 100 / 4,
        "tpp_threshold_2_unintended_diff_only": (other + clean) * 2 / 100 / 4,
    })  # fmt: skip
