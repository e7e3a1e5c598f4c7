"""Tokens as text, one by one."""

from collections.abc import Iterable
from pathlib import Path

from language_model.tokenizer import load_tokenizer

_UNKNOWN = "\ufffd"


def spelled(folder: Path, ids: Iterable[int]) -> dict[int, str]:
    """What each token adds to a text, its leading space included.

    A token that is a part of a character alone, or none of the tokenizer's, has its own name there instead.
    """
    tokenizer = load_tokenizer(folder)
    # Behind another token, since some tokenizers drop the space at the beginning of a text.
    leading = tokenizer.encode("a", add_special_tokens=False).ids
    start = tokenizer.decode(leading, skip_special_tokens=False)
    spellings = {}
    for id_ in ids:
        name = tokenizer.id_to_token(id_)
        text = tokenizer.decode([*leading, id_], skip_special_tokens=False)
        whole = text.startswith(start) and _UNKNOWN not in text and len(text) > len(start)
        spellings[id_] = text[len(start) :] if whole else name if name is not None else f"[{id_}]"
    return spellings
