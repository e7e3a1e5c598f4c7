"""Which judge, as params.yaml has it. Its address, key and budget are no settings: they change no result."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from store.record import Record

LEXICAL_NAME: Final = "lexical baseline"
LEXICAL_VERSION: Final = 1
"""Raised when it answers the same question otherwise."""


class LexicalJudge(Record):
    """The offline baseline: words that are marked in the examples, looked for in others. No language model."""

    kind: Literal["lexical"]


class OpenAIJudge(Record):
    """A model behind any server of OpenAI's protocol.

    OPENAI_BASE_URL and OPENAI_API_KEY say where it is and with which key; a server of one's own may need no key.
    """

    kind: Literal["openai-compatible"]
    model: Annotated[str, Field(min_length=1)]
    """As the server names it. sae-bench 0.6.0 asks gpt-4o-mini."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    """null leaves it to the server, as sae-bench does."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that limits the length of an answer. Some models know only the newer one."""


JudgeSettings = Annotated[LexicalJudge | OpenAIJudge, Field(discriminator="kind")]


def identity(judge: LexicalJudge | OpenAIJudge) -> dict[str, Any]:
    """Name and version, as they are part of a result's key and stand beside its scores."""
    if isinstance(judge, LexicalJudge):
        return {"name": LEXICAL_NAME, "version": LEXICAL_VERSION}
    return {"name": judge.model, "version": "chat completions"}
