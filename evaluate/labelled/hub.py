"""sae-bench's own data sets, from the hub: read by its code, and never by code of their authors."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from evaluate.benchmarks.benchmark import NotMeasurable
from evaluate.hub_data import explained
from evaluate.labelled.config import UnusableLabels

_COLUMNS = {
    "LabHC/bias_in_bios": ("hard_text", "profession", "gender"),
    "canrager/amazon_reviews_mcauley_1and5": ("text", "category", "rating"),
    "fancyzhx/ag_news": ("text", "label"),
    "Helsinki-NLP/europarl": ("translation",),
}
"""What sae-bench reads of each."""
_TOO_FEW = ("larger sample than population", "a must be greater than 0")
"""What pandas and NumPy say, the one of a class with too few texts and the other of one with none."""


def loading(revision: str | None) -> Callable[..., Any]:
    """`datasets.load_dataset` at the wanted revision, without the running of code.

    NotMeasurable where the hub cannot be reached, or gives something else.
    """

    def load_dataset(name: str, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as datasets has it
        import datasets

        if keywords.pop("trust_remote_code", False):
            raise ValueError(f"expected a data set of plain files, but {name} runs code of its author. Leave it out")
        with explained(name):
            found = datasets.load_dataset(name, *arguments, revision=revision, trust_remote_code=False, **keywords)
        for split in found.values() if isinstance(found, dict) else [found]:
            columns = split.column_names  # unknown of some that are streamed
            lacking = [column for column in _COLUMNS[name] if columns is not None and column not in columns]
            if lacking:
                raise NotMeasurable(
                    f"The data set {name} of the hub has the columns {', '.join(columns)}, and lacks "
                    f"{', '.join(lacking)}, which sae-bench reads.",
                    "Name a revision of it that has them.",
                )
        return found

    return load_dataset


@contextlib.contextmanager
def enough_texts(name: str, *, train_size: int, test_size: int) -> Iterator[None]:
    """sae-bench's errors on a data set of the hub that is too small, in words: UnusableLabels."""
    try:
        yield
    except (AssertionError, KeyError, ValueError) as error:
        if isinstance(error, ValueError) and not any(words in str(error) for words in _TOO_FEW):
            raise
        raise UnusableLabels(
            f"expected enough texts of every class of {name} for {train_size} to train and {test_size} to test probes "
            f"that are right at least once, but sae-bench found too few ({type(error).__name__} {error}). "
            "Change the sizes"
        ) from error
