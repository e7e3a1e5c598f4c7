"""What a judge does, whoever it is, and how it fails."""

from typing import Literal, Protocol

Messages = list[dict[Literal["role", "content"], str]]
"""A conversation, as OpenAI's protocol has it."""

NO_ANSWER = "(no answer)"
"""In place of an empty answer. sae-bench would read an empty one as "None", that is as a prediction."""


class JudgeError(ValueError):
    """The judge cannot answer, for a reason that further questions would meet as well."""


class OverBudget(JudgeError):
    """The next question could exceed what the judge may cost."""


class Stopped(JudgeError):
    """The run ends, so no further question is asked."""


class Judge(Protocol):
    """Answers one conversation after another, from several threads at once."""

    def reply(self, messages: Messages, *, max_tokens: int) -> str:
        """The answer, at most `max_tokens` tokens long."""
        ...

    def stop(self) -> None:
        """From now on every question is refused with `Stopped`, and nobody waits for a server's patience."""
        ...
