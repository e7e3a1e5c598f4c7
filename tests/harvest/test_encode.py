"""Long documents are encoded in pieces, and nobody can tell: the tokens are those of one call."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from harvest import encode
from harvest.encode import tokenize, tokenize_long
from harvest.tokens import TooLittleText, pack
from language_model.load import EMBEDDED_FOLDER
from language_model.standard_library import documents
from language_model.tokenizer import PROBE, load_tokenizer
from store.cache.split import is_held_out
from tests.harvest.texts import text_of
from tests.language_model.checkpoints import TOKENIZERS, VOCAB_SIZE

# Stretches without any place to cut, longer than a piece (1000 characters below) and its overlap (400).
STRETCHES = {"letters": "a", "spaces": " ", "line ends": "\n", "digits": "7", "emoji": "\U0001f600", "marks": "e\u0301"}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(encode, "OVERLAP_CHARACTERS", 400)
    monkeypatch.setattr(encode, "REPORTED_CHARACTERS", 16_000)


def check(text: str, tokenizer: Tokenizer) -> int:
    """The number of pieces of `text`, whose tokens must be those of one call."""
    [whole] = tokenize([text], tokenizer, vocab_size=VOCAB_SIZE)
    pieces = list(tokenize_long(text, tokenizer, vocab_size=VOCAB_SIZE))
    assert np.array_equal(np.concatenate(pieces), whole)
    return len(pieces)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_the_pieces_are_those_of_the_whole(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    text = "".join(f"{number} {PROBE}\n" for number in range(40))  # 30,000 characters
    assert check(text, tokenizer) > 20
    for length in (0, 1, 999, 1000, 1001, 1599, 1600, 1601):
        check(text[:length], tokenizer)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_stretch_that_cannot_be_cut_makes_a_piece_longer_and_changes_nothing(kind: str, stretch: str) -> None:
    tokenizer, middle = TOKENIZERS[kind](), STRETCHES[stretch] * 3001
    check(PROBE * 3 + middle + PROBE * 3, tokenizer)
    check(middle, tokenizer)


@pytest.mark.usefixtures("small_pieces")
def test_a_document_that_must_be_encoded_as_a_whole_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("7" * 40_001, TOKENIZERS["olmo2"]()) == 1
    assert "16,000 characters of a document cannot be cut" in capsys.readouterr().err


def test_the_standard_librarys_longest_files_in_pieces_of_the_real_size() -> None:
    tokenizer = load_tokenizer(EMBEDDED_FOLDER)
    longest = max((text for _, text in documents()), key=len)
    assert len(longest) > 5 * encode.PIECE_CHARACTERS
    [whole] = tokenize([longest], tokenizer, vocab_size=4096)
    pieces = list(tokenize_long(longest, tokenizer, vocab_size=4096))
    assert len(pieces) > 5
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_long_document_is_read_no_further_than_its_windows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, num_pieces = TOKENIZERS["gpt2"](), 0
    text = side_of(PROBE * 2000, held_out=False)  # 1.4 million characters

    def counted(*arguments: object, **keywords: object) -> object:
        nonlocal num_pieces
        for piece in tokenize_long(*arguments, **keywords):  # type: ignore[arg-type]
            num_pieces += 1
            yield piece

    monkeypatch.setattr("harvest.tokens.tokenize_long", counted)
    with pytest.raises(TooLittleText):  # there is no held-out document; the training side was full after a piece
        pack_windows(text, tokenizer, fraction=0.5)
    assert num_pieces == 1


@pytest.mark.parametrize(
    ("held_out", "advice"),
    [
        (
            True,
            r"0 training documents and 1 from 1 held-out documents. No document is left for training: lower held_out",
        ),
        (False, r"1 training documents and 0 from 0 held-out documents. No document is held out: raise held_out_frac"),
    ],
)
def test_a_single_document_cannot_be_on_both_sides_and_the_advice_says_so(held_out: bool, advice: str) -> None:
    text = side_of(PROBE * 4, held_out=held_out)
    with pytest.raises(TooLittleText, match=advice) as caught:
        pack_windows(text, TOKENIZERS["gpt2"](), fraction=0.5)
    assert "give the text in more of them (.jsonl or .parquet)" in str(caught.value)
    assert "num_rows" not in str(caught.value)


def pack_windows(text: str, tokenizer: Tokenizer, *, fraction: float) -> None:
    pack(
        text_of([text]),
        tokenizer,
        bos_token_id=2,
        vocab_size=VOCAB_SIZE,
        context_length=16,
        num_sequences=3,
        num_held_out_sequences=1,
        held_out_fraction=fraction,
    )


def side_of(text: str, *, held_out: bool) -> str:
    """`text` with spaces at its end that put it on the wanted side."""
    return next(t for t in (text + " " * n for n in range(100)) if is_held_out(t, fraction=0.5) == held_out)


def test_a_document_of_ten_million_characters_takes_a_few_bytes_each(tmp_path: Path) -> None:
    """It took 170 bytes each: 1.7 GB here, 5 GB for a text of 30 MB."""
    code = (
        "import resource\n"
        "from harvest.encode import tokenize_long\n"
        "from language_model.load import EMBEDDED_FOLDER\n"
        "from language_model.tokenizer import load_tokenizer\n"
        "from language_model.standard_library import documents\n"
        "text = (''.join(text for _, text in documents()) * 2)[:10_000_000]\n"
        "tokenizer = load_tokenizer(EMBEDDED_FOLDER)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for piece in tokenize_long(text, tokenizer, vocab_size=4096): pass\n"
        "print(len(text), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    num_characters, nbytes = map(int, done.stdout.split())
    assert num_characters == 10_000_000
    assert nbytes < 20 * num_characters
