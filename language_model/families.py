"""Families of language models: what Hugging Face calls their parts and their settings.

Today there is one family, and every model is read by its names. A model that lacks one of them is refused.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Family:
    """The names of one family."""

    layers: str
    """Attribute of the base model: the list of decoder layers, each of which gives the residual stream behind it."""
    final_norm: str
    """Attribute of the base model: the norm behind the last layer."""
    d_model: str
    """Key of config.json, as are the three below."""
    num_layers: str
    vocab_size: str
    bos_token_id: str


GEMMA: Final = Family(
    layers="layers",
    final_norm="norm",
    d_model="hidden_size",
    num_layers="num_hidden_layers",
    vocab_size="vocab_size",
    bos_token_id="bos_token_id",
)
