"""What an activation cache says of itself: the spec that decides its bytes, and the manifest that makes it complete."""

import math
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import JsonValue, ValidationError

from store.atomic import parse_json, read_json
from store.codec import CodecName
from store.errors import IncompleteCache, MismatchedCache, StoreError
from store.files import Files, LocalFiles
from store.layout import Split
from store.record import Record, digest

MANIFEST_FILE = "manifest.json"
FORMAT: Final = "activation-cache/2"

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

    def num_shards(self, num_sequences: int) -> int:
        """Shards that so many sequences take."""
        return -(-num_sequences // self.sequences_per_shard)


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
    split: Split
    shard: int
    num_sequences: int
    files: dict[str, FileRecord]
    """By path relative to the cache."""
    sums: dict[str, ShardSums]
    """By hook."""


class Manifest(Record):
    """The last file of a cache to be written. Without it the cache is incomplete."""

    format: Literal["activation-cache/2"]
    spec: CacheSpec
    num_sequences: int
    num_rows: int
    """Training rows per hook."""
    num_held_out_sequences: int
    """Sequences of documents that training never sees."""
    moments: dict[str, Moments]
    """Of the training rows, by hook."""
    files: dict[str, FileRecord]
    """Every other file, by path relative to the cache."""

    @property
    def digest(self) -> str:
        """Identity of the data, SHA-256 (hex): what a trained SAE records."""
        return digest(self)

    def split_sequences(self, split: Split) -> int:
        """Sequences of a split."""
        return self.num_sequences if split == "training" else self.num_held_out_sequences

    def split_rows(self, split: Split) -> int:
        """Rows of a split, per hook."""
        return self.split_sequences(split) * self.spec.rows_per_sequence

    @property
    def num_shards(self) -> int:
        """Shards of the training rows."""
        return self.spec.num_shards(self.num_sequences)


def split_folder(split: Split) -> str:
    """Where a split's arrays are, inside the cache."""
    return "" if split == "training" else "held_out/"


def shard_record_path(shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}shards/{shard:05d}.json"


def token_shard_path(shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}tokens/c/{shard}/0"


def row_shard_path(hook: str, shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}{hook}/c/{shard}/0"


def parse_record(kind: type[RecordKind], path: Path) -> RecordKind:
    """Reads a record from a JSON file; a StoreError names the file and the first thing wrong with it."""
    return parse_value(kind, read_json(path), where=str(path))


def parse_value(kind: type[RecordKind], value: object, *, where: str) -> RecordKind:
    """A record from parsed JSON that was read from `where`."""
    try:
        return kind.model_validate(value, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise StoreError(
            f"expected {where} to hold a {kind.__name__}, but {place}: {first['msg']}. "
            "It was made by another version or damaged: restore or remake it"
        ) from error


def load_manifest(location: Path | Files) -> Manifest:
    """Reads a cache's manifest; that the files it lists are there is for whoever reads them to check.

    Raises:
        IncompleteCache: no folder or no manifest.
        MismatchedCache: another format version.
    """
    files = LocalFiles(location) if isinstance(location, Path) else location
    if isinstance(files, LocalFiles) and not files.folder.is_dir():
        raise IncompleteCache(
            f"expected an activation cache in {files.folder}, found no such folder. Harvest or pull it first"
        )
    where = f"{files.location.rstrip('/')}/{MANIFEST_FILE}"
    if files.size(MANIFEST_FILE) is None:
        raise IncompleteCache(
            f"expected {where}, found none: the cache is not finished or only partly pulled. "
            "Run `dvc repro harvest` to finish it, or `dvc pull` to fetch it"
        )
    value = parse_json(files.read(MANIFEST_FILE), where=where)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise MismatchedCache(
            f"expected format {FORMAT!r} in {where}, got {found!r}. Use the version of this software that wrote it"
        )
    return parse_value(Manifest, value, where=where)
