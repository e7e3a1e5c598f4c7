"""The settings of a harvest: what text, which hooks, how many rows, and the sizes of the pieces on disk.

Everything here can change a byte of the cache, or how much of it there is; nothing here reads a file.
"""

import re
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from language_model.hooks import parse_hook
from store.codec.names import CodecName
from store.record import Record

Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
"""A list in params.yaml, a tuple here; its items stay strict."""

TEXT_SUFFIX = ".txt"
TABLE_SUFFIXES = (".jsonl", ".parquet")


class StandardLibraryText(Record):
    """The sources of this Python's own standard library, one file a document."""

    kind: Literal["standard-library"]


class FilesText(Record):
    """Local files, read in the order given."""

    kind: Literal["files"]
    paths: Names
    """.txt (a file is a document), .jsonl (a JSON object a line) or .parquet, relative to the working folder."""
    column: str | None = None
    """Where .jsonl and .parquet files keep the text; must be left out for .txt files alone."""

    @model_validator(mode="after")
    def check_paths(self) -> Self:
        suffixes = {PurePath(path).suffix for path in self.paths}
        if unknown := [path for path in self.paths if PurePath(path).suffix not in (TEXT_SUFFIX, *TABLE_SUFFIXES)]:
            raise ValueError(f"expected paths ending in .txt, .jsonl or .parquet, got {unknown[0]!r}. Convert the file")
        if repeated := sorted({path for path in self.paths if self.paths.count(path) > 1}):
            raise ValueError(f"expected every path once, got {repeated[0]!r} more than once. Remove the repetition")
        if self.column is None and suffixes & set(TABLE_SUFFIXES):
            raise ValueError("expected a column for .jsonl and .parquet files, got none. Name the one with the text")
        if self.column is not None and suffixes == {TEXT_SUFFIX}:
            raise ValueError(f"expected no column for .txt files, got {self.column!r}. Remove it")
        return self


class HubText(Record):
    """A data set of the Hugging Face hub, streamed; no code of the repository is run."""

    kind: Literal["hub"]
    dataset: str
    """Such as "HuggingFaceFW/fineweb-edu"."""
    config: str | None
    """The data set's configuration; null where it has one only."""
    revision: str
    """The full commit hash (40 hexadecimal digits): a branch could change between two runs."""
    split: str
    column: str

    @field_validator("dataset")
    @classmethod
    def check_dataset(cls, dataset: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", dataset, flags=re.ASCII):
            raise ValueError(f"expected a data set's hub id such as 'owner/name', got {dataset!r}. Correct it")
        return dataset

    @field_validator("revision")
    @classmethod
    def check_revision(cls, revision: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(
                f"expected a full commit hash of 40 hexadecimal digits, got {revision!r}. "
                "Copy it from the data set's 'Files and versions' page on the hub"
            )
        return revision


TextConfig = Annotated[StandardLibraryText | FilesText | HubText, Field(discriminator="kind")]


class HarvestConfig(Record):
    """One harvest. A row is the activation vector of one token at one hook; the first tokens of a window have none."""

    text: TextConfig
    hooks: Names
    """Where activations are read, such as blocks.2.hook_resid_post; all hooks are harvested in one pass."""
    num_rows: int = Field(gt=0, le=10**11)
    """The budget: training rows stored for each hook, rounded down to whole sequences."""
    num_held_out_sequences: int = Field(gt=0, le=10**8)
    """Token windows of held-out documents, set apart for evaluation."""
    held_out_fraction: float = Field(gt=0, lt=1)
    """Share of the documents (by number) that training never sees."""
    context_length: int = Field(ge=3, le=2**20)
    """Tokens in a sequence, BOS included. Evaluation predicts a token from one that has a row, so there are two at
    least behind the positions that are left out."""
    first_token: Literal["bos", "text"] = "bos"
    """What a sequence begins with: the model's BOS, or the next token of the text, for models that were trained without
    BOS (Qwen)."""
    num_positions_left_out: int = Field(default=1, ge=0, le=2**20)
    """First positions of a sequence without rows. Whatever stands there, models use the first position as a place to
    attend to, and its row is many times larger than all others: 0 is for studying just that."""
    forward_batch_sequences: int = Field(gt=0, le=2**20)
    """Sequences in one forward pass. It can change the last bits of a row, and so belongs to the cache's identity."""
    sequences_per_chunk: int = Field(gt=0, le=2**20)
    """Sequences in one compressed piece, the least that is read at once; a few MB are best."""
    chunks_per_shard: int = Field(gt=0, le=2**40)
    """Chunks in one file; a few hundred MB are best."""
    codec: CodecName
    """bf16_planes_v1 is smallest and fastest; the others can be read by zarr without this package."""

    @property
    def rows_per_sequence(self) -> int:
        """Every token gives a row, but those of the first positions."""
        return self.context_length - self.num_positions_left_out

    @property
    def num_sequences(self) -> int:
        """Training sequences within the budget."""
        return self.num_rows // self.rows_per_sequence

    @field_validator("hooks")
    @classmethod
    def check_hooks(cls, hooks: tuple[str, ...]) -> tuple[str, ...]:
        for hook in hooks:
            parse_hook(hook)
        if repeated := sorted({hook for hook in hooks if hooks.count(hook) > 1}):
            raise ValueError(f"expected every hook once, got {repeated[0]!r} more than once. Remove the repetition")
        return hooks

    @model_validator(mode="after")
    def check_sizes(self) -> Self:
        if self.context_length < self.num_positions_left_out + 2:
            raise ValueError(
                f"expected a context_length of at least {self.num_positions_left_out + 2}, two more than the positions "
                f"left out, got {self.context_length}. Raise it or lower num_positions_left_out"
            )
        if self.num_rows < self.rows_per_sequence:
            raise ValueError(
                f"expected num_rows of at least one sequence ({self.rows_per_sequence} rows with context_length "
                f"{self.context_length}), got {self.num_rows}. Raise num_rows or lower context_length"
            )
        sequences_per_shard = self.sequences_per_chunk * self.chunks_per_shard
        if sequences_per_shard % self.forward_batch_sequences:
            raise ValueError(
                f"expected forward_batch_sequences to divide the {sequences_per_shard} sequences of a shard "
                f"(sequences_per_chunk {self.sequences_per_chunk} * chunks_per_shard {self.chunks_per_shard}), got "
                f"{self.forward_batch_sequences}. Change one of the three"
            )
        return self
