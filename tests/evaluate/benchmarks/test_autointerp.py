"""autointerp through sae-bench's own code: its numbers, what SAEs share, who judges, and how judges fail."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sae_bench.evals.autointerp import main as plain
from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig

from evaluate.benchmarks import autointerp
from evaluate.benchmarks.autointerp import choose_latents, expected_usage
from evaluate.judge import client
from evaluate.judge.limits import JudgeLimits, Usage
from evaluate.judge.settings import OpenAIJudge
from evaluate.loaded_model import LoadedModel
from evaluate.results import BenchmarkResult, read_not_run, read_result
from evaluate.sae_bench import to_sae_bench
from evaluate.task import BenchmarkFailed
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae
from tests.evaluate.conftest import HOOK, evaluate
from tests.evaluate.judge.server import (
    Answer,
    Behaviour,
    JudgeServer,
    as_the_lexical_baseline,
    completion,
    failure,
    judge_server,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_judge_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge on this machine, and the environment that leads to it."""
    with judge_server() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.fixture
def two_saes(saes: SimpleNamespace, add_sae: Callable[..., None]) -> None:
    add_sae("baseline", saes.random(1))
    add_sae("fixed-1", saes.random(2), settings={"kind": "fixed", "value": 1.0})


def judged_by_the_server(study: SimpleNamespace) -> None:
    judge = OpenAIJudge(kind="openai-compatible", model="some-model")
    settings = study.config.autointerp.model_copy(update={"judge": judge})
    study.config = study.config.model_copy(update={"autointerp": settings})


def result(study: SimpleNamespace, variant: str = "baseline") -> BenchmarkResult:
    return read_result(study.results / "autointerp" / f"{variant}.json")


def is_explaining(request: dict[str, Any]) -> bool:
    return "The activating documents" in request["messages"][-1]["content"]


def by_phase(explanation: str, prediction: str) -> Behaviour:
    return lambda request, _: completion(explanation if is_explaining(request) else prediction)


@pytest.mark.usefixtures("two_saes")
def test_scores_are_those_of_sae_bench_by_itself_with_the_same_judge(
    study: SimpleNamespace, server: JudgeServer, tmp_path: Path
) -> None:
    """Plain sae-bench: its own client, the language model itself and no memo, one SAE at a time."""
    tokens = torch.from_numpy(ActivationCache(study.cache).held_out_tokens().astype(np.int64))
    model = LoadedModel(study.model_folder, name="tiny", dtype=torch.float32, device=CPU)
    torch.save(tokens, tmp_path / f"tiny_{tokens.numel()}_tokens_12_ctx.pt")
    evaluate(study, "autointerp", reuse=False)
    for variant in ("baseline", "fixed-1"):
        ours = result(study, variant)
        weights, card = load_sae(study.models / variant)
        of_sae_bench = plain.run_eval_single_sae(
            AutoInterpEvalConfig(
                model_name="tiny", n_latents=None, override_latents=ours.details["chosen"], llm_context_size=12,
                llm_batch_size=4, llm_dtype="float32", total_tokens=tokens.numel(), buffer=2,
                n_top_ex_for_generation=3, n_iw_sampled_ex_for_generation=2, n_top_ex_for_scoring=1,
                n_random_ex_for_scoring=3, n_iw_sampled_ex_for_scoring=1,
            ),
            to_sae_bench(weights, card, device=CPU), model.hooked, "cpu", str(tmp_path), "no-key", torch.zeros(64),
        )  # fmt: skip
        torch.set_grad_enabled(True)
        found = ours.details["latents"]
        assert len(of_sae_bench) == len(found) == 6
        for latent, expected in of_sae_bench.items():
            entry = found[str(latent)]
            assert entry["explanation"] == expected["explanation"]
            assert entry["predictions"] == expected["predictions"]
            assert entry["correct seqs"] == expected["correct seqs"]
            assert entry["score"] == pytest.approx(expected["score"], abs=1e-4)
        scores = torch.tensor([entry["score"] for entry in of_sae_bench.values()])
        assert ours.metrics["autointerp_score"] == pytest.approx(scores.mean().item(), abs=1e-6)
        assert ours.metrics["autointerp_std_dev"] == pytest.approx(scores.std().item(), abs=1e-6)
    assert {request["model"] for request in server.requests} == {"gpt-4o-mini"}  # only sae-bench has asked the server


