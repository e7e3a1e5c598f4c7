"""One harvest: what is known already is taken over, the rest is computed shard by shard, and the cache put in place.

A process that is killed loses the shard it was computing; the next run continues behind the committed ones.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue
from transformers import AutoConfig

from compute.code_version import tell_if_edited
from harvest.config import HarvestConfig
from harvest.estimate import check_free_space, check_model_fits
from harvest.shards import MAX_PENDING_BYTES, harvest_shards, missing_shards, packed_windows
from harvest.text import open_text
from harvest.tokens import PACKING
from harvest.version import HARVEST_VERSION
from language_model.config import LanguageModelConfig
from language_model.load import identify, resolve
from store.atomic import replace_folder
from store.cache.manifest import Manifest
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.care.dvc_versions import earlier_outputs
from store.identity import ModelIdentity
from store.lease import exclusive_lock
from store.write.writer import CacheWriter


def run(
    config: HarvestConfig, *, model: LanguageModelConfig, output: Path, scratch: Path, device: str, reuse: bool
) -> Manifest:
    """Makes `output` the activation cache of `config`; with `reuse`, shards of earlier outputs are taken over.

    Works in a folder of its own below `scratch`, which a killed run leaves for the next one; `output` stays as it is
    until the cache is complete. Raises ValueError (with what to do) for a model, text or setting that cannot be used,
    and `Busy` while another harvest runs.
    """
    tell_if_edited(HARVEST_VERSION, stage="harvest", where="harvest/version.py")
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
            check_free_space(own, spec, num_rows=num_missing * spec.rows_per_sequence)
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
    """Everything that decides the bytes of the cache, except how many of them there are.

    Code that was edited since its version was confirmed is a part of it: shards of other code are other shards.
    """
    edited = HARVEST_VERSION.edited()
    return CacheSpec(
        model=identity,
        hooks=config.hooks,
        text=lineage if edited is None else {**lineage, "edited_harvest_code": edited},
        context_length=config.context_length,
        excluded_positions=("bos",),
        packing=PACKING,
        held_out_fraction=config.held_out_fraction,
        compute_dtype=compute_dtype,
        forward_batch_sequences=config.forward_batch_sequences,
        sequences_per_chunk=config.sequences_per_chunk,
        chunks_per_shard=config.chunks_per_shard,
        codec=config.codec,
        harvest_version=HARVEST_VERSION.number,
    )


def _adopt_earlier(writer: CacheWriter, output: Path, *, interrupted: Sequence[Path]) -> None:
    """Takes over shards from earlier outputs, and from runs with another budget that were interrupted."""
    for folder in interrupted:
        writer.adopt({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    for earlier in earlier_outputs(output.as_posix()):
        if not missing_shards(writer):
            return
        writer.adopt(earlier)
