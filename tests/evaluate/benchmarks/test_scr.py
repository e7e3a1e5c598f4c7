"""scr on a real (tiny) Gemma-2 against sae-bench by itself, on texts of a hub on the loopback, of files, of Python."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sae_bench.evals.scr_and_tpp import main
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.scr import BENCHMARK, ScrConfig
from evaluate.isolation import undisturbed
from evaluate.labelled.config import UnusableLabels
from evaluate.labelled.two_labels import FilesTwoLabels, HubTwoLabels, StandardLibraryTwoLabels, load_pair, pairs_of
from evaluate.loaded_model import LoadedModel
from evaluate.sae_bench import to_sae_bench
from evaluate.substituted import quiet, unchecked_shapes
from evaluate.throw_away import throw_away_sae
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import measured
from tests.evaluate.labelled.miniatures import write_bios
from tests.hub_server import hub, point_libraries_at

BIOS = HubTwoLabels(kind="hub", name="LabHC/bias_in_bios_class_set1")
WORDS = {"sea": "wave salt ship tide", "hill": "rock snow path peak", "loud": "!", "calm": "."}

StudySAE = Callable[[SAEWeights], EvaluatedSAE]


def config_of(*datasets: object, train_set_size: int = 16, test_set_size: int = 8) -> ScrConfig:
    return ScrConfig(
        datasets=list(datasets), train_set_size=train_set_size, test_set_size=test_set_size, context_length=12,
        llm_batch_size=8,
    )  # fmt: skip


@pytest.fixture
def bios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of bias_in_bios on a hub that runs during the test."""
    folder = write_bios(tmp_path / "hub" / "LabHC" / "bias_in_bios")
    with hub(tmp_path / "hub") as url:
        point_libraries_at(url, tmp_path / "hub-cache", monkeypatch)
        yield folder


