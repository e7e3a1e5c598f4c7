"""meta_structure: sae-bench's own numbers, from the same seed whatever ran before."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from sae_bench.custom_saes.relu_sae import ReluSAE
from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig
from sae_bench.evals.meta_structure.main import run_eval_single_sae

from evaluate.benchmarks.benchmark import EvaluatedSAE
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.meta_structure import BENCHMARK, MetaStructureConfig
from evaluate.isolation import undisturbed
from evaluate.results import read_result
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import measured
from tests.evaluate.conftest import evaluate

SETTINGS = {
    "random_seed": 42, "width_ratio": 0.25, "k": 4, "train_steps": 30, "train_batch_size": 64, "learning_rate": 5e-3,
    "weight_decay": 0.0, "autocast": False, "eval_batch_size": 24, "dead_feature_window": 2000,
    "feature_sampling_window": 200, "dtype": "float32",
}  # fmt: skip
CONFIG = MetaStructureConfig(**SETTINGS)
StudySAE = Callable[[SAEWeights], EvaluatedSAE]


def test_the_numbers_are_those_of_sae_bench_by_itself(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    sae = study_sae(saes.random(1, spread=0.2))
    ours = measured("meta_structure", CONFIG, study_context, sae)
    plain = ReluSAE(32, 64, "any", 1, torch.device("cpu"), torch.float32)
    plain.W_dec.data = sae.weights.W_dec.clone()
    with undisturbed(seed=7):
        torch.manual_seed(42)
        output = run_eval_single_sae("any", "any", plain, MetaStructureEvalConfig(**SETTINGS), "cpu")
    theirs = output.eval_result_metrics.meta_structure
    assert ours.metrics == {
        "decoder_fraction_variance_explained": theirs.decoder_fraction_variance_explained,
        "final_reconstruction_mse": theirs.final_reconstruction_mse,
    }
    # Only the mean of squares is rounded otherwise: 1 - mse * F * d / sum ||w - mean(w)||^2.
    W_dec = sae.weights.W_dec.double()
    total = float((W_dec - W_dec.mean(dim=0)).square().sum())
    expected = 1.0 - theirs.final_reconstruction_mse * W_dec.numel() / total
    assert ours.metrics["decoder_fraction_variance_explained"] == pytest.approx(expected, abs=1e-5)
    assert (ours.basis, ours.details) == ({"latents": 64, "seeds": 1}, {"meta_latents": 16})


def test_a_result_depends_on_its_seed_and_not_on_what_was_drawn_before(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    sae = study_sae(saes.random(1))
    first = BENCHMARK.measure(sae, CONFIG, study_context, None)
    torch.rand(3)
    assert BENCHMARK.measure(sae, CONFIG, study_context, None) == first
    other = BENCHMARK.measure(sae, CONFIG.model_copy(update={"random_seed": 1}), study_context, None)
    assert other.metrics != first.metrics


def test_a_run_over_two_saes_leaves_a_result_of_each_whatever_their_order(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    study.config = study.config.model_copy(update={"meta_structure": CONFIG})
    add_sae("one", saes.random(1))
    add_sae("two", saes.random(2))
    evaluate(study, "meta_structure", reuse=False)
    before = read_result(study.results / "meta_structure" / "two.json")
    add_sae("one", saes.random(3))
    evaluate(study, "meta_structure", reuse=False)
    assert read_result(study.results / "meta_structure" / "two.json") == before


def test_a_decoder_of_one_direction_is_said_to_have_no_variance(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    plain = saes.random(1)
    one = dataclasses.replace(plain, W_dec=plain.W_dec[:1].repeat(64, 1))
    (remark,) = measured("meta_structure", CONFIG, study_context, study_sae(one)).remarks
    assert remark.startswith("All decoder directions are the same")


def test_what_it_measures_says_that_a_penalty_on_cosines_lowers_it_by_construction() -> None:
    assert "A penalty on the decoder's cosines lowers it by construction" in BENCHMARK.measures
    assert BENCHMARK.metrics["decoder_fraction_variance_explained"] == "lower"
