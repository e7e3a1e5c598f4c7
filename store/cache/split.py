"""Which rows training sees, and which it never does."""

from typing import Literal, get_args

Split = Literal["training", "held_out"]
"""Rows that are trained on, and rows of documents that training never sees."""
SPLITS: tuple[Split, ...] = get_args(Split)
