"""Frozen records: the one way in which settings and metadata are held, checked and identified."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable record that refuses unknown keys and never coerces a string into a number."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """`value` as JSON types: records become dictionaries with their file keys, tuples become lists."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(value: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    """SHA-256 (hex) of the canonical JSON of a record, dictionary, list or scalar: equal values, equal digests."""
    canonical = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
