"""ravel on a small model that knows countries and languages of cities, its data from a hub on the loopback."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_bench.evals.ravel import main
from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
from sae_bench.sae_bench_utils import activation_collection

from evaluate.benchmarks.benchmark import NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.ravel import BENCHMARK, RavelConfig
from evaluate.isolation import undisturbed
from evaluate.sae_bench import to_sae_bench
from language_model.load import load_model
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import CPU, measured
from tests.evaluate.benchmarks.small_models import D_MODEL, write_model
from tests.hub_server import COMMIT, hub, point_libraries_at

CITIES = {
    "Paris": ("France", "French"), "Rome": ("Italy", "Italian"), "Berlin": ("Germany", "German"),
    "Madrid": ("Spain", "Spanish"), "Oslo": ("Norway", "Norwegian"), "Tokyo": ("Japan", "Japanese"),
}  # fmt: skip
TEMPLATES = {
    "Country": ["%s lies in the country of ", "country around %s is ", "%s has as its country "],
    "Language": ["%s speaks the language ", "language around %s is ", "%s has as its language "],
}
SETTINGS: dict[str, Any] = {
    "random_seed": 42, "entity_attribute_selection": {"city": ["Country", "Language"]}, "top_n_entities": 500,
    "top_n_templates": 90, "full_dataset_downsample": None, "num_pairs_per_attribute": 5000, "train_test_split": 0.7,
    "llm_batch_size": 4, "learning_rate": 1e-2, "num_epochs": 2, "n_generated_tokens": 2,
}  # fmt: skip
CONFIG = RavelConfig(**SETTINGS, data_revision="main", min_model_parameters=0)


def write_data(folder: Path, cities: dict[str, tuple[str, str]]) -> Path:
    """The four files of RAVEL for cities, in the folder of their data set."""
    folder.mkdir(parents=True)
    files = {
        "attribute_to_prompts": TEMPLATES,
        "prompt_to_split": {prompt: "train" for prompts in TEMPLATES.values() for prompt in prompts},
        "entity_attributes": {city: {"Country": one, "Language": other} for city, (one, other) in cities.items()},
        "entity_to_split": dict.fromkeys(cities, "train"),
    }
    for name, content in files.items():
        (folder / f"ravel_city_{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def knowing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A city and an attribute have a channel each; a country or a language has those of its city and attribute."""

    def vector(*channels: int) -> list[float]:
        return [float(number in channels) for number in range(D_MODEL - 1)]

    vectors = {"country": vector(20), "language": vector(21)}
    for number, (city, (country, language)) in enumerate(CITIES.items()):
        vectors |= {city: vector(number), country: vector(number, 20), language: vector(number, 21)}
    words = {word for prompts in TEMPLATES.values() for prompt in prompts for word in prompt.split() if word != "%s"}
    return write_model(tmp_path_factory.mktemp("models") / "knowing", vectors, fillers=[" ", *sorted(words)])


@pytest.fixture
def asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data set on a hub that runs during the test."""
    data = write_data(tmp_path / "hub" / "adamkarvonen" / "ravel_prompts", CITIES)
    with hub(tmp_path / "hub") as url:
        point_libraries_at(url, tmp_path / "hub-cache", monkeypatch)
        yield data


def random_sae(*, dead: bool = False) -> SAEWeights:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(160, D_MODEL, generator=generator), dim=1)
    b_enc = torch.full((160,), -1e4 if dead else -0.5)
    return SAEWeights(W_enc=W_dec.T.contiguous(), b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(D_MODEL))


def identity_sae() -> SAEWeights:
    both = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    return SAEWeights(W_enc=both.T.contiguous(), b_enc=torch.zeros(2 * D_MODEL), W_dec=both, b_dec=torch.zeros(D_MODEL))


class GivesTuples:
    """A decoder layer whose output hooks see as transformers gave it before version 5."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def register_forward_hook(self, hook: Any) -> Any:  # noqa: ANN401 - torch's
        return self.layer.register_forward_hook(lambda layer, given, output: hook(layer, given, (output,))[0])


@pytest.mark.parametrize("weights", [identity_sae(), random_sae()], ids=["identity", "random"])
def test_the_numbers_are_those_of_sae_bench_by_itself(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    weights: SAEWeights,
) -> None:  # fmt: skip
    context = bench.context(knowing_model)
    sae = bench.sae(context, weights)
    ours = measured("ravel", CONFIG, context, sae)
    # By itself, data at hand, on the model as transformers gives it; the tokenizer is found by the name of its folder.
    write_data(tmp_path / "artifacts" / "base", CITIES)
    get_module = activation_collection.get_module
    monkeypatch.setattr(activation_collection, "get_module", lambda model, layer: GivesTuples(get_module(model, layer)))
    config = RAVELEvalConfig(
        **SETTINGS, model_name=str(knowing_model), llm_dtype="float32", artifact_dir=str(tmp_path / "artifacts")
    )
    model = load_model(knowing_model, dtype=torch.float32, device="cpu")
    adapted = to_sae_bench(sae.weights, sae.card, device=CPU)
    with undisturbed(seed=1):
        found, by_attribute = main.run_eval_single_sae(config, adapted, model, "cpu", str(tmp_path / "artifacts"))
    assert ours.metrics == {
        "disentanglement_score": found["disentangle_score"],
        "cause_score": found["cause_score"],
        "isolation_score": found["isolation_score"],
    }
    assert ours.details["sae_bench"] == by_attribute["city_results"]
    # 6 cities x 3 templates = 18 pairs of each sort; 36 - 25 are read, in two batches of 4; two attributes.
    assert ours.basis["cause_pairs"] + ours.basis["isolation_pairs"] == 2 * 8
    assert ours.basis["attributes"] == 2


