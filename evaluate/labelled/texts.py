"""A labelled data set as texts by class, and what identifies it."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from evaluate.labelled.config import FilesLabels, HubLabels, Labels, StandardLibraryLabels, UnusableLabels
from language_model.standard_library import corpus_digest
from store.record import Record, plain


@dataclass(frozen=True)
class LabelledTexts:
    """One data set, balanced: every class has equally many texts."""

    name: str
    train: Mapping[str, list[str]]
    """Texts by class, for the training of probes."""
    test: Mapping[str, list[str]]
    """Texts by class, for testing them."""


@functools.cache
def _standard_library_digest() -> str:
    return corpus_digest()


def identity(labels: Labels) -> dict[str, JsonValue]:
    """What decides the texts, as JSON: settings, and a digest of what is on this machine. Quick."""
    return identity_of(
        labels,
        path=labels.path if isinstance(labels, FilesLabels) else None,
        of_sources=isinstance(labels, StandardLibraryLabels),
    )


def identity_of(settings: Record, *, path: str | None, of_sources: bool) -> dict[str, JsonValue]:
    """Settings of a data set with the digest of the file at `path`, or of the standard library's sources."""
    found: dict[str, JsonValue] = plain(settings)
    if of_sources:
        found["sources_sha256"] = _standard_library_digest()
    if path is not None:
        del found["path"]  # the same file elsewhere is the same data set
        found["file_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None
    return found


def missing(labels: Labels) -> str:
    """What is not on this machine, in a sentence; nothing where all is, or where only the hub can tell."""
    return missing_file(labels.name, labels.path) if isinstance(labels, FilesLabels) else ""


def missing_file(name: str, path: str) -> str:
    """The same of a data set in a file."""
    return "" if Path(path).is_file() else f"The data set {name} is not at {path}."


def load(labels: Labels, *, train_size: int, test_size: int, seed: int) -> LabelledTexts:
    """Reads a data set that is on this machine, with sae-bench's sizes: each class is one side of a two-sided task, and
    has half of `train_size` and of `test_size` texts.

    Raises:
        UnusableLabels: too few texts or classes, or a file that cannot be read; says which.
    """
    if isinstance(labels, HubLabels):
        raise TypeError(f"sae-bench reads {labels.name} itself")
    if isinstance(labels, StandardLibraryLabels):
        from evaluate.labelled.standard_library import passages

        by_class = passages(labels.task)
    else:
        from evaluate.labelled.files import read

        by_class = read(labels)
    return split(labels.name, by_class, train_size=train_size, test_size=test_size, seed=seed)


def split(name: str, by_class: Mapping[str, list[str]], *, train_size: int, test_size: int, seed: int) -> LabelledTexts:
    """Equally many texts of each class for training and testing, no text in both, drawn by `seed`."""
    import random

    if len(by_class) < 2:
        raise UnusableLabels(f"expected at least two classes in {name}, got {', '.join(by_class) or 'none'}. Add texts")
    wanted = train_size // 2 + test_size // 2
    train, test = {}, {}
    for label in sorted(by_class):
        texts = sorted(set(by_class[label]))
        if len(texts) < wanted:
            raise UnusableLabels(
                f"expected at least {wanted} different texts of class {label!r} in {name} ({train_size // 2} to train "
                f"and {test_size // 2} to test probes), got {len(texts)}. Lower probe_train_set_size or "
                "probe_test_set_size, or give more texts"
            )
        random.Random(f"{seed} {label}").shuffle(texts)
        train[label], test[label] = texts[: train_size // 2], texts[train_size // 2 : wanted]
    shared = {text for texts in (*train.values(), *test.values()) for text in texts}
    if len(shared) < len(by_class) * wanted:
        raise UnusableLabels(f"expected every text of {name} under one label, found one under several. Remove it")
    return LabelledTexts(name, train, test)
