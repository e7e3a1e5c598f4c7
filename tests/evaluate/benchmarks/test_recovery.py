"""The benchmark `recovery` on a small cache of known features, with SAEs whose figures are known."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.core import CoreConfig
from evaluate.benchmarks.recovery import BENCHMARK, RecoveryConfig
from evaluate.benchmarks.registry import BENCHMARKS, check_measurement
from evaluate.config import EvaluateConfig
from evaluate.kept import KeptSetUps
from evaluate.results import read_not_run, read_result
from evaluate.run import run
from store.cache.manifest import load_manifest
from store.cache.truth import Truth, read_truth
from store.files.open import open_files
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae
from store.sae.weights import SAEWeights
from tests.evaluate.conftest import save
from tests.synthetic_cache import HOOKS, harvest_synthetic

CONFIG = RecoveryConfig(found_cosine=0.9, lost_recall=0.2)
D_MODEL, NUM_FEATURES = 16, 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known-features")
    harvest_synthetic(folder)
    return folder / "activations"


@pytest.fixture
def world(cache: Path, tmp_path: Path) -> SimpleNamespace:
    """measure(weights, hook): what recovery says; truth(hook)."""
    files = open_files(cache)
    manifest = load_manifest(files)
    study = SimpleNamespace(models=tmp_path / "models", manifest=manifest)
    context = BenchmarkContext(
        place=cache, manifest=manifest, model=None, cards={}, held_out=ActivationCache(cache).held_out_tokens(),
        kept=KeptSetUps(tmp_path / "set-ups", budget_bytes=2**30), device=torch.device("cpu"),
    )  # fmt: skip

    def evaluated(weights: SAEWeights, hook: str) -> EvaluatedSAE:
        save(study, "tested", weights, hook=hook)
        loaded, card = load_sae(study.models / "tested")
        context.cards["tested"] = card  # type: ignore[index]  # a dictionary here
        return EvaluatedSAE("tested", loaded, card)

    def measure(weights: SAEWeights, hook: str = HOOKS[0], name: str = "recovery") -> Measurement:
        sae, benchmark = evaluated(weights, hook), BENCHMARKS[name]
        config = CONFIG if name == "recovery" else CORE
        assert benchmark.not_run(config, context) is None
        found = benchmark.measure(sae, config, context, benchmark.prepare(config, context))
        check_measurement(benchmark, found)
        return found

    return SimpleNamespace(measure=measure, truth=lambda hook: read_truth(files, manifest, hook), study=study)


CORE = CoreConfig(num_reconstruction_sequences=2, num_sparsity_sequences=6, batch_sequences=2)


def dual_sae(truth: Truth) -> SAEWeights:
    """An SAE whose decoder is the truth and whose latents fire where the row points to a feature."""
    directions = torch.from_numpy(truth.directions)
    num_features = len(directions)
    return SAEWeights(
        W_enc=directions.T.clone(),
        b_enc=torch.full((num_features,), -0.5),
        W_dec=directions.clone(),
        b_dec=torch.zeros(directions.shape[1]),
    )


def random_sae(num_latents: int = NUM_FEATURES, seed: int = 0) -> SAEWeights:
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(num_latents, D_MODEL, generator=generator), dim=1)
    return SAEWeights(
        W_enc=decoder.T.clone(), b_enc=torch.zeros(num_latents), W_dec=decoder, b_dec=torch.zeros(D_MODEL)
    )


def test_the_truth_itself_is_recovered(world: SimpleNamespace) -> None:
    for hook in HOOKS:
        found = world.measure(dual_sae(world.truth(hook)), hook)
        assert found.metrics["mcc"] == pytest.approx(1.0, abs=1e-5)
        assert found.metrics["found"] == found.metrics["uniqueness"] == found.metrics["uniqueness_cap"] == 1.0
        assert found.metrics["recall"] > 0.5
        assert found.metrics["true_l0"] == pytest.approx(world.truth(hook).frequencies.sum())
        assert not found.remarks
        assert found.basis["rows"] == 6 * 64
        assert ("parents_absorbed" in found.metrics) == (hook == "synthetic.hierarchy")
    assert found.metrics["leak"] == pytest.approx(0.0, abs=1e-6)
    assert found.basis["parents"] == 9
    assert [depth["features"] for depth in found.details["by_depth"]] == [6, 6, 12]  # type: ignore[index,union-attr,call-overload]


def test_a_random_decoder_is_at_chance_and_is_said_to_know_nothing(world: SimpleNamespace) -> None:
    found = world.measure(random_sae(), "synthetic.hierarchy")
    error = found.standard_errors["mcc_chance"]
    assert abs(found.metrics["mcc"] - found.metrics["mcc_chance"]) < 4 * error
    assert found.metrics["found"] < 0.1
    (remark,) = found.remarks
    assert "this decoder knows nothing of the features. What absorption and leak say of it is no merit." in remark


def test_figures_are_those_counted_row_by_row(world: SimpleNamespace, cache: Path) -> None:
    hook = "synthetic.hierarchy"
    truth, weights = world.truth(hook), dual_sae(world.truth(hook))
    metrics = world.measure(weights, hook).metrics
    bits = ActivationCache(cache).rows(hook, np.arange(6 * 64), split="held_out")
    rows = (bits.astype(np.uint32) << 16).view(np.float32)
    fires, on = (rows @ truth.directions.T - 0.5) > 0, truth.fires()
    recalls = [fires[on[:, i], i].mean() for i in range(NUM_FEATURES)]
    assert metrics["recall"] == pytest.approx(np.mean(recalls), abs=0.002)
    lost = []
    for parent in range(9):
        child_on = on[:, truth.parents == parent].any(axis=1)
        alone, with_child = on[:, parent] & ~child_on, on[:, parent] & child_on
        lost.append(fires[with_child, parent].mean() < 0.8 * fires[alone, parent].mean())
    assert metrics["parents_absorbed"] == pytest.approx(np.mean(lost))


def test_absorption_is_seen(world: SimpleNamespace) -> None:
    """The latents of children take the parent's direction in, and the parent's latent falls silent beside them."""
    hook = "synthetic.hierarchy"
    truth = world.truth(hook)
    faithful = dual_sae(truth)
    absorbing = faithful.W_enc.clone()
    for child, parent in enumerate(truth.parents):
        if parent >= 0:
            absorbing[:, parent] -= 3.0 * faithful.W_enc[:, child]
    silent = SAEWeights(absorbing, faithful.b_enc, faithful.W_dec, faithful.b_dec)
    before, after = world.measure(faithful, hook).metrics, world.measure(silent, hook).metrics
    assert before["parents_absorbed"] < 0.5 < after["parents_absorbed"]
    assert after["mcc"] == before["mcc"]  # which sees the decoder alone


def test_standard_errors_are_there_where_rows_are_a_sample(world: SimpleNamespace) -> None:
    errors = world.measure(dual_sae(world.truth(HOOKS[0]))).standard_errors
    assert 0 < errors["f1"] < 0.1
    assert "mcc" not in errors
    assert "found" not in errors


def test_more_latents_than_features_cap_uniqueness(world: SimpleNamespace) -> None:
    metrics = world.measure(random_sae(48)).metrics
    assert metrics["uniqueness_cap"] == 0.5
    assert metrics["uniqueness"] <= 0.5


def test_core_measures_rows_alone(world: SimpleNamespace) -> None:
    found = world.measure(dual_sae(world.truth(HOOKS[0])), name="core")
    assert found.metrics["num_rows"] == 6 * 64
    assert -5.0 < found.metrics["explained_variance"] < 1.0
    assert not [name for name in found.metrics if "loss" in name or "kl" in name]
    assert "predictions" not in found.basis


@pytest.fixture
def settings() -> Callable[..., object]:
    def make(**given: object) -> object:
        return EvaluateConfig.model_validate(dict.fromkeys(BENCHMARKS) | given)

    return make


def evaluate(config: object, benchmark: str, cache: Path, root: Path) -> None:
    run(
        config,  # type: ignore[arg-type]
        benchmark=benchmark, model=None, cache=cache, models_folder=root / "models",
        output=root / "results" / benchmark, scratch=root / "scratch", set_ups=root / "set-ups", device="cpu",
        reuse=True,
    )  # fmt: skip


def test_the_stage_runs_what_needs_no_language_model_and_says_why_the_rest_is_not_run(
    world: SimpleNamespace, cache: Path, tmp_path: Path, settings: Callable[..., object]
) -> None:
    save(world.study, "one", dual_sae(world.truth(HOOKS[2])), hook=HOOKS[2])
    latents = {
        "num_held_out_sequences": 6, "num_training_sequences": 0, "num_top_contexts": 3, "num_sampled_firings": 20,
        "num_contexts_per_quantile": 1, "tokens_before": 4, "tokens_after": 2,
    }  # fmt: skip
    config = settings(recovery=CONFIG, core=CORE, latents=latents)
    for name in ("recovery", "core"):
        evaluate(config, name, cache, tmp_path)
        assert read_result(tmp_path / "results" / name / "one.json").benchmark == name
    evaluate(config, "latents", cache, tmp_path)
    why = read_not_run(tmp_path / "results" / "latents", settings=config.latents)  # type: ignore[attr-defined]
    assert why is not None
    assert why.reason.startswith("The activations were made from known features: there is no language model")


def test_on_a_language_model_s_activations_it_says_why_it_is_not_run(study_context: BenchmarkContext) -> None:
    why = BENCHMARK.not_run(CONFIG, study_context)
    assert why is not None
    assert "whose features nobody knows" in why.reason


def test_only_what_is_held_out_is_read(
    world: SimpleNamespace, cache: Path, tmp_path: Path, settings: Callable[..., object]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cache / "held_out", elsewhere / "held_out")
    shutil.copy(cache / "manifest.json", elsewhere)
    save(world.study, "one", random_sae(), hook=HOOKS[0])
    evaluate(settings(recovery=CONFIG), "recovery", elsewhere, tmp_path)
    assert read_result(tmp_path / "results" / "recovery" / "one.json").metrics["found"] < 0.1
