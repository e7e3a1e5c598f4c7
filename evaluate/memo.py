"""A memo around the language model: its activations at one hook, kept on disk by the tokens they came from.

A benchmark library that runs the model over the same text for every SAE, or twice for one, is given the memo in the
model's place. What is looked up is bit for bit what the model gave, in the batches in which it was run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from language_model.hooks import parse_hook

_FILE = "activations.npy"
_BITS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("<f4"),
    torch.bfloat16: np.dtype("<u2"),
    torch.float16: np.dtype("<f2"),
}


@torch.no_grad()
def keep_activations(
    folder: Path,
    model: Any,  # noqa: ANN401 - a TransformerBridge or HookedTransformer
    tokens: NDArray[np.uint32],
    *,
    hook: str,
    dtype: torch.dtype,
    d_model: int,
    batch_sequences: int,
    device: torch.device,
    progress: Callable[[int], object],
) -> None:
    """Runs the model over `tokens` (sequences, context) up to the hook and writes its activations into `folder`."""
    with (folder / _FILE).open("wb") as file:
        header = {"descr": _BITS[dtype].str, "fortran_order": False, "shape": (*tokens.shape, d_model)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(tokens), batch_sequences):
            batch = torch.from_numpy(tokens[first : first + batch_sequences].astype(np.int64)).to(device)
            _, cache = model.run_with_cache(batch, stop_at_layer=parse_hook(hook).layer + 1, names_filter=hook)
            file.write(_bits(cache[hook].to(dtype)).tobytes())
            progress(1)


class LanguageModelMemo:
    """Stands in for a TransformerBridge where its activations at one hook and its tokenizer are all that is used."""

    def __init__(
        self,
        folder: Path,
        tokens: NDArray[np.uint32],
        *,
        hook: str,
        dtype: torch.dtype,
        tokenizer: Any,  # noqa: ANN401 - a PreTrainedTokenizerBase
        device: torch.device,
    ) -> None:
        """`folder` is what `keep_activations` filled with the same tokens and hook."""
        self.tokenizer = tokenizer
        self._hook, self._dtype, self._device = hook, dtype, device
        self._bits = np.load(folder / _FILE, mmap_mode="r", allow_pickle=False)
        self._numbers = {window.tobytes(): number for number, window in enumerate(tokens)}

    def run_with_cache(
        self, tokens: Tensor, *, stop_at_layer: int, names_filter: str
    ) -> tuple[None, dict[str, Tensor]]:
        """The activations (sequences, context, d) of `tokens` (sequences, context).

        Raises:
            ValueError: another hook or other text than was kept.
        """
        if names_filter != self._hook or stop_at_layer != parse_hook(self._hook).layer + 1:
            raise ValueError(f"expected activations of {self._hook} to be asked for, got {names_filter}")
        windows = tokens.cpu().numpy().astype(np.uint32)
        try:
            numbers = [self._numbers[window.tobytes()] for window in windows]
        except KeyError:
            raise ValueError("expected text whose activations were kept, got other tokens") from None
        return None, {self._hook: self.activations(np.array(numbers, dtype=np.int64))}

    def activations(self, sequences: NDArray[np.int64]) -> Tensor:
        """The activations (n, context, d) of sequences by their numbers."""
        bits = torch.from_numpy(np.ascontiguousarray(self._bits[sequences]).view(_signed(self._bits.dtype)))
        return bits.view(self._dtype).to(self._device)

    def to_str_tokens(self, tokens: Tensor) -> list[str]:
        """Each of `tokens` (n) as text, as a TransformerBridge spells it."""
        spelled: list[str] = self.tokenizer.batch_decode(
            [[token] for token in tokens.tolist()], clean_up_tokenization_spaces=False
        )
        return spelled


def _bits(activations: Tensor) -> NDArray[Any]:
    """The numbers as numpy has them; bfloat16 as its bit patterns."""
    held = activations.cpu().contiguous()
    return held.view(torch.int16).numpy() if held.dtype == torch.bfloat16 else held.numpy()


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """torch reads bit patterns as signed integers."""
    return np.dtype("<i2") if dtype == np.dtype("<u2") else dtype
