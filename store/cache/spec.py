"""The spec of a cache: everything that decides its bytes, and how two specs are compared."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from store.cache.left_out import spare_sequences
from store.codec.names import CodecName
from store.errors import MismatchedCache
from store.identity import HookName, ModelIdentity, Size, how_identified
from store.record import Record, digest, plain

FirstToken = Literal["bos", "text"]
"""What a sequence begins with: BOS, or the next token of the text."""


def position_names(number: int, *, first_token: FirstToken) -> tuple[str, ...]:
    """The names of the first `number` positions of a sequence: ("bos", "1", "2"), or ("0", "1", "2") without BOS."""
    return tuple("bos" if position == 0 and first_token == "bos" else str(position) for position in range(number))


class CacheSpec(Record):
    """Everything that decides a cache's bytes, except how many rows were asked for."""

    model: ModelIdentity
    hooks: Annotated[tuple[HookName, ...], Field(min_length=1)]
    """TransformerLens names, such as blocks.2.hook_resid_post."""
    text: dict[str, JsonValue]
    """Lineage of the text: kind, digest or revision, Python version."""
    context_length: Annotated[Size, Field(ge=2)]
    """Tokens per sequence, BOS included."""
    excluded_positions: tuple[str, ...]
    """Positions whose rows are not stored, the first ones of a sequence: ("bos",) as a rule. See `position_names`."""
    packing: str
    """How documents became sequences, in a sentence."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of documents set apart for evaluation."""
    compute_dtype: str
    """Number format of the forward pass; rows are stored as bfloat16."""
    forward_batch_sequences: Size
    """Sequences per forward pass, fixed within a shard because products depend on shapes."""
    sequences_per_chunk: Size
    chunks_per_shard: Size
    codec: CodecName
    harvest_version: int
    """Raised by hand when the harvest's results change."""
    first_token: FirstToken = Field(default="bos", exclude_if=lambda first: first == "bos")
    """Where it is "bos" it is not in the file, as in caches of earlier versions; so with the next field's "eager"."""
    attention: Literal["eager", "sdpa"] = Field(default="eager", exclude_if=lambda attention: attention == "eager")
    """How attention was computed: step by step, or by torch's fused kernels. They differ in the last bits."""
    not_finite: Literal["error", "leave_out"] = Field(default="error", exclude_if=lambda choice: choice == "error")
    """What became of sequences with a row that is not finite: none is there, or others of the text took their place."""
    format_version: Literal[1] = 1

    @model_validator(mode="after")
    def check_positions(self) -> Self:
        expected = position_names(len(self.excluded_positions), first_token=self.first_token)
        if self.excluded_positions != expected or len(expected) >= self.context_length:
            raise ValueError(
                f"expected the excluded positions to be the first ones of {self.context_length}, such as "
                f"{position_names(1, first_token=self.first_token)}, got {self.excluded_positions}"
            )
        if self.first_token == "bos" and self.model.bos_token_id is None:
            raise ValueError("expected sequences that begin with text, as the model has no BOS, got first_token 'bos'")
        return self

    @property
    def digest(self) -> str:
        """Identity of the spec, SHA-256 (hex)."""
        return digest(self.identifying())

    def identifying(self) -> dict[str, Any]:
        """What decides the bytes of a cache, as JSON: everything but the labels of its language model."""
        return plain(self) | {"model": self.model.identifying()}

    @property
    def is_synthetic(self) -> bool:
        """Whether rows were made from known features, which then lie with the cache; tokens are numbers of samples."""
        return not self.model.is_language_model

    @property
    def num_excluded_positions(self) -> int:
        """First positions of a sequence that have no row; also the first position that has one."""
        return len(self.excluded_positions)

    @property
    def window_bos(self) -> int | None:
        """The token that every sequence begins with; None where sequences begin with text."""
        return self.model.bos_token_id if self.first_token == "bos" else None

    @property
    def rows_per_sequence(self) -> int:
        """Stored rows of a sequence."""
        return self.context_length - self.num_excluded_positions

    @property
    def text_tokens_per_sequence(self) -> int:
        """Tokens of text in a sequence: all but BOS."""
        return self.context_length - (self.window_bos is not None)

    @property
    def rows_per_chunk(self) -> int:
        """Rows of a full chunk."""
        return self.sequences_per_chunk * self.rows_per_sequence

    @property
    def sequences_per_shard(self) -> int:
        """Sequences of a full shard."""
        return self.sequences_per_chunk * self.chunks_per_shard

    @property
    def spare_sequences(self) -> int:
        """Sequences of text behind those of each shard, full or not, for those that are left out."""
        return spare_sequences(self.sequences_per_shard) if self.not_finite == "leave_out" else 0

    @property
    def rows_per_shard(self) -> int:
        """Rows of a full shard."""
        return self.sequences_per_shard * self.rows_per_sequence

    def num_shards(self, num_sequences: int) -> int:
        """Shards that so many sequences take."""
        return -(-num_sequences // self.sequences_per_shard)


def check_spec(found: CacheSpec, expected: CacheSpec, *, where: str) -> None:
    """Raises MismatchedCache with the first setting in which two specs differ."""
    difference = spec_difference(expected, found)
    if difference is not None:
        name, wanted, got = difference
        raise MismatchedCache(
            f"expected {where} to have {name} {wanted!r}, got {got!r}: it was made from something else. "
            f"Harvest again, or use the settings that it was made with{how_identified(found.model)}"
        )


def spec_difference(expected: CacheSpec, found: CacheSpec) -> tuple[str, JsonValue, JsonValue] | None:
    """(dotted name, expected, found) of the first setting in which two specs differ; None for the same data."""
    wanted, got = expected.identifying(), found.identifying()
    common = wanted["model"].keys() & got["model"].keys()  # labels count between two caches of earlier versions only
    for spec in (wanted, got):
        spec["model"] = {key: spec["model"][key] for key in common}
    return _first_difference(wanted, got)


def _first_difference(expected: JsonValue, found: JsonValue, name: str = "") -> tuple[str, JsonValue, JsonValue] | None:
    """(dotted name, expected, found) of the first place where two JSON values differ; None where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{name}.{key}" if name else key
            if difference := _first_difference(expected.get(key), found.get(key), inner):
                return difference
        return None
    return None if expected == found else (name, expected, found)
