"""Writes an activation cache shard by shard. Every file appears whole or not at all, and the manifest comes last."""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs import zstd
from numpy.typing import NDArray

from store.atomic import clear_leftovers, file_sha256, link_or_copy, write_bytes
from store.codec import encode_chunk, zarr_codecs
from store.errors import StoreError
from store.layout import disk_order
from store.lease import Lease
from store.manifest import (
    FORMAT,
    HELD_OUT_PATH,
    MANIFEST_FILE,
    CacheSpec,
    FileRecord,
    Manifest,
    ShardRecord,
    ShardSums,
    combine_moments,
    row_shard_path,
    shard_record_path,
    token_shard_path,
)
from store.sealed import read_sealed, write_sealed

_ZSTD_LEVEL = 3  # of tokens


class CacheWriter:
    """One cache being written in a scratch folder, which survives a killed process.

    Args:
        folder: where the cache grows; earlier committed shards in it are kept if they fit.
        spec: what decides the bytes.
        num_sequences: training sequences of the finished cache.
        lease: of a folder around it, checked before anything is committed.
    """

    def __init__(self, folder: Path, spec: CacheSpec, *, num_sequences: int, lease: Lease | None = None) -> None:
        if num_sequences < 1:
            raise ValueError(f"expected at least one sequence to write, got {num_sequences}. Raise the number of rows")
        self.folder = folder
        self.spec = spec
        self._lease = lease
        self.num_sequences = num_sequences
        self.num_shards = -(-num_sequences // spec.sequences_per_shard)
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder, token=lease.token if lease else "")

    def shard_sequences(self, shard: int) -> int:
        """Sequences in a shard; only the last one may be partial."""
        return min(self.spec.sequences_per_shard, self.num_sequences - shard * self.spec.sequences_per_shard)

    def missing_shards(self) -> list[int]:
        """Shards that are not yet committed here, in order."""
        return [shard for shard in range(self.num_shards) if self._committed(shard) is None]

    def adopt(self, earlier: Mapping[str, Path]) -> list[int]:
        """Takes over the shards of an earlier cache that belong here, after checking every byte; returns their numbers.

        Args:
            earlier: the earlier cache's files by relative path; what is missing, foreign or damaged is left out.
        """
        adopted = []
        for shard in self.missing_shards():
            path = earlier.get(shard_record_path(shard))
            try:
                record = read_sealed(ShardRecord, path) if path is not None else None
            except (StoreError, OSError):
                continue
            if record is None or not self._fits(record, shard):
                continue
            sources = {name: earlier[name] for name in record.files if name in earlier}
            if any(
                name not in sources or file_sha256(sources[name]) != file.sha256 for name, file in record.files.items()
            ):
                continue
            for name, source in sources.items():
                link_or_copy(source, self.folder / name)
            write_sealed(self.folder / shard_record_path(shard), record)
            adopted.append(shard)
        return adopted

    def write_shard(
        self,
        shard: int,
        *,
        tokens: NDArray[np.uint32],
        rows: Mapping[str, NDArray[np.uint16]],
        sums: Mapping[str, ShardSums],
    ) -> None:
        """Encodes and commits one shard.

        Args:
            shard: its number.
            tokens: (sequences, context_length) uint32.
            rows: by hook, (sequences * rows_per_sequence, d_model) bit patterns of bfloat16 in sequence order.
            sums: by hook, over those rows.
        """
        num_sequences = self.shard_sequences(shard)
        num_rows = num_sequences * self.spec.rows_per_sequence
        expected = dict.fromkeys(self.spec.hooks, (num_rows, self.spec.model.d_model))
        got = {hook: values.shape for hook, values in rows.items()}
        if got != expected or set(sums) != set(expected) or tokens.shape != (num_sequences, self.spec.context_length):
            raise ValueError(
                f"expected tokens {(num_sequences, self.spec.context_length)} and rows {expected} for shard {shard}, "
                f"got tokens {tokens.shape} and rows {got}"
            )
        files = {token_shard_path(shard): self._write(token_shard_path(shard), *self._token_parts(tokens))}
        order = disk_order(shard, num_rows)
        for hook, values in rows.items():
            path = row_shard_path(hook, shard)
            files[path] = self._write(path, *self._row_parts(values, order))
        record = ShardRecord(
            spec_digest=self.spec.digest, shard=shard, num_sequences=num_sequences, files=files, sums=dict(sums)
        )
        self._check_lease()
        write_sealed(self.folder / shard_record_path(shard), record)

    def write_held_out(self, tokens: NDArray[np.uint32]) -> None:
        """Writes the evaluation's windows, (sequences, context_length)."""
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] != self.spec.context_length:
            raise ValueError(f"expected held-out tokens (1 or more, {self.spec.context_length}), got {tokens.shape}")
        self._write(HELD_OUT_PATH, *_token_chunk(tokens))
        with self._metadata():
            self._create_array(HELD_OUT_PATH, tokens.shape, tokens.shape)

    def finish(self) -> Manifest:
        """Writes the metadata and, last, the manifest. All shards and the held-out windows must be there."""
        records = [self._committed(shard) for shard in range(self.num_shards)]
        held_out = self.folder / HELD_OUT_PATH
        if None in records or not held_out.is_file():
            raise StoreError(
                f"expected all {self.num_shards} shards and {held_out}, some are missing. Write them first"
            )
        self._check_lease()
        committed = [record for record in records if record is not None]
        with self._metadata():
            self._create_metadata()
        files = {name: file for record in committed for name, file in record.files.items()}
        arrays = ["", "tokens/", "held_out_tokens/", *(f"{hook}/" for hook in self.spec.hooks)]
        others = [f"{name}zarr.json" for name in arrays] + [HELD_OUT_PATH]
        others += [shard_record_path(shard) for shard in range(self.num_shards)]
        for name in others:
            path = self.folder / name
            files[name] = FileRecord(nbytes=path.stat().st_size, sha256=file_sha256(path))
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in files:
                path.unlink()  # shards of a larger budget that was given up
        manifest = Manifest(
            format=FORMAT,
            spec=self.spec,
            num_sequences=self.num_sequences,
            num_rows=self.num_sequences * self.spec.rows_per_sequence,
            num_held_out_sequences=zarr.open_array(self.folder / "held_out_tokens", mode="r").shape[0],
            moments={hook: combine_moments([record.sums[hook] for record in committed]) for hook in self.spec.hooks},
            files=files,
        )
        self._check_lease()
        write_sealed(self.folder / MANIFEST_FILE, manifest)
        return manifest

    @contextlib.contextmanager
    def _metadata(self) -> Iterator[None]:
        """zarr's own errors while writing name no file."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write the zarr.json files below {self.folder}: {error.strerror}. "
                "Free some space or choose another folder",
            ) from error

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _fits(self, record: ShardRecord, shard: int) -> bool:
        return (record.spec_digest, record.shard, record.num_sequences) == (
            self.spec.digest,
            shard,
            self.shard_sequences(shard),
        )

    def _committed(self, shard: int) -> ShardRecord | None:
        path = self.folder / shard_record_path(shard)
        if not path.is_file():
            return None
        try:
            record = read_sealed(ShardRecord, path)
        except StoreError:
            return None  # a damaged record is no commitment: the shard is made again
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == file.nbytes
            for name, file in record.files.items()
        )
        return record if whole and self._fits(record, shard) else None

    def _write(self, name: str, *parts: bytes) -> FileRecord:
        write_bytes(self.folder / name, *parts, token=self._lease.token if self._lease else "")
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(part)
        return FileRecord(nbytes=sum(map(len, parts)), sha256=hasher.hexdigest())

    def _token_parts(self, tokens: NDArray[np.uint32]) -> tuple[bytes, ...]:
        whole = np.zeros((self.spec.sequences_per_shard, self.spec.context_length), dtype="<u4")
        whole[: len(tokens)] = tokens
        return _token_chunk(whole)

    def _row_parts(self, rows: NDArray[np.uint16], order: NDArray[np.int64]) -> list[bytes]:
        """The parts of a zarr v3 shard: encoded inner chunks, each with its crc32c, then the index and its crc32c."""
        parts: list[bytes] = []
        index = np.full((self.spec.chunks_per_shard, 2), 2**64 - 1, dtype="<u8")
        offset = 0
        for chunk in range(-(-len(rows) // self.spec.rows_per_chunk)):
            start = chunk * self.spec.rows_per_chunk
            stored = rows[order[start : start + self.spec.rows_per_chunk]]
            if len(stored) < self.spec.rows_per_chunk:  # zarr's chunks are whole; past the array's end they hold zeros
                stored = np.concatenate(
                    [stored, np.zeros((self.spec.rows_per_chunk - len(stored), rows.shape[1]), "<u2")]
                )
            encoded = encode_chunk(self.spec.codec, stored)
            parts += [encoded, _crc32c(encoded)]
            index[chunk] = (offset, len(encoded) + 4)
            offset += len(encoded) + 4
        return [*parts, index.tobytes(), _crc32c(index.tobytes())]

    def _create_metadata(self) -> None:
        """zarr.json of the group, of the tokens and of every hook."""
        for name in ("zarr.json", *(f"{hook}/zarr.json" for hook in self.spec.hooks)):
            (self.folder / name).unlink(missing_ok=True)
        zarr.create_group(self.folder, zarr_format=3)
        shape = (self.num_sequences, self.spec.context_length)
        self._create_array(token_shard_path(0), shape, (self.spec.sequences_per_shard, self.spec.context_length))
        serializer, compressors = zarr_codecs(self.spec.codec)
        for hook in self.spec.hooks:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
                zarr.create_array(
                    self.folder,
                    name=hook,
                    shape=(self.num_sequences * self.spec.rows_per_sequence, self.spec.model.d_model),
                    dtype="uint16",
                    chunks=(self.spec.rows_per_chunk, self.spec.model.d_model),
                    shards=(self.spec.rows_per_shard, self.spec.model.d_model),
                    serializer=serializer,
                    compressors=[*compressors, {"name": "crc32c"}],
                    fill_value=0,
                    attributes={
                        "logical_dtype": "bfloat16",
                        "row_order": "permuted within shards, see store/layout.py",
                    },
                    dimension_names=("row", "channel"),
                )

    def _create_array(self, chunk_path: str, shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
        name = chunk_path.split("/")[0]
        (self.folder / name / "zarr.json").unlink(missing_ok=True)
        zarr.create_array(
            self.folder,
            name=name,
            shape=shape,
            dtype="uint32",
            chunks=chunk,
            compressors=[
                {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}},
                {"name": "crc32c"},
            ],
            fill_value=0,
            dimension_names=("sequence", "position"),
        )


def _token_chunk(tokens: NDArray[np.uint32]) -> tuple[bytes, bytes]:
    encoded = zstd.compress(np.ascontiguousarray(tokens, dtype="<u4"), _ZSTD_LEVEL)
    return encoded, _crc32c(encoded)


def _crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")
