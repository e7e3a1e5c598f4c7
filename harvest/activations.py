"""Activations of several hooks in one forward pass that ends at the deepest of them.

B sequences in a forward pass, C context length, K rows of a sequence, N rows = B * K, d d_model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from language_model.families import Family
from language_model.hooks import Hook, parse_hook
from language_model.load import load_decoder
from language_model.sites import Visit, attach
from language_model.structure import decoder_layers, family_of


@dataclass(frozen=True)
class CutModel:
    """A decoder stack that ends at its deepest hook."""

    decoder: nn.Module
    layers: nn.ModuleList
    family: Family
    hooks: dict[str, Hook]
    """By name, in the order asked for."""

    @property
    def num_bytes(self) -> int:
        """Of the weights that are loaded."""
        return sum(weights.nbytes for weights in self.decoder.parameters())

    def states(self, tokens: Tensor) -> dict[str, Tensor]:
        """The activations (B, C, d) at each hook, as computed, for `tokens` (B, C) int64 without padding."""
        return hidden_states(self, tokens)


class RowModel(Protocol):
    """What gives activations for token windows: a language model, or known features."""

    @property
    def hooks(self) -> Mapping[str, object]:
        """By name, in the order asked for."""

    @property
    def layers(self) -> Iterable[nn.Module]:
        """That run one after another, for the progress bar."""

    @property
    def num_bytes(self) -> int:
        """That it takes in memory."""

    def states(self, tokens: Tensor) -> dict[str, Tensor]:
        """The activations (B, C, d) at each hook, for `tokens` (B, C) int64."""


def load_cut_model(folder: Path, hooks: Sequence[str], *, dtype: torch.dtype, device: str) -> CutModel:
    """The model of a checkpoint folder up to its deepest hook; what lies behind is not read from the files."""
    num_layers = max(parse_hook(hook).num_layers_needed for hook in hooks)
    return cut_model(load_decoder(folder, num_layers=num_layers, dtype=dtype, device=device), hooks)


def cut_model(model: PreTrainedModel, hooks: Sequence[str]) -> CutModel:
    """Takes off what lies behind the deepest hook: deeper layers, the deepest one's MLP, final norm and head.

    Changes `model` in place, so that the memory of the deeper layers is freed. Raises ValueError where the model has
    no such layers.
    """
    decoder, family, layers = model.base_model, family_of(model), decoder_layers(model)
    parsed = {hook: parse_hook(hook) for hook in hooks}
    deepest = max(parsed, key=lambda hook: parsed[hook].num_layers_needed)
    num_kept = parsed[deepest].num_layers_needed
    if num_kept > len(layers):
        raise ValueError(
            f"expected hooks at layers 0 to {len(layers) - 1} of this model, got {deepest!r}. Correct harvest.hooks"
        )
    kept = layers[:num_kept]
    if not any(_needs_mlp(hook, num_kept) for hook in parsed.values()):
        setattr(kept[-1], family.mlp, nn.Identity())
    setattr(decoder, family.layers, kept)
    setattr(decoder, family.final_norm, nn.Identity())
    return CutModel(decoder=decoder, layers=kept, family=family, hooks=parsed)


def _needs_mlp(hook: Hook, num_kept: int) -> bool:
    """Whether a hook's activations depend on the MLP of the last of `num_kept` layers."""
    if hook.site == "resid_pre":
        return hook.layer == num_kept  # what the last layer gives
    return hook.layer == num_kept - 1 and hook.site != "attn_out"


@torch.inference_mode()
def hidden_states(model: CutModel, tokens: Tensor) -> dict[str, Tensor]:
    """The activations (B, C, d) at each hook, as computed, for `tokens` (B, C) int64 without padding."""
    states: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, hook in model.hooks.items():
            layer, site = hook
            if site == "resid_pre" and layer == len(model.layers):
                layer, site = layer - 1, "resid_post"  # the layer itself was taken off
            stack.callback(attach(model.layers[layer], site, model.family, _keep(states, name)).remove)
        model.decoder(input_ids=tokens, use_cache=False)
    return states


def _keep(states: dict[str, Tensor], hook: str) -> Visit:
    def keep(activations: Tensor) -> None:
        states[hook] = activations

    return keep


def stored_rows(states: Tensor, *, rows_per_sequence: int) -> Tensor:
    """Bit patterns (N, d) uint16 of the last K positions of `states` (B, C, d), rounded to the nearest bfloat16.

    Ties go to even. The first C - K positions of a sequence have no row.
    """
    return states[:, states.shape[1] - rows_per_sequence :].flatten(end_dim=1).to(torch.bfloat16).view(torch.uint16)


