"""Activations of several hooks in one forward pass that ends at the deepest of them.

B sequences in a forward pass, C context length, N rows = B * (C - 1), d d_model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from language_model.families import GEMMA
from language_model.hooks import Hook, parse_hook
from language_model.structure import decoder_layers


@dataclass(frozen=True)
class CutModel:
    """A decoder stack that ends at its deepest hook."""

    decoder: nn.Module
    layers: nn.ModuleList
    hooks: dict[str, Hook]
    """By name, in the order asked for."""


def cut_model(model: PreTrainedModel, hooks: Sequence[str]) -> CutModel:
    """Takes off what lies behind the deepest hook: deeper layers, final norm and head.

    Changes `model` in place, so that the memory of the deeper layers is freed. Raises ValueError where the model has
    no such layers.
    """
    decoder, names, layers = model.base_model, GEMMA, decoder_layers(model)
    parsed = {hook: parse_hook(hook) for hook in hooks}
    deepest = max(parsed, key=lambda hook: parsed[hook].layer)
    num_kept = parsed[deepest].layer + 1
    if num_kept > len(layers):
        raise ValueError(
            f"expected hooks at layers 0 to {len(layers) - 1} of this model, got {deepest!r}. Correct harvest.hooks"
        )
    kept = layers[:num_kept]
    setattr(decoder, names.layers, kept)
    setattr(decoder, names.final_norm, nn.Identity())
    return CutModel(decoder=decoder, layers=kept, hooks=parsed)


@torch.inference_mode()
def hidden_states(model: CutModel, tokens: Tensor) -> dict[str, Tensor]:
    """The residual stream (B, C, d) at each hook, as computed, for `tokens` (B, C) int64 without padding."""
    states: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, hook in model.hooks.items():
            handle = model.layers[hook.layer].register_forward_hook(_keep(states, name))
            stack.callback(handle.remove)
        model.decoder(input_ids=tokens, use_cache=False)
    return states


def _keep(states: dict[str, Tensor], hook: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401 - torch's signature
        states[hook] = output[0] if isinstance(output, tuple) else output

    return keep


def stored_rows(states: Tensor) -> Tensor:
    """Bit patterns (N, d) uint16 of `states` (B, C, d), rounded to the nearest bfloat16 (ties to even), without BOS."""
    return states[:, 1:].flatten(end_dim=1).to(torch.bfloat16).view(torch.uint16)


def harvest_rows(
    model: CutModel,
    windows: NDArray[np.uint32],
    *,
    d_model: int,
    batch_sequences: int,
    device: str,
    on_progress: Callable[[int], object],
) -> dict[str, NDArray[np.uint16]]:
    """Rows (sequences * (C - 1), d) of every hook for `windows` (sequences, C), in sequence order.

    Batches begin at the first window, so that a shard's bytes depend on its own windows only. `on_progress` is given
    the number of rows of every batch.
    """
    rows_per_sequence = windows.shape[1] - 1
    on_gpu = torch.device(device).type == "cuda"
    # Pinned memory lets a copy run behind the next forward pass; torch keeps it and hands it out for the next shard.
    rows = {
        hook: torch.empty(len(windows) * rows_per_sequence, d_model, dtype=torch.uint16, pin_memory=on_gpu)
        for hook in model.hooks
    }
    for start in range(0, len(windows), batch_sequences):
        batch = windows[start : start + batch_sequences]
        states = hidden_states(model, torch.from_numpy(batch.astype(np.int64)).to(device))
        place = slice(start * rows_per_sequence, (start + len(batch)) * rows_per_sequence)
        for hook in model.hooks:
            rows[hook][place].copy_(stored_rows(states[hook]), non_blocking=True)
        on_progress(len(batch) * rows_per_sequence)
    if on_gpu:
        torch.cuda.synchronize(device)
    return {hook: values.numpy() for hook, values in rows.items()}
