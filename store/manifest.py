"""What an activation cache says of itself: the spec that decides its bytes, and the manifest that makes it complete.

Records are checked where they are made: one that exists is consistent in itself, whether it was computed or read.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from store.atomic import parse_json
from store.codec import CodecName
from store.errors import IncompleteCache, MismatchedCache
from store.files import Files, LocalFiles
from store.foreign import why_no_cache
from store.layout import SPLITS, Split
from store.record import Record, digest, plain
from store.sealed import check_small, parse_record, parse_sealed

__all__ = ["parse_record"]

MANIFEST_FILE = "manifest.json"
FORMAT: Final = "activation-cache/2"
MAX_CHUNK_NBYTES = 2**32
"""Of a chunk's rows before compression: a reader sets aside as much."""

Count = Annotated[int, Field(ge=0, le=2**48)]
"""Of rows, sequences or bytes: far above any cache, and far below what arithmetic on it could overflow."""
Size = Annotated[int, Field(ge=1, le=2**40)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def check_hook_name(hook: str) -> str:
    """A hook names a folder of the cache: letters, digits and underscores between single dots or dashes."""
    if not re.fullmatch(r"\w+([.-]\w+)*", hook, flags=re.ASCII) or hook in RESERVED_NAMES or len(hook) > 200:
        raise ValueError(f"expected a hook such as blocks.2.hook_resid_post, got {hook[:200]!r}")
    return hook


HookName = Annotated[str, AfterValidator(check_hook_name)]
RESERVED_NAMES = ("tokens", "shards", "held_out")


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
    d_model: Size
    num_layers: Size
    vocab_size: Size
    bos_token_id: Count


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

    num_rows: Count
    sum: list[float]
    """Per channel, (d_model,)."""
    sum_of_squares: list[float]
    """Per channel, (d_model,)."""


class Moments(Record):
    """Moments of one hook over all stored rows, combined in shard order."""

    num_rows: Count
    mean: list[float]
    """Per channel, (d_model,)."""
    mean_square: list[float]
    """Per channel, (d_model,)."""
    mean_squared_norm: float
    """E||x||^2, the sum of `mean_square`."""

    @model_validator(mode="after")
    def check_sum(self) -> Self:
        if min(self.mean_square, default=0.0) < 0 or self.mean_squared_norm != math.fsum(self.mean_square):
            raise ValueError(f"expected mean_squared_norm to be the sum of mean_square, got {self.mean_squared_norm}")
        return self


def combine_moments(shards: list[ShardSums]) -> Moments:
    """Adds the sums of all shards (correctly rounded, so that the order of addition cannot matter)."""
    num_rows = sum(shard.num_rows for shard in shards)
    mean = [math.fsum(channel) / num_rows for channel in zip(*(s.sum for s in shards), strict=True)]
    square = [math.fsum(channel) / num_rows for channel in zip(*(s.sum_of_squares for s in shards), strict=True)]
    return Moments(num_rows=num_rows, mean=mean, mean_square=square, mean_squared_norm=math.fsum(square))


class FileRecord(Record):
    """A file as it was written."""

    nbytes: Count
    sha256: Sha256


class ShardRecord(Record):
    """One committed shard: its files in every array. Written after them, so its existence means that they are whole."""

    spec_digest: Sha256
    split: Split
    shard: Count
    num_sequences: Size
    files: dict[str, FileRecord]
    """By path relative to the cache."""
    sums: dict[HookName, ShardSums]
    """By hook."""

    @model_validator(mode="after")
    def check_files(self) -> Self:
        rows = (row_shard_path(hook, self.shard, self.split) for hook in self.sums)
        _check_names(self.files, [token_shard_path(self.shard, self.split), *rows])
        return self


class Origin(Record):
    """What a cache was made from, when it is not what one harvest wrote."""

    kind: Literal["exported", "repaired"]
    """Exported: the same rows, compressed otherwise. Repaired: some shards harvested again, with other bytes."""
    source_digest: Sha256
    """Of the manifest of the cache before."""
    source_codec: CodecName
    changed_shards: tuple[Annotated[str, Field(pattern=r"^(held_out/)?shards/[0-9]{5,9}\.json$")], ...]
    """The records of shards whose rows are others than in that cache."""


class Manifest(Record):
    """The last file of a cache to be written. Without it the cache is incomplete."""

    format: Literal["activation-cache/2"]
    spec: CacheSpec
    num_sequences: Size
    num_rows: Size
    """Training rows per hook."""
    num_held_out_sequences: Size
    """Sequences of documents that training never sees."""
    moments: dict[str, Moments]
    """Of the training rows, by hook."""
    files: dict[str, FileRecord]
    """Every other file, by path relative to the cache."""
    lineage: tuple[Origin, ...] = ()
    """Oldest first; empty for what one harvest wrote."""

    @model_validator(mode="after")
    def check_consistency(self) -> Self:
        spec = self.spec
        if len(set(spec.hooks)) != len(spec.hooks):
            raise ValueError(f"expected every hook once, got {', '.join(spec.hooks)}")
        if spec.excluded_positions != ("bos",):
            raise ValueError(f"expected the excluded positions ('bos',), got {spec.excluded_positions}")
        if (nbytes := 2 * spec.rows_per_chunk * spec.model.d_model) > MAX_CHUNK_NBYTES:
            raise ValueError(f"expected chunks of at most {MAX_CHUNK_NBYTES} bytes, got {nbytes}")
        if self.num_rows != self.num_sequences * spec.rows_per_sequence:
            raise ValueError(
                f"expected num_rows {self.num_sequences * spec.rows_per_sequence}, from {self.num_sequences} sequences "
                f"of {spec.rows_per_sequence} rows, got {self.num_rows}"
            )
        # Counted before any name is made: a number that was tampered with must cost nothing.
        num_shards = sum(spec.num_shards(self.split_sequences(split)) for split in SPLITS)
        expected = num_shards * (len(spec.hooks) + 2) + len(SPLITS) * (len(spec.hooks) + 2)
        if len(self.files) != expected:
            raise ValueError(
                f"expected {expected} files for {num_shards} shards and {len(spec.hooks)} hooks, got {len(self.files)}"
            )
        _check_names(self.files, expected_files(self))
        _check_moments(self)
        _check_sizes(self)
        return self

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


def expected_files(manifest: Manifest) -> Iterator[str]:
    """The names of all files that a cache of this spec and size has, but for the manifest."""
    hooks = manifest.spec.hooks
    for split in SPLITS:
        arrays = ("", "tokens/", *(f"{hook}/" for hook in hooks))
        yield from (f"{split_folder(split)}{array}zarr.json" for array in arrays)
        for shard in range(manifest.spec.num_shards(manifest.split_sequences(split))):
            yield shard_record_path(shard, split)
            yield token_shard_path(shard, split)
            yield from (row_shard_path(hook, shard, split) for hook in hooks)


def _check_names(files: dict[str, FileRecord], expected: Iterator[str] | list[str]) -> None:
    names = set(expected)
    if missing := sorted(names - files.keys()):
        raise ValueError(f"expected the file {missing[0]} to be listed, it is not")
    if strangers := sorted(files.keys() - names):
        raise ValueError(f"expected no file {strangers[0][:200]!r} to be listed")


def _check_moments(manifest: Manifest) -> None:
    if set(manifest.moments) != set(manifest.spec.hooks):
        raise ValueError(f"expected moments of the hooks {', '.join(manifest.spec.hooks)}")
    for hook, moments in manifest.moments.items():
        got = (moments.num_rows, len(moments.mean), len(moments.mean_square))
        if got != (manifest.num_rows, manifest.spec.model.d_model, manifest.spec.model.d_model):
            raise ValueError(
                f"expected moments of {manifest.num_rows} rows and {manifest.spec.model.d_model} channels for {hook}, "
                f"got rows, means and mean squares {got}"
            )


def _check_sizes(manifest: Manifest) -> None:
    """Shards have an index at least, and, uncompressed, exactly the size of their chunks."""
    spec = manifest.spec
    index_nbytes = 16 * spec.chunks_per_shard + 4
    chunk_nbytes = 2 * spec.rows_per_chunk * spec.model.d_model + 4
    for split in SPLITS:
        num_rows = manifest.split_rows(split)
        for shard in range(spec.num_shards(manifest.split_sequences(split))):
            rows_here = min(spec.rows_per_shard, num_rows - shard * spec.rows_per_shard)
            raw = -(-rows_here // spec.rows_per_chunk) * chunk_nbytes + index_nbytes
            for name in (row_shard_path(hook, shard, split) for hook in spec.hooks):
                nbytes = manifest.files[name].nbytes
                if nbytes < index_nbytes or (spec.codec == "none" and nbytes != raw):
                    expected = f"{raw}" if spec.codec == "none" else f"at least {index_nbytes}"
                    raise ValueError(f"expected {expected} bytes for {name}, got {nbytes}")


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in the bytes of a file called `where`.

    Raises:
        MismatchedCache: another format version, or another software's file.
        StoreError: damaged, or inconsistent in itself.
    """
    value = parse_json(data, where=where)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        ours = isinstance(found, str) and re.fullmatch(r"activation-cache/\d{1,9}", found)
        raise MismatchedCache(
            f"expected format {FORMAT!r} in {where}, got {str(found)[:100]!r}. "
            + (
                "Use the version of this software that wrote it, or harvest again"
                if ours
                else "It is another software's"
            )
        )
    return parse_sealed(Manifest, data, where=where)


def load_manifest(location: Path | Files, *, expected: CacheSpec | None = None) -> Manifest:
    """Reads a cache's manifest, which is then consistent in itself; what it lists may still be missing or damaged.

    Args:
        location: of the cache.
        expected: refuse a cache of another spec than this.

    Raises:
        IncompleteCache: no folder or no manifest: not finished, or pulled in part.
        MismatchedCache: another format version, another software's folder, or another spec.
        DamagedFile: other bytes than were written.
        StoreError: inconsistent in itself.
    """
    files = LocalFiles(location) if isinstance(location, Path) else location
    where = f"{files.location.rstrip('/')}/{MANIFEST_FILE}"
    nbytes = files.size(MANIFEST_FILE)
    if nbytes is None:
        if isinstance(files, LocalFiles):
            raise why_no_cache(files.folder)
        raise IncompleteCache(
            f"expected {where}, found none: no cache, or one that is not uploaded whole. Correct the URL, or upload it"
        )
    check_small(nbytes, where=where)
    manifest = parse_manifest(files.read(MANIFEST_FILE), where=where)
    if expected is not None:
        check_spec(manifest.spec, expected, where=where)
    return manifest


def check_spec(found: CacheSpec, expected: CacheSpec, *, where: str) -> None:
    """Raises MismatchedCache with the first setting in which two specs differ."""
    difference = first_difference(plain(expected), plain(found))
    if difference is not None:
        name, wanted, got = difference
        raise MismatchedCache(
            f"expected {where} to have {name} {wanted!r}, got {got!r}: it was made from something else. "
            "Harvest again, or use the settings that it was made with"
        )


def first_difference(expected: JsonValue, found: JsonValue, name: str = "") -> tuple[str, JsonValue, JsonValue] | None:
    """(dotted name, expected, found) of the first place where two JSON values differ; None where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{name}.{key}" if name else key
            if difference := first_difference(expected.get(key), found.get(key), inner):
                return difference
        return None
    return None if expected == found else (name, expected, found)