def has_not_finite(rows: Tensor) -> Tensor:
    """(N,) bool: which of the `rows` (N, d) uint16, bit patterns of bfloat16, have an infinity or NaN."""
    return ~rows.view(torch.bfloat16).isfinite().all(dim=1)


class PendingRows:
    """Rows of a shard that may still be on their way from the device."""

    def __init__(
        self, rows: dict[str, Tensor], not_finite: dict[str, Tensor], copies: "torch.cuda.Event | None"
    ) -> None:
        self._rows, self._not_finite, self._copies = rows, not_finite, copies

    @property
    def is_behind(self) -> bool:
        """Whether a device computes them while this process goes on."""
        return self._copies is not None

    def result(self) -> dict[str, NDArray[np.uint16]]:
        """The rows by hook, once they are here; waits for their copies alone, not for what the device does next."""
        if self._copies is not None:
            self._copies.synchronize()
        return {hook: values.numpy() for hook, values in self._rows.items()}

    def not_finite(self) -> dict[str, NDArray[np.bool_]]:
        """Which rows have an infinity or NaN, by hook, (sequences, K), once `result` gave them."""
        return {hook: found.numpy() for hook, found in self._not_finite.items()}


def start_rows(
    model: RowModel,
    windows: NDArray[np.uint32],
    *,
    d_model: int,
    rows_per_sequence: int,
    batch_sequences: int,
    device: str,
    on_progress: Callable[[int], object],
    find_not_finite: bool = False,
) -> PendingRows:
    """Rows (sequences * K, d) of every hook for `windows` (sequences, C), in sequence order; K is `rows_per_sequence`.

    Batches begin at the first window, so that a shard's bytes depend on its own windows only. All but the last have one
    shape. `on_progress` is given the number of rows of every batch, on a GPU when it is handed to the device. With
    `find_not_finite` the device also says which rows have an infinity or NaN.

    On a GPU nothing here waits for it: tokens go there once a shard, and rows come back into pinned memory on a stream
    of their own, beside the next forward pass. torch keeps pinned memory and hands it out for later shards.
    """
    on_gpu = torch.device(device).type == "cuda"
    rows = {
        hook: torch.empty(len(windows) * rows_per_sequence, d_model, dtype=torch.uint16, pin_memory=on_gpu)
        for hook in model.hooks
    }
    flags_shape = (len(windows) if find_not_finite else 0, rows_per_sequence)
    not_finite = {hook: torch.empty(flags_shape, dtype=torch.bool, pin_memory=on_gpu) for hook in model.hooks}
    tokens = torch.from_numpy(windows.astype(np.int64))
    copies = torch.cuda.Stream(device) if on_gpu else None
    if on_gpu:
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    for start in range(0, len(windows), batch_sequences):
        batch = tokens[start : start + batch_sequences]
        states = model.states(batch)
        place = slice(start * rows_per_sequence, (start + len(batch)) * rows_per_sequence)
        stored = {hook: stored_rows(states[hook], rows_per_sequence=rows_per_sequence) for hook in model.hooks}
        copied = [(rows[hook][place], values) for hook, values in stored.items()]
        if find_not_finite:
            sequences = slice(start, start + len(batch))
            copied += [
                (not_finite[hook][sequences], has_not_finite(values).reshape(len(batch), -1))
                for hook, values in stored.items()
            ]
        if copies is None:
            for target, values in copied:
                target.copy_(values)
        else:
            copies.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(copies):
                for target, values in copied:
                    target.copy_(values, non_blocking=True)
                    values.record_stream(copies)  # its memory is not given to the next pass before it was copied
        on_progress(len(batch) * rows_per_sequence)
    return PendingRows(rows, not_finite, None if copies is None else copies.record_event())


def harvest_rows(
    model: RowModel,
    windows: NDArray[np.uint32],
    *,
    d_model: int,
    rows_per_sequence: int,
    batch_sequences: int,
    device: str,
    on_progress: Callable[[int], object],
) -> dict[str, NDArray[np.uint16]]:
    """As `start_rows`, and waits for them."""
    return start_rows(
        model,
        windows,
        d_model=d_model,
        rows_per_sequence=rows_per_sequence,
        batch_sequences=batch_sequences,
        device=device,
        on_progress=on_progress,
    ).result()
