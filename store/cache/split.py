"""Which documents training sees, and which it never does."""

import hashlib
from typing import Literal, get_args

Split = Literal["training", "held_out"]
"""Rows that are trained on, and rows of documents that training never sees."""
SPLITS: tuple[Split, ...] = get_args(Split)


def is_held_out(text: str, *, fraction: float) -> bool:
    """Whether training never sees the document `text`; true for about `fraction` of all documents.

    A pure function of the text. So equal documents are on the same side, more documents move none from one side to the
    other, and a larger fraction only adds held-out documents.
    """
    first_8_bytes = hashlib.sha256(b"held-out\0" + text.encode()).digest()[:8]
    return int.from_bytes(first_8_bytes, "big") < fraction * 2**64
