"""Token windows of a cache: the text that its rows come from."""

import numpy as np
from numpy.typing import NDArray

from store.cache.manifest import Manifest
from store.cache.paths import token_shard_path
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.codec.checksum import without_crc32c
from store.codec.zstd_frame import decompress_into
from store.files.protocol import Files, address


def read_token_shard(files: Files, spec: CacheSpec, shard: int, split: Split) -> NDArray[np.uint32]:
    """The token windows of a shard, a few hundred KB: (sequences_per_shard, context_length)."""
    name = token_shard_path(shard, split)
    return decode_token_shard(files.read(name), spec, where=address(files, name))


def decode_token_shard(data: bytes, spec: CacheSpec, *, where: str) -> NDArray[np.uint32]:
    """The token windows (sequences_per_shard, context_length) in the bytes of a shard's file called `where`.

    Raises DamagedFile where its checksum is another.
    """
    chunk = without_crc32c(np.frombuffer(data, dtype=np.uint8), where)
    tokens = np.empty((spec.sequences_per_shard, spec.context_length), dtype="<u4")
    decompress_into(chunk, tokens, what=f"tokens in {where}")
    return tokens


def read_tokens(files: Files, manifest: Manifest, *, split: Split) -> NDArray[np.uint32]:
    """All token windows of a split, BOS first: (sequences, context_length). No other file of the cache is read."""
    spec, num_sequences = manifest.spec, manifest.split_sequences(split)
    shards = [read_token_shard(files, spec, shard, split) for shard in range(spec.num_shards(num_sequences))]
    return np.concatenate(shards)[:num_sequences]
