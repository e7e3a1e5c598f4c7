"""Texts with two labels each, one of which misleads: what `scr` reads.

A pair is two values of the first label. The second label has two values. In a biased sample both labels always agree,
in a fair one they do not: so there are four groups of texts, and the two in which the labels agree are needed twice.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from evaluate.labelled.config import FilesLabels, PlainName, UnusableLabels
from evaluate.labelled.hub import loading
from evaluate.labelled.substitute import SafeProbes
from evaluate.labelled.texts import identity_of
from evaluate.substituted import attribute, entry, unchecked_shapes
from store.record import Record

_OWN = "bias_in_bios of our own"
"""sae-bench takes no data set whose name has neither bias_in_bios nor amazon_reviews in it."""
_TEXT, _FIRST, _SECOND = "text", "first", "second"
Pair = Annotated[tuple[str, str], Field(strict=False)]
"""YAML has lists and no tuples."""
Group = tuple[str, str]
"""A value of the first label and one of the second."""


class HubTwoLabels(Record):
    """One of the two data sets with which sae-bench does this, from the hub, with sae-bench's four pairs of each."""

    kind: Literal["hub"]
    name: Literal["LabHC/bias_in_bios_class_set1", "canrager/amazon_reviews_mcauley_1and5"]
    revision: str | None = None
    """Commit of the data set. null: its newest."""


class FilesTwoLabels(Record):
    """A person's own texts, one file with a column for the text and two for labels."""

    kind: Literal["files"]
    name: PlainName
    """Under which results name it."""
    path: str
    """.csv, .jsonl or .parquet."""
    pairs: list[Pair]
    """Pairs of values of the label that probes should use."""
    spurious_values: Pair
    """The two values of the label that misleads: the first goes with the first of a pair."""
    text_column: str = "text"
    label_column: str = "label"
    spurious_column: str = "spurious"


class StandardLibraryTwoLabels(Record):
    """Passages of two libraries of Python, code or words (comments and docstrings). What misleads is which of both."""

    kind: Literal["standard-library"]
    pairs: list[Pair]
    """Pairs of libraries, such as email and asyncio."""

    @property
    def name(self) -> str:
        """Under which results name it."""
        return "standard-library-code-or-words"


TwoLabels = Annotated[HubTwoLabels | FilesTwoLabels | StandardLibraryTwoLabels, Field(discriminator="kind")]


def _checked(datasets: list[TwoLabels]) -> list[TwoLabels]:
    names = [item.name for item in datasets]
    if not datasets or len(set(names)) < len(names):
        raise ValueError(f"expected at least one data set, each name once, got {names}. Correct the list")
    for item in datasets:
        if not isinstance(item, HubTwoLabels):
            found = item.pairs
            if not found or len(set(found)) < len(found) or any(one == other for one, other in found):
                raise ValueError(f"expected pairs of two different labels in {item.name}, each once, got {found}")
    return datasets


TwoLabelsList = Annotated[list[TwoLabels], AfterValidator(_checked)]


@dataclass(frozen=True)
class PairTexts:
    """Texts of one pair by group."""

    train: Mapping[Group, list[str]]
    test: Mapping[Group, list[str]]


def pairs_of(item: TwoLabels) -> list[Pair]:
    """The pairs of a data set."""
    if not isinstance(item, HubTwoLabels):
        return item.pairs
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    return [(one, other) for one, other in ScrAndTppEvalConfig().column1_vals_lookup[item.name]]


def identity(item: TwoLabels) -> dict[str, JsonValue]:
    """What decides the texts, as JSON. Quick."""
    return identity_of(
        item,
        path=item.path if isinstance(item, FilesTwoLabels) else None,
        of_sources=isinstance(item, StandardLibraryTwoLabels),
    )


def spurious_values(item: FilesTwoLabels | StandardLibraryTwoLabels) -> Pair:
    """The values of the label that misleads."""
    return item.spurious_values if isinstance(item, FilesTwoLabels) else ("code", "words")


