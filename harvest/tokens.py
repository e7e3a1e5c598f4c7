"""Documents packed into token windows of one length, with held-out documents in windows of their own.

A window is BOS and the next context_length - 1 tokens of a stream, or context_length tokens of it. There are two
streams, training and held out; which of them a document joins is a function of its text alone. A larger budget only
appends windows.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from harvest.encode import PIECE_CHARACTERS, tokenize, tokenize_long
from store.atomic import file_sha256, read_json, write_json
from store.cache.spec import FirstToken
from store.cache.split import is_held_out
from store.errors import StoreError

PACKING = (
    "documents in the order of their source, tokenized without special tokens (a special token's spelling in the text "
    "is plain text); each goes to the training or to the held-out stream by a digest of its text; a stream is its "
    "documents end to end without a separator (empty ones add nothing), cut into windows of {window} tokens; the "
    "last, incomplete window is left out"
)
"""Recorded with the data, by `packing_of`; raise version.HARVEST_VERSION when the packing changes."""

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000


def packing_of(first_token: FirstToken) -> str:
    """How documents become windows, in a sentence."""
    return PACKING.format(window="BOS and context_length - 1" if first_token == "bos" else "context_length")


class TooLittleText(ValueError):
    """The text ended before the budget was reached."""


@dataclass(frozen=True)
class Windows:
    """Token windows, beginning with BOS where there is one."""

    training: NDArray[np.uint32]
    """(num_sequences, context_length)"""
    held_out: NDArray[np.uint32]
    """(num_held_out_sequences, context_length)"""


class WindowStream:
    """Fills a fixed number of windows from token pieces of any length; what is too much is ignored.

    Every window begins with `bos_token_id`, unless that is None.
    """

    def __init__(self, *, num_windows: int, context_length: int, bos_token_id: int | None) -> None:
        # Untouched pages of np.empty cost no memory, so a text that ends early never pays for the whole budget.
        self.windows: NDArray[np.uint32] = np.empty((num_windows, context_length), dtype=np.uint32)
        self._bos_token_id = bos_token_id
        self.num_filled = 0
        self._rest: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)

    @property
    def is_full(self) -> bool:
        """Whether every window is filled."""
        return self.num_filled == len(self.windows)

    def add(self, token_ids: NDArray[np.uint32]) -> None:
        """Appends `token_ids` (tokens,) to the stream."""
        if self.is_full:
            return
        stream = np.concatenate([self._rest, token_ids])
        first = 0 if self._bos_token_id is None else 1
        per_window = self.windows.shape[1] - first
        num_new = min(len(stream) // per_window, len(self.windows) - self.num_filled)
        end = self.num_filled + num_new
        if self._bos_token_id is not None:
            self.windows[self.num_filled : end, 0] = self._bos_token_id
        self.windows[self.num_filled : end, first:] = stream[: num_new * per_window].reshape(num_new, per_window)
        self.num_filled, self._rest = end, stream[num_new * per_window :]


def pack(
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    bos_token_id: int | None,
    vocab_size: int,
    context_length: int,
    num_sequences: int,
    num_held_out_sequences: int,
    held_out_fraction: float,
    on_progress: Callable[[int], object],
) -> Windows:
    """The first windows of both streams; reads no further than it must, and raises `TooLittleText` at the end.

    `on_progress` is given the number of new windows after every document, or piece of a long one.
    """
    training, held_out = (
        WindowStream(num_windows=num_windows, context_length=context_length, bos_token_id=bos_token_id)
        for num_windows in (num_sequences, num_held_out_sequences)
    )
    sides = {False: training, True: held_out}
    num_documents = {False: 0, True: 0}
    num_reported = 0
    for texts in _batches(documents):
        wanted = []
        for text in texts:
            side = is_held_out(text, fraction=held_out_fraction)
            num_documents[side] += 1
            if not sides[side].is_full:
                wanted.append((text, sides[side]))
        for stream, token_ids in _tokenized(wanted, tokenizer, vocab_size=vocab_size):
            stream.add(token_ids)
            num_new = training.num_filled + held_out.num_filled - num_reported
            num_reported += num_new
            on_progress(num_new)
            if training.is_full and held_out.is_full:
                return Windows(training=training.windows, held_out=held_out.windows)
    raise TooLittleText(_too_little_text(training, held_out, num_documents, held_out_fraction=held_out_fraction))


def _tokenized(
    wanted: list[tuple[str, WindowStream]], tokenizer: Tokenizer, *, vocab_size: int
) -> Iterator[tuple[WindowStream, NDArray[np.uint32]]]:
    """Each stream with the tokens to be added; a document in pieces ends where its stream is full."""
    if len(wanted) == 1 and len(wanted[0][0]) > PIECE_CHARACTERS:
        [(text, stream)] = wanted
        for token_ids in tokenize_long(text, tokenizer, vocab_size=vocab_size):
            yield stream, token_ids
            if stream.is_full:
                return
        return
    token_ids_of_texts = tokenize([text for text, _ in wanted], tokenizer, vocab_size=vocab_size)
    yield from zip((stream for _, stream in wanted), token_ids_of_texts, strict=True)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    """Texts in batches large enough for the tokenizer's threads and small enough for memory; a long text alone."""
    texts: list[str] = []
    num_characters = 0
    for _, text in documents:
        is_long = len(text) > PIECE_CHARACTERS
        if texts and is_long:
            yield texts
            texts, num_characters = [], 0
        texts.append(text)
        num_characters += len(text)
        if is_long or len(texts) == BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
            yield texts
            texts, num_characters = [], 0
    if texts:
        yield texts


