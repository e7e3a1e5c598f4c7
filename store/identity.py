"""Which language model it was, and the small checked types that records of the store are made of."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from store.record import Record

Count = Annotated[int, Field(ge=0, le=2**48)]
"""Of rows, sequences or bytes: far above any cache, and far below what arithmetic on it could overflow."""
Size = Annotated[int, Field(ge=1, le=2**40)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


RESERVED_NAMES = ("tokens", "shards", "held_out")
"""What stands beside the hooks in a cache, and so cannot be the name of one."""


def _check_hook_name(hook: str) -> str:
    """A hook names a folder of the cache: letters, digits and underscores between single dots or dashes."""
    if not re.fullmatch(r"\w+([.-]\w+)*", hook, flags=re.ASCII) or hook in RESERVED_NAMES or len(hook) > 200:
        raise ValueError(f"expected a hook such as blocks.2.hook_resid_post, got {hook[:200]!r}")
    return hook


HookName = Annotated[str, AfterValidator(_check_hook_name)]


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
