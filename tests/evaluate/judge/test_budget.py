"""What a judge may cost: estimates, limits, and a ledger that outlives runs and is shared by processes."""

import threading
from pathlib import Path

import pytest

from evaluate.judge.budget import Budget, estimated_tokens, estimated_usage
from evaluate.judge.judge import OverBudget
from evaluate.judge.limits import JudgeLimits, Usage, in_words

ONE = Usage(1, 100, 10)


def test_an_estimate_counts_four_characters_a_token_and_an_answer_of_full_length() -> None:
    assert [estimated_tokens(length) for length in (0, 1, 4, 5)] == [0, 1, 1, 2]
    messages = [{"role": "system", "content": "x" * 40}, {"role": "user", "content": "y" * 41}]
    assert estimated_usage(messages, max_tokens=30) == Usage(1, 21 + 2 * 4, 30)  # type: ignore[arg-type]


def test_money_is_tokens_times_prices_of_a_million() -> None:
    limits = JudgeLimits(input_price=0.15, output_price=0.6)
    assert limits.cost(Usage(5, 2_000_000, 500_000)) == pytest.approx(0.3 + 0.3)
    assert in_words(Usage(5, 2_000_000, 500_000), limits) == (
        "5 requests, 2,000,000 tokens in and 500,000 out, a cost of 0.6"
    )
    assert in_words(ONE, JudgeLimits()) == "1 requests, 100 tokens in and 10 out"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (JudgeLimits(max_requests=2), r"2 requests \(--judge-max-requests\)"),
        (JudgeLimits(max_tokens=329), r"329 tokens \(--judge-max-tokens\)"),
        (JudgeLimits(max_cost=0.00032, input_price=1.0, output_price=1.0), r"a cost of 0.00032 \(--judge-max-cost\)"),
    ],
)
def test_a_request_that_could_exceed_a_limit_is_refused_before_it_is_made(
    limits: JudgeLimits, words: str, tmp_path: Path
) -> None:
    budget = Budget(limits, tmp_path / "spent.jsonl")
    for _ in range(2):
        budget.reserve(ONE)
        budget.settle(ONE, ONE)
    with pytest.raises(OverBudget, match=f"expected the judge to stay within {words}.*Replies are kept"):
        budget.reserve(ONE)


def test_a_request_waits_for_those_on_their_way_since_they_may_take_less(tmp_path: Path) -> None:
    budget = Budget(JudgeLimits(max_tokens=200), tmp_path / "spent.jsonl")
    budget.reserve(ONE)
    second = threading.Thread(target=budget.reserve, args=(ONE,))
    second.start()
    second.join(0.1)
    assert second.is_alive()  # 110 and 110 tokens would be too many
    budget.settle(ONE, Usage(1, 80, 10))
    second.join(10)
    assert not second.is_alive()


def test_what_was_reserved_for_a_failed_request_is_free_again_and_what_was_used_is_not(tmp_path: Path) -> None:
    budget = Budget(JudgeLimits(max_requests=1), tmp_path / "spent.jsonl")
    budget.reserve(ONE)
    budget.release(ONE)
    budget.reserve(ONE)
    budget.settle(ONE, Usage(1, 90, 5))
    assert budget.spent() == Usage(1, 90, 5)
    with pytest.raises(OverBudget, match="1 requests, 90 tokens in and 5 out so far"):
        budget.reserve(ONE)


def test_the_ledger_is_of_all_runs_and_processes(tmp_path: Path) -> None:
    here, there = (Budget(JudgeLimits(max_requests=3), tmp_path / "judge" / "spent.jsonl") for _ in range(2))
    here.settle(Usage(), ONE)
    assert there.spent() == ONE
    there.settle(Usage(), ONE)
    here.settle(Usage(), ONE)
    assert here.spent() == there.spent() == Usage(3, 300, 30)
    with pytest.raises(OverBudget):
        Budget(JudgeLimits(max_requests=3), tmp_path / "judge" / "spent.jsonl").reserve(ONE)


def test_half_a_line_of_a_process_that_just_writes_waits_and_a_foreign_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spent.jsonl"
    path.write_text("[1, 100, 10]\n[1, 1")
    budget = Budget(JudgeLimits(), path)
    assert budget.spent() == ONE
    with path.open("a") as file:
        file.write("00, 10]\n")
    assert budget.spent() == ONE + ONE
    path.write_text("hello\n")
    with pytest.raises(ValueError, match=r"expected a line of three numbers in .*spent.jsonl, got b'hello'"):
        Budget(JudgeLimits(), path).spent()


def test_a_limit_of_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="expected prices beside --judge-max-cost, got none"):
        JudgeLimits(max_cost=1.0)
