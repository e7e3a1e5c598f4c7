"""The spec of a cache: everything that decides its bytes, and how two specs are compared."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from store.codec.names import CodecName
from store.errors import MismatchedCache
from store.identity import HookName, ModelIdentity, Size, how_identified
from store.record import Record, digest, plain


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
    """Positions whose rows are not stored, and there are no others: ("bos",)."""
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
    format_version: Literal[1] = 1

    @property
    def digest(self) -> str:
        """Identity of the spec, SHA-256 (hex)."""
        return digest(self.identifying())

    def identifying(self) -> dict[str, Any]:
        """What decides the bytes of a cache, as JSON: everything but the labels of its language model."""
        return plain(self) | {"model": self.model.identifying()}

    @property
    def rows_per_sequence(self) -> int:
        """Stored rows of a sequence: all positions but BOS."""
        return self.context_length - 1

    @property
    def rows_per_chunk(self) -> int:
        """Rows of a full chunk."""
        return self.sequences_per_chunk * self.rows_per_sequence

    @property
    def sequences_per_shard(self) -> int:
        """Sequences of a full shard."""
        return self.sequences_per_chunk * self.chunks_per_shard

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
