"""The arrays of a cache as zarr's metadata spell them, and the bytes of a chunk of tokens."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr
from numcodecs import zstd
from numpy.typing import NDArray

from store.cache.paths import split_folder
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.codec.checksum import crc32c
from store.codec.registry import Parts, zarr_codecs

TOKEN_ZSTD_LEVEL = 3


def write_metadata(folder: Path, spec: CacheSpec, num_sequences: Mapping[Split, int]) -> list[str]:
    """Writes every zarr.json of a cache in `folder`, with so many sequences by split; returns their names."""
    written = []
    for split, number in num_sequences.items():
        prefix = split_folder(split)
        names = [f"{prefix}{array}zarr.json" for array in ("", "tokens/", *(f"{hook}/" for hook in spec.hooks))]
        for name in names:
            (folder / name).unlink(missing_ok=True)
        group = folder / prefix
        zarr.create_group(group, zarr_format=3)
        _create_token_array(group, spec, num_sequences=number)
        for hook in spec.hooks:
            _create_row_array(group, hook, spec, num_sequences=number)
        written += names
    return written


def _create_row_array(group: Path, hook: str, spec: CacheSpec, *, num_sequences: int) -> None:
    """Writes the zarr.json of one hook's rows."""
    serializer, compressors = zarr_codecs(spec.codec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        zarr.create_array(
            group,
            name=hook,
            shape=(num_sequences * spec.rows_per_sequence, spec.model.d_model),
            dtype="uint16",
            chunks=(spec.rows_per_chunk, spec.model.d_model),
            shards=(spec.rows_per_shard, spec.model.d_model),
            serializer=serializer,
            compressors=[*compressors, {"name": "crc32c"}],
            fill_value=0,
            # The words are bytes of the format activation-cache/2, of when order.py was called store/layout.py.
            attributes={"logical_dtype": "bfloat16", "row_order": "permuted within shards, see store/layout.py"},
            dimension_names=("row", "channel"),
        )


def _create_token_array(group: Path, spec: CacheSpec, *, num_sequences: int) -> None:
    """Writes the zarr.json of the token windows."""
    zarr.create_array(
        group,
        name="tokens",
        shape=(num_sequences, spec.context_length),
        dtype="uint32",
        chunks=(spec.sequences_per_shard, spec.context_length),
        compressors=[
            {"name": "zstd", "configuration": {"level": TOKEN_ZSTD_LEVEL, "checksum": False}},
            {"name": "crc32c"},
        ],
        fill_value=0,
        dimension_names=("sequence", "position"),
    )


def token_chunk(tokens: NDArray[np.uint32]) -> Parts:
    """Token windows as zarr stores that chunk: compressed, then its crc32c."""
    encoded = zstd.compress(np.ascontiguousarray(tokens, dtype="<u4"), TOKEN_ZSTD_LEVEL)
    return encoded, crc32c((encoded,))