@pytest.mark.usefixtures("two_saes")
def test_a_judge_behind_an_address_gives_the_scores_that_it_gives_at_hand(
    study: SimpleNamespace, server: JudgeServer
) -> None:
    evaluate(study, "autointerp", reuse=False)
    at_hand = result(study)
    judged_by_the_server(study)
    evaluate(study, "autointerp", reuse=False)
    served = result(study)
    assert served.metrics == at_hand.metrics
    assert served.details["latents"] == at_hand.details["latents"]
    assert len(server.requests) == 2 * 2 * 6
    assert served.key != at_hand.key
    assert served.inputs["judge"] == {"name": "some-model", "version": "chat completions"}
    assert at_hand.inputs["judge"] == {"name": "lexical baseline", "version": 1}


def test_the_language_model_runs_once_per_sweep_and_not_at_all_for_one_more_sae(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    calls = []
    original = TransformerBridge.run_with_cache

    def counting(self: Any, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - passed on
        calls.append(len(arguments[0]))
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(TransformerBridge, "run_with_cache", counting)
    add_sae("one", saes.random(1))
    add_sae("two", saes.random(2))
    evaluate_all("autointerp")
    assert calls == [4, 4]  # 8 sequences, in batches of 4
    add_sae("three", saes.random(3))
    monkeypatch.setattr("evaluate.loaded_model.load_bridge", lambda *_, **__: pytest.fail("it was loaded"))
    evaluate_all("autointerp")
    assert calls == [4, 4]
    assert result(study, "three").metrics["num_latents_scored"] == 6


@pytest.mark.usefixtures("two_saes")
def test_a_result_depends_neither_on_the_other_saes_nor_on_their_order(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    evaluate_all("autointerp")
    together = (study.results / "autointerp" / "fixed-1.json").read_bytes()
    (study.models / "baseline").rename(study.root / "gone")
    evaluate_all("autointerp", reuse=False)
    assert (study.results / "autointerp" / "fixed-1.json").read_bytes() == together


@pytest.mark.usefixtures("two_saes")
def test_floors_stand_beside_the_score_and_are_what_judges_of_one_answer_get(
    study: SimpleNamespace, server: JudgeServer
) -> None:
    judged_by_the_server(study)
    server.behaviour = by_phase("This neuron activates on x", "None")
    evaluate(study, "autointerp", reuse=False)
    none = result(study)
    assert none.metrics["autointerp_score"] == pytest.approx(none.metrics["floor_always_none"])
    assert none.metrics["floor_always_none"] + none.metrics["floor_always_all"] == pytest.approx(1.0)
    assert (none.metrics["recall"], none.metrics["specificity"], none.metrics["balanced_score"]) == (0.0, 1.0, 0.5)
    assert any("takes no example of any latent for active" in remark for remark in none.remarks)
    # Another model, since the first one's replies are kept.
    judge = OpenAIJudge(kind="openai-compatible", model="another")
    settings = study.config.autointerp.model_copy(update={"judge": judge})
    study.config = study.config.model_copy(update={"autointerp": settings})
    server.behaviour = by_phase("This neuron activates on x", "1, 2, 3, 4 and 5")
    evaluate(study, "autointerp", reuse=False)
    everything = result(study)
    assert everything.metrics["autointerp_score"] == pytest.approx(everything.metrics["floor_always_all"])
    assert everything.metrics["balanced_score"] == 0.5
    assert any("takes every example of every latent for active" in remark for remark in everything.remarks)


@pytest.mark.usefixtures("two_saes")
def test_random_examples_where_the_latent_fires_are_found(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    """Looked up again, from the SAE and the language model: is there a window of that text where the latent fires?"""
    evaluate_all("autointerp")
    found = result(study)
    firing = [set(entry["fires in"]) for entry in found.details["latents"].values()]
    labelled = [set(entry["correct seqs"]) for entry in found.details["latents"].values()]
    assert all(active <= fires for active, fires in zip(labelled, firing, strict=True))
    extra = [len(fires - active) for active, fires in zip(labelled, firing, strict=True)]
    assert found.metrics["firing_random_examples"] == pytest.approx(np.mean(extra) / 3)  # 3 random ones a latent
    assert 0.0 < found.metrics["firing_random_examples"] < 1.0


def test_latents_are_the_first_alive_ones_of_one_order_of_their_numbers() -> None:
    everywhere = np.full(50, 0.5)
    first = choose_latents(everywhere, num_tokens=100, num_latents=5, threshold=15, seed=42)
    assert len(set(first)) == 5
    without = everywhere.copy()
    without[first[1]] = 0.15  # fires on 15 of 100 tokens: dead in sae-bench's words
    longer = choose_latents(everywhere, num_tokens=100, num_latents=6, threshold=15, seed=42)
    assert choose_latents(without, num_tokens=100, num_latents=5, threshold=15, seed=42) == [longer[0], *longer[2:]]
    assert choose_latents(everywhere, num_tokens=100, num_latents=5, threshold=15, seed=43) != first
    assert choose_latents(everywhere * 0, num_tokens=100, num_latents=5, threshold=15, seed=42) == []


def test_an_sae_of_dead_latents_has_zeros_and_words(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], evaluate_all: Callable[..., None]
) -> None:
    add_sae("baseline", saes.dead())
    evaluate_all("autointerp")
    found = result(study)
    assert set(found.metrics.values()) == {0.0}
    assert found.basis["latents"] == 0
    assert any("None of the 64 latents fires often enough to be explained" in remark for remark in found.remarks)


@pytest.mark.usefixtures("two_saes")
def test_answers_that_cannot_be_read_are_counted_and_shown(study: SimpleNamespace, server: JudgeServer) -> None:
    judged_by_the_server(study)
    scored: list[str] = []

    def sometimes_chatty(request: dict[str, Any], number: int) -> Answer:
        if is_explaining(request):
            return as_the_lexical_baseline(request, number)
        scored.append("")
        return completion("I think <b>1</b>") if len(scored) in (1, 2) else completion("1")

    server.behaviour = sometimes_chatty
    evaluate(study, "autointerp", reuse=False)
    found = result(study)
    assert found.metrics["num_latents_scored"] == found.basis["latents"] == 4
    assert found.metrics["num_latents_unreadable"] == 2
    unread = [entry for entry in found.details["latents"].values() if "score" not in entry]
    assert [entry["unreadable_answer"] for entry in unread] == ["I think <b>1</b>"] * 2
    assert any(remark.startswith("2 latents are left out") for remark in found.remarks)


@pytest.mark.usefixtures("two_saes")
def test_a_judge_none_of_whose_answers_can_be_read_is_a_failure(study: SimpleNamespace, server: JudgeServer) -> None:
    judged_by_the_server(study)
    server.behaviour = by_phase("x", "yes, certainly")
    with pytest.raises(BenchmarkFailed, match="none that could be read for 6 latents, such as 'yes, certainly'"):
        evaluate(study, "autointerp", reuse=False)


@pytest.mark.usefixtures("two_saes")
def test_without_key_and_address_it_is_not_run_and_says_why(study: SimpleNamespace) -> None:
    judged_by_the_server(study)
    evaluate(study, "autointerp", reuse=False)
    why = read_not_run(study.results / "autointerp", settings=study.config.autointerp)
    assert why is not None
    assert why.reason == (
        "The judge some-model needs a key or an address, and neither OPENAI_API_KEY nor OPENAI_BASE_URL is set."
    )
    assert "judge: {kind: lexical}" in why.advice


@pytest.mark.usefixtures("two_saes")
def test_a_wrong_key_ends_the_run_with_one_message_and_few_requests(
    study: SimpleNamespace, server: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    judged_by_the_server(study)
    server.behaviour = lambda *_: failure(401)
    with pytest.raises(BenchmarkFailed, match=r"variant baseline: expected the judge at .* to take"):
        evaluate(study, "autointerp", reuse=False)
    assert len(server.requests) <= 6  # those of the first variant that were on their way
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.usefixtures("two_saes")
def test_after_an_error_in_the_middle_what_was_answered_is_not_asked_again(
    study: SimpleNamespace, server: JudgeServer
) -> None:
    judged_by_the_server(study)
    server.behaviour = lambda request, number: (
        failure(400, "I am ill") if number >= 17 else as_the_lexical_baseline(request, number)
    )
    with pytest.raises(
        BenchmarkFailed, match=r"variant fixed-1: .*got status 400: 'I am ill'.*finished variants are kept"
    ):
        evaluate(study, "autointerp", reuse=False)
    asked = len(server.requests)
    server.behaviour = as_the_lexical_baseline
    evaluate(study, "autointerp", reuse=False)
    assert len(server.requests) - asked == 24 - 17
    assert sorted(path.name for path in (study.results / "autointerp").iterdir()) == ["baseline.json", "fixed-1.json"]
    server.behaviour = lambda *_: failure(500)
    asked = len(server.requests)
    (study.results / "autointerp" / "baseline.json").unlink()
    evaluate(study, "autointerp", reuse=False)  # measured anew, from kept replies alone
    assert len(server.requests) == asked


@pytest.mark.usefixtures("two_saes")
def test_over_budget_it_stops_says_so_and_continues_when_the_limit_is_raised(
    study: SimpleNamespace, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judged_by_the_server(study)
    with pytest.raises(
        BenchmarkFailed, match=r"stay within 20 requests .*, but the next request could exceed it: 20 req"
    ):
        evaluate(study, "autointerp", reuse=False, judge_limits=JudgeLimits(max_requests=20))
    assert len(server.requests) == 20
    told = capsys.readouterr().err
    assert "2 SAEs x 6 latents ask some-model at most 24 requests, " in told
    assert "the judge may stop before the end, at 20 requests (--judge-max-requests)" in told
    limits = JudgeLimits(max_requests=24, input_price=1.0, output_price=2.0)
    evaluate(study, "autointerp", reuse=False, judge_limits=limits)
    assert len(server.requests) == 24
    told = capsys.readouterr().err
    assert "so far some-model was asked 20 requests, 200 tokens in and 40 out, a cost of 0.00028" in told


def test_the_estimate_is_of_all_saes_and_full_answers(study: SimpleNamespace) -> None:
    usage = expected_usage(study.config.autointerp, num_saes=3, characters_per_token=4.0)
    # 3 x 6 latents; 5 + 5 examples of 5 tokens (20 characters and 5 around them), and twice 1800 of instructions.
    assert usage == Usage(requests=36, input_tokens=18 * (3600 + 10 * 25 + 2) // 4, output_tokens=18 * (30 + 10 + 5))


@pytest.mark.usefixtures("two_saes")
def test_an_interrupted_run_asks_nothing_more_and_continues(study: SimpleNamespace, server: JudgeServer) -> None:
    judged_by_the_server(study)

    def interrupting(request: dict[str, Any], number: int) -> Answer:
        if number == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return as_the_lexical_baseline(request, number)

    server.behaviour = interrupting
    with pytest.raises(KeyboardInterrupt):
        evaluate(study, "autointerp", reuse=False)
    asked = len(server.requests)
    assert 9 <= asked < 24
    server.behaviour = as_the_lexical_baseline
    evaluate(study, "autointerp", reuse=False)
    assert len(server.requests) == 24
    assert asyncio.get_event_loop_policy() is not None


@pytest.mark.usefixtures("two_saes")
def test_a_server_that_is_down_is_named(study: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with judge_server() as gone:
        monkeypatch.setenv("OPENAI_BASE_URL", gone.base_url)
    judged_by_the_server(study)
    with pytest.raises(BenchmarkFailed, match="could not be reached in 6 attempts"):
        evaluate(study, "autointerp", reuse=False)


@pytest.mark.usefixtures("two_saes")
def test_the_same_question_is_asked_whatever_the_order_of_answers(study: SimpleNamespace, server: JudgeServer) -> None:
    """sae-bench draws the numbers of its sample answer when a reply arrives: kept replies would never be found."""
    judged_by_the_server(study)
    evaluate(study, "autointerp", reuse=False)
    first = {json.dumps(request["messages"]) for request in server.requests}
    server.requests.clear()
    random.seed(99)
    study.root.joinpath("data", ".judge").rename(study.root / "elsewhere")

    def backwards(request: dict[str, Any], number: int) -> Answer:
        time.sleep(0.05 * (number % 3 == 0))
        return as_the_lexical_baseline(request, number)

    server.behaviour = backwards
    evaluate(study, "autointerp", reuse=False)
    assert {json.dumps(request["messages"]) for request in server.requests} == first


@pytest.mark.usefixtures("two_saes")
def test_threads_that_draw_random_numbers_meanwhile_change_nothing(study: SimpleNamespace) -> None:
    """Those of a Dask worker do."""
    evaluate(study, "autointerp", reuse=False)
    before = result(study)
    ends = threading.Event()

    def draw() -> None:
        while not ends.wait(0.0001):
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        evaluate(study, "autointerp", reuse=False)
    finally:
        ends.set()
        thread.join()
    assert result(study) == before


def test_text_too_short_for_the_buffer_is_refused_before_anything_runs(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], evaluate_all: Callable[..., None]
) -> None:
    add_sae("baseline", saes.random(1))
    settings = study.config.autointerp.model_copy(update={"buffer": 6})
    study.config = study.config.model_copy(update={"autointerp": settings})
    with pytest.raises(BenchmarkFailed, match="expected sequences longer than twice the buffer of 6 tokens, got 12"):
        evaluate_all("autointerp")


def test_its_needs_and_hooks_are_declared() -> None:
    assert autointerp.BENCHMARK.needs == {"language_model", "held_out_tokens", "judge"}
    assert HOOK == "blocks.1.hook_resid_post"
