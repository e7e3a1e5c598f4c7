"""sae-bench's data sets in small, in the form that the hub has them."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

PROFESSIONS = {
    0: "ledger", 1: "house", 2: "court", 6: "tooth", 9: "film", 11: "news", 13: "ward", 21: "lecture", 22: "mind",
    25: "knife", 26: "school",
}  # fmt: skip
TRAIN, TEST = 17, 13
"""Texts of a profession and gender: as many as scr needs of a group for sizes 32 and 24."""


def write_bios(folder: Path, *, text_column: str = "hard_text") -> Path:
    """LabHC/bias_in_bios: a word for the profession, one for the gender, a number."""
    for split, count, first in (("train", TRAIN, 0), ("test", TEST, 100)):
        rows = [
            {
                text_column: f"{pronoun} {word} {word} {first + number}",
                "profession": profession,
                "gender": gender,
            }
            for profession, word in PROFESSIONS.items()
            for gender, pronoun in enumerate(("he", "she"))
            for number in range(count)
        ]
        write_split(folder, split, rows)
    return folder


def write_news(folder: Path) -> Path:
    """fancyzhx/ag_news: four topics."""
    topics = ("world", "sport", "trade", "science")
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            {"text": f"{topic} {topic} {first + number}", "label": label}
            for label, topic in enumerate(topics)
            for number in range(10)
        ]
        write_split(folder, split, rows)
    return folder


def write_split(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    """One Parquet file."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
