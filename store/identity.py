"""Which language model it was, and the small checked types that records of the store are made of."""

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from store.record import Record, plain

Count = Annotated[int, Field(ge=0, le=2**48)]
"""Of rows, sequences or bytes: far above any cache, and far below what arithmetic on it could overflow."""
Size = Annotated[int, Field(ge=1, le=2**40)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


RESERVED_NAMES = ("tokens", "shards", "held_out", "truth")
"""What stands beside the hooks in a cache, and so cannot be the name of one."""


def _check_hook_name(hook: str) -> str:
    """A hook names a folder of the cache: letters, digits and underscores between single dots or dashes."""
    if not re.fullmatch(r"\w+([.-]\w+)*", hook, flags=re.ASCII) or hook in RESERVED_NAMES or len(hook) > 200:
        raise ValueError(f"expected a hook such as blocks.2.hook_resid_post, got {hook[:200]!r}")
    return hook


HookName = Annotated[str, AfterValidator(_check_hook_name)]


IDENTIFIED_BY_TENSORS: Final = ":tensors"
"""Stands behind a digest that was made over tensors and settings, and not over the files that held them."""


class ModelIdentity(Record):
    """Which language model exactly: its name and revision are labels, its digests are what counts.

    Activations made from known features have no language model. Its place is taken by those features: `name` is
    `synthetic`, there are no layers and no tokenizer, the digest is that of the features and of how they fire.
    """

    name: str
    """`embedded`, the hub id, or for a local folder its kind and the beginning of its digest."""
    revision: str | None
    """Commit on the hub; null for local models."""
    weights_sha256: str
    """Digest over the settings of config.json and the tensors, with `IDENTIFIED_BY_TENSORS` behind it. Caches of
    earlier versions have one over names and bytes of files, without it; such a model is known by its labels too."""
    tokenizer_sha256: str
    """Digest of tokenizer.json; `none` where there is no language model."""
    d_model: Size
    num_layers: Count
    """0 where there is no language model."""
    vocab_size: Size
    bos_token_id: Count | None
    """None for a model without BOS."""

    @property
    def is_language_model(self) -> bool:
        """False where activations were made from known features."""
        return self.num_layers > 0

    def identifying(self) -> dict[str, Any]:
        """What two identities of the same model have in common, as JSON: everything but labels."""
        labels = {"name", "revision"} if self.weights_sha256.endswith(IDENTIFIED_BY_TENSORS) else set()
        return {key: value for key, value in plain(self).items() if key not in labels}


def how_identified(model: ModelIdentity) -> str:
    """What to know about a digest of a model that nothing equals any more; empty for those of this version."""
    if model.weights_sha256.endswith(IDENTIFIED_BY_TENSORS):
        return ""
    return ". (The cache is of an earlier version, which identified models by their files; harvesting again is enough)"
