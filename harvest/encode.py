"""Documents as token ids, long ones in pieces, so that memory does not grow with the length of a document.

A tokenizer takes over a hundred bytes for every character of a call. So a long document is encoded in pieces that
overlap, and two pieces are joined where their encodings of the overlap agree: the same tokens from the same characters,
`NUM_AGREEING` of them in a row, joined in their middle. What the end of a piece changes (a word that is cut, a space
that is put in front) lies outside such a run; every pair of neighbours in the joined tokens is one that the tokenizer
itself made with text on both sides. Where the encodings do not agree the piece is made longer, up to the whole text.
"""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

PIECE_CHARACTERS = 100_000
OVERLAP_CHARACTERS = 2_000
NUM_AGREEING = 32
"""Tokens in a row on which the encodings of an overlap agree..."""
NUM_DIFFERENT = 8
"""... of which as many differ: in an endless repetition encodings can agree and still be cut out of step."""
REPORTED_CHARACTERS = 16 * PIECE_CHARACTERS
"""A piece that had to become as long is reported: it takes hundreds of megabytes."""


def tokenize(texts: list[str], tokenizer: Tokenizer, *, vocab_size: int) -> list[NDArray[np.uint32]]:
    """Token ids (tokens,) of each text, without special tokens; an id the model does not have is an error."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [_ids(encoding, vocab_size=vocab_size) for encoding in encodings]


def tokenize_long(text: str, tokenizer: Tokenizer, *, vocab_size: int) -> Iterator[NDArray[np.uint32]]:
    """Token ids of one text, (tokens,) a piece, which end to end are those of `tokenize`."""
    start, num_characters, first = 0, PIECE_CHARACTERS, 0
    piece = tokenizer.encode(text[:num_characters], add_special_tokens=False)
    while (end := start + num_characters) < len(text):
        next_start = end - OVERLAP_CHARACTERS
        following = tokenizer.encode(text[next_start : next_start + PIECE_CHARACTERS], add_special_tokens=False)
        joint = _joint(piece, following, distance=next_start - start)
        if joint is not None and joint[0] >= first:
            yield _ids(piece, vocab_size=vocab_size)[first : joint[0]]
            piece, first, start, num_characters = following, joint[1], next_start, PIECE_CHARACTERS
            continue
        num_characters *= 2
        if num_characters == REPORTED_CHARACTERS:
            said = f"tokens: {num_characters:,} characters of a document cannot be cut without changing their tokens"
            print(f"{said}; encoding them together takes much memory", file=sys.stderr)
        longer = tokenizer.encode(text[start : start + num_characters], add_special_tokens=False)
        if longer.ids[:first] != piece.ids[:first]:
            raise ValueError(
                f"expected tokens that do not depend on text {PIECE_CHARACTERS} characters away, got a document whose "
                "tokens do. Split that document into several"
            )
        piece = longer
    yield _ids(piece, vocab_size=vocab_size)[first:]


def _joint(piece: Encoding, following: Encoding, *, distance: int) -> tuple[int, int] | None:
    """How many tokens of `piece` come before the joint, and which token of `following` comes behind it.

    `following` begins `distance` characters behind `piece`. None where no run of tokens agrees.
    """
    ends, begins = _spans(piece), _spans(following)
    ends[:, 1:] -= distance
    skipped = int(np.searchsorted(ends[:, 1], 0))
    ends = ends[skipped:]
    begins = begins[: len(ends) + NUM_AGREEING]
    runs = {begins[at : at + NUM_AGREEING].tobytes(): at for at in range(len(begins) - NUM_AGREEING + 1)}
    middle = (len(ends) - NUM_AGREEING) // 2
    for at in sorted(range(len(ends) - NUM_AGREEING + 1), key=lambda at: abs(at - middle)):
        found = runs.get(ends[at : at + NUM_AGREEING].tobytes())
        if found is not None and len(set(ends[at : at + NUM_AGREEING, 0].tolist())) >= NUM_DIFFERENT:
            return skipped + at + NUM_AGREEING // 2, found + NUM_AGREEING // 2
    return None


def _spans(encoding: Encoding) -> NDArray[np.int64]:
    """(tokens, 3): id, first character and the one behind the last."""
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return np.column_stack([np.asarray(encoding.ids, dtype=np.int64), offsets])


def _ids(encoding: Encoding, *, vocab_size: int) -> NDArray[np.uint32]:
    ids = np.asarray(encoding.ids, dtype=np.uint32)
    if len(ids) and (largest := int(ids.max())) >= vocab_size:
        raise ValueError(
            f"expected token ids below the model's vocabulary of {vocab_size}, got {largest} from the tokenizer. "
            "Model and tokenizer do not belong together: repair the model's folder"
        )
    return ids