def load_pair(
    item: FilesTwoLabels | StandardLibraryTwoLabels, pair: Pair, *, train_size: int, test_size: int, seed: int
) -> PairTexts:
    """Texts of a pair, in sae-bench's numbers: a quarter of a size per group, and twice as many (and one more) of the
    two groups whose labels agree. No text is in both parts.

    Raises:
        UnusableLabels: too few texts of a group, or a file that cannot be read; says which.
    """
    second = spurious_values(item)
    by_group = _groups(item)
    train, test = {}, {}
    for one, label in enumerate(pair):
        for other, spurious in enumerate(second):
            sizes = [2 * (size // 4) + 1 if one == other else size // 4 for size in (train_size, test_size)]
            texts = sorted(by_group.get((label, spurious), set()))
            if len(texts) < sum(sizes):
                raise UnusableLabels(
                    f"expected at least {sum(sizes)} different texts of {item.name} that are {label!r} and "
                    f"{spurious!r} ({sizes[0]} to train and {sizes[1]} to test probes), got {len(texts)}. Lower "
                    "train_set_size or test_set_size, or give more texts"
                )
            random.Random(f"{seed} {label} {spurious}").shuffle(texts)
            train[label, spurious], test[label, spurious] = texts[: sizes[0]], texts[sizes[0] : sum(sizes)]
    return PairTexts(train, test)


def _groups(item: FilesTwoLabels | StandardLibraryTwoLabels) -> dict[Group, set[str]]:
    if isinstance(item, StandardLibraryTwoLabels):
        from evaluate.labelled.standard_library import libraries_and_parts

        wanted = {library for pair in item.pairs for library in pair}
        groups: dict[Group, set[str]] = {}
        for library, part, text in libraries_and_parts(wanted):
            groups.setdefault((library, "code" if part == "code" else "words"), set()).add(text)
        return groups
    return _groups_of_file(item)


def _groups_of_file(item: FilesTwoLabels) -> dict[Group, set[str]]:
    from evaluate.labelled.files import read

    labels_of: list[dict[str, str]] = []
    for column in (item.label_column, item.spurious_column):
        found: dict[str, str] = {}
        one = FilesLabels(
            kind="files", name=item.name, path=item.path, text_column=item.text_column, label_column=column
        )
        for label, texts in read(one).items():
            for text in texts:
                if found.setdefault(text, label) != label:
                    raise UnusableLabels(
                        f"expected every text of {item.path} under one {column}, found one under {found[text]!r} and "
                        f"{label!r}. Remove it"
                    )
        labels_of.append(found)
    first, second = labels_of
    groups: dict[Group, set[str]] = {}
    for text, label in first.items():
        groups.setdefault((label, second[text]), set()).add(text)
    return groups


@contextlib.contextmanager
def known_to_sae_bench(item: TwoLabels, texts: PairTexts | None) -> Iterator[str]:
    """Inside, sae-bench's scr finds the data set under the name that is given. Everything is as before afterwards.

    `texts`: of a pair of one that is on this machine; None where all that is needed of it was kept.
    """
    from sae_bench.evals.scr_and_tpp import dataset_creation, main
    from sae_bench.sae_bench_utils import dataset_info

    with contextlib.ExitStack() as stack:
        stack.enter_context(unchecked_shapes())
        stack.enter_context(attribute(main, "pickle", SafeProbes))
        if isinstance(item, HubTwoLabels):
            read = loading(item.revision)
            stack.enter_context(attribute(dataset_creation, "load_dataset", read))
            yield item.name
            return
        values = {value: value for pair in [*item.pairs, spurious_values(item)] for value in pair}
        about = {
            "text_column_name": _TEXT, "column1_name": _FIRST, "column2_name": _SECOND,
            "column1_mapping": values, "column2_mapping": values,
        }  # fmt: skip
        stack.enter_context(entry(dataset_info.dataset_metadata, _OWN, about))
        stack.enter_context(entry(main.COLUMN2_VALS_LOOKUP, _OWN, spurious_values(item)))
        stack.enter_context(attribute(dataset_creation, "load_dataset", lambda name: _columns(name, texts)))
        yield _OWN


def _columns(name: str, texts: PairTexts | None) -> dict[str, dict[str, Any]]:
    if texts is None:
        raise ValueError(f"expected sae-bench to ask for no texts of {name}: all of its set-up is kept")
    return {"train": _table(texts.train), "test": _table(texts.test)}


def _table(by_group: Mapping[Group, list[str]]) -> dict[str, list[str]]:
    rows = [(text, *group) for group, texts in by_group.items() for text in texts]
    return {name: [row[index] for row in rows] for index, name in enumerate((_TEXT, _FIRST, _SECOND))}
