"""The shards that are missing: token windows in, rows out, while the writer's threads store the shards before."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compute.progress import counting_layers, phase, progress
from harvest.activations import cut_model, harvest_rows
from harvest.config import HarvestConfig
from harvest.inputs import Inputs
from harvest.moments import shard_sums
from harvest.tokens import Windows, load_windows, pack, save_windows
from language_model.load import load_model
from language_model.tokenizer import load_tokenizer
from store.cache.moments import ShardSums
from store.cache.split import SPLITS, Split
from store.write.writer import CacheWriter

MAX_PENDING_BYTES = 2**31
"""Rows that wait to be encoded and written; the model waits when there are more."""


def missing_shards(writer: CacheWriter) -> list[tuple[Split, int]]:
    """(split, number) of every shard that is not committed yet, in the order in which they are harvested."""
    return [(split, shard) for split in SPLITS for shard in writer.missing_shards(split)]


def packed_windows(saved: Path, inputs: Inputs, config: HarvestConfig) -> Windows:
    """The token windows, from the folder `saved` if an interrupted run left them there: a large text is read once."""
    if windows := load_windows(saved):
        return windows
    num_windows = config.num_sequences + config.num_held_out_sequences
    with (
        phase("harvest", "tokenizing the text"),
        progress("harvest, tokens", total=num_windows, unit="window") as count,
    ):
        windows = pack(
            inputs.text.documents(),
            load_tokenizer(inputs.model_folder),
            bos_token_id=inputs.spec.model.bos_token_id,
            vocab_size=inputs.spec.model.vocab_size,
            context_length=config.context_length,
            num_sequences=config.num_sequences,
            num_held_out_sequences=config.num_held_out_sequences,
            held_out_fraction=config.held_out_fraction,
            on_progress=count.update,
        )
    save_windows(saved, windows)
    return windows


def harvest_shards(
    writer: CacheWriter,
    shards: Sequence[tuple[Split, int]],
    windows: Windows,
    inputs: Inputs,
    *,
    device: str,
) -> None:
    """Computes `shards`, while the writer's threads encode and write those before."""
    spec = inputs.spec
    with phase("harvest", f"loading the language model {spec.model.name}"):
        whole = load_model(inputs.model_folder, dtype=getattr(torch, spec.compute_dtype), device=device)
        model = cut_model(whole, spec.hooks)
    num_rows = (len(windows.training) + len(windows.held_out)) * spec.rows_per_sequence
    num_missing = sum(writer.shard_sequences(shard, split) for split, shard in shards) * spec.rows_per_sequence
    rows_per_batch = spec.forward_batch_sequences * spec.rows_per_sequence
    with (
        progress("harvest", total=num_rows, unit="row", done=num_rows - num_missing) as count,
        counting_layers(model.layers, count.within, per_batch=rows_per_batch),
    ):
        for split, shard in shards:
            first = shard * spec.sequences_per_shard
            of_split = windows.training if split == "training" else windows.held_out
            tokens = np.ascontiguousarray(of_split[first : first + writer.shard_sequences(shard, split)])
            rows = harvest_rows(
                model,
                tokens,
                d_model=spec.model.d_model,
                batch_sequences=spec.forward_batch_sequences,
                device=device,
                on_progress=count.update,
            )
            sums = functools.partial(_sums, rows, first_sequence=first, rows_per_sequence=spec.rows_per_sequence)
            writer.submit_shard(shard, split=split, tokens=tokens, rows=rows, sums=sums)


def _sums(rows: dict[str, NDArray[np.uint16]], *, first_sequence: int, rows_per_sequence: int) -> dict[str, ShardSums]:
    return {
        hook: shard_sums(values, hook=hook, first_sequence=first_sequence, rows_per_sequence=rows_per_sequence)
        for hook, values in rows.items()
    }
