"""The language model as benchmarks use it: behind TransformerLens's names, as Hugging Face's, with its tokenizer."""

import functools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from language_model.load import load_bridge, load_model, max_positions
from language_model.special_tokens import special_tokens
from language_model.tokenizer import transformers_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoadedModel:
    """A checkpoint, loaded when it is first asked for.

    `plain` and `bridge` are two copies; a benchmark uses one of them, since the bridge rewires what it wraps.
    """

    def __init__(self, folder: Path, *, name: str, dtype: torch.dtype, device: torch.device) -> None:
        self.folder = folder
        self.name = name
        self.dtype = dtype
        self.device = device

    @cached_property
    def plain(self) -> "PreTrainedModel":
        """Hugging Face's causal language model."""
        return load_model(self.folder, dtype=self.dtype, device=str(self.device))

    @cached_property
    def bridge(self) -> Any:  # noqa: ANN401 - a TransformerBridge
        """The model as a transformer_lens TransformerBridge, under a plain name: sae-bench makes paths of it."""
        bridge = load_bridge(self.folder, dtype=self.dtype, device=str(self.device))
        bridge.cfg.model_name = self.name.replace("/", "_")
        return bridge

    @cached_property
    def hooked(self) -> Any:  # noqa: ANN401 - passes for a HookedTransformer
        """The bridge, passing for the HookedTransformer that sae-bench's type checks ask for; nothing else differs."""
        return hooked(self.bridge)

    @cached_property
    def ignored_token_ids(self) -> frozenset[int]:
        """BOS, EOS and padding: positions that SAEs were not trained on and that no metric counts."""
        return special_tokens(self.folder).ignored

    @cached_property
    def max_positions(self) -> int:
        """The longest sequence, in tokens, that the model can read."""
        return max_positions(self.folder)

    def tokenizer(self) -> Any:  # noqa: ANN401 - a PreTrainedTokenizerBase
        """A tokenizer of one's own: some libraries change the one that they are given."""
        return transformers_tokenizer(self.folder)


def hooked(bridge: Any) -> Any:  # noqa: ANN401 - a TransformerBridge, or what stands for one
    """`bridge` as an instance of HookedTransformer in the eyes of isinstance; everything is passed on to it."""
    return hooked_later(lambda: bridge)


def hooked_later(load: Callable[[], Any]) -> Any:  # noqa: ANN401 - a TransformerBridge, or what stands for one
    """The same of a model that is loaded when something is first asked of it."""
    from transformer_lens import HookedTransformer

    loaded = functools.cache(load)

    class Hooked:
        @property
        def __class__(self) -> type:
            return HookedTransformer

        @__class__.setter
        def __class__(self, value: type) -> None:
            raise TypeError(f"expected the class to stay, got {value}")

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
            return getattr(loaded(), name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(loaded(), name, value)

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - passed on as they are
            return loaded()(*arguments, **keywords)

    return Hooked()
