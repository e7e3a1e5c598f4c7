"""One harvest: what is known already is taken over, the rest is computed shard by shard, and the cache put in place.

A process that is killed loses the shard it was computing; the next run continues behind the committed ones.
"""

import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from tqdm import tqdm
from transformers import AutoConfig

from harvest.activations import cut_model, harvest_rows
from harvest.config import HarvestConfig
from harvest.moments import shard_sums
from harvest.text import TextSource, open_text
from harvest.tokens import PACKING, Windows, load_windows, pack, save_windows
from language_model.config import LanguageModelConfig
from language_model.hooks import check_hooks
from language_model.load import identify, load_model, load_tokenizer, resolve
from store.atomic import replace_folder
from store.cache.manifest import Manifest
from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.care.dvc_versions import earlier_outputs
from store.identity import ModelIdentity
from store.lease import exclusive_lock
from store.write.writer import CacheWriter

HARVEST_VERSION = 2
"""Raise it by hand when the same spec would give other bytes: packing, rounding, what is left out."""

MAX_SHARD_BYTES = 4 * 2**30
MAX_PENDING_BYTES = 2**31
"""Rows that wait to be encoded and written; the model waits when there are more."""
BEST_COMPRESSION = 1.7
"""Above what any codec reached on real activations, so that a harvest is refused only where it cannot fit."""


def run(
    config: HarvestConfig, *, model: LanguageModelConfig, output: Path, scratch: Path, device: str, reuse: bool
) -> Manifest:
    """Makes `output` the activation cache of `config`; with `reuse`, shards of earlier outputs are taken over.

    Works in a folder of its own below `scratch`, which a killed run leaves for the next one; `output` stays as it is
    until the cache is complete. Raises ValueError (with what to do) for a model, text or setting that cannot be used,
    and `Busy` while another harvest runs.
    """
    folder = resolve(model.name, model.revision)
    identity = identify(folder, model.name, model.revision)
    check_model_fits(config, identity, max_positions=AutoConfig.from_pretrained(folder).max_position_embeddings)
    source = open_text(config.text)
    spec = cache_spec(config, identity=identity, lineage=source.lineage, compute_dtype=model.compute_dtype)
    with exclusive_lock(scratch) as lease:
        kin = f"activations-{spec.digest[:16]}"
        own = scratch / f"{kin}-{config.num_sequences}-{config.num_held_out_sequences}"
        with CacheWriter(
            own / "cache",
            spec,
            num_sequences=config.num_sequences,
            num_held_out_sequences=config.num_held_out_sequences,
            max_pending_bytes=MAX_PENDING_BYTES,
            lease=lease,
        ) as writer:
            if reuse:
                _adopt_earlier(writer, output, interrupted=sorted(scratch.glob(f"{kin}-*/cache")))
            missing = missing_shards(writer)
            num_shards = sum(map(writer.num_shards, SPLITS))
            if len(missing) < num_shards:
                num_kept = num_shards - len(missing)
                print(f"harvest: {num_kept} of {num_shards} shards are unchanged and reused", file=sys.stderr)
            num_missing = sum(writer.shard_sequences(shard, split) for split, shard in missing)
            _check_free_space(own, spec, num_rows=num_missing * spec.rows_per_sequence)
            windows = packed_windows(own / "windows", source, config, folder=folder, identity=identity)
            if missing:
                harvest_shards(writer, missing, windows, spec=spec, folder=folder, device=device)
            manifest = writer.finish()
        lease.check()
        replace_folder(own / "cache", output)
        for finished in scratch.glob(f"{kin}-*"):
            shutil.rmtree(finished)
    return manifest


def cache_spec(
    config: HarvestConfig, *, identity: ModelIdentity, lineage: dict[str, JsonValue], compute_dtype: str
) -> CacheSpec:
    """Everything that decides the bytes of the cache, except how many of them there are."""
    return CacheSpec(
        model=identity,
        hooks=config.hooks,
        text=lineage,
        context_length=config.context_length,
        excluded_positions=("bos",),
        packing=PACKING,
        held_out_fraction=config.held_out_fraction,
        compute_dtype=compute_dtype,
        forward_batch_sequences=config.forward_batch_sequences,
        sequences_per_chunk=config.sequences_per_chunk,
        chunks_per_shard=config.chunks_per_shard,
        codec=config.codec,
        harvest_version=HARVEST_VERSION,
    )


