"""Where the files of a cache are, relative to it."""

from store.cache.split import Split

MANIFEST_FILE = "manifest.json"


def split_folder(split: Split) -> str:
    """Where the arrays of a split are, relative to the cache."""
    return "" if split == "training" else "held_out/"


def split_of(name: str) -> Split:
    """The split that a file of the cache belongs to. No hook is called held_out."""
    return "held_out" if name.startswith(split_folder("held_out")) else "training"


def shard_record_path(shard: int, split: Split = "training") -> str:
    """The record of a shard."""
    return f"{split_folder(split)}shards/{shard:05d}.json"


def token_shard_path(shard: int, split: Split = "training") -> str:
    """The token windows of a shard."""
    return f"{split_folder(split)}tokens/c/{shard}/0"


def truth_path(hook: str) -> str:
    """The known features of a hook, and which of them are on in its held-out rows: see store/cache/truth.py.

    Beside what is held out, because whoever evaluates needs that and the manifest alone.
    """
    return f"{split_folder('held_out')}truth/{hook}.safetensors"


def row_shard_path(hook: str, shard: int, split: Split = "training") -> str:
    """The rows of a shard at one hook."""
    return f"{split_folder(split)}{hook}/c/{shard}/0"
