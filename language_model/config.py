"""Settings of the language model."""

from typing import Literal

from pydantic import Field

from store.record import Record


class LanguageModelConfig(Record):
    """The `language_model` section of a profile."""

    name: str = Field(min_length=1)
    """`embedded`, the path of a local checkpoint folder, or the id of a model on the hub."""
    revision: str | None
    """Branch, tag or commit of a hub model; the commit it stood for is recorded. null for local models."""
    compute_dtype: Literal["float32", "bfloat16"]
    """Number format of the forward pass. On CPUs float32 is the faster one."""
