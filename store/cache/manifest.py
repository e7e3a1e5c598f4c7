"""The manifest that makes a cache complete, and the records of its shards.

Records are checked where they are made: one that exists is consistent in itself, whether it was computed or read.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from store.atomic import parse_json
from store.cache.diagnose import why_no_cache
from store.cache.left_out import LeftOut
from store.cache.moments import Moments, ShardSums
from store.cache.paths import (
    MANIFEST_FILE,
    row_shard_path,
    shard_record_path,
    split_folder,
    token_shard_path,
    truth_path,
)
from store.cache.spec import CacheSpec, check_spec
from store.cache.split import SPLITS, Split
from store.cache.text_account import TextAccount
from store.codec.names import CodecName
from store.errors import IncompleteCache, MismatchedCache
from store.files.local import LocalFiles
from store.files.open import Place, open_files
from store.files.protocol import address
from store.identity import Count, HookName, Sha256, Size
from store.record import Record, digest, plain
from store.record_file import check_record_size, parse_record_file

FORMAT: Final = "activation-cache/3"
MAX_CHUNK_NBYTES = 2**32
"""Of a chunk's rows before compression: a reader sets aside as much."""


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
    left_out: LeftOut | None = Field(default=None, exclude_if=lambda left_out: left_out is None)
    """Sequences of its text that are not in it; None, and not in the file, where there are none."""

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

    format: Literal["activation-cache/3"]
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
    text_account: TextAccount | None = Field(default=None, exclude_if=lambda account: account is None)
    """What became of the text, by file; None, and not in the file, in caches of earlier versions."""
    left_out: dict[Split, LeftOut] = Field(default_factory=dict, exclude_if=lambda left_out: not left_out)
    """Sequences of the text that are not in the cache, as its rows are not finite; not in the file where none is."""

    @model_validator(mode="after")
    def check_consistency(self) -> Self:
        spec = self.spec
        if len(set(spec.hooks)) != len(spec.hooks):
            raise ValueError(f"expected every hook once, got {', '.join(spec.hooks)}")
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
        expected += len(spec.hooks) if spec.is_synthetic else 0
        if len(self.files) != expected:
            raise ValueError(
                f"expected {expected} files for {num_shards} shards and {len(spec.hooks)} hooks, got {len(self.files)}"
            )
        _check_names(self.files, _expected_files(self))
        _check_moments(self)
        _check_sizes(self)
        return self

    @property
    def digest(self) -> str:
        """Identity of the data, SHA-256 (hex): what a trained SAE records. Labels of the model are no part of it."""
        data = plain(self)
        data.pop("text_account", None)  # it tells about the data and decides none of it
        return digest(data | {"spec": self.spec.identifying()})

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

    def stored_nbytes(self, hook: str) -> int:
        """Bytes that the shards of a hook take on disk, of both splits."""
        folders = tuple(f"{split_folder(split)}{hook}/c/" for split in SPLITS)
        return sum(file.nbytes for name, file in self.files.items() if name.startswith(folders))

    def raw_nbytes(self) -> int:
        """Bytes of one hook's rows as plain bfloat16, of both splits."""
        return 2 * sum(self.split_rows(split) for split in SPLITS) * self.spec.model.d_model


def _expected_files(manifest: Manifest) -> Iterator[str]:
    """The names of all files that a cache of this spec and size has, but for the manifest."""
    hooks = manifest.spec.hooks
    if manifest.spec.is_synthetic:
        yield from map(truth_path, hooks)
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
    if unlisted := sorted(files.keys() - names):
        raise ValueError(f"expected no file {unlisted[0][:200]!r} to be listed")


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
    return parse_record_file(Manifest, data, where=where)


def load_manifest(location: Place, *, expected: CacheSpec | None = None) -> Manifest:
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
    files = open_files(location)
    where = address(files, MANIFEST_FILE)
    nbytes = files.size(MANIFEST_FILE)
    if nbytes is None:
        if isinstance(files, LocalFiles):
            raise why_no_cache(files.folder)
        raise IncompleteCache(
            f"expected {where}, found none: no cache, or one that is not uploaded whole. Correct the URL, or upload it"
        )
    check_record_size(nbytes, where=where)
    manifest = parse_manifest(files.read(MANIFEST_FILE), where=where)
    if expected is not None:
        check_spec(manifest.spec, expected, where=where)
    return manifest
