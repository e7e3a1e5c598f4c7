"""What a judge has cost so far, and what the next request will.

A ledger beside the judge's replies has a line for each answered request, of all runs and workers. Limits are about its
sums: an interrupted run that is started again continues within the same limits, and does not get them anew.
"""

import json
import os
import threading
from pathlib import Path

from evaluate.judge.judge import Messages, OverBudget
from evaluate.judge.limits import JudgeLimits, Usage, in_words

CHARACTERS_PER_TOKEN = 4
"""For estimates; servers report what it really was."""
TOKENS_PER_MESSAGE = 4


def estimated_tokens(characters: int) -> int:
    """About how many tokens a text of this length has, rounded up."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def estimated_usage(messages: Messages, *, max_tokens: int) -> Usage:
    """About what one request takes at most."""
    characters = sum(len(message["content"]) for message in messages)
    return Usage(1, estimated_tokens(characters) + TOKENS_PER_MESSAGE * len(messages), max_tokens)


class Budget:
    """Counts what is spent, in the ledger, and refuses what would exceed the limits."""

    def __init__(self, limits: JudgeLimits, ledger: Path) -> None:
        self.limits = limits
        self._ledger = ledger
        self._lock = threading.Condition()
        self._spent, self._reserved = Usage(), Usage()
        self._read_to = 0

    def spent(self) -> Usage:
        """By all runs and workers so far."""
        with self._lock:
            self._read_on()
            return self._spent

    def reserve(self, wanted: Usage) -> None:
        """Sets `wanted` aside for a request; waits while only requests on their way could use up what it needs.

        Raises:
            OverBudget: with it a limit would be exceeded.
        """
        with self._lock:
            while True:
                self._read_on()
                limit = self.limits.exceeded_by(self._spent + wanted)
                if limit is not None:
                    raise OverBudget(
                        f"expected the judge to stay within {limit}, but the next request could exceed it: "
                        f"{in_words(self._spent, self.limits)} so far. Replies are kept: raise the limit and run the "
                        "same command again to continue, or lower evaluate.autointerp.num_latents"
                    )
                if self.limits.exceeded_by(self._spent + self._reserved + wanted) is None:
                    self._reserved += wanted
                    return
                self._lock.wait()  # they take less than was set aside for them, or fail

    def release(self, wanted: Usage) -> None:
        """Takes back what was reserved for a request that failed."""
        with self._lock:
            self._reserved -= wanted
            self._lock.notify_all()

    def settle(self, wanted: Usage, used: Usage) -> None:
        """Writes down what a request has used, in place of what was reserved for it."""
        line = json.dumps([used.requests, used.input_tokens, used.output_tokens]) + "\n"
        with self._lock:
            self._ledger.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())  # one write: lines of several processes do not mix
            finally:
                os.close(descriptor)
            self._reserved -= wanted
            self._read_on()
            self._lock.notify_all()

    def _read_on(self) -> None:
        """Adds the lines that this and other processes have written since."""
        try:
            with self._ledger.open("rb") as file:
                file.seek(self._read_to)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            try:
                requests, input_tokens, output_tokens = json.loads(line)
                self._spent += Usage(int(requests), int(input_tokens), int(output_tokens))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"expected a line of three numbers in {self._ledger}, got {line[:80]!r}. Remove that line; the "
                    "file counts what the judge has cost"
                ) from error
