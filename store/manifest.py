"""What an activation cache says of itself: the spec that decides its bytes, and the manifest that makes it complete."""

import math
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import JsonValue, ValidationError

from store.atomic import read_json
from store.codec import CodecName
from store.errors import IncompleteCache, MismatchedCache, StoreError
from store.record import Record, digest

MANIFEST_FILE = "manifest.json"
FORMAT: Final = "activation-cache/1"

RecordKind = TypeVar("RecordKind", bound=Record)


class ModelIdentity(Record):
    """Which language model exactly: its name may move, its digests do not."""

    name: str
    """`embedded`, a folder's name, or the hub id."""
    revision: str | None
    """Commit on the hub; null for local models."""
    weights_sha256: str
    """Digest over names and bytes of config.json and the weight files: both decide what the model computes."""
    tokenizer_sha256: str
    """Digest over the tokenizer's files."""
    d_model: int
    num_layers: int
    vocab_size: int
    bos_token_id: int


class CacheSpec(Record):
    """Everything that decides a cache's bytes, except how many rows were asked for."""

    model: ModelIdentity
    hooks: tuple[str, ...]
    """TransformerLens names, such as blocks.2.hook_resid_post."""
    text: dict[str, JsonValue]
    """Lineage of the text: kind, digest or revision, Python version."""
    context_length: int
    """Tokens per sequence, BOS included."""
    excluded_positions: tuple[str, ...]
    """Positions whose rows are not stored, and there are no others: ("bos",)."""
    packing: str
    """How documents became sequences, in a sentence."""
    held_out_fraction: float
    """Share of documents set apart for evaluation."""
    compute_dtype: str
    """Number format of the forward pass; rows are stored as bfloat16."""
    forward_batch_sequences: int
    """Sequences per forward pass, fixed within a shard because products depend on shapes."""
    sequences_per_chunk: int
    chunks_per_shard: int
    codec: CodecName
    harvest_version: int
    """Raised by hand when the harvest's results change."""
    format_version: Literal[1] = 1

    @property
    def digest(self) -> str:
        """Identity of the spec, SHA-256 (hex)."""
        return digest(self)

    @property
    def rows_per_sequence(self) -> int:
        """Stored rows of a sequence: all positions but BOS."""
        return self.context_length - 1

    @property
    def rows_per_chunk(self) -> int:
        return self.sequences_per_chunk * self.rows_per_sequence

    @property
    def sequences_per_shard(self) -> int:
        return self.sequences_per_chunk * self.chunks_per_shard

    @property
    def rows_per_shard(self) -> int:
        return self.sequences_per_shard * self.rows_per_sequence


class ShardSums(Record):
    """Exact float64 sums over the stored (bfloat16) rows of one hook in one shard."""

    num_rows: int
    sum: list[float]
    """Per channel, (d_model,)."""
    sum_of_squares: list[float]
    """Per channel, (d_model,)."""


class Moments(Record):
    """Moments of one hook over all stored rows, combined in shard order."""

    num_rows: int
    mean: list[float]
    """Per channel, (d_model,)."""
    mean_square: list[float]
    """Per channel, (d_model,)."""
    mean_squared_norm: float
    """E||x||^2, the sum of `mean_square`."""


def combine_moments(shards: list[ShardSums]) -> Moments:
    """Adds the sums of all shards (correctly rounded, so that the order of addition cannot matter)."""
    num_rows = sum(shard.num_rows for shard in shards)
    mean = [math.fsum(channel) / num_rows for channel in zip(*(s.sum for s in shards), strict=True)]
    square = [math.fsum(channel) / num_rows for channel in zip(*(s.sum_of_squares for s in shards), strict=True)]
    return Moments(num_rows=num_rows, mean=mean, mean_square=square, mean_squared_norm=math.fsum(square))


class FileRecord(Record):
    """A file as it was written."""

    nbytes: int
    sha256: str


class ShardRecord(Record):
    """One committed shard: its files in every array. Written after them, so its existence means that they are whole."""

    spec_digest: str
    shard: int
    num_sequences: int
    files: dict[str, FileRecord]
    """By path relative to the cache."""
    sums: dict[str, ShardSums]
    """By hook."""


class Manifest(Record):
    """The last file of a cache to be written. Without it the cache is incomplete."""

    format: Literal["activation-cache/1"]
    spec: CacheSpec
    num_sequences: int
    num_rows: int
    """Rows per hook."""
    num_held_out_sequences: int
    moments: dict[str, Moments]
    """By hook."""
    files: dict[str, FileRecord]
    """Every other file, by path relative to the cache."""

    @property
    def digest(self) -> str:
        """Identity of the data, SHA-256 (hex): what a trained SAE records."""
        return digest(self)

    @property
    def num_shards(self) -> int:
        return -(-self.num_sequences // self.spec.sequences_per_shard)


def shard_record_path(shard: int) -> str:
    return f"shards/{shard:05d}.json"


def token_shard_path(shard: int) -> str:
    return f"tokens/c/{shard}/0"


def row_shard_path(hook: str, shard: int) -> str:
    return f"{hook}/c/{shard}/0"


HELD_OUT_PATH = "held_out_tokens/c/0/0"


def parse_record(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads a record from a JSON file; a StoreError names the file and the first thing wrong with it."""
    value = read_json(path)
    try:
        return kind.model_validate(value, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise StoreError(
            f"expected {path} to hold a {kind.__name__}, but {where}: {first['msg']}. "
            "It was made by another version or damaged: restore or remake it"
        ) from error


def load_manifest(folder: Path) -> Manifest:
    """Reads a cache's manifest and checks that every file it lists is there with its size.

    Raises:
        IncompleteCache: no folder, no manifest, or files missing.
        MismatchedCache: another format version.
        DamagedFile: a file of another size.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise IncompleteCache(
            f"expected an activation cache in {folder}, found no such folder. Harvest or pull it first"
        )
    if not path.is_file():
        raise IncompleteCache(
            f"expected {path}, found none: the cache is not finished or only partly pulled. "
            "Run `dvc repro harvest` to finish it, or `dvc pull` to fetch it"
        )
    value = read_json(path)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise MismatchedCache(
            f"expected format {FORMAT!r} in {path}, got {found!r}. Use the version of this software that wrote it"
        )
    return parse_record(Manifest, path)
