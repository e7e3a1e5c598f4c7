"""Where the files of a cache are, relative to it."""

from store.cache.split import Split

MANIFEST_FILE = "manifest.json"


def split_folder(split: Split) -> str:
    """Where a split's arrays are, inside the cache."""
    return "" if split == "training" else "held_out/"


def shard_record_path(shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}shards/{shard:05d}.json"


def token_shard_path(shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}tokens/c/{shard}/0"


def row_shard_path(hook: str, shard: int, split: Split = "training") -> str:
    return f"{split_folder(split)}{hook}/c/{shard}/0"
