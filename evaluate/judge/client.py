"""A judge behind any server of OpenAI's protocol (chat completions), through the `openai` client.

Answers are kept on disk, failures that pass are tried again, and those that stay end the run with one message. The key
is never written anywhere, and of the address only what an error message needs.
"""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ValidationError

from evaluate.judge.budget import Budget, estimated_usage
from evaluate.judge.cache import Replies, Reply
from evaluate.judge.judge import NO_ANSWER, JudgeError, Messages, Stopped
from evaluate.judge.limits import Usage
from evaluate.judge.settings import OpenAIJudge

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
"""Before the second attempt; then twice as long each time, or what the server asks for."""
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Access:
    """Where the judge is and the key to it, from the environment."""

    key: str
    base_url: str | None
    """None is OpenAI's own address."""

    def __repr__(self) -> str:
        return f"Access({self.place()})"

    def place(self) -> str:
        """The address for messages, without what may be secret in it."""
        if self.base_url is None:
            return "OpenAI"
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def access_from_environment() -> Access | None:
    """OPENAI_API_KEY and OPENAI_BASE_URL; None where neither is set. A server of one's own may need no key."""
    key, base_url = os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_BASE_URL") or None
    if not key and base_url is None:
        return None
    return Access(key=key or "none", base_url=base_url)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Answer(BaseModel):
    """What is read of an answer; servers add much else."""

    choices: list[_Choice]
    model: str = ""
    usage: _Usage | None = None


class ServedJudge:
    """A `Judge` that asks a server, within a budget, what it has not asked before."""

    def __init__(self, settings: OpenAIJudge, access: Access, *, replies: Path, budget: Budget) -> None:
        self._settings = settings
        self._access = access
        self._replies = Replies(replies)
        self._budget = budget
        self._stopped = threading.Event()
        self._client = openai.OpenAI(
            api_key=access.key, base_url=access.base_url, timeout=TIMEOUT_SECONDS, max_retries=0
        )

    def stop(self) -> None:
        """Ends all waiting; see `Judge.stop`."""
        self._stopped.set()

    def reply(self, messages: Messages, *, max_tokens: int) -> str:
        """The answer, kept or asked for.

        Raises:
            JudgeError: the server refuses, cannot be reached, or answers in another protocol.
            OverBudget: the request could exceed a limit.
        """
        request: dict[str, Any] = {
            "model": self._settings.model,
            "messages": messages,
            "n": 1,
            self._settings.token_limit: max_tokens,
        }
        if self._settings.temperature is not None:
            request["temperature"] = self._settings.temperature
        kept = self._replies.find(request)
        if kept is not None:
            return kept.text
        wanted = estimated_usage(messages, max_tokens=max_tokens)
        self._refuse_if_stopped()
        self._budget.reserve(wanted)
        try:
            answer = self._ask(request)
        except BaseException:
            self._budget.release(wanted)
            raise
        used = wanted if answer.usage is None else _counted(answer.usage)
        self._budget.settle(wanted, used)
        text = (answer.choices[0].message.content or "").strip() or NO_ANSWER
        self._replies.keep(request, Reply(text=text, answered_by=answer.model))
        return text

    def _refuse_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped("the judge is asked nothing more, because the run ends")

    def _ask(self, request: dict[str, Any]) -> _Answer:
        """One answer, after as many attempts as it takes."""
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            self._refuse_if_stopped()
            try:
                response = self._client.chat.completions.with_raw_response.create(**request, stream=False)
                return self._read(response.http_response.content)
            except (openai.APIStatusError, openai.APIConnectionError) as error:  # a timeout is one of the latter
                if attempt == ATTEMPTS or not _passes(error):
                    raise JudgeError(self._explain(error, attempts=attempt)) from error
                seconds = min(LONGEST_WAIT_SECONDS, _asked_to_wait(error) or wait)
                print(
                    f"evaluate: the judge {_what(error)}; attempt {attempt + 1} of {ATTEMPTS} in {seconds:g} s",
                    file=sys.stderr,
                )
                self._stopped.wait(seconds)
                wait *= 2.0
        raise AssertionError("the last attempt returns or raises")

    def _read(self, content: bytes) -> _Answer:
        try:
            answer = _Answer.model_validate_json(content)
        except ValidationError as error:
            raise JudgeError(self._other_protocol(content)) from error
        if not answer.choices:
            raise JudgeError(self._other_protocol(content))
        return answer

    def _other_protocol(self, content: bytes) -> str:
        return (
            f"expected a chat completion as JSON from the judge at {self._access.place()}, got {content[:80]!r}. Is "
            "OPENAI_BASE_URL the address of an OpenAI-compatible server, usually ending in /v1?"
        )

    def _explain(self, error: openai.APIStatusError | openai.APIConnectionError, *, attempts: int) -> str:
        """One message for a failure that stays."""
        place, model = self._access.place(), self._settings.model
        if not isinstance(error, openai.APIStatusError):
            return (
                f"expected an answer of the judge at {place}, but it {_what(error)} in {attempts} attempts. Start the "
                "server or correct OPENAI_BASE_URL, and run the same command again: replies are kept"
            )
        if error.status_code in (401, 403):
            return (
                f"expected the judge at {place} to take the key in OPENAI_API_KEY, but it refuses it (status "
                f"{error.status_code}). Set a key that may use {model!r}"
            )
        if error.status_code == 404:
            return (
                f"expected the model {model!r} at {place}, got status 404: {_said(error)}. Correct "
                "evaluate.autointerp.judge.model, or OPENAI_BASE_URL, which usually ends in /v1"
            )
        if _is_out_of_credit(error):
            return f"the account of the judge at {place} is used up: {_said(error)}. Replies are kept"
        if _passes(error):
            return (
                f"expected an answer of the judge at {place}, got status {error.status_code} in {attempts} attempts: "
                f"{_said(error)}. Run the same command again later: replies are kept"
            )
        return (
            f"expected the judge at {place} to take a request to {model!r}, got status {error.status_code}: "
            f"{_said(error)}. Correct evaluate.autointerp.judge"
        )


def _counted(usage: _Usage) -> Usage:
    return Usage(1, usage.prompt_tokens, usage.completion_tokens)


def _passes(error: openai.APIStatusError | openai.APIConnectionError) -> bool:
    """Whether it may be otherwise in a while."""
    if isinstance(error, openai.APIConnectionError):
        return True
    return (error.status_code in (408, 409, 429) and not _is_out_of_credit(error)) or error.status_code >= 500


def _is_out_of_credit(error: openai.APIStatusError) -> bool:
    return error.status_code == 429 and error.code == "insufficient_quota"


def _asked_to_wait(error: openai.APIStatusError | openai.APIConnectionError) -> float | None:
    """Seconds that the server asks to wait; None where it says nothing that can be read."""
    if isinstance(error, openai.APIStatusError):
        text = error.response.headers.get("retry-after", "")
        if text.replace(".", "", 1).isdecimal():
            return float(text)
    return None


def _what(error: openai.APIStatusError | openai.APIConnectionError) -> str:
    """What the server did, in few words."""
    if isinstance(error, openai.APITimeoutError):
        return f"did not answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, openai.APIStatusError):
        return f"answered with status {error.status_code}"
    return "could not be reached"


def _said(error: openai.APIStatusError) -> str:
    """The server's own words, cut short."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return repr((message if isinstance(message, str) else error.response.text)[:200])
