"""Texts of tests, and a tokenizer whose tokens can be read off."""

from collections.abc import Callable, Iterable

from tokenizers import Tokenizer, models, pre_tokenizers

from harvest.interleave import Check, Documents, numbered, unchecked
from harvest.text import Part, TextSource
from store.cache.split import is_held_out

BOS = 9


def word_tokenizer() -> Tokenizer:
    """Words w10, w11, ... are the tokens 10, 11, ...; BOS is added unless one asks for no special tokens."""
    vocabulary = {"<bos>": BOS, "<unk>": 0, "<eos>": 1} | {f"w{number}": number for number in range(10, 64)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<bos>", "<eos>"])
    words.encode_special_tokens = True
    return words


def words(*numbers: int, held_out: bool = False) -> str:
    """A document of the tokens `numbers`; spaces at its end, which are no tokens, put it on the wanted side of 0.5."""
    text = " ".join(f"w{number}" for number in numbers)
    texts = (text + " " * spaces for spaces in range(100))
    return next(text for text in texts if is_held_out(text, fraction=0.5) == held_out)


def text_of(*parts: Iterable[str | None] | Callable[[], Iterable[str | None]]) -> TextSource:
    """Parts a, b, ... one behind the other, each a list of documents (None: left out by a filter) or what makes one."""

    def documents(check: Check = unchecked, /) -> Documents:
        for number, part in enumerate(parts):
            yield from numbered(number, part() if callable(part) else part, check=check)

    names = tuple(Part("abcdefgh"[number], 0) for number in range(len(parts)))
    return TextSource({"kind": "test"}, ("a test",), names, documents)