def places(path: Path, *, num_texts: int = 14) -> FilesTwoLabels:
    """Texts about sea or hill, that end loudly or calmly: so many of each of the four groups."""
    rows = [
        {"text": f"{WORDS[place]} {number} {WORDS[mood]}", "place": place, "mood": mood}
        for place in ("sea", "hill")
        for mood in ("loud", "calm")
        for number in range(num_texts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return FilesTwoLabels(
        kind="files", name="places", path=str(path), pairs=[("sea", "hill")], spurious_values=("loud", "calm"),
        label_column="place", spurious_column="mood",
    )  # fmt: skip


def test_the_numbers_are_those_of_sae_bench_by_itself(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, bios: Path, tmp_path: Path
) -> None:
    sae = study_sae(saes.random(2))
    ours = measured("scr", config_of(BIOS, train_set_size=32, test_set_size=24), study_context, sae)
    settings = ScrAndTppEvalConfig(
        random_seed=42, dataset_names=[BIOS.name], perform_scr=True, train_set_size=32, test_set_size=24,
        context_length=12, llm_batch_size=8, llm_dtype="float32", model_name="any", n_values=[2, 5, 10, 20, 50],
    )  # fmt: skip
    adapted = to_sae_bench(sae.weights, sae.card, device=torch.device("cpu"))
    first = throw_away_sae(study_context, sae.card.hook, d_sae=50)
    model = study_context.language_model.hooked
    with undisturbed(seed=0), unchecked_shapes(), quiet():
        for pair in pairs_of(BIOS):  # the first SAE trains probes, each pair's from the same random numbers
            one = dataclasses.replace(settings, column1_vals_lookup={BIOS.name: [pair]})
            main.run_eval_single_sae(one, first, model, "cpu", str(tmp_path / "artifacts"))
        found, _ = main.run_eval_single_sae(settings, adapted, model, "cpu", str(tmp_path / "artifacts"))
    scores = {name: value for name, value in ours.metrics.items() if name.startswith("scr_")}
    assert scores == pytest.approx({name: value for name, value in found.items() if name.startswith("scr_")})
    by_pair = ours.details["eval_result_details"]
    assert by_pair == {name.removesuffix("_results"): item for name, item in found.items() if isinstance(item, dict)}
    assert ours.basis == {"data_sets": 1, "pairs": 4, "test_texts": 24}
    assert set(scores) >= {f"scr_dir{number}_threshold_{n}" for number in (1, 2) for n in (2, 5, 10, 20, 50)}


def test_a_further_sae_costs_its_own_part_alone_and_none_depends_on_another(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, sae = config_of(places(tmp_path / "places.jsonl")), study_sae(saes.random(2))
    before = measured("scr", config, study_context, sae)
    monkeypatch.setattr(LoadedModel, "bridge", property(lambda self: pytest.fail("the language model was loaded")))
    again = dataclasses.replace(study_context)  # nothing loaded yet
    measured("scr", config, again, study_sae(saes.random(1)))
    assert measured("scr", config, again, sae) == before


def test_standard_errors_of_one_pair_are_those_of_an_accuracy_over_the_gap(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, tmp_path: Path
) -> None:
    found = measured("scr", config_of(places(tmp_path / "a.jsonl")), study_context, study_sae(saes.random(2)))
    (clean,) = found.details["llm_test_accuracies"].values()  # type: ignore[union-attr]
    for number, data in ((1, "professor / nurse"), (2, "male / female")):
        biased = clean[f"male_professor / female_nurse probe on {data} data"]  # type: ignore[index, call-overload]
        gap = clean[data] - biased  # type: ignore[index, call-overload]
        name = f"scr_dir{number}_threshold_2"
        if gap < 0.001:
            assert name not in found.standard_errors
            assert found.metrics[name] == 0.0
        else:
            assert found.standard_errors[name] == pytest.approx(math.sqrt(2 * biased * (1 - biased) / 8) / gap)


def test_dead_latents_move_no_score_and_that_is_said(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, tmp_path: Path
) -> None:
    found: Measurement = measured("scr", config_of(places(tmp_path / "a.jsonl")), study_context, study_sae(saes.dead()))
    assert {value for name, value in found.metrics.items() if name.startswith("scr_")} == {0.0}
    assert "No score moves, whatever latents are set to zero" in found.remarks[-1]


def test_groups_come_in_sae_benchs_numbers_and_no_text_is_in_both_parts(tmp_path: Path) -> None:
    texts = load_pair(places(tmp_path / "a.jsonl"), ("sea", "hill"), train_size=16, test_size=8, seed=42)
    # 16 / 4 and 8 / 4 of a group; twice as many and one more where both labels agree: 4 + 2 and 9 + 5 of 14.
    sizes = {group: (len(found), len(texts.test[group])) for group, found in texts.train.items()}
    assert sizes == {
        ("sea", "loud"): (9, 5), ("sea", "calm"): (4, 2), ("hill", "loud"): (4, 2), ("hill", "calm"): (9, 5),
    }  # fmt: skip
    assert not any(set(found) & set(texts.test[group]) for group, found in texts.train.items())


def test_too_few_texts_of_a_group_are_refused_with_its_labels(tmp_path: Path) -> None:
    few = places(tmp_path / "a.jsonl", num_texts=13)
    message = r"expected at least 14 different texts of places that are 'sea' and 'loud' \(9 to train and 5 to test"
    with pytest.raises(UnusableLabels, match=message):
        load_pair(few, ("sea", "hill"), train_size=16, test_size=8, seed=42)


def test_a_text_under_two_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    labels = places(path)
    path.write_text(path.read_text() + "\n" + json.dumps({"text": "! x", "place": "sea", "mood": "loud"}))
    path.write_text(path.read_text() + "\n" + json.dumps({"text": "! x", "place": "hill", "mood": "loud"}))
    with pytest.raises(UnusableLabels, match=r"expected every text of .* under one place, found one under 'sea' and"):
        load_pair(labels, ("sea", "hill"), train_size=16, test_size=8, seed=42)


def test_the_standard_library_gives_code_and_words_of_two_libraries() -> None:
    library = StandardLibraryTwoLabels(kind="standard-library", pairs=[("email", "asyncio")])
    texts = load_pair(library, ("email", "asyncio"), train_size=40, test_size=20, seed=42)
    assert {group: len(found) for group, found in texts.train.items()} == {
        ("email", "code"): 21, ("email", "words"): 10, ("asyncio", "code"): 10, ("asyncio", "words"): 21,
    }  # fmt: skip
    unknown = StandardLibraryTwoLabels(kind="standard-library", pairs=[("email", "moon")])
    with pytest.raises(UnusableLabels, match="expected libraries of the standard library, got moon"):
        load_pair(unknown, ("email", "moon"), train_size=40, test_size=20, seed=42)


def test_a_missing_file_is_the_reason_why_it_is_not_run(study_context: BenchmarkContext, tmp_path: Path) -> None:
    labels = places(tmp_path / "a.jsonl")
    Path(labels.path).unlink()
    why = BENCHMARK.not_run(config_of(labels), study_context)
    assert why is not None
    assert why.reason == f"The data set places is not at {labels.path}."


def test_a_data_set_of_the_hub_that_is_too_small_is_refused(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, bios: Path
) -> None:
    study_sae(saes.random(1))
    config = config_of(BIOS, train_set_size=400)
    with pytest.raises(UnusableLabels, match="expected enough texts of every class of LabHC/bias_in_bios_class_set1"):
        BENCHMARK.prepare(config, study_context)


def test_a_hub_that_does_not_have_it_is_the_reason_why_it_is_not_run(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace, bios: Path
) -> None:
    study_sae(saes.random(1))
    bios.rename(bios.parent / "other")
    with pytest.raises(NotMeasurable) as why:
        BENCHMARK.prepare(config_of(BIOS), study_context)
    assert why.value.why.reason.startswith("The hub has no data set LabHC/bias_in_bios")
