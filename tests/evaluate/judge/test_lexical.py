"""The lexical baseline: what it names, what it predicts from that, and that it reads sae-bench's own questions."""

import random

import pytest
import torch
from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
from sae_bench.evals.autointerp.main import AutoInterp, Example, Examples
from torch import Tensor

from evaluate.judge.judge import JudgeError
from evaluate.judge.lexical import LexicalBaseline, explain, predict

DOCUMENTS = ["a <<fox>> ran", "the <<fox>> sat", "no fox here", "a <<dog>> ran"]


def test_a_clue_is_marked_in_two_documents_and_its_share_counts_one_occurrence_more() -> None:
    # fox: marked twice of three occurrences, and one more: 2 / 4. dog is marked in one document only.
    assert explain(DOCUMENTS) == 'This neuron activates on "fox" 0.50'


def test_a_word_in_its_context_is_surer_than_the_word() -> None:
    documents = ["x. <<join>>(a)", "y. <<join>>(b)", "join z", "join w"]
    # Behind a full stop it is marked in two of two, alone in two of four, which adds 0.40 * (1 + 0.9) / 3 < 0.3.
    assert explain(documents) == 'This neuron activates on ". join" 0.67'


def test_documents_that_raise_the_latent_more_weigh_more() -> None:
    strong = ["<<one>>", "<<one>>", "<<two>>", "<<two>>"]
    assert explain(strong).index('"one"') < explain(strong).index('"two"')
    assert explain(strong[::-1]).index('"two"') < explain(strong[::-1]).index('"one"')


def test_predictions_come_from_the_explanation_alone() -> None:
    # A share of 0.5 is not enough; two words of 0.5 are, 1 - 0.5 * 0.5 = 0.75.
    explanation = '"fox" 0.50, " ran" 0.50, "owl" 0.90'
    assert predict(explanation, ["a fox", "a fox ran", "an owl", "a cow"]) == "2, 3"
    assert predict(explanation, ["a cow"]) == "None"
    assert predict("words about animals", ["a fox"]) == "None"


@pytest.mark.parametrize("word", ['"', "\\", "'a\"b'", ".", ">>>", "é", "activates on x", "↵"])
def test_words_of_any_characters_are_quoted_so_that_they_are_found_again(word: str) -> None:
    documents = [f"x <<{word}>> y", f"z <<{word}>> w"]
    explanation = explain(documents).split("activates on")[-1].rstrip(".").strip()  # as sae-bench reads it
    expected = "None" if word in ("activates on x", "↵") else "1"  # those are no clues
    assert predict(explanation, [f"k {word} m", "nothing of that"]) == expected


class Words:
    """Spells tokens as words."""

    def to_str_tokens(self, tokens: Tensor) -> list[str]:
        return [["the", " fox", " ran", "\n"][token] for token in tokens.tolist()]


def test_it_reads_the_questions_that_sae_bench_asks() -> None:
    config = AutoInterpEvalConfig(n_latents=None, override_latents=[0])
    interp = AutoInterp(config, Words(), None, None, None, "cpu", "")

    def examples(*activations: list[float]) -> Examples:
        return Examples([Example([0, 1, 2, 3], acts, 0.5, Words()) for acts in activations])

    judge = LexicalBaseline()
    asked = interp.get_generation_prompts(examples([0, 1.0, 0, 0], [0, 2.0, 0, 0], [0, 3.0, 0, 0]))
    explanation = interp.parse_explanation(judge.reply(asked, max_tokens=30))
    assert explanation == '"the fox" 0.75, " fox" 0.75'
    random.seed(0)
    asked = interp.get_scoring_prompts(explanation, examples([0, 0, 0, 0], [0, 1.0, 0, 0]))
    assert judge.reply(asked, max_tokens=33) == "1, 2"
    assert interp.parse_predictions("1, 2") == [1, 2]
    assert torch.get_num_threads() >= 1


def test_another_question_is_refused() -> None:
    with pytest.raises(JudgeError, match=r"expected a question as sae-bench 0.6.0 asks it, got 'What is a fox\?'"):
        LexicalBaseline().reply([{"role": "user", "content": "What is a fox?"}], max_tokens=3)
