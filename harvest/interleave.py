"""The order in which documents are read: streams in turns by their weights, and shuffled in windows.

Both are functions of the documents alone, so that the same text and settings give the same order everywhere, and more
of it only adds documents behind it.
"""

import heapq
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, Protocol

from store.cache.order import keyed_permutation

MAX_WINDOW_CHARACTERS = 2**26
"""A window of a shuffle that holds as many is full, however few its documents are."""
_WINDOW_KEY, _FILES_KEY = 4, 5
"""Permutations of windows and of files are keyed apart from those of store/cache/order.py."""


class Document(NamedTuple):
    """One document, with the part of the text (a file, a data set) that it comes from."""

    part: int
    """Number of the part, for the account."""
    text: str
    num_documents_of_part: int = 0
    """Of the last document of a part: how many that has. 0 for all others."""
    is_left_out: bool = False
    """By a filter; `text` is then empty."""


Documents = Generator[Document, None, None]
"""Closing it closes the files behind it."""
Check = Callable[[], object]
"""Called before every document that is read, those that wait in a window too; it raises where reading is given up."""
Stream = tuple[float, Callable[[], Documents]]
"""A weight, and what starts the documents."""


def take_turns(streams: Iterable[Stream], *, at_once: int) -> Documents:
    """The documents of all streams, each in its order; next comes the one with the fewest characters for its weight.

    At most `at_once` streams are open. The next one enters when one has ended, level with the one that is furthest
    behind. Documents that are left out count nothing.
    """
    waiting, numbers = iter(streams), itertools.count()
    open_streams: list[tuple[float, int, float, Documents]] = []
    now = 0.0
    while True:
        while len(open_streams) < at_once and (stream := next(waiting, None)) is not None:
            weight, start = stream
            heapq.heappush(open_streams, (now, next(numbers), weight, start()))
        if not open_streams:
            return
        now, number, weight, documents = heapq.heappop(open_streams)
        document = next(documents, None)
        if document is None:
            continue
        yield document
        taken = 0 if document.is_left_out else max(1, len(document.text))
        heapq.heappush(open_streams, (now + taken / weight, number, weight, documents))


def shuffled(documents: Iterable[Document], *, seed: int, window_documents: int) -> Documents:
    """The same documents, each window of them in an order drawn by the seed and the window's number."""
    for number, window in enumerate(_windows(documents, window_documents=window_documents)):
        for at in keyed_permutation(len(window), _WINDOW_KEY, seed, number):
            yield window[at]


def shuffled_numbers(count: int, *, seed: int) -> list[int]:
    """The order, drawn by the seed, in which `count` files are read."""
    return [int(number) for number in keyed_permutation(count, _FILES_KEY, seed)]


def _windows(documents: Iterable[Document], *, window_documents: int) -> Iterator[list[Document]]:
    window: list[Document] = []
    num_characters = 0
    for document in documents:
        window.append(document)
        num_characters += len(document.text)
        if len(window) == window_documents or num_characters >= MAX_WINDOW_CHARACTERS:
            yield window
            window, num_characters = [], 0
    if window:
        yield window


def unchecked() -> None:
    """Nothing ends the reading."""


class StartDocuments(Protocol):
    """Starts the documents of a text from the first on."""

    def __call__(self, check: Check = unchecked, /) -> Documents: ...


def numbered(part: int, texts: Iterable[str | None], *, check: Check = unchecked) -> Documents:
    """The documents of one part, the last of which says how many there are; None is one that a filter left out."""
    held: str | None = None
    count = 0
    for count, text in enumerate(texts, start=1):
        check()
        if count > 1:
            yield Document(part, held or "", is_left_out=held is None)
        held = text
    if count:
        yield Document(part, held or "", num_documents_of_part=count, is_left_out=held is None)
