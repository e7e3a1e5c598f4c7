"""What became of the text, counted by hand."""

from typing import Any

import pytest

from harvest.streams import Tokens
from harvest.text import TextSource
from harvest.tokens import Packer, TooLittleText, packing_of, separator_id
from store.cache.text_account import PartAccount, TextAccount, account_lines
from tests.harvest.texts import BOS, text_of, word_tokenizer, words


def packed(text: TextSource, **changes: Any) -> tuple[dict[str, list[list[int]]], TextAccount]:  # noqa: ANN401
    windows: dict[str, list[list[int]]] = {"training": [], "held_out": []}

    def keep(split: str, _shard: int, more: Tokens) -> None:
        windows[split] += more[:, 1:].tolist()

    settings: dict[str, Any] = {
        "bos_token_id": BOS, "vocab_size": 64, "context_length": 3, "rows_per_window": 2,
        "num_windows": {"training": 3, "held_out": 1}, "windows_per_shard": 2, "held_out_fraction": 0.5,
        "separator_id": None, "on_shard": keep,
    } | changes  # fmt: skip
    return windows, Packer(text, word_tokenizer(), **settings).run(on_progress=lambda: None)


def counts(part: PartAccount) -> dict[str, int]:
    names = ("documents", "tokens", "training_documents", "training_tokens", "held_out_documents", "held_out_tokens")
    more = ("unused_documents", "unused_tokens", "filtered_documents", "empty_documents")
    return {name: getattr(part, f"num_{name}") for name in (*names, *more) if getattr(part, f"num_{name}")}


def test_every_document_and_token_of_every_part_is_accounted_for() -> None:
    text = text_of(
        [words(10, 11, 12), words(50, 51, 52, held_out=True), "", None],
        [words(53, held_out=True), words(13, 14, 15, 16), words(17)],
        [words(18)],
    )
    windows, account = packed(text)
    assert windows == {"training": [[10, 11], [12, 13], [14, 15]], "held_out": [[50, 51]]}
    first, second, third = account.parts
    assert counts(first) == {
        "documents": 4, "tokens": 6, "training_documents": 1, "training_tokens": 3, "held_out_documents": 1,
        "held_out_tokens": 2, "unused_tokens": 1, "filtered_documents": 1, "empty_documents": 1,
    }  # fmt: skip
    # 53 came when its side was full; 16 is behind the last window; 17 and 18 were not read.
    assert counts(second) == {
        "documents": 2, "tokens": 4, "training_documents": 1, "training_tokens": 3, "unused_documents": 1,
        "unused_tokens": 1,
    }  # fmt: skip
    assert counts(third) == {}
    assert [part.was_read_to_its_end for part in account.parts] == [True, False, False]
    assert account.unused_parts() == [third]


def test_the_account_in_words_names_what_gave_nothing() -> None:
    first, second = [words(10, 11, 12, 13), words(50, 51, held_out=True)], [words(53, held_out=True)]
    text = text_of(first, second, [words(14, 15, 16)], [words(17)])
    told = "\n".join(account_lines(packed(text)[1]))
    assert told == (
        "a test: 4 documents read, 2 trained on (6 tokens), 1 held out (2 tokens), 1 unused\n"
        "  a: 2 documents read, 1 trained on (4 tokens), 1 held out (2 tokens); read to the end\n"
        "  c: 1 documents read, 1 trained on (2 tokens), 0 held out (0 tokens); read to the end\n"
        "  NOTHING is from 2 of its 4 (1 were not read): b, d"
    )


def test_an_account_that_contradicts_itself_is_refused() -> None:
    part = packed(text_of([words(10, 11, 12, 13, 14, 15), words(50, 51, held_out=True)]))[1].parts[0]
    with pytest.raises(ValueError, match="expected no more documents and tokens of 'a' in use than were read"):
        PartAccount.model_validate(part.model_dump() | {"num_training_tokens": 7})


def test_a_separator_stands_behind_every_document_that_has_tokens() -> None:
    eos = separator_id("<eos>", word_tokenizer())
    text = text_of([words(10, 11), "", words(12), words(50, held_out=True), words(13), words(14)])
    windows, account = packed(text, separator_id=eos)
    assert windows == {"training": [[10, 11], [1, 12], [1, 13]], "held_out": [[50, 1]]}
    assert account.parts[0].num_training_tokens == 6
    assert "with '<eos>' behind each (empty ones" in packing_of("<eos>", first_token="bos")
    assert "without a separator (empty ones" in packing_of(None, first_token="bos")
    with pytest.raises(ValueError, match=r"expected harvest.separator to be one token of the tokenizer.*got '<end>'"):
        separator_id("<end>", word_tokenizer())


def test_text_that_is_too_little_because_of_a_filter_says_so() -> None:
    with pytest.raises(TooLittleText, match=r"The filter left out 2 of 4 documents"):
        packed(text_of([words(10, 11), None, None, words(50, 51, held_out=True)]))
