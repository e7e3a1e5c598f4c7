"""The judge behind an address: the real client against a server on this machine, through every kind of failure."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluate.judge import client
from evaluate.judge.budget import Budget
from evaluate.judge.cache import Replies, Reply
from evaluate.judge.client import Access, ServedJudge, access_from_environment
from evaluate.judge.judge import JudgeError, Messages, OverBudget, Stopped
from evaluate.judge.limits import JudgeLimits, Usage
from evaluate.judge.settings import OpenAIJudge
from tests.evaluate.judge.server import Answer, JudgeServer, completion, failure, judge_server

QUESTION: Messages = [{"role": "user", "content": "Which?"}]
SECRET = "sk-of-nobody"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "judge"


def judge_at(
    base_url: str,
    folder: Path,
    limits: JudgeLimits | None = None,
    **settings: Any,  # noqa: ANN401 - of the judge
) -> ServedJudge:
    return ServedJudge(
        OpenAIJudge(kind="openai-compatible", **({"model": "some-model"} | settings)),
        Access(SECRET, base_url),
        replies=folder,
        budget=Budget(limits or JudgeLimits(), folder / "spent.jsonl"),
    )


def test_a_question_is_asked_as_sae_bench_asks_it_and_once(server: JudgeServer, folder: Path) -> None:
    server.behaviour = lambda *_: completion(" None ")
    assert [judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33) for _ in range(3)] == ["None"] * 3
    asked = {"model": "some-model", "messages": QUESTION, "n": 1, "max_tokens": 33, "stream": False}
    assert server.requests == [asked]
    assert server.keys == [f"Bearer {SECRET}"]
    assert Budget(JudgeLimits(), folder / "spent.jsonl").spent() == Usage(1, 10, 2)


@pytest.mark.parametrize("change", [{"model": "other"}, {"temperature": 0.5}, {"token_limit": "max_completion_tokens"}])
def test_another_model_or_parameter_is_another_question(
    server: JudgeServer, folder: Path, change: dict[str, Any]
) -> None:
    server.behaviour = lambda *_: completion("None")
    judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33)
    judge_at(server.base_url, folder, **change).reply(QUESTION, max_tokens=33)
    judge_at(server.base_url, folder).reply(QUESTION, max_tokens=34)
    assert len(server.requests) == 3


def test_neither_key_nor_address_is_written_to_disk(server: JudgeServer, folder: Path) -> None:
    server.behaviour = lambda *_: completion("None")
    judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33)
    kept = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 2
    assert not any(SECRET in text or "127.0.0.1" in text for text in kept)


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_failures_that_pass_are_tried_again(
    server: JudgeServer, folder: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour = lambda _, number: completion("1, 2") if number == 2 else failure(status)
    assert judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33) == "1, 2"
    assert len(server.requests) == 3
    assert f"the judge answered with status {status}; attempt 3 of 6" in capsys.readouterr().err
    assert Budget(JudgeLimits(), folder / "spent.jsonl").spent().requests == 1


def test_a_server_that_says_how_long_to_wait_is_obeyed(
    server: JudgeServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour = lambda _, number: completion("1") if number else failure(429, retry_after="0.25")
    begun = time.monotonic()
    judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33)
    assert time.monotonic() - begun >= 0.25
    assert "attempt 2 of 6 in 0.25 s" in capsys.readouterr().err


def test_a_server_that_is_too_slow_is_asked_again(
    server: JudgeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.3)
    released = threading.Event()

    def slow_at_first(_: dict[str, Any], number: int) -> Answer:
        if number == 0:
            released.wait(5)
        return completion("3")

    server.behaviour = slow_at_first
    assert judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33) == "3"
    released.set()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "message", "num_requests"),
    [
        (failure(401, f"bad key {SECRET}"), r"to take the key in OPENAI_API_KEY, but it refuses it \(status 401\)", 1),
        (failure(403), r"refuses it \(status 403\). Set a key that may use 'some-model'", 1),
        (failure(404, "no model"), "expected the model 'some-model' at .*, got status 404: 'no model'. Correct", 1),
        (failure(400, "too long"), "to take a request to 'some-model', got status 400: 'too long'", 1),
        (failure(429, "pay", "insufficient_quota"), "the account of the judge at .* is used up: 'pay'", 1),
        (failure(429, "slowly"), "got status 429 in 6 attempts: 'slowly'. Run the same command again later", 6),
        (failure(500, "oh"), "got status 500 in 6 attempts: 'oh'", 6),
        (Answer(b"<html>", headers={"Content-Type": "text/html"}), "expected a chat completion as JSON.*b'<html>'", 1),
        (Answer(b'{"choices": '), r"expected a chat completion as JSON .*OPENAI_BASE_URL .* ending in /v1\?", 1),
        (Answer(b'{"choices": []}'), "expected a chat completion as JSON", 1),
        (Answer(b'{"answer": "1"}'), "expected a chat completion as JSON", 1),
    ],
)
def test_failures_that_stay_have_one_message_without_the_key(
    server: JudgeServer, folder: Path, answer: Answer, message: str, num_requests: int
) -> None:
    server.behaviour = lambda *_: answer
    with pytest.raises(JudgeError, match=message) as failed:
        judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33)
    assert SECRET not in str(failed.value)
    assert len(server.requests) == num_requests
    assert not list(folder.rglob("*.json"))


def test_a_server_that_is_down_is_named_without_what_may_be_secret_in_its_address(folder: Path) -> None:
    with judge_server() as gone:
        base_url = gone.base_url
    address = base_url.replace("http://", "http://user:word@")
    with pytest.raises(
        JudgeError, match=rf"at {base_url}, but it could not be reached in 6 attempts. Start the"
    ) as failed:
        judge_at(address, folder).reply(QUESTION, max_tokens=33)
    assert "word" not in str(failed.value)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_an_empty_answer_is_no_answer_and_not_the_prediction_none(
    server: JudgeServer, folder: Path, text: str | None
) -> None:
    server.behaviour = lambda *_: completion(text)
    assert judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33) == "(no answer)"


def test_a_server_that_counts_no_tokens_is_charged_the_estimate(server: JudgeServer, folder: Path) -> None:
    server.behaviour = lambda *_: completion("1", usage=None)
    judge_at(server.base_url, folder).reply(QUESTION, max_tokens=33)
    assert Budget(JudgeLimits(), folder / "spent.jsonl").spent() == Usage(1, 2 + 4, 33)


def test_over_budget_nothing_is_asked_and_what_was_answered_is_still_known(server: JudgeServer, folder: Path) -> None:
    server.behaviour = lambda *_: completion("1")
    judge = judge_at(server.base_url, folder, JudgeLimits(max_requests=1))
    judge.reply(QUESTION, max_tokens=33)
    with pytest.raises(OverBudget, match="1 requests"):
        judge.reply(QUESTION, max_tokens=34)
    assert judge.reply(QUESTION, max_tokens=33) == "1"
    assert len(server.requests) == 1


def test_once_stopped_it_asks_nothing_and_does_not_wait_for_its_next_attempt(server: JudgeServer, folder: Path) -> None:
    server.behaviour = lambda *_: failure(429, retry_after="30")
    judge = judge_at(server.base_url, folder)
    begun = time.monotonic()
    threading.Timer(0.2, judge.stop).start()
    with pytest.raises(Stopped):
        judge.reply(QUESTION, max_tokens=33)
    assert time.monotonic() - begun < 15
    with pytest.raises(Stopped):
        judge.reply(QUESTION, max_tokens=34)
    assert len(server.requests) == 1


def test_a_damaged_reply_is_asked_for_again(folder: Path) -> None:
    replies, request = Replies(folder), {"model": "m"}
    replies.keep(request, Reply(text="1", answered_by="m-1"))
    (path,) = folder.rglob("*.json")
    assert replies.find(request) == Reply(text="1", answered_by="m-1")
    path.write_text(path.read_text()[:-5])
    assert replies.find(request) is None
    path.write_text(json.dumps({"text": 1}))
    assert replies.find(request) is None


def test_a_key_or_an_address_gives_access_and_one_of_them_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert access_from_environment() is None
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    found = access_from_environment()
    assert found == Access(SECRET, None)
    assert SECRET not in repr(found)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert access_from_environment() == Access("none", "http://localhost:8000/v1")
