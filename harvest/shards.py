"""The shards that are missing: token windows in, rows out, while the writer's threads store the shards before."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compute.progress import counting_layers, phase
from harvest.activations import PendingRows, RowModel, load_cut_model, start_rows
from harvest.config import HarvestConfig
from harvest.documents import Origin, OriginOf
from harvest.inputs import Inputs
from harvest.moments import shard_sums
from harvest.not_finite import NotFinite, Rows, replace_sequences
from harvest.streams import Tokens
from harvest.synthetic import SampleNumbers, load_synthetic
from harvest.tokens import separator_id
from harvest.windows import WindowSource
from language_model.tokenizer import load_tokenizer
from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.write.growing import GrowingCache
from store.write.writer import CacheWriter

MAX_PENDING_BYTES = 2**31
"""Rows that wait to be encoded and written; the model waits when there are more."""

ShardPlace = tuple[Split, int]
"""A split, and the number of a shard in it."""


class Stopped(Exception):
    """Somebody asked to stop; the shard that was being computed is lost, and no other."""


def missing_shards(cache: GrowingCache) -> list[ShardPlace]:
    """Every shard that is not committed yet, in the order in which they are harvested."""
    return [(split, shard) for split in SPLITS for shard in cache.missing_shards(split)]


def missing_rows(cache: GrowingCache, shards: Sequence[ShardPlace], *, per_hook: bool = False) -> int:
    """Rows of the shards that the model has to compute; with `per_hook`, rows to be stored, over all hooks."""
    return sum(
        cache.shard_sequences(shard, split)
        * cache.spec.rows_per_sequence
        * (len(cache.missing_hooks(shard, split)) if per_hook else 1)
        for split, shard in shards
    )


def missing_hooks(cache: GrowingCache, shards: Sequence[ShardPlace]) -> tuple[str, ...]:
    """The hooks that the model has to compute for any of the shards."""
    needed = {hook for split, shard in shards for hook in cache.missing_hooks(shard, split)}
    return tuple(hook for hook in cache.spec.hooks if hook in needed)


def window_source(saved: Path, inputs: Inputs, config: HarvestConfig) -> WindowSource | SampleNumbers:
    """The token windows, by shard; the folder `saved` keeps them, for a run that is interrupted and for workers.

    Numbers of samples are kept nowhere.
    """
    if inputs.text is None or inputs.model_folder is None:
        return SampleNumbers(
            inputs.spec,
            num_sequences=config.num_sequences,
            num_held_out_sequences=config.num_held_out_sequences,
        )
    return WindowSource(
        saved,
        inputs.text,
        load_tokenizer=functools.partial(load_tokenizer, inputs.model_folder),
        separator_id=functools.partial(separator_id, config.separator),
        spec=inputs.spec,
        num_sequences=config.num_sequences,
        num_held_out_sequences=config.num_held_out_sequences,
    )


def load_cut(folder: Path | None, spec: CacheSpec, hooks: Sequence[str], *, device: str) -> RowModel:
    """The language model in a folder up to the deepest of the hooks; or the known features that stand in its place."""
    if folder is None:
        return load_synthetic(spec, hooks)
    with phase("harvest", f"loading the language model {spec.model.name}"):
        return load_cut_model(folder, hooks, dtype=getattr(torch, spec.compute_dtype), device=device)


def harvest_shards(
    writer: CacheWriter,
    shards: Sequence[ShardPlace],
    model: RowModel,
    *,
    windows: Callable[[Split, int], Tokens],
    origin: Callable[[Split, int, int, int], Origin | None] = lambda *_: None,
    device: str,
    on_rows: Callable[[ShardPlace, float, bool], object] = lambda *_: None,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Computes `shards`, while the writer's threads encode and write those before. Waits for none of them at the end.

    Args:
        writer: of the cache.
        shards: to be committed.
        model: cut behind the deepest hook that any of them lacks.
        windows: the tokens (sequences, context_length) of a shard, its spare ones behind them.
        origin: the document of a split, a shard, a window of it and a position.
        device: of the model.
        on_rows: is given a shard, a number of rows, and whether they are finished (a forward pass) or only under way.
        check: called between forward passes; what it raises ends the work.
    """
    spec = writer.spec
    place: ShardPlace = shards[0]
    behind: _Shard | None = None  # what a GPU computes while the next is prepared

    def start(tokens: Tokens, on_progress: Callable[[int], object]) -> PendingRows:
        return start_rows(
            model,
            tokens,
            d_model=spec.model.d_model,
            rows_per_sequence=spec.rows_per_sequence,
            batch_sequences=spec.forward_batch_sequences,
            device=device,
            on_progress=on_progress,
            find_not_finite=spec.not_finite == "leave_out",
        )

    def compute_spare(tokens: Tokens) -> tuple[Rows, NotFinite]:
        pending = start(tokens, lambda _: check())
        return pending.result(), pending.not_finite()

    per_sequence = spec.rows_per_sequence
    with counting_layers(model.layers, lambda rows: on_rows(place, rows, False), per_sequence=per_sequence):
        for place in shards:
            split, shard = place
            if writer.committed(shard, split) is not None:
                continue  # by a worker that was thought to be dead
            tokens = windows(split, shard)
            own = tokens[: writer.shard_sequences(shard, split)]

            def finished(num_rows: int, place: ShardPlace = place) -> None:
                on_rows(place, num_rows, True)
                check()

            started = _Shard(
                place, own, tokens[len(own) :], start(own, finished), functools.partial(origin, split, shard)
            )
            if behind is not None:
                _submit(writer, behind, compute_spare)
            behind = started
            if not behind.pending.is_behind:
                _submit(writer, behind, compute_spare)
                behind = None
        if behind is not None:
            _submit(writer, behind, compute_spare)


@dataclass(frozen=True)
class _Shard:
    """One that is computed."""

    place: ShardPlace
    tokens: Tokens
    spare: Tokens
    pending: PendingRows
    origin: OriginOf


def _submit(writer: CacheWriter, made: _Shard, compute_spare: Callable[[Tokens], tuple[Rows, NotFinite]]) -> None:
    """Hands a shard over, with the hooks that no other cache gave."""
    (split, shard), spec, tokens, left_out = made.place, writer.spec, made.tokens, None
    rows = made.pending.result()
    if spec.not_finite == "leave_out":
        tokens, left_out = replace_sequences(
            tokens,
            rows,
            made.pending.not_finite(),
            spare=made.spare,
            compute=compute_spare,
            origin=made.origin,
            first_position=spec.num_excluded_positions,
            where=f"{split} shard {shard}",
        )
    taken = writer.taken_hooks(shard, split)
    rows = {hook: values for hook, values in rows.items() if hook not in taken}
    first = shard * spec.sequences_per_shard
    writer.submit_shard(
        shard,
        split=split,
        tokens=tokens,
        rows=rows,
        sums=functools.partial(_sums, rows, spec=spec, first_sequence=first, origin=made.origin),
        left_out=left_out,
    )


def _sums(rows: Rows, *, spec: CacheSpec, first_sequence: int, origin: OriginOf) -> dict[str, ShardSums]:
    return {
        hook: shard_sums(
            values,
            hook=hook,
            first_sequence=first_sequence,
            rows_per_sequence=spec.rows_per_sequence,
            first_position=spec.num_excluded_positions,
            origin=origin,
        )
        for hook, values in rows.items()
    }
