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
from harvest.tokens import separator_id
from harvest.windows import WindowSource
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


def window_source(saved: Path, inputs: Inputs, config: HarvestConfig) -> WindowSource:
    """The token windows, by shard; the folder `saved` keeps them, for a run that is interrupted and for workers."""
    return WindowSource(
        saved,
        inputs.text,
        load_tokenizer=functools.partial(load_tokenizer, inputs.model_folder),
        separator_id=functools.partial(separator_id, config.separator),
        spec=inputs.spec,
        num_sequences=config.num_sequences,
        num_held_out_sequences=config.num_held_out_sequences,
    )


def harvest_shards(
    writer: CacheWriter,
    shards: Sequence[tuple[Split, int]],
    windows: WindowSource,
    inputs: Inputs,
    *,
    device: str,
) -> None:
    """Computes `shards`, while text is packed ahead, and the writer's threads encode and write those before."""
    spec = inputs.spec
    windows.start()
    with phase("harvest", f"loading the language model {spec.model.name}"):
        whole = load_model(inputs.model_folder, dtype=getattr(torch, spec.compute_dtype), device=device)
        model = cut_model(whole, spec.hooks)
    num_rows = (writer.num_sequences + writer.num_held_out_sequences) * spec.rows_per_sequence
    num_missing = sum(writer.shard_sequences(shard, split) for split, shard in shards) * spec.rows_per_sequence
    rows_per_batch = spec.forward_batch_sequences * spec.rows_per_sequence
    with (
        progress("harvest", total=num_rows, unit="row", done=num_rows - num_missing) as count,
        counting_layers(model.layers, count.within, per_batch=rows_per_batch),
    ):
        for split, shard in shards:
            first = shard * spec.sequences_per_shard
            tokens = windows.shard(split, shard)
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
