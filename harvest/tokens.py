"""Documents packed into token windows of one length, shard by shard, held-out documents in windows of their own.

A window is BOS and the next context_length - 1 tokens of a stream, or context_length tokens of it. There are two
streams, training and held out; which of them a document joins is a function of its text alone. A larger budget only
appends windows. Memory holds one shard of tokens of each stream, whatever the budget.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from harvest.counts import PartCount
from harvest.documents import Start
from harvest.encode import PIECE_CHARACTERS, tokenize, tokenize_long
from harvest.interleave import Check, Document, unchecked
from harvest.streams import ShardStream, StreamState, Tokens
from harvest.text import TextSource
from store.cache.spec import FirstToken
from store.cache.split import SPLITS, Split, is_held_out
from store.cache.text_account import PartAccount, TextAccount
from store.identity import Count
from store.record import Record

PACKING = (
    "documents in the order of their source, tokenized without special tokens (a special token's spelling in the text "
    "is plain text); each goes to the training or to the held-out stream by a digest of its text; a stream is its "
    "documents end to end {separator} (empty ones add nothing), cut into windows of {window} tokens; the "
    "last, incomplete window is left out"
)
"""Recorded with the data, by `packing_of`; raise version.HARVEST_VERSION when the packing changes."""

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1_000_000


class TooLittleText(ValueError):
    """The text ended before the budget was reached."""


def packing_of(separator: str | None, *, first_token: FirstToken) -> str:
    """How documents became windows, in a sentence."""
    return PACKING.format(
        separator="without a separator" if separator is None else f"with {separator!r} behind each",
        window="BOS and context_length - 1" if first_token == "bos" else "context_length",
    )


def separator_id(separator: str | None, tokenizer: Tokenizer) -> int | None:
    """The id of the separator. Raises ValueError for what is no token of the tokenizer."""
    if separator is None:
        return None
    token_id: int | None = tokenizer.token_to_id(separator)
    if token_id is None:
        raise ValueError(
            f"expected harvest.separator to be one token of the tokenizer, such as its end-of-text token, got "
            f"{separator!r}, which it does not have. Correct it, or set it to null"
        )
    return token_id


@dataclass(frozen=True)
class Windows:
    """Token windows, beginning with BOS where there is one."""

    training: Tokens
    """(num_sequences, context_length)"""
    held_out: Tokens
    """(num_held_out_sequences, context_length)"""


class PackingState(Record):
    """Where packing stands between two batches of documents: with it, another process goes on without tokenizing again.

    Documents before it are read once more, as a stream cannot be entered in its middle, but not tokenized.
    """

    num_documents: Count
    streams: dict[Split, StreamState]
    parts: tuple[PartAccount, ...]
    totals: tuple[Count, ...]
    """How many documents each part has, where its last one was read; else 0."""


class Packer:
    """Fills the windows of both streams from documents, in order.

    Args:
        text: what the documents are parts of.
        tokenizer: see language_model/tokenizer.py.
        bos_token_id: what every window begins with; None where windows begin with text.
        vocab_size: of the model.
        context_length: tokens of a window.
        rows_per_window: how many of them will have a row.
        num_windows: of each split.
        windows_per_shard: of every shard but the last of a split.
        held_out_fraction: share of the documents that are held out.
        separator_id: the token behind every document; None for none.
        on_shard: is given split, shard and its windows (sequences, context_length), each once, in the order of a split.
        on_documents: before that, split, shard and which documents the windows come from.
        num_spare: windows of each split that only stand in for others.
        state: to go on from.
    """

    def __init__(
        self,
        text: TextSource,
        tokenizer: Tokenizer,
        *,
        bos_token_id: int | None,
        vocab_size: int,
        context_length: int,
        rows_per_window: int,
        num_windows: dict[Split, int],
        windows_per_shard: int,
        held_out_fraction: float,
        separator_id: int | None,
        on_shard: Callable[[Split, int, Tokens], object],
        on_documents: Callable[[Split, int, list[Start]], object] = lambda *_: None,
        num_spare: dict[Split, int] | None = None,
        state: PackingState | None = None,
    ) -> None:
        self._text, self._tokenizer = text, tokenizer
        self._vocab_size, self._rows_per_window = vocab_size, rows_per_window
        self._fraction = held_out_fraction
        self._num_spare: dict[Split, int] = num_spare or dict.fromkeys(SPLITS, 0)
        self._separator = None if separator_id is None else np.array([separator_id], dtype=np.uint32)
        self.num_documents = 0 if state is None else state.num_documents
        self._counts = [PartCount() for _ in text.parts]
        if state is not None:
            self._counts = [PartCount.of(part, total=n) for part, n in zip(state.parts, state.totals, strict=True)]

        def stream(split: Split) -> ShardStream:
            def keep(shard: int, windows: Tokens, starts: list[Start]) -> None:
                on_documents(split, shard, starts)
                on_shard(split, shard, windows)

            return ShardStream(
                num_windows=num_windows[split],
                context_length=context_length,
                windows_per_shard=windows_per_shard,
                bos_token_id=bos_token_id,
                on_shard=keep,
                state=None if state is None else state.streams[split],
            )

        self.streams: dict[Split, ShardStream] = {split: stream(split) for split in SPLITS}

    @property
    def is_done(self) -> bool:
        """Whether every window is filled."""
        return all(stream.is_full for stream in self.streams.values())

    @property
    def num_filled(self) -> int:
        """Complete windows of both streams."""
        return sum(stream.num_filled for stream in self.streams.values())

    def run(
        self,
        *,
        on_progress: Callable[[], object],
        on_batch: Callable[[], object] = lambda: None,
        check: Check = unchecked,
    ) -> TextAccount:
        """Reads no further than it must. Raises `TooLittleText` where the text ends before the windows are full.

        `on_progress` is called after every document, or piece of a long one; `on_batch` where `state` may be taken,
        `check` before a document is read.
        """
        with closing(self._text.documents(check)) as documents:
            for _ in range(0 if self.is_done else self.num_documents):
                next(documents, None)
            for batch in () if self.is_done else _batches(documents):
                self._pack(batch, on_progress)
                on_batch()
                if self.is_done:
                    break
        if not self.is_done:
            raise TooLittleText(self._too_little_text())
        self._text.check_unchanged()
        return self.account()

    def state(self) -> PackingState:
        """Where it stands between two batches."""
        return PackingState(
            num_documents=self.num_documents,
            streams={split: stream.state() for split, stream in self.streams.items()},
            parts=self.account().parts,
            totals=tuple(count.total for count in self._counts),
        )

    def account(self) -> TextAccount:
        """What became of the text so far."""
        counts = zip(self._text.parts, self._counts, strict=True)
        parts = tuple(count.account(name=part.name, source=part.source) for part, count in counts)
        return TextAccount(sources=self._text.sources, parts=parts)

    def _pack(self, batch: list[Document], on_progress: Callable[[], object]) -> None:
        splits: list[Split] = [
            "held_out" if document.text and is_held_out(document.text, fraction=self._fraction) else "training"
            for document in batch
        ]
        wanted = [
            bool(document.text) and not self.streams[split].is_full
            for document, split in zip(batch, splits, strict=True)
        ]
        if len(batch) == 1 and len(batch[0].text) > PIECE_CHARACTERS:
            self._pack_long(batch[0], splits[0], on_progress)
            return
        texts = [document.text for document, is_wanted in zip(batch, wanted, strict=True) if is_wanted]
        tokens = iter(tokenize(texts, self._tokenizer, vocab_size=self._vocab_size))
        for document, split, is_wanted in zip(batch, splits, wanted, strict=True):
            self._count_document(document)
            token_ids = next(tokens) if is_wanted else None
            if token_ids is None or self.streams[split].is_full:
                continue  # empty, left out, or its side is full
            pieces = [token_ids] if self._separator is None or not len(token_ids) else [token_ids, self._separator]
            self._add(document, split, pieces)
            on_progress()
            if self.is_done:
                return

    def _pack_long(self, document: Document, split: Split, on_progress: Callable[[], object]) -> None:
        self._count_document(document)
        stream = self.streams[split]
        if stream.is_full:
            return

        def pieces() -> Iterator[Tokens]:
            for token_ids in tokenize_long(document.text, self._tokenizer, vocab_size=self._vocab_size):
                yield token_ids
                on_progress()
                if stream.is_full:
                    return
            if self._separator is not None:
                yield self._separator

        self._add(document, split, pieces())

    def _add(self, document: Document, split: Split, pieces: Iterable[Tokens]) -> None:
        count, num_tokens, num_taken = self._counts[document.part], 0, 0
        self.streams[split].begin(document.part, count.num_documents)
        for token_ids in pieces:
            num_tokens += len(token_ids)
            num_taken += self.streams[split].add(token_ids)
        count.num_tokens += num_tokens
        count.tokens[split] += num_taken
        count.documents[split] += num_taken > 0
        count.num_empty_documents += num_tokens == 0

    def _count_document(self, document: Document) -> None:
        self.num_documents += 1
        count = self._counts[document.part]
        count.num_documents += 1
        count.num_characters += len(document.text)
        count.num_filtered_documents += document.is_left_out
        count.num_empty_documents += not document.text and not document.is_left_out
        count.total = count.total or document.num_documents_of_part

    def _too_little_text(self) -> str:
        """What the text gave of both sides, and what to change."""
        training, held_out = self.streams["training"], self.streams["held_out"]
        num_documents = {split: sum(count.documents[split] for count in self._counts) for split in SPLITS}
        per_window = self._rows_per_window
        few = (
            "A .txt or .md file is one document: set harvest.text.split_characters, or give the text in more of them "
            "(.jsonl or .parquet)"
        )
        fraction = f"held_out_fraction ({self._fraction:g})"
        if not training.is_full and not num_documents["training"]:
            advice = f"No document is left for training: lower {fraction}. {few}"
        elif not training.is_full:
            advice = "Lower harvest.num_rows or give more text"
        elif not num_documents["held_out"]:
            advice = f"No document is held out: raise {fraction}. {few}"
        else:
            advice = f"Lower harvest.num_held_out_sequences, raise {fraction} or give more text"
        if filtered := sum(count.num_filtered_documents for count in self._counts):
            advice += f". The filter left out {filtered} of {self.num_documents} documents"
        spare = ""
        if sum(self._num_spare.values()):
            spare = f" (spare ones, {self._num_spare['training']} and {self._num_spare['held_out']}, included)"
        return (
            f"expected text for {training.num_windows * per_window} training rows ({training.num_windows} sequences) "
            f"and {held_out.num_windows} held-out sequences{spare}, got {training.num_filled * per_window} rows "
            f"({training.num_filled} sequences) from {num_documents['training']} training documents and "
            f"{held_out.num_filled} from {num_documents['held_out']} held-out documents. {advice}"
        )


def pack(
    text: TextSource,
    tokenizer: Tokenizer,
    *,
    bos_token_id: int | None,
    vocab_size: int,
    context_length: int,
    num_sequences: int,
    num_held_out_sequences: int,
    held_out_fraction: float,
    separator_id: int | None = None,
) -> Windows:
    """All windows at once, in memory: for small texts, and what windows that are streamed are compared with."""
    made: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}
    Packer(
        text,
        tokenizer,
        bos_token_id=bos_token_id,
        vocab_size=vocab_size,
        context_length=context_length,
        rows_per_window=context_length - 1,
        num_windows={"training": num_sequences, "held_out": num_held_out_sequences},
        windows_per_shard=max(num_sequences, num_held_out_sequences),
        held_out_fraction=held_out_fraction,
        separator_id=separator_id,
        on_shard=lambda split, _, windows: made[split].append(windows),
    ).run(on_progress=lambda: None)
    return Windows(training=np.concatenate(made["training"]), held_out=np.concatenate(made["held_out"]))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """In batches large enough for the tokenizer's threads and small enough for memory; a long document alone."""
    batch: list[Document] = []
    num_characters = 0
    for document in documents:
        is_long = len(document.text) > PIECE_CHARACTERS
        if batch and is_long:
            yield batch
            batch, num_characters = [], 0
        batch.append(document)
        num_characters += len(document.text)
        if is_long or len(batch) == BATCH_DOCUMENTS or num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