def _too_little_text(
    training: WindowStream, held_out: WindowStream, num_documents: dict[bool, int], *, held_out_fraction: float
) -> str:
    """What the text gave of both sides, and what to change; `num_documents` by whether they are held out."""
    num_wanted, context_length = training.windows.shape
    rows_per_sequence = context_length - 1
    few = "A file of plain text is one document: give the text in more of them (.jsonl or .parquet)"
    if not training.is_full and not num_documents[False]:
        advice = f"No document is left for training: lower held_out_fraction ({held_out_fraction:g}). {few}"
    elif not training.is_full:
        advice = "Lower harvest.num_rows or give more text"
    elif not num_documents[True]:
        advice = f"No document is held out: raise held_out_fraction ({held_out_fraction:g}). {few}"
    else:
        advice = (
            f"Lower harvest.num_held_out_sequences, raise held_out_fraction ({held_out_fraction:g}) or give more text"
        )
    return (
        f"expected text for {num_wanted * rows_per_sequence} training rows ({num_wanted} sequences) and "
        f"{len(held_out.windows)} held-out sequences, got {training.num_filled * rows_per_sequence} rows "
        f"({training.num_filled} sequences) from {num_documents[False]} training documents and {held_out.num_filled} "
        f"from {num_documents[True]} held-out documents. {advice}"
    )


def save_windows(folder: Path, windows: Windows) -> None:
    """Keeps `windows` in `folder` for a run that is interrupted; their record, written last, makes them valid."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, array in (("training", windows.training), ("held_out", windows.held_out)):
        path = folder / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        digests[name] = file_sha256(path)
    write_json(folder / "windows.json", digests)


def load_windows(folder: Path) -> Windows | None:
    """What `save_windows` kept, memory-mapped; None where there is nothing, or not all of it."""
    try:
        digests = read_json(folder / "windows.json")
    except (StoreError, FileNotFoundError):
        return None
    if not isinstance(digests, dict) or set(digests) != {"training", "held_out"}:
        return None
    arrays = {}
    for name, digest in digests.items():
        path = folder / f"{name}.npy"
        if not path.exists() or file_sha256(path) != digest:
            return None
        arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    return Windows(training=arrays["training"], held_out=arrays["held_out"])
