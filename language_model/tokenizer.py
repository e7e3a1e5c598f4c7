"""The tokenizer of a checkpoint: what its tokenizer.json says, and nothing else.

transformers rebuilds a tokenizer from its class: where the pre-tokenizer of tokenizer.json is not the one that the
class would make, the token ids are others, without a word. So its tokenizers are not used. The one object that
libraries want of that kind is made from the same file, and compared with it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from language_model.checkpoint import UnusableModel, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_NAMES = ("bos", "eos", "pad")
PROBE = (
    "In 2023, 12345 shards held 3.14e-10 rows.  Two spaces,   three;\ttabs\t\tand\n\nempty lines \n  indented\r\n"
    "def f(x: int) -> str:\n    return f\"{x!r:>8}\"  # don't, we'll, it's I'M\n<b>&amp;</b> https://a.example/?q=1&r=%20\n"
    "na\u00efve caf\u00e9 Stra\u00dfe \u00c5ngstr\u00f6m e\u0301 "
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f "
    "\ud55c\uad6d\uc5b4 \u0627\u0644\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd "
    "\u0928\u092e\u0938\u094d\u0924\u0947 "
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0968\u0966\u0968\u0969 \uff11\uff12 \u00bd \u2460 "
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2211x\u00b2\u2260\u221e \u00a0\u3000 "
    "\u201cquoted\u201d \u2013 \u2026 <s> </s> <bos> <|endoftext|> [CLS] CamelCase snake_case 100,000,000 0x1F"
)
"""Text on which tokenizers differ: digits, spaces, line ends, code, several scripts, emoji, spelled special tokens."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder's tokenizer.json; the spelling of a special token in a text is plain text to it.

    Raises:
        UnusableModel: the file is no tokenizer, or one that gives other tokens each time (dropout).
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of all classes there are, this library raises Exception itself
        raise UnusableModel(
            f"expected a tokenizer in {path}, found something else ({error}). Fetch the model again"
        ) from error
    model = read_object(path).get("model")
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if dropout:
        raise UnusableModel(
            f"expected a tokenizer that gives the same tokens each time, but {path} has a dropout of {dropout}. "
            "Set it to null"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def stated_tokens(folder: Path) -> dict[str, dict[str, str]]:
    """The special tokens that a tokenizer's files name: for "bos", "eos" and "pad" the token by file name.

    A file that names none, or is not there, is left out.
    """
    stated: dict[str, dict[str, str]] = {name: {} for name in SPECIAL_NAMES}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = read_object(folder / file)
        for name in SPECIAL_NAMES:
            token = settings.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                stated[name][file] = token
    return stated


def leading_special_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer itself puts in front of a text, such as [2] for Gemma."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    starts = (start for start in range(len(whole) - len(plain) + 1) if whole[start : start + len(plain)] == plain)
    return whole[: next(starts, 0)]


def ids_from_text(tokenizer: Tokenizer) -> int:
    """The largest id that a text can get: special tokens, whose spelling is plain text, are left out."""
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return max((id_ for id_ in tokenizer.get_vocab(with_added_tokens=True).values() if id_ not in special), default=0)


def transformers_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The same tokenizer as an object of transformers, for libraries that insist on one; it is made from the same file.

    Raises:
        UnusableModel: it gives other tokens than tokenizer.json.
    """
    from transformers import PreTrainedTokenizerFast

    names: dict[str, Any] = {
        f"{name}_token": next(iter(files.values())) for name, files in stated_tokens(folder).items() if files
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    # TransformerLens makes another one by the class's rules, unless this one claims to put BOS in front already.
    tokenizer.init_kwargs |= {"name_or_path": str(folder), "add_bos_token": True}
    found = tokenizer(PROBE, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if found != load_tokenizer(folder).encode(PROBE, add_special_tokens=False).ids:
        raise UnusableModel(
            f"expected transformers to give the tokens of {folder / 'tokenizer.json'}, got others. The installed "
            "transformers is not the one that this was written for"
        )
    return tokenizer