def test_an_sae_whose_latents_are_the_cities_channels_moves_both_attributes_at_once(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    context = bench.context(knowing_model)
    metrics = measured("ravel", CONFIG, context, bench.sae(context, identity_sae())).metrics
    # This model has one channel for a city, so that who moves its country moves its language: either all or nothing.
    assert {round(metrics["cause_score"]), round(metrics["isolation_score"])} == {0, 1}
    assert metrics["disentanglement_score"] == pytest.approx(0.5, abs=0.13)


def test_a_result_depends_neither_on_what_was_kept_nor_on_the_sae_before_and_the_model_stays_as_it_was(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(knowing_model)
    first, second = bench.sae(context, random_sae(), "first"), bench.sae(context, identity_sae(), "second")
    alone = measured("ravel", CONFIG, context, first)
    for path in asks_the_hub.iterdir():
        path.unlink()  # what was fetched and found is not asked for again
    monkeypatch.setattr(
        "sae_bench.evals.ravel.instance.RAVELInstance.generate_completions", lambda *_, **__: pytest.fail("again")
    )
    measured("ravel", CONFIG, context, second)
    assert measured("ravel", CONFIG, context, first) == alone
    assert not context.language_model.plain.training


def test_a_bfloat16_language_model_is_measured_with_a_float32_sae(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    context = bench.context(knowing_model, compute_dtype="bfloat16")
    result = measured("ravel", CONFIG, context, bench.sae(context, identity_sae()))
    assert 0.0 <= result.metrics["disentanglement_score"] <= 1.0


def test_a_dead_sae_changes_no_attribute_and_is_said_to(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path
) -> None:
    context = bench.context(knowing_model)
    result = measured("ravel", CONFIG, context, bench.sae(context, random_sae(dead=True)))
    assert result.metrics["cause_score"] == 0.0
    assert result.remarks[0].startswith("Patching never changed an attribute")


def reason(context: BenchmarkContext) -> str:
    with pytest.raises(NotMeasurable) as why:
        BENCHMARK.prepare(CONFIG, context)
    return why.value.why.reason


def test_a_model_that_knows_too_little_is_not_measurable(
    bench: SimpleNamespace, knowing_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"Paris": ("Italy", "French"), "Rome": ("France", "Italian"), "Oslo": ("Norway", "Spanish")}
    write_data(tmp_path / "hub" / "adamkarvonen" / "ravel_prompts", wrong)
    with hub(tmp_path / "hub") as url:
        point_libraries_at(url, tmp_path / "hub-cache", monkeypatch)
        assert reason(bench.context(knowing_model)).startswith(
            "The language model completes 3 prompts for the Country of a city rightly, with 1 different answers; "
        )


def test_data_that_no_hub_gives_are_reasons_in_words(
    bench: SimpleNamespace, knowing_model: Path, asks_the_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = bench.context(knowing_model)
    (asks_the_hub / ".gated").touch()
    assert reason(context) == (
        "The data set adamkarvonen/ravel_prompts is gated: its terms are not accepted, or no token was given."
    )
    (asks_the_hub / ".gated").unlink()
    (asks_the_hub / "ravel_city_entity_attributes.json").unlink()
    assert reason(context) == ("The data set adamkarvonen/ravel_prompts on the hub lacks a file that sae-bench reads.")
    asks_the_hub.rename(asks_the_hub.parent / "other")
    assert reason(context).startswith("The hub has no data set adamkarvonen/ravel_prompts of this revision")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its five tries, 23 s in all
    point_libraries_at("http://127.0.0.1:9", tmp_path / "hub-cache", monkeypatch)
    assert "is not on this machine, and the hub could not be reached" in reason(context)
    assert len(COMMIT) == 40


def test_a_model_that_is_too_small_or_of_another_kind_is_not_run(
    bench: SimpleNamespace, knowing_model: Path, tmp_path: Path
) -> None:
    context = bench.context(knowing_model)
    why = BENCHMARK.not_run(CONFIG.model_copy(update={"min_model_parameters": 10**8}), context)
    assert why is not None
    assert "parameters; ravel means something from 100,000,000 on" in why.reason
    settings = json.loads((knowing_model / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}))
    vars(context)["model_folder"] = other
    why = BENCHMARK.not_run(CONFIG, context)
    assert why is not None
    assert "and not those of LlamaForCausalLM" in why.reason
