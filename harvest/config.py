"""The settings of a harvest: what text, which hooks, how many rows, and the sizes of the pieces on disk.

Everything here can change a byte of the cache, or how much of it there is; nothing here reads a file.
"""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from harvest.synthetic_config import PREFIX, SyntheticConfig
from harvest.text_config import MixtureText, Names, TextConfig
from language_model.hooks import parse_hook
from store.codec.names import CodecName
from store.record import Record

MAX_CHUNK_BYTES = 4 * 2**20
"""Of one hook, where the size of a chunk is chosen here: large enough to be read at speed, and to be few."""
MAX_SHARD_BYTES = 256 * 10**6
"""Of one hook, where the size of a shard is chosen here: few files, and little lost when a run is killed."""


class HarvestConfig(Record):
    """One harvest. A row is the activation vector of one token at one hook; the first tokens of a window have none."""

    text: TextConfig | None
    """null where rows are made from known features: `synthetic` then says which."""
    synthetic: SyntheticConfig | None = None
    """Known features in the place of text and language model, for which `language_model` is null; null: rows are those
    of a language model."""
    hooks: Names
    """Where activations are read, such as blocks.2.hook_resid_post; all hooks are harvested in one pass. Of known
    features, synthetic.WORLD."""
    num_rows: int = Field(gt=0, le=10**11)
    """The budget: training rows stored for each hook, rounded down to whole sequences."""
    num_held_out_sequences: int = Field(gt=0, le=10**8)
    """Token windows of held-out documents, set apart for evaluation."""
    held_out_fraction: float | None = Field(gt=0, lt=1)
    """Share of the documents (by number) that training never sees; null for known features."""
    context_length: int = Field(ge=3, le=2**20)
    """Tokens in a sequence, BOS included. Evaluation predicts a token from one that has a row, so there are two at
    least behind the positions that are left out."""
    first_token: Literal["bos", "text"] = "bos"
    """What a sequence begins with: the model's BOS, or the next token of the text, for models that were trained without
    BOS (Qwen)."""
    num_positions_left_out: int = Field(default=1, ge=0, le=2**20)
    """First positions of a sequence without rows. Whatever stands there, models use the first position as a place to
    attend to, and its row is many times larger than all others: 0 is for studying just that."""
    separator: str | None = None
    """A token of the tokenizer that is put behind every document, such as <eos>; null: documents stand end to end. Its
    positions have rows like all others."""
    not_finite: Literal["error", "leave_out"] = "error"
    """A row with an infinity or NaN ends the harvest; or its sequence is left out, counted, and replaced by one of the
    spare sequences that every shard then has. Which are left out depends on all hooks, so that none is taken over from
    a cache with others."""
    forward_batch_sequences: int = Field(gt=0, le=2**20)
    """Sequences in one forward pass. It can change the last bits of a row, and so belongs to the cache's identity."""
    sequences_per_chunk: int | None = Field(default=None, gt=0, le=2**20)
    """Sequences in one compressed piece, the least that is read at once; null: a power of two, with rows of 2 to 4 MiB
    a hook."""
    chunks_per_shard: int | None = Field(default=None, gt=0, le=2**40)
    """Chunks in one file; null: as many as make at most 256 MB of rows a hook."""
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
            if not hook.startswith(PREFIX):
                parse_hook(hook)
        if repeated := sorted({hook for hook in hooks if hooks.count(hook) > 1}):
            raise ValueError(f"expected every hook once, got {repeated[0]!r} more than once. Remove the repetition")
        return hooks

    @field_validator("text")
    @classmethod
    def check_weight(cls, text: TextConfig | None) -> TextConfig | None:
        if text is not None and not isinstance(text, MixtureText) and text.weight != 1.0:
            raise ValueError(
                f"expected no weight for a source that stands alone, got {text.weight:g}. Remove it, or give more "
                "sources (kind: mixture)"
            )
        return text

    @model_validator(mode="after")
    def check_kind(self) -> Self:
        if self.synthetic is None:
            given = {"text": self.text, "held_out_fraction": self.held_out_fraction}
            if missing := [name for name, value in given.items() if value is None]:
                raise ValueError(
                    f"expected {missing[0]}, as synthetic names no known features, got null. Give one of the two"
                )
            if wrong := [hook for hook in self.hooks if hook.startswith(PREFIX)]:
                raise ValueError(
                    f"expected hooks of a language model, as synthetic names no known features, got {wrong[0]!r}. "
                    "Change hooks, or give synthetic"
                )
            return self
        worlds = [PREFIX + name for name in self.synthetic.worlds]
        if unknown := [hook for hook in self.hooks if hook not in worlds]:
            raise ValueError(
                f"expected hooks among the worlds of synthetic: {', '.join(worlds)}, got {unknown[0]!r}. "
                "Change hooks, or add the world"
            )
        wanted: dict[str, object] = {
            "text": None, "held_out_fraction": None, "first_token": "text", "num_positions_left_out": 0,
            "separator": None,
        }  # fmt: skip
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"expected {name}: {'null' if value is None else value} with known features (synthetic), whose "
                    f"samples stand for tokens, got {getattr(self, name)!r}. Change it"
                )
        if max(self.num_rows, self.num_held_out_sequences * self.context_length) > 2**31:
            raise ValueError(
                f"expected at most {2**31} samples of known features in each split, got num_rows {self.num_rows} and "
                f"{self.num_held_out_sequences} held-out sequences of {self.context_length}. Lower them"
            )
        return self

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
        if self.sequences_per_chunk is not None and self.chunks_per_shard is not None:
            _check_shard(self.sequences_per_chunk, self.chunks_per_shard, self.forward_batch_sequences)
        return self

    def chunking(self, *, d_model: int) -> tuple[int, int]:
        """(sequences per chunk, chunks per shard), for rows of `d_model` channels where the settings say null.

        A function of the settings and of `d_model`, never of the budget: a larger one then keeps its full shards.
        """
        sequence_nbytes = 2 * self.rows_per_sequence * d_model
        sequences_per_chunk = self.sequences_per_chunk
        if sequences_per_chunk is None:
            sequences_per_chunk = 2 ** max(0, (MAX_CHUNK_BYTES // sequence_nbytes).bit_length() - 1)
        chunks_per_shard = self.chunks_per_shard
        if chunks_per_shard is None:
            batch = self.forward_batch_sequences
            step = batch // math.gcd(batch, sequences_per_chunk)  # the least number of chunks that whole batches fill
            chunks_per_shard = max(1, MAX_SHARD_BYTES // (sequence_nbytes * sequences_per_chunk * step)) * step
        _check_shard(sequences_per_chunk, chunks_per_shard, self.forward_batch_sequences)
        return sequences_per_chunk, chunks_per_shard


def _check_shard(sequences_per_chunk: int, chunks_per_shard: int, forward_batch_sequences: int) -> None:
    sequences_per_shard = sequences_per_chunk * chunks_per_shard
    if sequences_per_shard % forward_batch_sequences:
        raise ValueError(
            f"expected forward_batch_sequences to divide the {sequences_per_shard} sequences of a shard "
            f"(sequences_per_chunk {sequences_per_chunk} * chunks_per_shard {chunks_per_shard}), got "
            f"{forward_batch_sequences}. Change one of the three"
        )
