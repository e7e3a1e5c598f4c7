"""BOS, EOS and padding: config.json, generation_config.json and the tokenizer must name the same tokens.

Windows begin with BOS as a rule, and evaluation leaves out BOS, EOS and padding: an id that only one file believes in
would change every number without a word.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from language_model.checkpoint import UnusableModel, model_family, read_object
from language_model.tokenizer import (
    SPECIAL_NAMES,
    ids_from_text,
    leading_special_ids,
    load_tokenizer,
    stated_tokens,
)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids on which all files of a checkpoint agree."""

    bos: int | None
    """None for a model without BOS."""
    ignored: frozenset[int]
    """BOS, EOS and padding: positions that evaluation does not count."""


def special_tokens(folder: Path) -> SpecialTokens:
    """The special tokens of a checkpoint.

    Raises:
        UnusableModel: a BOS that is no number, an id outside the vocabulary, files that name different tokens, or a
            tokenizer whose texts can get ids that the model does not have.
    """
    path, tokenizer = folder / "config.json", load_tokenizer(folder)
    vocab_size = read_object(path)[model_family(folder).vocab_size]
    if (largest := ids_from_text(tokenizer)) >= vocab_size:
        raise UnusableModel(
            f"expected token ids below the vocab_size of {vocab_size} in {path}, but {folder / 'tokenizer.json'} gives "
            f"ids up to {largest}. Model and tokenizer do not belong together: fetch the model again"
        )
    bos = bos_token(folder)
    ignored = set() if bos is None else {bos}
    for name in SPECIAL_NAMES:
        stated = _stated_ids(folder, name, tokenizer)
        _check_inside(name, stated, vocab_size)
        _check_equal(name, stated, tokenizer)
        ignored |= {id_ for ids in stated.values() for id_ in ids}
    if bos is not None:
        _check_template(folder, bos, tokenizer)
    return SpecialTokens(bos, frozenset(ignored))


def bos_token(folder: Path) -> int | None:
    """The BOS of config.json; None where there is none. Raises UnusableModel for what is no id."""
    path = folder / "config.json"
    bos = read_object(path).get(model_family(folder).bos_token_id)
    if bos is not None and type(bos) is not int:
        raise UnusableModel(
            f"expected one number as bos_token_id in {path}, got {bos!r}. Write the id with which the model's training "
            "texts begin there, or null for a model without BOS"
        )
    return bos


def check_bos(folder: Path) -> None:
    """Refuses a model without BOS, where windows are to begin with it."""
    path = folder / "config.json"
    if bos_token(folder) is None:
        tokenizer = load_tokenizer(folder)
        others = ", ".join(
            f"{where} names {_named(ids, tokenizer)}"
            for where, ids in _stated_ids(folder, "bos", tokenizer, with_config=False).items()
        )
        raise UnusableModel(
            f"expected one number as bos_token_id in {path}, got none: every window begins with BOS"
            f"{f' ({others})' if others else ''}. Write the id with which the model's training texts begin there; or, "
            "if it was trained without BOS, set harvest.first_token to text"
        )


def _stated_ids(
    folder: Path, name: str, tokenizer: Tokenizer, *, with_config: bool = True
) -> dict[str, tuple[int, ...]]:
    """The ids that each file gives a special token; files that give it none are left out."""
    stated: dict[str, tuple[int, ...]] = {}
    for file in ("config.json", "generation_config.json")[0 if with_config else 1 :]:
        value = read_object(folder / file).get(f"{name}_token_id")
        if value is not None:
            stated[str(folder / file)] = _ids(value, name, folder / file)
    for file, token in stated_tokens(folder)[name].items():
        id_ = tokenizer.token_to_id(token)
        if id_ is None:
            raise UnusableModel(
                f"expected the {name}_token {token!r} of {folder / file} in the vocabulary of "
                f"{folder / 'tokenizer.json'}, found no such token. Correct the one that is wrong"
            )
        stated[str(folder / file)] = (id_,)
    return stated


def _ids(value: Any, name: str, path: Path) -> tuple[int, ...]:  # noqa: ANN401 - whatever JSON can hold
    """EOS may be several, as chat models stop at more than one; the others are one id."""
    ids = value if isinstance(value, list) and name == "eos" else [value]
    if not ids or any(type(id_) is not int for id_ in ids):
        raise UnusableModel(
            f"expected one number as {name}_token_id in {path}, got {value!r}. Write the id, or null if there is none"
        )
    return tuple(ids)


def _check_inside(name: str, stated: dict[str, tuple[int, ...]], vocab_size: int) -> None:
    for where, ids in stated.items():
        if outside := [id_ for id_ in ids if not 0 <= id_ < vocab_size]:
            raise UnusableModel(
                f"expected a {name} token within the model's vocabulary of {vocab_size}, got {outside[0]} in {where}. "
                f"Correct {name}_token there: model and tokenizer must belong together"
            )


def _check_equal(name: str, stated: dict[str, tuple[int, ...]], tokenizer: Tokenizer) -> None:
    """One id for a name everywhere; of several EOS, the files must have one in common."""
    places = list(stated.items())
    for first, first_ids in places:
        for second, second_ids in places:
            if not set(first_ids) & set(second_ids):
                raise UnusableModel(
                    f"expected one {name} token, got {_named(first_ids, tokenizer)} in {first} and "
                    f"{_named(second_ids, tokenizer)} in {second}. Correct the file that is wrong"
                )


def _check_template(folder: Path, bos: int, tokenizer: Tokenizer) -> None:
    """A tokenizer that begins its texts with special tokens begins them with BOS."""
    leading = leading_special_ids(tokenizer)
    if leading and bos not in leading:
        raise UnusableModel(
            f"expected one bos token, got {_named((bos,), tokenizer)} in {folder / 'config.json'}, but the "
            f"post-processor of {folder / 'tokenizer.json'} begins texts with {_named(tuple(leading), tokenizer)}. "
            "Correct the file that is wrong"
        )


def _named(ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    return ", ".join(f"{id_} ({tokenizer.id_to_token(id_)!r})" for id_ in ids)
