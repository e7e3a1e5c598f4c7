"""The sentences of the report, from metrics small enough to check by hand."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate.compare.matched_l0 import differing_sparsity
from evaluate.compare.shared_latents import chance_best_match, shared_latents
from evaluate.report.findings import (
    dead_finding,
    geometry_finding,
    identical_finding,
)
from evaluate.report.learned_lambda import controls_finding, lambda_finding, others_finding
from evaluate.report.probing import probing_finding
from store.identity import ModelIdentity
from store.sae.artefact import SAECard
from store.sae.stationary_lambda import stationary_lambda

REFERENCE = Path("references/sparse_probing_gemma-2-2b.json")
METRICS = {
    "core/explained_variance": 0.9,
    "core/ce_loss_score": 0.98,
    "core/kl_div_with_sae": 0.1,
    "core/l0": 50.0,
    "core/mse": 2.0,
    "core/num_dead_latents": 0.0,
    "core/num_constant_latents": 0.0,
    "core/num_rows": 1000.0,
    "geometry/penalty": 400.0,
    "geometry/lower_bound": 384.0,
    "geometry/excess": 16.0,
    "geometry/mean_abs_cosine": 0.05,
    "geometry/mean_max_cosine": 0.3,
    "geometry/effective_rank": 190.0,
    "core/ce_loss_with_sae": 3.1,
    "core/ce_loss_without_sae": 3.0,
    "core/ce_loss_with_ablation": 8.0,
}


def card(name: str = "adaptive", **final: Any) -> SAECard:  # noqa: ANN401
    model = ModelIdentity(
        name="tiny", revision=None, weights_sha256="a", tokenizer_sha256="b", d_model=192, num_layers=4, vocab_size=512,
        bos_token_id=2,
    )  # fmt: skip
    return SAECard(
        format="sae-card/1", name=name, key="k", architecture="relu", form="relu", k=None, d_model=192, d_sae=384,
        hook="blocks.2.hook_resid_post", model=model, cache_digest="c", context_length=128, scale=1.0, seed=0,
        num_steps=100, num_training_rows=1000, train_version=1, variant={"lambda": {"kind": "learned", "start": 1.0}},
        train={}, final=final, weights_sha256="w",
    )  # fmt: skip


@pytest.mark.parametrize("lam", [0.9, 0.1, 0.0123, 1e-3])
def test_the_stationary_lambda_solves_its_equation(lam: float) -> None:
    penalty = -2 * 0.1 * math.log(lam) / lam  # by hand: lambda * P = -2 c log(lambda)
    assert stationary_lambda(penalty, 0.1) == pytest.approx(lam, rel=1e-9)


def test_the_stationary_lambda_is_at_the_floor_when_p_is_1381() -> None:
    assert stationary_lambda(1381.55, 0.1) == pytest.approx(1e-3, rel=1e-4)
    assert stationary_lambda(0.0, 0.1) == 1.0


def learned(state: str, last: float, penalty: float) -> str:
    log = [{"step": 0, "lambda": 1.0}, {"step": 50, "lambda": 0.005}]
    learned_card = card(**{"lambda": last, "lambda_state": state})
    return lambda_finding(learned_card, log, penalty=penalty, regularization=0.1).text


def test_a_learned_lambda_on_its_curve_is_reported_with_its_stationary_value() -> None:
    # P = 2 * 0.1 * log(100) / 0.01 = 92.1
    text = learned("on its curve", 0.0101, 20 * math.log(100))
    assert "started at 1, ranged from 0.005 to 1, and ended at 0.0101. It has settled" in text
    assert "at the final P of 92.1 its stationary value is 0.01" in text


def test_a_learned_lambda_on_the_floor_is_reported_as_such() -> None:
    text = learned("on the floor", 1e-3, 5000.0)
    assert "adaptive: the learned lambda started at 1, ranged from 0.001 to 1, and ended at 0.001" in text
    assert "It ended at its lower limit of 0.001: at the final P of 5,000" in text
    assert "which is below that" in text


def test_a_learned_lambda_that_still_moves_is_reported_to_depend_on_when_training_stopped() -> None:
    assert "so its last value depends on when training stopped" in learned("still moving", 0.5, 400.0)


def with_lambda(name: str, settings: dict[str, Any], **final: float) -> SAECard:
    return card(name, **final).model_copy(update={"variant": {"lambda": settings}})


def test_lambdas_that_follow_training_are_reported_with_their_range_over_seeds() -> None:
    hyper = {"kind": "hypergradient", "start": 0.01}
    cards = {
        "a": with_lambda("a", hyper, **{"lambda": 2e-4, "lambda_mean": 0.003}),
        "b": with_lambda("b", hyper, **{"lambda": 5e-4, "lambda_mean": 0.003}),
        "c": with_lambda("c", {"kind": "fixed", "value": 1.0}, **{"lambda": 1.0}),
    }
    found = others_finding(cards)
    assert found is not None
    assert found.text == (
        "Lambdas that follow training ended: hypergradient from 0.01 at 0.0002 to 0.0005 (mean over training 0.003)."
    )
    assert others_finding({"c": cards["c"]}) is None


def test_controls_are_reported_with_the_lambda_that_they_took() -> None:
    matched = {"kind": "matched", "of": "adaptive", "take": "mean"}
    found = controls_finding({"m": with_lambda("m", matched, **{"lambda": 0.0625})})
    assert found is not None
    assert found.text == "Controls had a constant lambda throughout: 0.0625, the mean lambda of adaptive (m)."
    assert controls_finding({"c": with_lambda("c", {"kind": "fixed", "value": 1.0}, **{"lambda": 1.0})}) is None


def test_a_learned_lambda_without_a_state_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"expected final.lambda_state of adaptive to be .* got 'lost'. Train it again"
    ):
        learned("lost", 0.5, 400.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"core/l0": 0.0, "core/num_dead_latents": 384.0, "core/num_constant_latents": 384.0},
        {"core/l0": 0.004, "core/num_dead_latents": 380.0, "core/num_constant_latents": 380.0},
        {"core/l0": 384.0, "core/num_dead_latents": 0.0, "core/num_constant_latents": 384.0},
    ],
)
def test_an_sae_is_called_dead_when_nothing_fires_or_nothing_varies(changed: dict[str, float]) -> None:
    finding = dead_finding("fixed-1", d_sae=384, metrics=METRICS | changed)
    assert finding is not None
    assert finding.kind == "warning"
    assert finding.text.startswith("fixed-1: this SAE is dead.")


def test_a_living_sae_is_not_called_dead_and_one_that_is_mostly_dead_is_called_that() -> None:
    assert dead_finding("baseline", d_sae=384, metrics=METRICS) is None
    mostly = dead_finding("baseline", d_sae=384, metrics=METRICS | {"core/num_dead_latents": 300.0})
    assert mostly is not None
    assert "most of this SAE is dead. 300 of 384 latents never fire on 1000 held-out rows." in mostly.text


def test_the_published_reference_result_is_recognised_as_chance_level() -> None:
    finding = probing_finding("reference", json.loads(REFERENCE.read_text()))
    assert finding is not None
    assert finding.kind == "warning"
    assert "every sparse probing accuracy on latents is exactly 0.5, on all 8 data sets" in finding.text
    assert "constant or dead" in finding.text
    assert "own activations reach 0.9393 on the same task, and 0.6843 from a single channel" in finding.text
    assert "These numbers say nothing about the method and are not scores" in finding.text


def test_a_probing_result_near_chance_is_called_that_and_a_good_one_is_left_alone() -> None:
    result = json.loads(REFERENCE.read_text())
    near = copy.deepcopy(result)
    near["eval_result_metrics"]["sae"]["sae_top_1_test_accuracy"] = 0.505
    finding = probing_finding("x", near)
    assert finding is not None
    assert "all within 0.01 of 0.5, chance level" in finding.text
    good = copy.deepcopy(result)
    good["eval_result_details"][0]["sae_top_1_test_accuracy"] = 0.8
    assert probing_finding("x", good) is None


def test_a_probing_result_without_accuracies_on_latents_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected accuracies of probes on latents in the sparse probing result of x"):
        probing_finding("x", {"eval_result_metrics": {"llm": {}, "sae": {}}})


def test_comparisons_at_other_sparsity_are_named_with_how_far_off_they_are() -> None:
    l0 = {"baseline": 50.0, "close": 54.9, "far": 60.0, "low": 40.0}
    reference: dict[str, str | None] = dict.fromkeys(l0, "baseline")
    assert differing_sparsity(l0, reference) == {"far": pytest.approx(0.2), "low": pytest.approx(-0.2)}


def test_p_is_set_against_its_bound_and_near_duplicates_that_it_does_not_see_are_counted() -> None:
    metrics = {"baseline": METRICS | {"geometry/penalty": 900.0, "geometry/excess": 516.0}, "fixed-1": METRICS}
    text = geometry_finding(metrics, {"baseline": 1.0, "fixed-1": 2.5}).text
    assert "P ended at baseline 900 and fixed-1 400; its lower bound is 384, which no decoder of this shape" in text
    assert "fixed-1 is within 5% of the bound" in text
    assert "(cosine above 0.9): baseline 1 and fixed-1 2.5." in text
    assert "In fixed-1 P is at its bound nevertheless: P does not see them." in text


def test_variants_that_are_the_same_to_the_byte_are_named() -> None:
    finding = identical_finding({"a": "1", "b": "2", "c": "1"})
    assert finding is not None
    assert finding.text == "The same SAE to the byte: a and c. Their settings made no difference."
    assert identical_finding({"a": "1", "b": "2"}) is None


def test_latents_are_matched_by_their_largest_cosine_whatever_their_order() -> None:
    decoder = torch.eye(3)
    shared = shared_latents({"a": decoder, "b": decoder[[2, 0, 1]], "c": -decoder})
    assert shared["a"]["b"] == 1.0
    assert shared["a"]["c"] == 0.0  # the largest of -1, 0, 0


def test_random_decoders_match_about_as_much_as_the_report_says() -> None:
    generator = torch.Generator().manual_seed(0)
    random = {name: torch.randn(256, 128, generator=generator) for name in "ab"}
    assert shared_latents(random)["a"]["b"] == pytest.approx(chance_best_match(256, 128), abs=0.01)
