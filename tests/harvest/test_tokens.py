"""Packing documents into windows, on words that are tokens, so that every window can be checked by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from harvest.encode import tokenize
from harvest.tokens import BATCH_DOCUMENTS, TooLittleText, pack, packing_of
from tests.harvest.texts import BOS, text_of, word_tokenizer, words

SETTINGS: dict[str, Any] = {
    "bos_token_id": BOS,
    "vocab_size": 64,
    "context_length": 3,
    "num_sequences": 3,
    "num_held_out_sequences": 1,
    "held_out_fraction": 0.5,
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return word_tokenizer()


EXAMPLE = [
    words(10, 11, 12),
    words(50, held_out=True),
    words(),
    words(13),
    words(51, 52, held_out=True),
    words(14, 15, 16, 17, 18),
]


def test_documents_are_joined_end_to_end_and_cut_into_windows_behind_bos(tokenizer: Tokenizer) -> None:
    windows = pack(text_of(EXAMPLE), tokenizer, **SETTINGS)
    # The training stream is 10 11 12 | 13 | 14 15 16 17 18, the held-out one 50 | 51 52.
    assert windows.training.tolist() == [[BOS, 10, 11], [BOS, 12, 13], [BOS, 14, 15]]
    assert windows.held_out.tolist() == [[BOS, 50, 51]]
    assert windows.training.dtype == windows.held_out.dtype == np.uint32


def test_without_bos_a_window_is_text_alone(tokenizer: Tokenizer) -> None:
    windows = pack(text_of(EXAMPLE), tokenizer, **SETTINGS | {"bos_token_id": None})
    assert windows.training.tolist() == [[10, 11, 12], [13, 14, 15], [16, 17, 18]]
    assert windows.held_out.tolist() == [[50, 51, 52]]


def test_packing_is_told_in_a_sentence() -> None:
    assert "cut into windows of BOS and context_length - 1 tokens; the last, incomplete window" in packing_of(
        None, first_token="bos"
    )
    assert "cut into windows of context_length tokens; the last, inco" in packing_of("<eos>", first_token="text")


def test_a_larger_budget_only_appends_windows(tokenizer: Tokenizer) -> None:
    texts = [words(*range(10 + n, 10 + n + n % 7), held_out=n % 4 == 0) for n in range(40)]
    largest = pack(text_of(texts), tokenizer, **SETTINGS | {"num_sequences": 40, "num_held_out_sequences": 9})
    for num_sequences, num_held_out in ((1, 1), (7, 2), (39, 8)):
        counts = {"num_sequences": num_sequences, "num_held_out_sequences": num_held_out}
        windows = pack(text_of(texts), tokenizer, **SETTINGS | counts)
        assert np.array_equal(windows.training, largest.training[:num_sequences])
        assert np.array_equal(windows.held_out, largest.held_out[:num_held_out])


def test_the_windows_do_not_depend_on_the_batches_of_documents(tokenizer: Tokenizer) -> None:
    texts = [words(10 + n % 40, held_out=n % 3 == 0) for n in range(2 * BATCH_DOCUMENTS + 5)]
    joined = [n % 40 + 10 for n in range(2 * BATCH_DOCUMENTS + 5) if n % 3]
    windows = pack(text_of(texts), tokenizer, **SETTINGS | {"num_sequences": len(joined) // 2})
    assert windows.training[:, 1:].ravel().tolist() == joined[: len(joined) // 2 * 2]


def test_a_held_out_document_never_reaches_the_training_windows(tokenizer: Tokenizer) -> None:
    # Tokens below 40 are in training documents only, the others in held-out documents only.
    texts = [words(10 + n % 30) if n % 2 else words(40 + n % 20, held_out=True) for n in range(300)]
    windows = pack(text_of(texts), tokenizer, **SETTINGS | {"num_sequences": 70, "num_held_out_sequences": 70})
    assert windows.training[:, 1:].max() < 40
    assert windows.held_out[:, 1:].min() >= 40


def test_no_more_is_read_than_the_budget_needs(tokenizer: Tokenizer) -> None:
    num_read = 0

    def endless() -> Iterator[str]:
        nonlocal num_read
        while True:
            num_read += 1
            yield words(10, 11, 12, held_out=num_read % 2 == 0)

    pack(text_of(endless), tokenizer, **SETTINGS)
    assert num_read == BATCH_DOCUMENTS + 1  # one more, to know whether the last one is the last


def test_text_that_ends_early_says_how_many_rows_it_gives_and_what_to_change(
    tokenizer: Tokenizer,
) -> None:
    with pytest.raises(TooLittleText) as caught:
        pack(text_of(EXAMPLE), tokenizer, **SETTINGS | {"num_sequences": 100})
    assert str(caught.value) == (
        "expected text for 200 training rows (100 sequences) and 1 held-out sequences, got 8 rows (4 sequences) from "
        "3 training documents and 1 from 2 held-out documents. "
        "Lower harvest.num_rows or give more text"
    )
    with pytest.raises(TooLittleText, match=r"Lower harvest.num_held_out_sequences, raise held_out_fraction"):
        pack(text_of(EXAMPLE), tokenizer, **SETTINGS | {"num_held_out_sequences": 2})


def test_no_special_token_is_added_or_smuggled_in_by_the_text(tokenizer: Tokenizer) -> None:
    assert Tokenizer.from_str(tokenizer.to_str()).encode("w10 <bos>").ids == [10, BOS]
    [token_ids] = tokenize(["w10 <bos> w11"], tokenizer, vocab_size=64)
    assert token_ids[0] == 10
    assert token_ids[-1] == 11


def test_a_token_that_the_model_does_not_have_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token ids below the model's vocabulary of 12, got 12 from the tokenizer"):
        tokenize(["w11 w12"], tokenizer, vocab_size=12)
