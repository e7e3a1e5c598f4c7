"""Which labelled data sets a benchmark reads."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from store.record import Record

HUB_DATASETS = (
    "LabHC/bias_in_bios_class_set1",
    "LabHC/bias_in_bios_class_set2",
    "LabHC/bias_in_bios_class_set3",
    "canrager/amazon_reviews_mcauley_1and5",
    "canrager/amazon_reviews_mcauley_1and5_sentiment",
    "fancyzhx/ag_news",
    "Helsinki-NLP/europarl",
)
"""Those of sae-bench 0.6.0 that can be read without running code of their authors: codeparrot/github-code cannot."""


class UnusableLabels(ValueError):
    """A data set that cannot be read, or has too few texts or classes."""


def _known_hub_dataset(name: str) -> str:
    if name == "codeparrot/github-code":
        raise ValueError(
            f"expected a data set that can be read without running its author's code, got {name}. Leave it out"
        )
    if name not in HUB_DATASETS:
        raise ValueError(
            f"expected one of {', '.join(HUB_DATASETS)}, got {name}. Choose one, or give files of your own"
        )
    return name


def _plain_name(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise ValueError(f"expected a name of letters, digits, - and _, got {name!r}. Rename the data set")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]


class StandardLibraryLabels(Record):
    """Passages of Python's standard library, labelled by what can be known about them."""

    kind: Literal["standard-library"]
    task: Literal["library", "part"]
    """`library`: which of a few libraries a passage is from. `part`: whether it is code, docstring or comment."""

    @property
    def name(self) -> str:
        """Under which results name it."""
        return f"standard-library-{self.task}"


class FilesLabels(Record):
    """A person's own texts with labels, one file with a column for each."""

    kind: Literal["files"]
    name: PlainName
    """Under which results name it."""
    path: str
    """.csv, .jsonl or .parquet."""
    text_column: str = "text"
    label_column: str = "label"


class HubLabels(Record):
    """One of sae-bench's data sets, from the hub."""

    kind: Literal["hub"]
    name: Annotated[str, AfterValidator(_known_hub_dataset)]
    """sae-bench's name of it."""
    revision: str | None = None
    """Commit of the data set. null: its newest."""


Labels = Annotated[StandardLibraryLabels | FilesLabels | HubLabels, Field(discriminator="kind")]


def _names_differ(labels: list[Labels]) -> list[Labels]:
    names = [label.name for label in labels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not labels or twice:
        raise ValueError(f"expected at least one data set, each name once, got {names}. Correct the list")
    return labels


LabelsList = Annotated[list[Labels], AfterValidator(_names_differ)]