def check_model_fits(config: HarvestConfig, identity: ModelIdentity, *, max_positions: int) -> None:
    """Raises ValueError where the model lacks a hooked layer or positions, or a shard would not fit in memory."""
    check_hooks(config.hooks, num_layers=identity.num_layers, model_name=identity.name)
    if config.context_length > max_positions:
        raise ValueError(
            f"expected a context_length of at most the {max_positions} positions of {identity.name}, got "
            f"{config.context_length}. Lower harvest.context_length"
        )
    shard_sequences = min(config.sequences_per_chunk * config.chunks_per_shard, config.num_sequences)
    shard_bytes = shard_sequences * config.rows_per_sequence * identity.d_model * 2
    if shard_bytes > MAX_SHARD_BYTES:
        raise ValueError(
            f"expected shards of at most {MAX_SHARD_BYTES / 1e9:.1f} GB a hook, because they are built in memory, got "
            f"{shard_bytes / 1e9:.1f} GB. Lower harvest.chunks_per_shard or sequences_per_chunk"
        )


def _adopt_earlier(writer: CacheWriter, output: Path, *, interrupted: Sequence[Path]) -> None:
    """Takes over shards from earlier outputs, and from runs with another budget that were interrupted."""
    for folder in interrupted:
        writer.adopt({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    for earlier in earlier_outputs(output.as_posix()):
        if not missing_shards(writer):
            return
        writer.adopt(earlier)


def missing_shards(writer: CacheWriter) -> list[tuple[Split, int]]:
    return [(split, shard) for split in SPLITS for shard in writer.missing_shards(split)]


def packed_windows(
    saved: Path, source: TextSource, config: HarvestConfig, *, folder: Path, identity: ModelIdentity
) -> Windows:
    """The token windows, from `saved` where an interrupted run left them: a large text is read once only."""
    if windows := load_windows(saved):
        return windows
    num_windows = config.num_sequences + config.num_held_out_sequences
    with tqdm(total=num_windows, unit="window", unit_scale=True, desc="tokens") as progress:
        windows = pack(
            source.documents(),
            load_tokenizer(folder),
            bos_token_id=identity.bos_token_id,
            vocab_size=identity.vocab_size,
            context_length=config.context_length,
            num_sequences=config.num_sequences,
            num_held_out_sequences=config.num_held_out_sequences,
            held_out_fraction=config.held_out_fraction,
            on_progress=progress.update,
        )
    save_windows(saved, windows)
    return windows


def _check_free_space(folder: Path, spec: CacheSpec, *, num_rows: int) -> None:
    num_bytes = num_rows * spec.model.d_model * 2 * len(spec.hooks) / BEST_COMPRESSION
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"expected at least {num_bytes / 1e9:.1f} GB of free space below {folder} for {num_rows} rows at "
            f"{len(spec.hooks)} hooks, got {free / 1e9:.1f} GB. Free some, or lower harvest.num_rows"
        )


def harvest_shards(
    writer: CacheWriter,
    shards: Sequence[tuple[Split, int]],
    windows: Windows,
    *,
    spec: CacheSpec,
    folder: Path,
    device: str,
) -> None:
    """Computes `shards`, while the writer's threads encode and write those before."""
    model = cut_model(load_model(folder, dtype=getattr(torch, spec.compute_dtype), device=device), spec.hooks)
    num_rows = (len(windows.training) + len(windows.held_out)) * spec.rows_per_sequence
    num_missing = sum(writer.shard_sequences(shard, split) for split, shard in shards) * spec.rows_per_sequence
    with tqdm(total=num_rows, initial=num_rows - num_missing, unit="row", unit_scale=True, desc="harvest") as progress:
        for split, shard in shards:
            first = shard * spec.sequences_per_shard
            every = windows.training if split == "training" else windows.held_out
            tokens = np.ascontiguousarray(every[first : first + writer.shard_sequences(shard, split)])
            rows = harvest_rows(
                model,
                tokens,
                d_model=spec.model.d_model,
                batch_sequences=spec.forward_batch_sequences,
                device=device,
                on_progress=progress.update,
            )
            sums = functools.partial(_sums, rows, first_sequence=first, rows_per_sequence=spec.rows_per_sequence)
            writer.submit_shard(shard, split=split, tokens=tokens, rows=rows, sums=sums)


def _sums(rows: dict[str, NDArray[np.uint16]], *, first_sequence: int, rows_per_sequence: int) -> dict[str, ShardSums]:
    return {
        hook: shard_sums(values, hook=hook, first_sequence=first_sequence, rows_per_sequence=rows_per_sequence)
        for hook, values in rows.items()
    }
