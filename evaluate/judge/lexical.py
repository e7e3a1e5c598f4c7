"""The lexical baseline: a judge without a language model, deterministic, that knows nothing but the words it is shown.

It reads sae-bench's questions and answers them as a model would. Asked to explain, it names up to `MOST_CLUES` words
that are marked in the examples, some with the word before them, each with the share of its occurrences that are marked.
Asked to predict, it takes such an explanation, and only that, and looks for the words: an example counts as active
where the shares of the words in it, taken as independent chances, reach `ENOUGH` together.

What it finds is what a list of words can say about a latent. A judge that is a language model should do better.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from evaluate.judge.judge import JudgeError, Messages

MOST_CLUES: Final = 6
LONGEST_CLUE: Final = 24
"""Characters."""
LEAST_DOCUMENTS: Final = 2
"""In which a clue is marked: what is marked in one only says nothing about others."""
LEAST_GAIN: Final = 0.3
"""In documents that a further clue would tell of."""
DECAY: Final = 0.9
"""Of the weight of a document to the next: the first are those that raise the latent most."""
ENOUGH: Final = 0.6

_EXAMPLES: Final = re.compile(r"^\d+\. (.*)$", re.MULTILINE)
_MARKED: Final = re.compile(r"<<(.+?)>>(?!>)")
_LAST_WORD: Final = re.compile(r"(?:\w+|[^\w\s])\s*$|\s+$")
_EXPLANATION_STARTS: Final = "Here is the explanation: this neuron fires on "
_EXAMPLES_START: Final = ".\n\nHere are the examples:\n\n"
_DOCUMENTS_START: Final = "The activating documents are given below:\n\n"


@dataclass(frozen=True)
class Clue:
    """A text that raises the latent, and how often it does where it occurs."""

    text: str
    share: float


class LexicalBaseline:
    """A `Judge` that answers at once and for nothing."""

    def stop(self) -> None:
        """Nobody waits for it."""

    def reply(self, messages: Messages, *, max_tokens: int) -> str:
        """An explanation, or numbers of examples. `max_tokens` is a limit for models; its answers are short."""
        del max_tokens
        question = messages[-1]["content"]
        if question.startswith(_DOCUMENTS_START):
            return explain(_EXAMPLES.findall(question[len(_DOCUMENTS_START) :]))
        if question.startswith(_EXPLANATION_STARTS) and _EXAMPLES_START in question:
            explanation, _, examples = question[len(_EXPLANATION_STARTS) :].rpartition(_EXAMPLES_START)
            return predict(explanation, _EXAMPLES.findall(examples))
        raise JudgeError(
            f"expected a question as sae-bench 0.6.0 asks it, got {question[:80]!r}. The installed sae-bench is not "
            "the one that the lexical baseline was written for"
        )


def explain(documents: list[str]) -> str:
    """An explanation of a latent, from documents with <<marked>> words, the strongest first."""
    clues = _best(documents)
    if not clues:
        return "This neuron activates on nothing that words could say"
    named = ", ".join(f"{json.dumps(clue.text, ensure_ascii=False)} {clue.share:.2f}" for clue in clues)
    return f"This neuron activates on {named}"


def predict(explanation: str, documents: list[str]) -> str:
    """Numbers of the documents that have enough of what the explanation names, or "None"."""
    clues = _clues_in(explanation)
    active = [str(number) for number, document in enumerate(documents, start=1) if _chance(clues, document) >= ENOUGH]
    return ", ".join(active) or "None"


def _chance(clues: Iterable[Clue], document: str) -> float:
    none_of_them = 1.0
    for clue in clues:
        if clue.text in document:
            none_of_them *= 1.0 - clue.share
    return 1.0 - none_of_them


def _clues_in(explanation: str) -> list[Clue]:
    """What `explain` has written; anything else has no clues."""
    found = re.findall(r'("(?:[^"\\]|\\.)*") ([01]\.\d\d)', explanation)
    return [Clue(json.loads(text), float(share)) for text, share in found]


def _best(documents: list[str]) -> list[Clue]:
    """Clues that together tell of as many documents as possible, those that tell most first."""
    plain = [_MARKED.sub(r"\1", document) for document in documents]
    marked_times: dict[str, int] = defaultdict(int)
    marked_in: dict[str, set[int]] = defaultdict(set)
    for number, document in enumerate(documents):
        for text in _candidates(document):
            marked_times[text] += 1
            marked_in[text].add(number)
    shares = {}
    for text, times in marked_times.items():
        if len(marked_in[text]) >= LEAST_DOCUMENTS:
            occurrences = max(times, sum(document.count(text) for document in plain))
            shares[text] = times / (occurrences + 1)  # one more that is not marked: few occurrences are no certainty
    chosen: list[Clue] = []
    untold = [DECAY**number for number in range(len(documents))]  # weight times the chance that no clue tells of it

    def gain(text: str) -> float:
        return shares[text] * sum(untold[number] for number in marked_in[text])

    while len(chosen) < MOST_CLUES:
        best = max(shares, key=lambda text: (gain(text), len(text), text), default=None)
        if best is None or gain(best) < LEAST_GAIN:
            break
        chosen.append(Clue(best, shares.pop(best)))
        for number in marked_in[best]:
            untold[number] *= 1.0 - chosen[-1].share
    return chosen


def _candidates(document: str) -> Iterable[str]:
    """Every marked text of a document, alone and behind the word before it; what cannot be quoted is left out."""
    for match in _MARKED.finditer(document):
        text = match.group(1)
        before = _MARKED.sub(r"\1", document[: match.start()])
        word = _LAST_WORD.search(before)
        for clue in (text, word.group() + text if word else ""):
            if clue.strip(" ↵") and len(clue) <= LONGEST_CLUE and "activates on" not in clue:
                yield clue
